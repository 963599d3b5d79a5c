"""Executors and packages for these tests; nothing here sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.journey import Mode
from broker_pipeline.modules import Module
from broker_pipeline.package import DataPackage
from broker_pipeline.pipeline import Controller, Phase
from broker_pipeline.runtime.execution.executor import Finished, Job, PhaseExecutor

BOUND_S = 20.0


def package(data: bytes = b"raw", number: int = 1, **fields: Any) -> DataPackage[Any]:
    """A package as a controller dispatches it."""
    envelope = pb.DataPackage(id=number, pipeline="p", data=data, sequence=number, **fields)
    envelope.controllers.add(name="c", sequence=number)
    return DataPackage.wrap(envelope)


class Desk:
    """A started executor and what it has delivered."""

    def __init__(self, modules: Sequence[Module[Any]], **options: Any) -> None:
        phase = Phase("ph", modules)
        controller = Controller("c", [phase], Mode.NOT_PARALLEL)
        given: dict[str, Any] = {"slots": 2, "target": None, **options}
        self.finished: list[Finished] = []
        self._news = asyncio.Event()
        self.executor = PhaseExecutor(
            controller, phase, types={}, worker="w", host="h", deliver=self._deliver, **given
        )

    def _deliver(self, finished: list[Finished]) -> None:
        self.finished += finished
        self._news.set()

    def submit(self, *packages: DataPackage[Any], states: Any = None) -> None:
        """Queue packages; the token of each is its number."""
        self.executor.submit([Job(each, each.envelope.id, states) for each in packages])

    async def until(self, count: int) -> list[Finished]:
        """Wait until so many have been delivered."""
        async with asyncio.timeout(BOUND_S):
            while len(self.finished) < count:
                self._news.clear()
                await self._news.wait()
        return self.finished

    async def run(self, *packages: DataPackage[Any], states: Any = None) -> list[Finished]:
        """Submit, and wait for all of them."""
        count = len(self.finished) + len(packages)
        self.submit(*packages, states=states)
        return await self.until(count)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that another thread brings about."""
    async with asyncio.timeout(BOUND_S):
        while not condition():  # noqa: ASYNC110 - a thread brings it about, without an event
            await asyncio.sleep(0)


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Any]]:
    """Start executors; they are closed at the end of the test."""
    desks: list[Desk] = []

    async def begin(*modules: Module[Any], **options: Any) -> Desk:
        desk = Desk(modules, **options)
        await desk.executor.start()
        desks.append(desk)
        return desk

    yield begin
    for desk in desks:
        await desk.executor.close()
