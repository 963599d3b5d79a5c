"""A module server that is nothing but grpc.aio and the .proto, and answers in any order."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline._proto.v1 import module_service_pb2_grpc as stubs
from broker_pipeline.journey import STATUS_TO_PB

CREDIT = 64
DELAY_S_MAX = 0.02
"""Packages overtake each other, and a kill finds some under way."""


def upper(request: Any) -> Any:
    """Upper case; a number that ends in 7 is an EXIT, one that ends in 9 an ERROR."""
    data = request.package.data
    ending = {b"7": "EXIT", b"9": "ERROR"}.get(data[-1:], "SUCCESS")
    answer = service.RunResponse(
        call=request.call, package=request.package.id, status=STATUS_TO_PB[ending]
    )
    answer.modules.add(name="Upper", status=STATUS_TO_PB[ending])
    if ending == "SUCCESS":
        answer.payload.data = data.upper()
    if ending == "ERROR":
        answer.errors.append(pb.Error(type="ValueError", message="nine"))
        answer.modules[0].error = 1
    return answer


class DelayingServer(stubs.ModuleServiceServicer):
    """Serves `upper` after a while that chance decides.

    Attributes:
        runs: how often each package began, by its id.
        held: how many are under way, by their caller's stream; none that has none.
        opened: cleared, none is answered.
    """

    def __init__(self, name: str, seed: int) -> None:
        self.runs: dict[int, int] = {}
        self.held: Counter[object] = Counter()
        self.opened = asyncio.Event()
        self.opened.set()
        self._chance = random.Random(seed)
        self._description = service.Description(name=name, server=f"delaying-{seed}")
        self._server = grpc.aio.server()
        stubs.add_ModuleServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    async def __aenter__(self) -> DelayingServer:
        """Serve."""
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End at once."""
        await self._server.stop(0)

    async def Describe(self, request: Any, context: Any) -> Any:
        """See the .proto."""
        return service.DescribeResponse(description=self._description)

    async def Stream(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """See the .proto."""
        yield service.StreamResponse(credit=CREDIT, description=self._description)
        answers: asyncio.Queue[Any] = asyncio.Queue()
        reading = asyncio.create_task(self._read(requests, answers))
        try:
            while (answer := await answers.get()) is not None:
                yield service.StreamResponse(responses=[answer])
        finally:
            reading.cancel()

    async def _read(self, requests: AsyncIterator[Any], answers: asyncio.Queue[Any]) -> None:
        try:
            async with asyncio.TaskGroup() as running:
                async for message in requests:
                    for request in message.requests:
                        running.create_task(self._run(request, answers))
        finally:
            answers.put_nowait(None)

    async def _run(self, request: Any, answers: asyncio.Queue[Any]) -> None:
        number = request.package.id
        self.runs[number] = self.runs.get(number, 0) + 1
        self.held[answers] += 1
        try:
            await asyncio.sleep(self._chance.random() * DELAY_S_MAX)
            await self.opened.wait()
        finally:
            self.held[answers] -= 1
            self.held += Counter()  # forget who has none
        answers.put_nowait(upper(request))
