"""A relay without gRPC: servers as a function from a package to what comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.external.port import Answer, RelayState, WithdrawnError
from broker_pipeline.journey import STATUS_TO_PB
from broker_pipeline.modules import ExternalModule

Behave = Callable[[pb.DataPackage, bytes | None], service.RunResponse]


def said(status: str = "SUCCESS", *, data: bytes | None = None, **fields: Any) -> Any:
    """A server's answer; with `data` the payload is changed."""
    response = service.RunResponse(status=STATUS_TO_PB[status], **fields)
    if data is not None:
        response.payload.data = data
    return response


def upper(package: pb.DataPackage, state: bytes | None) -> service.RunResponse:
    """What most of these servers do."""
    return said(data=package.data.upper())


class FakeRelay:
    """Servers with room for so many packages at a time, which answer when the test lets them.

    Attributes:
        seen: what servers got: payload, state and deadline.
        answering: cleared, servers keep what they have.
    """

    def __init__(self, module: ExternalModule, grown: Callable[[], None], servers: Servers) -> None:
        self.module = module
        self.grown = grown
        self._of = servers
        self._inside = 0
        self._changed = asyncio.Event()
        self._withdrawn = False
        self.loop = asyncio.get_running_loop()
        self.closed = False
        self.failed: BaseException | None = None

    async def start(self) -> None:
        """As the contract says."""
        if self._of.mismatch is not None:
            raise self._of.mismatch

    def state(self) -> RelayState:
        """As the contract says."""
        return RelayState({"good": 1}, self._inside, self._inside, self._of.room, 0, 0)

    async def call(
        self,
        package: pb.DataPackage,
        *,
        state: bytes | None,
        deadline_ns: int | None,
        traceparent: str = "",
    ) -> Answer:
        """Wait for room, then for the answer."""
        assert asyncio.get_running_loop() is self.loop, "a relay is called on its own loop"
        while self._inside >= self._of.room:
            if self._withdrawn:
                raise WithdrawnError
            await self._wait()
        self._inside += 1
        sent_ns = time.monotonic_ns()
        self._of.seen.append((package.data, state, deadline_ns))
        try:
            while not self._of.answering.is_set():
                await self._wait()
            response = self._of.behave(package, state)
        finally:
            self._inside -= 1
            self.news()
        return Answer(response, "gpu-1", sent_ns, time.monotonic_ns())

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def withdraw(self) -> None:
        """As the contract says."""
        self._withdrawn = True
        self._changed.set()

    @property
    def room(self) -> int:
        """As the contract says."""
        return max(0, self._of.room - self._inside)

    @property
    def servers(self) -> int:
        """One, unless there is no room at all."""
        return int(self._of.room > 0)

    def news(self) -> None:
        """The test has changed something."""
        self._changed.set()
        self.grown()

    async def close(self) -> None:
        """As the contract says."""
        self.closed = True


class Servers:
    """What the relays of a test are connected to; also their factory."""

    def __init__(self, behave: Behave = upper, *, room: int = 100, answering: bool = True) -> None:
        self.behave = behave
        self.room = room
        self.relays: list[FakeRelay] = []
        self.seen: list[tuple[bytes, bytes | None, int | None]] = []
        self.mismatch: Exception | None = None
        self.answering = asyncio.Event()
        if answering:
            self.answering.set()

    def __call__(self, module: ExternalModule, grown: Callable[[], None]) -> FakeRelay:
        """See `RelayFactory`."""
        self.relays.append(FakeRelay(module, grown, self))
        return self.relays[-1]

    def change(self, *, room: int | None = None, answering: bool | None = None) -> None:
        """Servers come or go, or begin to answer."""
        if room is not None:
            self.room = room
        if answering:
            self.answering.set()
        elif answering is False:
            self.answering.clear()
        for relay in self.relays:
            relay.news()
