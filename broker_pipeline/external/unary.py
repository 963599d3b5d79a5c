"""A gRPC call for each package: where it is asked for, and where a server has no streams."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.external.calls import Call
from broker_pipeline.external.checking import lie
from broker_pipeline.external.endpoints import Endpoint, SessionEnd
from broker_pipeline.external.framing import request
from broker_pipeline.external.statuses import Verdict, told, verdict

RUN = "/broker_pipeline.v1.ModuleService/Run"
DESCRIBE = "/broker_pipeline.v1.ModuleService/Describe"
CONNECT_S = 5.0
"""Until a connection must be there, and until the server must have described itself."""
WINDOW_START = 32
WINDOW_MAX = 256
"""Calls outstanding at once: `Run` knows no credit. The window grows by one with each full window
of answers, and halves when there is no room."""


class UnarySession:
    """One connection. What is sent while it is not there has not begun, so it is watched."""

    def __init__(self, endpoint: Endpoint, channel: grpc.aio.Channel) -> None:
        self._endpoint = endpoint
        self._owner = endpoint.terms.owner
        self._standing = endpoint.standing
        self._metadata = endpoint.terms.metadata
        self._channel = channel
        self._run: Any = channel.unary_unary(RUN)
        self._describe: Any = channel.unary_unary(DESCRIBE)
        self._numbers = 0
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._calls: dict[int, Call] = {}
        self._window = float(WINDOW_START)
        self._closing = False
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # -- calls ----------------------------------------------------------------------------------
    def send(self, call: Call, now_ns: int) -> int:
        """See `Session.send`."""
        self._numbers += 1
        number = self._numbers
        self._calls[number] = call
        ahead = self._standing.outstanding - 1
        calling = self._call(number, call, now_ns, ahead)
        task = asyncio.get_running_loop().create_task(calling, name=f"run {call.package}")
        self._tasks[number] = task
        task.add_done_callback(lambda ended: self._ended(number, ended))
        return number

    def cancel(self, number: int) -> None:
        """See `Session.cancel`."""
        if self._calls.pop(number, None) is not None:
            self._standing.ended()
            self._tasks[number].cancel()

    def check(self, now_ns: int) -> None:
        """See `Session.check`: a server that hangs is found by its calls' deadlines."""

    def late(self, now_ns: int) -> None:
        """Nothing depends on when it was heard."""

    def end(self, why: str) -> None:
        """See `Session.end`."""
        calls, self._calls = self._calls, {}
        for call in reversed(calls.values()):
            self._standing.ended()
            self._owner.given_back(self._endpoint, call, begun=True, why=why)

    def _ended(self, number: int, task: asyncio.Task[None]) -> None:
        self._tasks.pop(number, None)
        if not task.cancelled() and (error := task.exception()) and not self._over.done():
            self._over.set_exception(error)  # nobody foresaw it

    async def _call(self, number: int, call: Call, sent_ns: int, ahead: int) -> None:
        left_ns = call.left_ns(sent_ns)
        message = request(0, call.data, left_ns, call.state, call.traceparent)
        timeout_s = left_ns / 1e9 if left_ns else None
        error: grpc.aio.AioRpcError | None = None
        raw = b""
        try:
            raw = await self._run(message, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as failure:
            error = failure
        if self._calls.pop(number, None) is None:
            return  # cancelled meanwhile
        self._standing.ended()
        now_ns = time.monotonic_ns()
        if error is None:
            self._take(call, raw, sent_ns, now_ns, ahead)
        else:
            self._failed(call, error, now_ns)
        self._owner.moved()

    def _take(self, call: Call, raw: bytes, sent_ns: int, now_ns: int, ahead: int) -> None:
        endpoint, standing = self._endpoint, self._standing
        try:
            response = service.RunResponse.FromString(raw)
            wrong = lie(response, call.package, endpoint.terms.stateful, call.pipeline)
        except DecodeError:
            wrong = f"it sends what is no RunResponse: {raw[:40]!r} of {len(raw)} bytes"
        if wrong is not None:
            endpoint.eject(wrong)
            self._owner.given_back(endpoint, call, begun=True, why=wrong)
        elif response.status == pb.STATUS_WAITING:
            self._narrow()
            if standing.failed(now_ns, 0.5):
                endpoint.trouble = "it refuses packages"
            self._owner.given_back(endpoint, call, begun=False, why="it has no room for a package")
        else:
            if self._window < WINDOW_MAX:
                self._window += 1 / self._window
            self._grant()
            error = response.status == pb.STATUS_ERROR
            standing.answered(sent_ns, now_ns, ahead, error=error)
            if response.HasField("load"):
                load = response.load
                standing.reported(load.running, load.waiting, load.run_time_ns)
            self._owner.answered(endpoint, call, response, sent_ns, now_ns)

    def _failed(self, call: Call, error: grpc.aio.AioRpcError, now_ns: int) -> None:
        endpoint, owner = self._endpoint, self._owner
        code = error.code()
        found = verdict(code)
        why = f"Run ended with {told(code, error.details())}"
        if found is Verdict.PACKAGE_FAILED:
            owner.spoiled(endpoint, call, why)
        elif found is Verdict.REFUSED:
            endpoint.refuse(why)
            owner.given_back(endpoint, call, begun=False, why=why)
        elif found is Verdict.TIMED_OUT and call.deadline_ns is not None and (
            now_ns >= call.deadline_ns
        ):  # fmt: skip
            owner.timed_out(endpoint, call)
        else:
            if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                self._narrow()
            endpoint.call_failed(why)
            owner.given_back(endpoint, call, begun=True, why=why)

    def _narrow(self) -> None:
        self._window = max(1.0, self._window / 2)
        self._grant()

    def _grant(self) -> None:
        if not self._closing:
            self._endpoint.grant(int(self._window))

    # -- the connection -------------------------------------------------------------------------
    async def run(self) -> None:
        """See `Session.run`."""
        try:
            await self._connect()
            await self._describe_itself()
            self._endpoint.grant(int(self._window))
            self._owner.moved()
            loop = asyncio.get_running_loop()
            ready = grpc.ChannelConnectivity.READY
            change = loop.create_task(self._channel.wait_for_state_change(ready))
            try:
                await asyncio.wait((change, self._over), return_when=asyncio.FIRST_COMPLETED)
            finally:
                change.cancel()
                await asyncio.wait((change,))
            if self._over.done():
                self._over.result()
            self._closing = True
            self._standing.credit = 0
            while self._tasks:  # an orderly close lets them finish; they say how they ended
                await asyncio.wait(list(self._tasks.values()))
            raise SessionEnd("the connection is closed", loud=False)
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def _connect(self) -> None:
        states = grpc.ChannelConnectivity
        try:
            async with asyncio.timeout(CONNECT_S):
                state = self._channel.get_state(try_to_connect=True)
                while state is not states.READY:
                    if state in (states.TRANSIENT_FAILURE, states.SHUTDOWN):
                        raise SessionEnd("nobody takes connections there")
                    await self._channel.wait_for_state_change(state)
                    state = self._channel.get_state(try_to_connect=True)
        except TimeoutError:
            raise SessionEnd(f"no connection came about within {CONNECT_S:g} s") from None

    async def _describe_itself(self) -> None:
        try:
            raw: Any = await self._describe(b"", timeout=CONNECT_S, metadata=self._metadata)
            answer = service.DescribeResponse.FromString(raw)
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if code is grpc.StatusCode.UNIMPLEMENTED:
                return  # it need not
            why = f"Describe ended with {told(code, error.details())}"
            raise SessionEnd(why, refused=verdict(code) is Verdict.REFUSED) from None
        except DecodeError:
            raise SessionEnd("it sends what is no DescribeResponse") from None
        self._endpoint.described(answer.description)
        self._window = max(self._window, min(WINDOW_MAX, 2.0 * answer.description.capacity))
