"""`broker_pipeline.v1.ModuleService`: the methods that callers see, over what runs a module."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.errors import ModuleTimeoutError, PayloadTooLargeError
from broker_pipeline.external.deadlines import Deadlines
from broker_pipeline.external.hosting import Call, ModuleHost, failed, not_begun
from broker_pipeline.external.streams import Stream, no_package
from broker_pipeline.external.windows import share
from broker_pipeline.journey import NS

SERVICE = service.DESCRIPTOR.services_by_name["ModuleService"].full_name
BEATS = 4
"""How often in a heartbeat's period streams are looked after."""
STREAMS_MAX = 1024
"""Streams at the same time; each has a window of at least 1."""


class Servicer:
    """The service.

    Requests come in as bytes: what is none of our messages is then answered by us.

    Attributes:
        draining: nothing is begun any more.
        answer_bytes_max: what an answer may have, so that a caller takes it.
    """

    def __init__(self, host: ModuleHost, *, message_bytes_max: int, heartbeat_s: float) -> None:
        self.host = host
        self.draining = False
        self.answer_bytes_max = message_bytes_max - _HEADROOM_BYTES
        self.description = service.Description()
        self.description.CopyFrom(host.description)
        self.description.message_bytes_max = message_bytes_max
        self.description.heartbeat_ns = round(heartbeat_s * NS)
        self._heartbeat_s = heartbeat_s
        self._streams: set[Stream] = set()
        self._runs: set[Call] = set()
        self._deadlines = Deadlines(self._calls, self._expire)
        self._beating: asyncio.Task[None] | None = None

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """For gRPC: the methods by name."""
        return {
            "Describe": grpc.unary_unary_rpc_method_handler(self.describe),
            "Run": grpc.unary_unary_rpc_method_handler(self.run),
            "Stream": grpc.stream_stream_rpc_method_handler(self.stream),
        }

    def start(self) -> None:
        """Begin to send heartbeats."""
        self._beating = asyncio.create_task(self._beat(), name="heartbeats")

    def drain(self) -> None:
        """Begin nothing more: what waits is given back, what runs is finished."""
        self.draining = True
        for call in self.host.withdraw():
            call.answered(call, not_begun(call.request))
        for stream in self._streams:
            stream.drain()

    @property
    def empty(self) -> bool:
        """Whether nobody is owed an answer, and no stream is open."""
        return not self._streams and not self._runs

    async def close(self) -> None:
        """Let go of what runs on its own."""
        self._deadlines.close()
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait((self._beating,))

    # -- the methods ----------------------------------------------------------------------------
    async def describe(self, raw: bytes, context: Any) -> bytes:
        """What is served here; whatever the request says."""
        return service.DescribeResponse(description=self.description).SerializeToString()

    async def run(self, raw: bytes, context: Any) -> bytes:
        """Run one package. Beyond the host's window, and one more for each package that it can run
        at the same time, it is not begun; nor where the host can run nothing."""
        try:
            request = service.RunRequest.FromString(raw)
        except DecodeError as error:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"{len(raw)} bytes are no RunRequest ({error}); expected the message that "
                f"module_service.proto describes",
            )
        if not request.HasField("package"):
            response = failed(request, no_package(), self.description)
        elif self.draining or len(self._runs) >= self._runs_max():
            response = not_begun(request)
        else:
            response = await self._answer(request, context.time_remaining())
        response.load.CopyFrom(self.host.load())
        return response.SerializeToString()

    async def stream(self, requests: object, context: Any) -> None:
        """Run many packages."""
        if len(self._streams) >= STREAMS_MAX:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{STREAMS_MAX} streams are open; a caller needs one or a few",
            )
        stream = Stream(self, context)
        self._streams.add(stream)
        self.rebalance()
        if self.draining:
            stream.drain()
        else:
            stream.grant(self._share())
        try:
            await stream.serve()
        finally:
            self._streams.discard(stream)
            self.rebalance()

    # -- what streams and the host need -----------------------------------------------------------
    def begin(self, calls: Sequence[Call]) -> None:
        """Run packages, but those whose time is over already."""
        now_ns = time.monotonic_ns()
        in_time: list[Call] = []
        for call in calls:
            if call.deadline_ns is None or call.deadline_ns > now_ns:
                in_time.append(call)
            else:
                self._expire(call)
        self._deadlines.watch(in_time)
        self.host.submit(in_time)

    def rebalance(self) -> None:
        """The host's window may have changed, or the number of streams has."""
        if not self.draining:
            credit = self._share()
            for stream in self._streams:
                stream.adjust(credit)

    def too_large(self, call: Call, size: int) -> service.RunResponse:
        """Instead of an answer that the caller would not take."""
        error = PayloadTooLargeError(
            f"the answer to package {call.request.package.id} has {size} bytes; expected at most "
            f"{self.answer_bytes_max}: make the payload or the state smaller",
            size=size,
        )
        return failed(call.request, error, self.description)

    async def _answer(
        self, request: service.RunRequest, remaining_s: float | None
    ) -> service.RunResponse:
        now_ns = time.monotonic_ns()
        bounds = [request.timeout_ns] if request.timeout_ns else []
        bounds += [] if remaining_s is None else [max(1, round(remaining_s * NS))]
        answer: asyncio.Future[service.RunResponse] = asyncio.get_running_loop().create_future()

        def answered(call: Call, response: service.RunResponse) -> None:
            if not answer.done():
                answer.set_result(response)

        call = Call(request, answered, now_ns, now_ns + min(bounds) if bounds else None)
        self._runs.add(call)
        try:
            self.begin([call])
            response = await answer
        finally:
            self._runs.discard(call)
            self.host.drop(call)
        size = response.ByteSize()
        return response if size <= self.answer_bytes_max else self.too_large(call, size)

    def _runs_max(self) -> int:
        window = self.host.window
        return window + self.description.capacity if window else 0

    def _share(self) -> int:
        return 0 if self.draining else share(self.host.window, len(self._streams))

    def _calls(self) -> Iterator[Call]:
        yield from self._runs
        for stream in self._streams:
            yield from stream.calls.values()

    def _expire(self, call: Call) -> None:
        self.host.drop(call)
        bound_s = ((call.deadline_ns or 0) - call.arrived_ns) / NS
        error = ModuleTimeoutError(
            f"module {self.description.name!r} did not finish within the {bound_s:g} s that its "
            f"caller had left; make it faster, start more servers, or give it more time",
            module=self.description.name,
        )
        call.answered(call, failed(call.request, error, self.description))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s / BEATS)
            credit = self._share()
            for stream in self._streams:
                stream.beat(credit, self._heartbeat_s)


_HEADROOM_BYTES = 1024
"""What load, credit and the description may take of a message beside its answers."""
