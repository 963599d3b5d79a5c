"""Modules that get several packages at once."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_pipeline.journey import NS, Status
from broker_pipeline.modules import (
    CombinationModule,
    ConditionModule,
    ExecutionModule,
    Module,
    ModuleOptions,
    StatefulModule,
)
from broker_pipeline.package import DataPackage
from broker_pipeline.pipeline import Phase
from broker_pipeline.runtime.execution import executor as executor_module
from broker_pipeline.runtime.execution.inline import run_inline
from broker_pipeline.runtime.execution.program import compile_phase

from .conftest import BOUND_S, Desk, package, until

LONG_MS = 1000.0
"""A delay that a test cannot wait for without being seen to: its bound is on the loop's clock."""


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


def timed(gpu: Gpu, word: bytes) -> ConditionModule[bytes]:
    """The same module, with a timeout for one payload; asked on the loop, so that all keep step."""

    async def hurries(package: DataPackage[bytes]) -> bool:
        return package.data == word

    options = ModuleOptions(timeout_s=60)
    return ConditionModule(CombinationModule([gpu], options=options), gpu, condition=hurries)


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


# -- without batches --------------------------------------------------------------------------
class Both(Gpu):
    """Defines both ways."""

    def execute(self, package: Any, run: Any) -> None:
        package.data = b"alone"


def inline(*modules: Module[Any], data: bytes = b"x", states: Any = None) -> Any:
    return run_inline(compile_phase("c", Phase("ph", modules)), package(data), states)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Gpu(max_batch=1), b"x!"),
        (AsyncGpu(max_batch=1), b"x!"),
        (Gpu(max_batch=4), b"x!"),
        (Both(max_batch=1), b"alone"),
        (Both(max_batch=4), b"x!"),
    ],
)
async def test_which_of_the_two_runs_a_package(module: Gpu, expected: bytes, start: Any) -> None:
    """In a worker as in memory: execute_batch above a max_batch of 1, or where it is alone."""
    envelope, status, _ = await asyncio.to_thread(inline, module)
    assert (status, envelope.data) == (Status.SUCCESS, expected)
    (finished,) = await (await start(module)).run(package(b"x"))
    assert finished.envelope.data == expected


def test_fail_and_leave_in_execute_count_when_it_returns() -> None:
    """The last word counts, and raising counts more."""

    class Says(ExecutionModule[bytes]):
        def execute(self, package: Any, run: Any) -> None:
            package.data = b"changed"
            run.leave("first")
            if package.attributes.get("then") == "fail":
                run.fail(ValueError("then"))
            if package.attributes.get("then") == "raise":
                raise KeyError("more")

    program = compile_phase("c", Phase("ph", [Says(), Append()]))

    def run(then: str) -> Any:
        envelope, status, _ = run_inline(program, package(attributes={"then": then}))
        return status, envelope.data, [e.type for e in envelope.errors]

    assert run("") == (Status.EXIT, b"changed", [])
    assert run("fail") == (Status.ERROR, b"raw", ["ValueError"])
    assert run("raise") == (Status.ERROR, b"raw", ["KeyError"])


def test_fail_takes_an_exception_and_nothing_else() -> None:
    """A text has no type to show in the journey."""

    class Says(ExecutionModule[bytes]):
        def execute(self, package: Any, run: Any) -> None:
            run.fail("broken")

    envelope, status, _ = inline(Says())
    assert (status, envelope.errors[0].type) == (Status.ERROR, "TypeError")


def test_a_stateful_module_that_leaves_keeps_the_state_that_it_returns() -> None:
    """`exit` raises and keeps what was given; `leave` lets it go on."""

    class Counts(StatefulModule[bytes, bytes]):
        def initial_state(self) -> bytes:
            return b""

        def execute(self, package: Any, run: Any, state: bytes) -> bytes:
            run.leave("enough")
            return state + b"1"

    _, status, states = inline(Counts(), states={"0": b"1"})
    assert (status, states) == (Status.EXIT, {"0": b"11"})


def test_a_batch_of_one_in_memory_obeys_fail_leave_exit_and_raise() -> None:
    """As a worker does."""
    words = (b"ok", b"bad", b"exit", b"fail", b"leave")
    statuses = [inline(Gpu(max_batch=4), data=word)[1] for word in words]
    assert statuses == [Status.SUCCESS, Status.ERROR, Status.EXIT, Status.ERROR, Status.EXIT]


# -- the same as alone ------------------------------------------------------------------------
WORDS = st.sampled_from([b"ok", b"ok2", b"bad", b"bad2", b"exit", b"fail", b"leave", b"hold"])


def told(envelope: Any, status: Status) -> Any:
    (module,) = DataPackage.wrap(envelope).controllers[-1].phases[-1].modules
    errors = [(e.type, e.message, e.path) for e in envelope.errors]
    return status, envelope.data, dict(envelope.attributes), module.message, errors


@settings(max_examples=40, deadline=None)
@given(words=st.lists(WORDS, min_size=1, max_size=24), size=st.integers(1, 8), sync=st.booleans())
def test_a_package_ends_in_a_batch_as_it_does_alone(
    words: list[bytes], size: int, sync: bool
) -> None:
    """Whoever it is with: status, payload, attributes, message and error; `hold` is slow."""

    class Slow(Gpu if sync else AsyncGpu):  # type: ignore[misc]
        async def hold(self) -> None:
            await asyncio.sleep(0)

    module = Slow(max_batch=size)
    module.open.set()
    alone = {}
    for word in set(words):
        envelope, status, _ = inline(module, data=word)
        alone[word] = told(envelope, status)
    assert {status for status, *_ in alone.values()} <= {
        Status.SUCCESS,
        Status.ERROR,
        Status.EXIT,
    }

    async def run() -> list[Any]:
        desk = Desk([module], slots=1)
        await desk.executor.start()
        try:
            return list(await desk.run(*many(*words)))
        finally:
            await desk.executor.close()

    finished = asyncio.run(run())
    assert sorted(each.job.token for each in finished) == list(range(1, len(words) + 1))
    for each in finished:
        assert told(each.envelope, each.status) == alone[words[each.job.token - 1]]
