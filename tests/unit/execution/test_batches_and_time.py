"""Batches, deadlines and the end: who is late leaves, and the others go on."""

from __future__ import annotations

from typing import Any

from broker_pipeline.journey import Status
from broker_pipeline.modules import (
    CombinationModule,
    ConditionModule,
    ModuleOptions,
)
from broker_pipeline.package import DataPackage
from tests.unit.execution.gpus import AsyncGpu, Clock, Gpu, busy, by_token, gathering, many

from .conftest import package, until


def timed(gpu: Gpu, word: bytes) -> ConditionModule[bytes]:
    """The same module, with a timeout for one payload; asked on the loop, so that all keep step."""

    async def hurries(package: DataPackage[bytes]) -> bool:
        return package.data == word

    options = ModuleOptions(timeout_s=60)
    return ConditionModule(CombinationModule([gpu], options=options), gpu, condition=hurries)


# -- time -------------------------------------------------------------------------------------
async def test_who_is_late_while_gathering_gives_up_its_place(start: Any) -> None:
    """It is an ERROR at once, and the batch that it was to be in never sees it."""
    gpu = Gpu(max_batch=4)
    desk = await start(timed(gpu, b"hurry"), monotonic_ns=(clock := Clock()))
    await busy(desk, gpu)
    desk.submit(*many(b"a", b"hurry", b"b"))
    await until(lambda: gathering(desk) == 3)
    clock.pass_s(60)
    (late,) = await desk.until(1)
    assert (late.job.token, late.status) == (2, Status.ERROR)
    assert late.envelope.errors[0].type == "ModuleTimeoutError"
    await until(lambda: gathering(desk) == 2)
    assert desk.executor.lost_slots == 0
    gpu.open.set()
    await desk.until(4)
    assert gpu.batches == [[b"hold"], [b"a", b"b"]]


async def test_who_is_late_in_a_running_batch_leaves_and_the_others_go_on(
    start: Any, monkeypatch: Any
) -> None:
    """Its slot is lost until the batch is back; what the late code does changes nothing."""
    monkeypatch.setattr("broker_pipeline.runtime.execution.executor.LOST_GRACE_S", 0.01)
    gpu = Gpu(max_batch=4)
    desk = await start(timed(gpu, b"hurry"), monotonic_ns=(clock := Clock()))
    desk.submit(*many(b"hold", b"hurry"))
    await until(lambda: gpu.entered.acquire(blocking=False))
    clock.pass_s(60)
    (late,) = await desk.until(1)
    assert (late.job.token, late.status, late.envelope.data) == (2, Status.ERROR, b"hurry")
    await until(lambda: desk.executor.lost_slots == 1)
    gpu.open.set()
    await desk.until(2)
    assert by_token(desk)[1].status is Status.SUCCESS
    await until(lambda: desk.executor.lost_slots == 0)
    assert gpu.batches == [[b"hold", b"hurry"]]
    assert late.envelope.data == b"hurry"


async def test_a_batch_that_never_comes_back_costs_its_slots_and_others_run_beside_it(
    start: Any, monkeypatch: Any
) -> None:
    """Two full ones exhaust the executor, so that the worker is replaced, until they are back."""
    monkeypatch.setattr("broker_pipeline.runtime.execution.executor.LOST_GRACE_S", 0.01)
    monkeypatch.setattr("broker_pipeline.runtime.execution.batching.BATCH_GRACE_S", 0.01)
    gpu = Gpu(max_batch=2, timeout_s=60)
    desk = await start(gpu, slots=8, monotonic_ns=(clock := Clock()))
    desk.submit(*many(b"hold", b"a"))
    await until(lambda: gpu.entered.acquire(blocking=False))
    clock.pass_s(60)
    await desk.until(2)
    assert {f.status for f in desk.finished} == {Status.ERROR}
    await until(lambda: desk.executor.lost_slots == 2)
    assert not desk.executor.exhausted
    assert (await desk.run(package(b"b", 3)))[-1].status is Status.SUCCESS
    desk.submit(*many(b"hold", b"c", first=4))
    await until(lambda: gpu.entered.acquire(blocking=False))
    clock.pass_s(60)
    await desk.until(5)
    await until(lambda: desk.executor.lost_slots == 4)
    assert desk.executor.exhausted
    gpu.open.set()
    await until(lambda: desk.executor.lost_slots == 0)
    assert len(desk.finished) == 5


async def test_two_lost_batches_exhaust_the_executor_however_small_they_were(
    start: Any, monkeypatch: Any
) -> None:
    """At low load a batch has one package: many would be late before half of the slots are lost."""
    monkeypatch.setattr("broker_pipeline.runtime.execution.batching.BATCH_GRACE_S", 0.01)
    gpu = Gpu(max_batch=32, timeout_s=60)
    desk = await start(gpu, monotonic_ns=(clock := Clock()))
    for count in (1, 2):
        assert not desk.executor.exhausted
        desk.submit(package(b"hold", count))
        await until(lambda: gpu.entered.acquire(blocking=False))
        clock.pass_s(60)
        await desk.until(count)
    await until(lambda: desk.executor.exhausted)
    gpu.open.set()
    await until(lambda: not desk.executor.exhausted)


async def test_what_waited_for_a_half_of_a_lost_batch_runs_beside_it(
    start: Any, monkeypatch: Any
) -> None:
    """The first half hangs when it is run again; the second half is not lost with it."""
    monkeypatch.setattr("broker_pipeline.runtime.execution.executor.LOST_GRACE_S", 0.01)
    monkeypatch.setattr("broker_pipeline.runtime.execution.batching.BATCH_GRACE_S", 0.01)

    class Second(Gpu):
        def execute_batch(self, packages: Any, runs: Any) -> None:
            if len(packages) > 1:
                raise ValueError("too many")
            super().execute_batch(packages, runs)

    gpu = Second(max_batch=2)
    desk = await start(timed(gpu, b"hold"), slots=8, monotonic_ns=(clock := Clock()))
    desk.submit(*many(b"hold", b"a"))
    await until(lambda: gpu.entered.acquire(blocking=False))
    clock.pass_s(60)
    await desk.until(2)
    done = by_token(desk)
    assert (done[1].status, done[2].status) == (Status.ERROR, Status.SUCCESS)
    assert gpu.batches == [[b"hold"], [b"a"]]
    gpu.open.set()
    await until(lambda: desk.executor.lost_slots == 0)


async def test_an_async_batch_whose_packages_are_all_late_is_cancelled(start: Any) -> None:
    """Then the next begins, and no slot is lost."""
    gpu = AsyncGpu(max_batch=2, timeout_s=60)
    desk = await start(gpu, monotonic_ns=(clock := Clock()))
    desk.submit(*many(b"hold", b"a"))
    await until(lambda: gpu.entered.acquire(blocking=False))
    clock.pass_s(60)
    await desk.until(2)
    assert {f.status for f in desk.finished} == {Status.ERROR}
    await until(lambda: not desk.executor._flow.running)
    assert (gpu.cancelled, desk.executor.lost_slots) == (1, 0)
    assert (await desk.run(package(b"b", 3)))[-1].status is Status.SUCCESS


async def test_an_async_batch_that_ignores_its_cancellation_is_lost_as_a_thread_is(
    start: Any, monkeypatch: Any
) -> None:
    """Others run beside it after the grace."""
    monkeypatch.setattr("broker_pipeline.runtime.execution.batching.BATCH_GRACE_S", 0.01)
    gpu = AsyncGpu(max_batch=2, timeout_s=60)
    gpu.stubborn = True
    desk = await start(gpu, monotonic_ns=(clock := Clock()))
    desk.submit(package(b"hold", 1))
    await until(lambda: gpu.entered.acquire(blocking=False))
    clock.pass_s(60)
    await desk.until(1)
    assert (await desk.run(package(b"b", 2)))[-1].status is Status.SUCCESS
    assert not gpu.open.is_set()
    gpu.open.set()
    await until(lambda: not desk.executor._flow.running)


async def test_each_run_has_the_deadline_of_its_own_package(start: Any) -> None:
    """Counted from its entry, not from the beginning of the batch."""
    deadlines: list[float] = []

    class Looks(Gpu):
        def one(self, package: Any, run: Any) -> None:
            super().one(package, run)
            deadlines.append(run.deadline)

    gpu = Looks(timeout_s=60)
    desk = await start(gpu, monotonic_ns=(clock := Clock()))
    await busy(desk, gpu)
    clock.pass_s(5)
    desk.submit(package(b"a", 1))
    await until(lambda: gathering(desk) == 1)
    clock.pass_s(2)
    desk.submit(package(b"b", 2))
    await until(lambda: gathering(desk) == 2)
    gpu.open.set()
    await desk.until(3)
    assert gpu.batches[1] == [b"a", b"b"]
    assert deadlines == [61, 66, 68]


# -- the end ----------------------------------------------------------------------------------
async def test_a_drain_gives_back_what_has_no_slot_and_runs_what_has_gathered(start: Any) -> None:
    """Nothing hangs, and nothing is delivered twice."""
    gpu = Gpu(max_batch=2)
    desk = await start(gpu, slots=1)
    await busy(desk, gpu)
    desk.submit(*many(*[b"x"] * 10))
    await until(lambda: gathering(desk) == 3)
    given_back = desk.executor.withdraw()
    assert [job.token for job in given_back] == [4, 5, 6, 7, 8, 9, 10]
    gpu.open.set()
    await desk.until(4)
    assert desk.executor.idle


async def test_what_has_gathered_when_the_executor_closes_gives_no_result(
    start: Any, monkeypatch: Any
) -> None:
    """The broker gives it to another worker, as all that still runs."""
    monkeypatch.setattr("broker_pipeline.runtime.execution.module_loop.CLOSE_S", 0.01)
    gpu = Gpu(max_batch=4)
    desk = await start(gpu)
    await busy(desk, gpu)
    desk.submit(*many(b"a", b"b"))
    await until(lambda: gathering(desk) == 2)
    await desk.executor.close()
    assert not desk.finished
    assert gpu.batches == [[b"hold"]]
