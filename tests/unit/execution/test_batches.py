"""Modules that get several packages at once."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from broker_pipeline.journey import NS, Status
from broker_pipeline.modules import (
    CombinationModule,
    ConditionModule,
    ExecutionModule,
    ModuleOptions,
)
from broker_pipeline.package import DataPackage
from broker_pipeline.runtime.execution import executor as executor_module
from tests.unit.execution.gpus import (
    Append,
    AsyncGpu,
    Clock,
    Gpu,
    busy,
    by_token,
    gathering,
    many,
)

from .conftest import package, until

LONG_MS = 1000.0
"""A delay that a test cannot wait for without being seen to: its bound is on the loop's clock."""


def record(finished: Any) -> Any:
    return DataPackage.wrap(finished.envelope).controllers[-1].phases[-1].modules[-1]


# -- gathering --------------------------------------------------------------------------------
async def test_what_comes_while_a_batch_runs_is_the_next_in_its_order(start: Any) -> None:
    """At most max_batch of them; the rest gathers again, and nobody waits for a full one."""
    gpu = Gpu(max_batch=3)
    desk = await start(gpu, slots=1)
    await busy(desk, gpu)
    desk.submit(*many(b"a", b"b", b"c", b"d"))
    await until(lambda: gathering(desk) == 4)
    gpu.open.set()
    await desk.until(5)
    assert gpu.batches == [[b"hold"], [b"a", b"b", b"c"], [b"d"]]
    assert {f.envelope.data for f in desk.finished} == {b"hold!", b"a!", b"b!", b"c!", b"d!"}
    assert gpu.most == 1


async def test_those_that_come_together_go_together_without_a_delay(start: Any) -> None:
    """An idle module does not begin with the first of a list."""
    gpu = Gpu(max_batch=8)
    desk = await start(gpu)
    await desk.run(*many(*[b"x"] * 5))
    assert [len(batch) for batch in gpu.batches] == [5]


async def test_a_full_batch_begins_at_once(start: Any) -> None:
    """The delay is a bound on waiting, not a wait."""
    gpu = Gpu(max_batch=4, max_delay_ms=LONG_MS)
    desk = await start(gpu)
    begun = asyncio.get_running_loop().time()
    await desk.run(*many(*[b"x"] * 8))
    assert asyncio.get_running_loop().time() - begun < LONG_MS / 1000
    assert [len(batch) for batch in gpu.batches] == [4, 4]


async def test_a_batch_that_is_not_full_begins_after_the_delay(start: Any) -> None:
    """Not before: who comes within it goes along."""
    gpu = Gpu(max_batch=4, max_delay_ms=500)
    desk = await start(gpu)
    begun = asyncio.get_running_loop().time()
    desk.submit(package(b"a", 1))
    await until(lambda: gathering(desk) == 1)
    desk.submit(package(b"b", 2))
    finished = await desk.until(2)
    assert asyncio.get_running_loop().time() - begun >= 0.5
    assert gpu.batches == [[b"a", b"b"]]
    assert record(finished[0]).waiting_time_ns >= 0.4 * NS


async def test_nobody_waits_where_nobody_else_can_come(start: Any, monkeypatch: Any) -> None:
    """With every slot that is left in the batch, the delay is in vain."""
    monkeypatch.setattr("broker_pipeline.runtime.execution.batching.BATCHES_IN_FLIGHT", 0)
    gpu = Gpu(max_batch=4, max_delay_ms=LONG_MS)
    desk = await start(gpu, slots=2)
    begun = asyncio.get_running_loop().time()
    await desk.run(*many(b"a", b"b"))
    assert asyncio.get_running_loop().time() - begun < LONG_MS / 1000
    assert gpu.batches == [[b"a", b"b"]]


async def test_packages_of_several_instances_share_a_batch(start: Any) -> None:
    """A batch is the module's, not an instance's."""
    gpu = Gpu()
    desk = await start(gpu)
    await desk.run(package(b"a", 1, instance="one"), package(b"b", 2, instance="two"))
    assert gpu.batches == [[b"a", b"b"]]


async def test_the_wait_for_the_batch_is_in_the_journey_and_each_has_its_own_message(
    start: Any,
) -> None:
    """As that for a mutex is; the module's whole time has it too."""
    gpu = Gpu()
    desk = await start(gpu, monotonic_ns=(clock := Clock()))
    await busy(desk, gpu)
    desk.submit(*many(b"a", b"b"))
    await until(lambda: gathering(desk) == 2)
    clock.pass_s(3)
    gpu.open.set()
    await desk.until(3)
    done = by_token(desk)
    assert (record(done[1]).message, record(done[2]).message) == ("was a", "was b")
    assert record(done[1]).waiting_time_ns == record(done[1]).total_time_ns == 3 * NS
    assert (record(done[1000]).waiting_time_ns, record(done[1000]).total_time_ns) == (0, 3 * NS)


async def test_slots_are_raised_for_two_batches_of_each_module(start: Any) -> None:
    """One runs and the next gathers; the same object counts once, and more slots stay more."""
    gpu = Gpu(max_batch=8)
    both: CombinationModule[bytes] = CombinationModule([gpu, Gpu(max_batch=2), gpu])
    assert (await start(both, slots=1)).executor.slots == 20
    desk = await start(gpu, slots=50)
    assert desk.executor.slots == 50
    assert (await start(gpu, slots=1)).executor.wanted() == 16


async def test_prefetch_follows_what_a_package_costs_in_its_batch(start: Any) -> None:
    """Many slots that run together are not many times as fast; two full batches are always had."""
    desk = await start(Gpu(max_batch=8), slots=1)
    (batcher,) = desk.executor._batches._batchers.values()
    desk.executor._flow.run_ns = 1_000_000.0
    assert desk.executor.wanted() == 16 * 50
    batcher.package_ns = executor_module.PREFETCH_NS / 20
    assert desk.executor.wanted() == 20
    batcher.package_ns = executor_module.PREFETCH_NS
    assert desk.executor.wanted() == 16
    await desk.run(*many(b"x"))
    assert 0 < batcher.package_ns < executor_module.PREFETCH_NS


async def test_the_same_object_at_two_places_has_one_batch_at_a_time(start: Any) -> None:
    """In one phase they gather together; in two, they take turns."""
    gpu = Gpu()
    one = await start(CombinationModule([gpu, gpu]))
    other = await start(gpu)
    await busy(one, gpu)
    other.submit(package(b"x", 1))
    await until(lambda: len(gpu._broker_pipeline_mutex._waiters) == 1)  # type: ignore[attr-defined]
    gpu.open.set()
    await other.until(1)
    (finished,) = await one.until(1)
    assert finished.envelope.data == b"hold!!"
    assert gpu.most == 1


async def test_two_batching_modules_in_a_phase_each_gather_their_own(start: Any) -> None:
    """Every package goes through both, once."""
    first, second = Gpu(max_batch=3), AsyncGpu(max_batch=5)
    desk = await start(first, Append(), second, slots=2)
    finished = await desk.run(*many(*[b"x"] * 100))
    assert {f.envelope.data for f in finished} == {b"x!+!"}
    assert max(map(len, first.batches)) == 3
    assert max(map(len, second.batches)) <= 5
    assert sum(map(len, first.batches)) == sum(map(len, second.batches)) == 100


async def test_a_condition_around_a_batching_module_sends_only_its_own(start: Any) -> None:
    """The others pass by and fill no place."""
    gpu = Gpu(max_batch=50)
    choice: ConditionModule[bytes] = ConditionModule(gpu, condition=lambda p: p.data == b"yes")
    desk = await start(choice)
    finished = await desk.run(*many(*[b"yes", b"no"] * 10))
    assert sorted(f.envelope.data for f in finished) == [b"no"] * 10 + [b"yes!"] * 10
    assert {word for batch in gpu.batches for word in batch} == {b"yes"}


# -- one package of a batch -------------------------------------------------------------------
async def test_only_the_bad_one_of_32_is_an_error(start: Any) -> None:
    """With its own traceback and payload; what the failed attempts did to the others is gone."""
    gpu = Gpu(max_batch=32)
    desk = await start(gpu)
    words = [b"w%d" % n for n in range(32)]
    words[19] = b"bad"
    await desk.run(*many(*words))
    done = by_token(desk)
    bad = done.pop(20)
    (error,) = bad.envelope.errors
    assert (bad.status, bad.envelope.data, dict(bad.envelope.attributes)) == (
        Status.ERROR,
        b"bad",
        {},
    )
    assert (error.type, error.message, error.path) == ("ValueError", "bad", "c/ph/gpu")
    assert "in one" in error.traceback and "batching.py" not in error.traceback
    assert {each.status for each in done.values()} == {Status.SUCCESS}
    assert {n: each.envelope.data for n, each in done.items()} == {
        n: b"w%d!" % (n - 1) for n in done
    }
    assert [len(batch) for batch in gpu.batches] == [32, 16, 16, 8, 4, 2, 2, 1, 1, 4, 8]


async def test_a_failed_attempt_leaves_nothing_to_hold_on_to(start: Any) -> None:
    """What a thread of the module still does to the packages of an attempt that failed is lost."""
    kept: list[Any] = []

    class Keeps(Gpu):
        def execute_batch(self, packages: Any, runs: Any) -> None:
            if len(packages) > 1:
                kept.extend(zip(packages, runs, strict=True))
                raise ValueError("once")
            for each, run in kept:
                each.data = b"late"
                each.envelope.ClearField("controllers")
                run.message = "late"
                run.fail(ValueError("late"))
            super().execute_batch(packages, runs)

    desk = await start(Keeps())
    finished = await desk.run(*many(b"a", b"b"))
    assert [f.status for f in finished] == [Status.SUCCESS] * 2
    assert sorted(f.envelope.data for f in finished) == [b"a!", b"b!"]
    assert sorted(record(f).message for f in finished) == ["was a", "was b"]


async def test_the_time_of_attempts_that_failed_is_no_waiting(start: Any) -> None:
    """The wait was over when the batch began; what a neighbour cost is in the module's time."""
    clock = Clock()

    class Takes(Gpu):
        def execute_batch(self, packages: Any, runs: Any) -> None:
            clock.pass_s(1)
            super().execute_batch(packages, runs)

    desk = await start(Takes(), monotonic_ns=clock)
    await desk.run(*many(b"a", b"bad"))
    done = by_token(desk)
    assert (record(done[1]).waiting_time_ns, record(done[2]).waiting_time_ns) == (0, 0)
    assert record(done[2]).total_time_ns == 3 * NS


async def test_fail_and_leave_speak_of_one_package_and_cost_no_second_run(start: Any) -> None:
    """ERROR keeps the payload as it came, EXIT as it was left; both say why."""
    gpu = Gpu(max_batch=8)
    desk = await start(gpu, Append())
    await desk.run(*many(b"a", b"fail", b"leave", b"b"))
    done = by_token(desk)
    assert [done[n].status for n in (1, 2, 3, 4)] == [
        Status.SUCCESS,
        Status.ERROR,
        Status.EXIT,
        Status.SUCCESS,
    ]
    assert [done[n].envelope.data for n in (1, 2, 3, 4)] == [b"a!+", b"fail", b"leave!", b"b!+"]
    assert done[2].envelope.errors[0].type == "KeyError"
    assert record(done[3]).message == "recorded"
    assert len(gpu.batches) == 1


async def test_an_exit_that_is_raised_ends_its_own_package_only(start: Any) -> None:
    """The batch is run again until it is alone."""
    desk = await start(Gpu(max_batch=8))
    await desk.run(*many(b"a", b"exit", b"b", b"c"))
    done = by_token(desk)
    assert {n for n in done if done[n].status is Status.EXIT} == {2}
    assert record(done[2]).message == "raised"
    assert {done[n].status for n in (1, 3, 4)} == {Status.SUCCESS}


async def test_a_payload_that_does_not_decode_fails_alone_and_costs_no_second_run(
    start: Any,
) -> None:
    """It never gets into a batch."""
    sizes: list[int] = []

    class Word(msgspec.Struct):
        text: str

    class Upper(ExecutionModule[Word]):
        options = ModuleOptions(max_batch=4)

        def execute_batch(self, packages: Any, runs: Any) -> None:
            sizes.append(len(packages))
            for each in packages:
                each.data = Word(each.data.text.upper())

    good = msgspec.msgpack.encode(Word("a"))
    typed = {"content_type": "application/vnd.msgpack"}
    desk = await start(Upper())
    await desk.run(
        package(good, 1, **typed), package(b"\xc1", 2, **typed), package(good, 3, **typed)
    )
    done = by_token(desk)
    assert (done[2].status, done[2].envelope.errors[0].type) == (Status.ERROR, "PayloadError")
    assert {done[n].status for n in (1, 3)} == {Status.SUCCESS}
    assert sizes == [2]


async def test_a_payload_that_cannot_be_encoded_fails_alone(start: Any) -> None:
    """Found after the batch, for the one package."""

    class Odd(Gpu):
        def one(self, package: Any, run: Any) -> None:
            super().one(package, run)
            if package.data == b"odd!":
                package.data = object()

    desk = await start(Odd())
    await desk.run(*many(b"a", b"odd", b"b"))
    done = by_token(desk)
    assert (done[2].status, done[2].envelope.data) == (Status.ERROR, b"odd")
    assert {done[n].status for n in (1, 3)} == {Status.SUCCESS}


@pytest.mark.parametrize("kind", [Gpu, AsyncGpu])
async def test_what_is_raised_is_an_error_whatever_it_is(start: Any, kind: Any) -> None:
    """SystemExit, CancelledError and StopIteration end neither the loop nor the good ones."""

    class Rude(kind):  # type: ignore[misc]
        def one(self, package: Any, run: Any) -> None:
            if package.data == b"x":
                super().one(package, run)
                return
            raise {b"s": SystemExit, b"c": asyncio.CancelledError, b"i": StopIteration}[
                package.data
            ]

    desk = await start(Rude(max_batch=8))
    await desk.run(*many(b"x", b"s", b"x", b"c", b"i", b"x"))
    done = by_token(desk)
    assert {n for n in done if done[n].status is Status.ERROR} == {2, 4, 5}
    assert (await desk.run(package(b"x", 7)))[-1].status is Status.SUCCESS
