"""A stream to a module server: many packages at once, several in a message (docs/adr/0021)."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.external.calls import Call
from broker_pipeline.external.checking import lie
from broker_pipeline.external.endpoints import Endpoint, SessionEnd
from broker_pipeline.external.framing import OVERHEAD_BYTES, append_request
from broker_pipeline.external.statuses import Verdict, told, verdict

METHOD = "/broker_pipeline.v1.ModuleService/Stream"
FIRST_S = 5.0
"""Until a server that is connected to must have sent its first message."""
BATCH_BYTES_MAX = 1 << 20
"""Requests that wait go out in one message up to this; a larger one goes alone."""
BATCH_MAX = 512
"""And so many: the server answers the first only when it has read them all."""
SILENCES = 3
"""A server that has been silent for so many heartbeats hangs."""
SILENCE_MIN_NS = 1_000_000_000
"""However often it promised: a busy machine may be as late."""
DEAD_NS = 20_000_000_000
"""A server that promised heartbeats and has been silent for so long is given up with all it has.
As long as gRPC's pings take, which a proxy may answer for a server that is stopped."""
DROPPED_MAX = 20_000
"""Calls that were cancelled and may be answered all the same, as remembered."""

_OPEN_ENDS = (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError)


class StreamSession:
    """One stream, from its opening to its end."""

    def __init__(self, endpoint: Endpoint, channel: grpc.aio.Channel) -> None:
        self._endpoint = endpoint
        self._owner = endpoint.terms.owner
        self._standing = endpoint.standing
        self._stateful = endpoint.terms.stateful
        self._open: Any = channel.stream_stream(METHOD)
        self._stream: Any = None
        self._pending: dict[int, tuple[Call, int, int]] = {}
        self._unsent: deque[int] = deque()
        self._cancelled: list[int] = []
        self._dropped: dict[int, None] = {}
        self._numbers = 0
        self._wake: asyncio.Future[None] | None = None
        self._heard_ns = 0
        self._silence_ns = 0
        self._stalled = False
        self._broken = ""

    # -- calls ----------------------------------------------------------------------------------
    def send(self, call: Call, now_ns: int) -> int:
        """See `Session.send`. It goes out with all that come in this turn of the loop."""
        self._numbers += 1
        number = self._numbers
        self._pending[number] = (call, now_ns, self._standing.outstanding - 1)
        self._unsent.append(number)
        self._wake_writer()
        return number

    def cancel(self, number: int) -> None:
        """See `Session.cancel`."""
        if self._pending.pop(number, None) is None:
            return
        self._standing.ended()
        self._dropped[number] = None
        if len(self._dropped) > DROPPED_MAX:
            del self._dropped[next(iter(self._dropped))]
        self._cancelled.append(number)
        self._wake_writer()

    def end(self, why: str) -> None:
        """See `Session.end`. What was handed to the stream may have begun."""
        unsent = set(self._unsent)
        pending, self._pending = self._pending, {}
        # The last first: each goes to the front of those that wait.
        for number, (call, _, _) in reversed(pending.items()):
            self._standing.ended()
            begun = number not in unsent
            self._owner.given_back(self._endpoint, call, begun=begun, why=why)

    def check(self, now_ns: int) -> None:
        """See `Session.check`. A server that hangs gives back what may be repeated; all else waits
        for it until its deadline, the connection's end or DEAD_NS."""
        if not self._silence_ns or now_ns - self._heard_ns < self._silence_ns:
            return
        why = (
            f"it has been silent for {(now_ns - self._heard_ns) / 1e9:.1f} s and promised to be "
            f"heard more often"
        )
        if not self._stalled:
            self._stalled = True
            self._endpoint.eject(why)
            if self._endpoint.terms.idempotent:
                self.end(why)
        if not self._pending or now_ns - self._heard_ns >= DEAD_NS:
            self._break_off(why)

    def late(self, now_ns: int) -> None:
        """This process was not there for a while: nobody is silent because of that."""
        self._heard_ns = max(self._heard_ns, now_ns)

    def _break_off(self, why: str) -> None:
        if not self._broken:
            self._broken = why
            if self._stream is not None:
                self._stream.cancel()

    # -- the stream -----------------------------------------------------------------------------
    async def run(self) -> None:
        """See `Session.run`."""
        self._stream = self._open(metadata=self._endpoint.terms.metadata)
        loop = asyncio.get_running_loop()
        name = f"write {self._endpoint.place.key}"
        writer = loop.create_task(self._write(), name=name)
        writer.add_done_callback(lambda _: self._stream.cancel())
        try:
            await self._read()
        except grpc.aio.AioRpcError as error:
            raise self._ended_with(error) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            if writer.done() and not writer.cancelled():
                writer.result()  # it ended by an error that nobody foresaw
            raise SessionEnd(self._broken or "the stream was cancelled") from None
        finally:
            writer.cancel()
            await asyncio.wait([writer])
            self._stream.cancel()

    def _ended_with(self, error: grpc.aio.AioRpcError) -> SessionEnd:
        if self._broken:
            return SessionEnd(self._broken)
        code = error.code()
        why = f"its stream ended with {told(code, error.details())}"
        if code is grpc.StatusCode.UNIMPLEMENTED and not self._heard_ns:
            return SessionEnd(why, only_run=True)
        return SessionEnd(why, refused=verdict(code) is Verdict.REFUSED)

    async def _read(self) -> None:
        read, now_ns = self._stream.read, time.monotonic_ns
        try:
            async with asyncio.timeout(FIRST_S):
                raw = await read()
        except TimeoutError:
            raise SessionEnd(f"no message came within {FIRST_S:g} s of connecting") from None
        while raw is not grpc.aio.EOF:
            self._heard_ns = now_ns()
            self._stalled = False
            try:
                self._take(service.StreamResponse.FromString(raw), self._heard_ns)
            except DecodeError:
                raise SessionEnd(
                    f"it sends what is no StreamResponse: {raw[:40]!r} of {len(raw)} bytes"
                ) from None
            raw = await read()
        raise SessionEnd("it has ended the stream", loud=bool(self._pending))

    def _take(self, message: service.StreamResponse, now_ns: int) -> None:
        if message.HasField("description"):
            self._endpoint.described(message.description)
            self._silence_ns = SILENCES * message.description.heartbeat_ns
            if self._silence_ns:
                self._silence_ns = max(self._silence_ns, SILENCE_MIN_NS)
        refused = False
        standing, pending = self._standing, self._pending
        for response in message.responses:
            number = response.call
            entry = pending.get(number)
            if entry is None:
                if number in self._dropped:
                    del self._dropped[number]
                    continue
                raise SessionEnd(f"it answers call {number}, which is not outstanding")
            call, sent_ns, ahead = entry
            wrong = lie(response, call.package, self._stateful, call.pipeline)
            if wrong is not None:
                raise SessionEnd(wrong)
            del pending[number]
            standing.ended()
            if response.status == pb.STATUS_WAITING:
                refused = True
                self._owner.given_back(
                    self._endpoint, call, begun=False, why="it has no room for a package"
                )
            else:
                error = response.status == pb.STATUS_ERROR
                standing.answered(sent_ns, now_ns, ahead, error=error)
                self._owner.answered(self._endpoint, call, response, sent_ns, now_ns)
        if message.HasField("credit"):
            self._endpoint.grant(message.credit)
        if message.HasField("load"):
            load = message.load
            standing.reported(load.running, load.waiting, load.run_time_ns)
        if refused and standing.credit > standing.outstanding:
            self._endpoint.eject("it refuses packages within its credit", loud=False)
        self._owner.moved()

    def _wake_writer(self) -> None:
        wake = self._wake
        if wake is not None and not wake.done():
            wake.set_result(None)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._unsent and not self._cancelled:
                self._wake = loop.create_future()
                await self._wake
                continue
            message = self._batch(time.monotonic_ns())
            if message:
                try:
                    await self._stream.write(message)
                except _OPEN_ENDS:
                    # The reader learns why. What was not taken has not begun.
                    await loop.create_future()

    def _batch(self, now_ns: int) -> bytes:
        parts: list[bytes] = []
        if self._cancelled:
            cancelled, self._cancelled = self._cancelled, []
            parts.append(service.StreamRequest(cancelled=cancelled).SerializeToString())
        unsent, pending = self._unsent, self._pending
        bytes_max = min(BATCH_BYTES_MAX, self._endpoint.bytes_max)
        size = count = 0
        while unsent and count < BATCH_MAX:
            entry = pending.get(unsent[0])
            if entry is None:  # cancelled before it was sent
                unsent.popleft()
                continue
            call = entry[0]
            need = len(call.data) + OVERHEAD_BYTES + (len(call.state) if call.state else 0)
            if parts and size + need > bytes_max:
                break
            left_ns = call.left_ns(now_ns)
            number = unsent.popleft()
            append_request(parts, number, call.data, left_ns, call.state, call.traceparent)
            size += need
            count += 1
        return b"".join(parts)
