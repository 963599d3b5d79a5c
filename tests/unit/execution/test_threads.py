"""Synchronous modules in slot threads."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from broker_pipeline.errors import SetupError
from broker_pipeline.journey import NS, Status
from broker_pipeline.modules import CombinationModule, ExecutionModule, ModuleOptions
from broker_pipeline.package import DataPackage
from broker_pipeline.runtime.execution import executor as executor_module
from broker_pipeline.runtime.execution.executor import Job

from .conftest import BOUND_S, package, until


class Noop(ExecutionModule[bytes]):
    def execute(self, package: Any, run: Any) -> None:
        package.data = package.data + b"!"


class Gate(ExecutionModule[bytes]):
    """Packages whose payload is `wait` stay until the gate opens; then they try to do harm."""

    def __init__(self, **options: Any) -> None:
        super().__init__(options=ModuleOptions(**options))
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.harmed = threading.Event()

    def execute(self, package: Any, run: Any) -> None:
        package.attributes["gate"] = "seen"
        if package.data != b"wait":
            return
        self.entered.release()
        assert self.open.wait(BOUND_S)
        package.data = b"late"
        package.attributes["late"] = "late"
        package.envelope.errors.clear()
        package.envelope.ClearField("controllers")
        run.message = "late"
        self.harmed.set()

    def teardown(self) -> None:
        self.open.set()


def last_phase(finished: Any) -> Any:
    return DataPackage.wrap(finished.envelope).controllers[-1].phases[-1]


async def test_every_package_comes_back_once_with_its_token(start: Any) -> None:
    """Whatever lists the slots make of them."""
    desk = await start(Noop(), slots=4)
    finished = await desk.run(*(package(number=n) for n in range(500)))
    assert sorted(each.job.token for each in finished) == list(range(500))
    assert {each.envelope.data for each in finished} == {b"raw!"}
    assert {each.status for each in finished} == {Status.SUCCESS}
    assert desk.executor.idle


async def test_one_slow_package_does_not_hold_up_those_behind_it(start: Any) -> None:
    """What its slot had grabbed for later is run by the others."""
    gate = Gate()
    desk = await start(gate, slots=2)
    await desk.run(*(package(number=n) for n in range(200)))  # slots grab lists from now on
    desk.submit(package(b"wait", 1000), *(package(number=n) for n in range(300)))
    finished = await desk.until(500)
    assert 1000 not in {each.job.token for each in finished}
    assert not desk.executor.idle
    gate.open.set()
    assert (await desk.until(501))[-1].job.token == 1000


async def test_results_before_a_slow_package_in_the_same_list_do_not_wait_for_it(
    start: Any,
) -> None:
    """The only slot is blocked, and what it had finished is delivered all the same."""
    gate = Gate()
    desk = await start(gate, slots=1)
    await desk.run(*(package(number=n) for n in range(200)))
    desk.submit(*(package(number=n) for n in range(20)), package(b"wait", 1000))
    await desk.until(220)
    gate.open.set()
    await desk.until(221)


async def test_late_code_changes_nothing_and_its_slot_comes_back(start: Any) -> None:
    """The package leaves with what the module before left; then the slot is one again."""
    gate = Gate(timeout_s=0.01)

    class Makes(ExecutionModule[bytes]):
        def execute(self, package: Any, run: Any) -> None:
            package.data = b"wait"

    desk = await start(Makes(), gate, Noop(), slots=3)
    (finished,) = await desk.run(package(b"x"))
    assert desk.executor.lost_slots == 1 and not desk.executor.exhausted
    before = finished.envelope.SerializeToString()
    (error,) = finished.envelope.errors
    assert (finished.status, finished.states) == (Status.ERROR, None)
    assert (error.type, error.path) == ("ModuleTimeoutError", "c/ph/Gate")
    assert "'Gate'" in error.message and "0.01" in error.message
    assert "execute" in error.traceback
    assert (finished.envelope.data, dict(finished.envelope.attributes)) == (b"wait", {})
    assert [m.status for m in last_phase(finished).modules] == [Status.SUCCESS, Status.ERROR]
    gate.open.set()
    await until(lambda: desk.executor.lost_slots == 0)
    assert gate.harmed.is_set()
    assert finished.envelope.SerializeToString() == before
    assert len(desk.finished) == 1
    await desk.run(*(package(number=n) for n in range(10)))


async def test_losing_half_of_the_slots_exhausts_the_executor(start: Any) -> None:
    """It says so, goes on with what is left, and recovers when they come back."""
    gate = Gate(timeout_s=0.01)
    desk = await start(gate, slots=4)
    await desk.run(package(b"wait", 1))
    assert not desk.executor.exhausted
    await desk.run(package(b"wait", 2))
    assert desk.executor.exhausted and desk.executor.lost_slots == 2
    assert (await desk.run(package(b"more", 3)))[-1].status is Status.SUCCESS
    gate.open.set()
    await until(lambda: not desk.executor.lost_slots)
    assert not desk.executor.exhausted


async def test_what_a_lost_slot_had_grabbed_is_run_by_others(start: Any) -> None:
    """All packages end, though the only slot is lost to the first of them."""
    gate = Gate(timeout_s=0.02)
    desk = await start(gate, slots=3)
    await desk.run(*(package(number=n) for n in range(100)))
    desk.submit(package(b"wait", 1000), *(package(number=n) for n in range(100)))
    finished = await desk.until(201)
    assert {f.job.token for f in finished if f.status is Status.ERROR} == {1000}


async def test_the_tightest_timeout_blames_its_own_module(start: Any) -> None:
    """An outer one that is tighter than the inner is blamed; the inner was cut off."""
    gate = Gate(timeout_s=60)
    outer: CombinationModule[bytes] = CombinationModule(
        [gate], name="outer", options=ModuleOptions(timeout_s=0.01)
    )
    desk = await start(outer, slots=3)
    (finished,) = await desk.run(package(b"wait"))
    assert finished.envelope.errors[0].path == "c/ph/outer"
    (record,) = last_phase(finished).modules
    assert record.error is not None
    assert (record.sub_modules[0].status, record.sub_modules[0].error) == (Status.ERROR, None)


async def test_a_mutex_lets_one_in_and_the_wait_is_in_the_journey(start: Any) -> None:
    """The second waits until the first is out."""
    gate = Gate(use_mutex=True)
    desk = await start(gate, slots=2)
    desk.submit(package(b"wait", 1))
    await until(lambda: gate.entered.acquire(blocking=False))
    desk.submit(package(b"wait", 2))
    await until(lambda: len(desk.executor._flow.running) == 2)
    assert not gate.entered.acquire(blocking=False)
    gate.open.set()
    finished = {f.job.token: last_phase(f).modules[0] for f in await desk.until(2)}
    assert finished[2].waiting_time_ns > finished[1].waiting_time_ns
    assert finished[2].total_time_ns >= finished[2].waiting_time_ns


async def test_a_timeout_counts_the_wait_for_the_mutex_and_such_a_slot_is_not_lost(
    start: Any,
) -> None:
    """Who only waits can be called off: its thread is back at once, the holder's is not."""
    gate = Gate(use_mutex=True, timeout_s=0.02)
    desk = await start(gate, slots=5)
    await desk.run(package(b"wait", 1), package(b"wait", 2))
    assert {f.status for f in desk.finished} == {Status.ERROR}
    await until(lambda: len(desk.executor._flow.running) == 1)
    assert desk.executor.lost_slots == 1
    gate.open.set()
    await until(lambda: not desk.executor.lost_slots)
    assert (await desk.run(package(b"free", 3)))[-1].status is Status.SUCCESS


async def test_wanted_starts_with_the_slots_and_grows_with_fast_modules(start: Any) -> None:
    """Fast modules get many packages ahead, up to the bound."""
    desk = await start(Noop(), slots=2)
    assert desk.executor.wanted() == 2
    await desk.run(*(package(number=n) for n in range(200)))
    assert 20 < desk.executor.wanted() <= 2 * executor_module.PREFETCH_COUNT_MAX


async def test_wanted_is_the_free_slots_with_slow_modules(start: Any) -> None:
    """A package that takes longer than the prefetch is never queued behind another."""
    desk = await start(gate := Gate(), slots=3)
    desk.executor._flow.run_ns = NS
    assert desk.executor.wanted() == 3
    desk.submit(package(b"wait"))
    await until(lambda: gate.entered.acquire(blocking=False))
    assert desk.executor.wanted() == 2
    gate.open.set()
    await desk.until(1)


async def test_what_has_not_begun_can_be_withdrawn(start: Any) -> None:
    """It comes back to the caller and is not delivered."""
    desk = await start(gate := Gate(), slots=1)
    desk.submit(package(b"wait", 1))
    await until(lambda: gate.entered.acquire(blocking=False))
    desk.submit(package(number=2), package(number=3))
    assert [job.token for job in desk.executor.withdraw()] == [2, 3]
    gate.open.set()
    await desk.until(1)
    assert desk.executor.idle


async def test_a_setup_that_fails_stops_the_start_and_lets_go_of_the_others(start: Any) -> None:
    """The error names the module and has the cause; what was ready is torn down."""
    order: list[str] = []

    class Ready(Noop):
        def setup(self) -> None:
            order.append(f"setup {threading.current_thread() is threading.main_thread()}")

        async def teardown(self) -> None:
            order.append("teardown")

    class Fails(Noop):
        async def setup(self) -> None:
            raise SystemExit("no model")

    with pytest.raises(SetupError, match=r"'c/ph/Fails'.*no model") as caught:
        await start(Ready(), Fails())
    assert isinstance(caught.value.__cause__, SystemExit)
    assert order == ["setup False", "teardown"]


async def test_a_module_object_at_two_places_is_set_up_once(start: Any) -> None:
    """Setup belongs to the object, not to the place."""
    calls: list[int] = []

    class Once(Noop):
        def setup(self) -> None:
            calls.append(1)

    module = Once()
    desk = await start(module, CombinationModule([module]))
    (finished,) = await desk.run(package())
    assert (calls, finished.envelope.data) == ([1], b"raw!!")


async def test_states_come_back_and_the_given_ones_are_not_replaced(start: Any) -> None:
    """The caller's dict is its own."""
    from .test_interpreter import Count, Counter

    desk = await start(Counter())
    given = {"0": Count(3)}
    (finished,) = await desk.run(package(), states=given)
    assert finished.states == {"0": Count(4)}
    assert finished.states is not given


async def test_a_package_can_be_taken_back_until_it_begins(start: Any) -> None:
    """In the queue, or grabbed by a slot that hangs in the one before; not when it runs."""
    gate = Gate()
    desk = await start(gate, slots=1)
    await desk.run(*(package(number=n) for n in range(500)))  # so fast that a slot grabs several
    jobs = [Job(package(data, n), n) for n, data in enumerate([b"wait", b"grabbed"], 500)]
    desk.executor.submit(jobs)
    await until(lambda: gate.entered.acquire(blocking=False))
    assert not desk.executor._flow.waiting, "the slot has both"
    queued = Job(package(b"queued", 502), 502)
    desk.executor.submit([queued])
    running, grabbed = jobs
    assert [desk.executor.take_back(job) for job in (running, grabbed, queued)] == [
        False, True, True,
    ]  # fmt: skip
    assert not desk.executor.take_back(queued), "it is not there any more"
    gate.open.set()
    assert (await desk.until(501))[-1].job is running
    assert desk.executor.idle
