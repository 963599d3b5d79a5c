"""Modules that batch, for tests."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from broker_pipeline.journey import NS
from broker_pipeline.modules import (
    ExecutionModule,
    ModuleOptions,
)
from broker_pipeline.package import DataPackage

from .conftest import BOUND_S, Desk, package, until


class Gpu(ExecutionModule[bytes]):
    """Does with each package what its payload says, and keeps what it was given."""

    def __init__(self, max_batch: int = 4, max_delay_ms: float = 0.0, **options: Any) -> None:
        options = {"max_batch": max_batch, "max_delay_ms": max_delay_ms, **options}
        super().__init__(name="gpu", options=ModuleOptions(**options))
        self.batches: list[list[bytes]] = []
        self.running = 0
        self.most = 0
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()

    def execute_batch(self, packages: Any, runs: Any) -> Any:
        self.batches.append([p.data for p in packages])
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for each, run in zip(packages, runs, strict=True):
                self.one(each, run)
        finally:
            self.running -= 1

    def one(self, package: Any, run: Any) -> None:
        word = package.data
        package.data = word + b"!"
        package.attributes["gpu"] = "seen"
        run.message = f"was {word.decode()}"
        if word.startswith(b"hold"):
            self.entered.release()
            assert self.open.wait(BOUND_S)
        if word.startswith(b"bad"):
            raise ValueError(word.decode())
        if word.startswith(b"exit"):
            run.exit("raised")
        if word.startswith(b"fail"):
            run.fail(KeyError(word.decode()))
        if word.startswith(b"leave"):
            run.leave("recorded")

    def teardown(self) -> None:
        self.open.set()


class Clock:
    """The executor's clock, which stands still until it is told."""

    def __init__(self) -> None:
        self.now_ns = NS

    def __call__(self) -> int:
        return self.now_ns

    def pass_s(self, seconds: float) -> None:
        self.now_ns += round(seconds * NS)


class AsyncGpu(Gpu):
    """The same as a coroutine; `hold` waits until it is cancelled, or the gate opens."""

    stubborn = False
    cancelled = 0

    async def execute_batch(self, packages: Any, runs: Any) -> None:
        self.batches.append([p.data for p in packages])
        for each, run in zip(packages, runs, strict=True):
            if each.data.startswith(b"hold"):
                await self.hold()
            else:
                self.one(each, run)

    async def hold(self) -> None:
        self.entered.release()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            while self.stubborn and not self.open.is_set():  # noqa: ASYNC110 - set by a thread
                await asyncio.sleep(0)
            raise


class Append(ExecutionModule[bytes]):
    def execute(self, package: Any, run: Any) -> None:
        package.data = package.data + b"+"


def many(*words: bytes, first: int = 1) -> list[DataPackage[Any]]:
    return [package(word, number) for number, word in enumerate(words, first)]


def gathering(desk: Desk) -> int:
    """How many wait for a batch."""
    batchers = desk.executor._batches._batchers.values()
    return sum(len(batcher._gathering) for batcher in batchers)


async def busy(desk: Desk, gpu: Gpu) -> None:
    """A batch runs, until the gate opens: what comes now gathers."""
    desk.submit(package(b"hold", 1000))
    await until(lambda: gpu.entered.acquire(blocking=False))


def by_token(desk: Desk) -> dict[Any, Any]:
    return {each.job.token: each for each in desk.finished}
