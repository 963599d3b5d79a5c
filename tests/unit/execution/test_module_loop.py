"""Phases with async modules, on the module loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from broker_pipeline.journey import Status
from broker_pipeline.modules import (
    CombinationModule,
    ConditionModule,
    ExecutionModule,
    ModuleOptions,
)
from broker_pipeline.package import DataPackage
from broker_pipeline.runtime.execution.executor import Job

from .conftest import BOUND_S, package, until


class Async(ExecutionModule[bytes]):
    async def execute(self, package: Any, run: Any) -> None:
        await asyncio.sleep(0)
        package.data = package.data + b"a"


class Sync(ExecutionModule[bytes]):
    def execute(self, package: Any, run: Any) -> None:
        package.data = package.data + b"s"


class Hangs(ExecutionModule[bytes]):
    """Waits for ever, and when cancelled does as it was told."""

    def __init__(self, *, stubborn: bool = False, **options: Any) -> None:
        super().__init__(options=ModuleOptions(**options))
        self.stubborn = stubborn
        self.running = 0
        self.cancelled = threading.Event()
        self.open = threading.Event()

    async def execute(self, package: Any, run: Any) -> None:
        if package.data == b"pass":
            return
        self.running += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            while self.stubborn and not self.open.is_set():  # noqa: ASYNC110 - set by a thread
                await asyncio.sleep(0)
            package.data = b"late"


async def test_sync_and_async_modules_mix(start: Any) -> None:
    """Every async def runs off the event loop of the worker; order is kept within a package."""
    choice: ConditionModule[bytes] = ConditionModule(
        Async(), condition=lambda p: p.data.endswith(b"s")
    )
    desk = await start(Async(), Sync(), CombinationModule([choice, Sync()]), slots=3)
    finished = await desk.run(*(package(b"", number=n) for n in range(100)))
    assert {f.envelope.data for f in finished} == {b"asas"}
    assert desk.executor.idle


async def test_at_most_slots_packages_run_at_once(start: Any) -> None:
    """The others wait, and are run when one ends."""
    hangs = Hangs(timeout_s=0.05)
    desk = await start(hangs, slots=2)
    desk.submit(*(package(number=n) for n in range(5)))
    await until(lambda: hangs.running == 2)
    assert len(desk.executor._flow.running) == 2
    await desk.until(5)
    assert hangs.running == 5


async def test_a_timeout_cancels_and_the_late_code_changes_nothing(start: Any) -> None:
    """Its slot is not lost: it came back."""
    hangs = Hangs(timeout_s=0.01)
    desk = await start(hangs, slots=2)
    (finished,) = await desk.run(package())
    await until(hangs.cancelled.is_set)
    await until(lambda: not desk.executor._flow.running)
    assert (finished.status, finished.envelope.data) == (Status.ERROR, b"raw")
    assert finished.envelope.errors[0].type == "ModuleTimeoutError"
    assert desk.executor.lost_slots == 0
    assert len(desk.finished) == 1


async def test_a_module_that_ignores_the_cancellation_loses_its_slot(
    start: Any, monkeypatch: Any
) -> None:
    """After a grace, and until it comes back; others take its place."""
    monkeypatch.setattr("broker_pipeline.runtime.execution.executor.LOST_GRACE_S", 0.01)
    hangs = Hangs(timeout_s=0.01, stubborn=True)
    desk = await start(hangs, slots=3)
    await desk.run(package())
    await until(lambda: desk.executor.lost_slots == 1)
    assert (await desk.run(package(b"pass", 2)))[-1].status is Status.SUCCESS
    hangs.open.set()
    await until(lambda: desk.executor.lost_slots == 0)


async def test_blocking_code_on_the_module_loop_does_not_stop_the_timer(start: Any) -> None:
    """An `async def` that blocks is the user's fault; the package ends in time all the same."""
    gate = threading.Event()

    class Blocks(ExecutionModule[bytes]):
        options = ModuleOptions(timeout_s=0.01)

        async def execute(self, package: Any, run: Any) -> None:
            assert gate.wait(BOUND_S)

    desk = await start(Blocks(), slots=2)
    (finished,) = await desk.run(package())
    assert finished.status is Status.ERROR
    gate.set()


async def test_a_late_sync_module_in_a_mixed_phase_keeps_its_slot_until_it_is_back(
    start: Any, monkeypatch: Any
) -> None:
    """A cancelled task must not make the thread under it look free."""
    monkeypatch.setattr("broker_pipeline.runtime.execution.executor.LOST_GRACE_S", 0.0)
    gate = threading.Event()

    class Blocks(ExecutionModule[bytes]):
        options = ModuleOptions(timeout_s=0.01)

        def execute(self, package: Any, run: Any) -> None:
            assert gate.wait(BOUND_S)
            package.data = b"late"

    desk = await start(Async(), Blocks(), slots=3)
    (finished,) = await desk.run(package())
    await until(lambda: desk.executor.lost_slots == 1)
    gate.set()
    await until(lambda: desk.executor.lost_slots == 0)
    assert (finished.status, finished.envelope.data) == (Status.ERROR, b"rawa")


async def test_one_mutex_serves_a_module_in_threads_and_on_the_loop(start: Any) -> None:
    """The same object in two phases of a worker still has one package in it."""
    gate, inside = threading.Event(), threading.Semaphore(0)

    class Alone(ExecutionModule[bytes]):
        options = ModuleOptions(use_mutex=True)

        def execute(self, package: Any, run: Any) -> None:
            inside.release()
            assert gate.wait(BOUND_S)

    module = Alone()
    threads = await start(module)
    mixed = await start(module, Async())
    threads.submit(package())
    await until(lambda: inside.acquire(blocking=False))
    mixed.submit(package())
    await until(lambda: len(module._broker_pipeline_mutex._waiters) == 1)  # type: ignore[attr-defined]
    assert not inside.acquire(blocking=False)
    gate.set()
    await threads.until(1)
    (finished,) = await mixed.until(1)
    (record, _) = DataPackage.wrap(finished.envelope).controllers[-1].phases[-1].modules
    assert record.waiting_time_ns > 0


async def test_a_module_that_cancels_itself_or_exits_is_an_error_only(start: Any) -> None:
    """Neither ends the module loop."""

    class Rude(ExecutionModule[bytes]):
        async def execute(self, package: Any, run: Any) -> None:
            raise SystemExit if package.data == b"exit" else asyncio.CancelledError

    desk = await start(Rude())
    finished = await desk.run(package(b"exit", 1), package(b"cancel", 2))
    assert sorted(f.envelope.errors[0].type for f in finished) == ["CancelledError", "SystemExit"]


async def test_what_still_runs_at_the_end_gives_no_result(start: Any, monkeypatch: Any) -> None:
    """The broker gives the package to another worker; an ERROR here would be final."""
    monkeypatch.setattr("broker_pipeline.runtime.execution.module_loop.CLOSE_S", 0.01)
    hangs = Hangs()
    desk = await start(hangs)
    desk.submit(package())
    await until(lambda: hangs.running == 1)
    await desk.executor.close()
    assert hangs.cancelled.is_set()
    assert not desk.finished


async def test_a_package_can_be_taken_back_until_it_has_its_slot(start: Any) -> None:
    """Then it stays."""
    gate, inside = threading.Event(), threading.Event()

    class Waits(ExecutionModule[bytes]):
        async def execute(self, package: Any, run: Any) -> None:
            inside.set()
            while not gate.is_set():  # noqa: ASYNC110 - set by another thread
                await asyncio.sleep(0)

    desk = await start(Waits(), slots=1)
    jobs = [Job(package(number=n), n) for n in (1, 2)]
    desk.executor.submit(jobs)
    await until(inside.is_set)
    assert [desk.executor.take_back(job) for job in jobs] == [False, True]
    gate.set()
    (finished,) = await desk.until(1)
    assert finished.job is jobs[0] and desk.executor.idle
