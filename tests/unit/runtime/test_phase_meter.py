"""What a worker counts of a phase and its modules, read at any moment."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import msgspec
import pytest

from broker_pipeline import (
    CombinationModule,
    ConditionModule,
    Controller,
    ExecutionModule,
    ExternalModule,
    Mode,
    ModuleOptions,
    Outcome,
    Phase,
    Pipeline,
    StatefulModule,
)
from broker_pipeline.observe.meter import Meter
from broker_pipeline.runtime import states as state_keeper
from tests.unit.fake_relay import Servers
from tests.unit.runtime.bench import Bench, results
from tests.unit.runtime.gate import Gate, pipeline
from tests.unit.runtime.readings import Reader
from tests.unit.runtime.shard import until

PHASE = ("demo", "c", "p0")
GATE = (*PHASE, "Gate")
IN, OUT = "phase_packages_in_total", "phase_packages_out_total"


class Say(ExecutionModule[bytes]):
    """Ends as its payload says."""

    def execute(self, package: Any, run: Any) -> None:
        """One package."""
        if package.data == b"exit":
            run.exit("as told")
        if package.data == b"error":
            raise ValueError("as told")


async def test_a_package_is_inside_while_it_runs_and_out_by_its_outcome() -> None:
    """The gauge while it runs; then the outcome and the time. What waits for a slot is in the phase
    and in no module yet."""
    gate, read = Gate(is_open=False), Reader(meter := Meter())
    bench = await Bench.begin(pipeline(gate))
    await bench.work(slots=2, meter=meter)
    await bench.send(b"1", b"2", b"exit")
    await until(read.until(lambda r: r["module_processing", GATE] == 2))
    found = read()
    assert found[IN, PHASE] >= 2 and found["phase_processing", PHASE] == found[IN, PHASE]
    assert found["module_packages_in_total", GATE] == 2
    assert ("phase_time_seconds", (*PHASE, "success")) not in found
    gate.opened.set()
    await bench.left(3)
    await until(read.until(lambda r: not r["phase_here", PHASE]))
    found = read()
    for level, labels in (("phase", PHASE), ("module", GATE)):
        ended = [found[f"{level}_packages_out_total", (*labels, end)] for end in ENDS]
        assert ended == [2, 1, 0, 0]
        assert found[f"{level}_time_seconds", (*labels, "success")] == 2
    assert found["phase_publish_seconds", PHASE] == found["phase_ack_seconds", PHASE] == 3
    await bench.end()


ENDS = ("success", "exit", "error", "given_back")


async def test_modules_inside_others_are_counted_each_under_its_path() -> None:
    """A combination, a condition with one branch, and two modules of one name at one place, which
    are one series; what an error or exit leaves out was never in."""

    class Long(ConditionModule[bytes]):
        def condition(self, package: Any) -> bool:
            return len(package.data) > 4

    combined = CombinationModule([Say(name="a"), Say(name="a"), Long(Say(name="b"), None)])
    read = Reader(meter := Meter())
    bench = await Bench.begin(pipeline(combined))
    await bench.work(meter=meter)
    await bench.send(b"long enough", b"ok", b"exit", b"error")
    await bench.left(4)
    found = read()

    def told(path: str) -> list[float]:
        return [found["module_packages_out_total", (*PHASE, path, end)] for end in ENDS[:3]]

    assert told("CombinationModule") == [2, 1, 1]
    assert told("CombinationModule/a") == [4, 1, 1]  # twice each of the two that go on
    assert told("CombinationModule/Long") == [2, 0, 0]
    assert told("CombinationModule/Long/b") == [1, 0, 0]
    await bench.end()


async def test_waiting_for_the_mutex_is_waiting_and_not_processing() -> None:
    """One is in the module, the others wait at its door."""
    opened = threading.Event()

    class Alone(ExecutionModule[bytes]):
        options = ModuleOptions(use_mutex=True)

        def execute(self, package: Any, run: Any) -> None:
            opened.wait(30)

    read, labels = Reader(meter := Meter()), (*PHASE, "Alone")
    bench = await Bench.begin(pipeline(Alone()))
    worker = await bench.work(slots=3, meter=meter)
    worker.phase._executor.wanted = lambda: 3  # type: ignore[method-assign]
    await bench.send(b"1", b"2", b"3")
    await until(read.until(lambda r: r["module_waiting_in", labels] == 2))
    assert read()["module_processing", labels] == 1
    opened.set()
    await bench.left(3)
    assert read()["module_waiting_in_seconds", labels] == 3
    await bench.end()


async def test_batches_are_counted_by_their_size() -> None:
    """Three packages in two batches at most; who gathers waits."""

    class Many(ExecutionModule[bytes]):
        options = ModuleOptions(max_batch=8)

        def execute_batch(self, packages: Any, runs: Any) -> None:
            pass

    read, labels = Reader(meter := Meter()), (*PHASE, "Many")
    bench = await Bench.begin(pipeline(Many()))
    await bench.work(meter=meter)
    await bench.send(b"1", b"2", b"3")
    await bench.left(3)
    (sizes,) = [s for s in meter.read() if s.name == "broker_pipeline_batch_packages"]
    assert (sizes.labels, sizes.value) == (labels, 3)
    assert 1 <= sum(sizes.counts) <= 3
    read()
    await bench.end()


async def test_a_timeout_is_an_error_once_however_late_the_module_comes_back() -> None:
    """Counted when its time is over, and as a timeout; when the late code returns, nothing is."""
    opened = threading.Event()

    class Late(ExecutionModule[bytes]):
        options = ModuleOptions(timeout_s=0.05)

        def execute(self, package: Any, run: Any) -> None:
            opened.wait(30)

    read, labels = Reader(meter := Meter()), (*PHASE, "Late")
    bench = await Bench.begin(pipeline(Late()))
    worker = await bench.work(slots=4, meter=meter)
    await bench.send(b"late")
    assert results(await bench.left(1)) == [(b"late", Outcome.ERROR)]
    await until(read.until(lambda r: r["phase_lost_slots", PHASE] == 1))
    found = read()
    assert found["module_timeouts_total", labels] == 1
    assert found["module_packages_out_total", (*labels, "error")] == found[IN, PHASE] == 1
    opened.set()
    await until(lambda: not worker.phase._executor.lost_slots)
    assert read()["module_packages_in_total", labels] == 1
    await bench.end()


async def test_what_a_drain_gives_back_came_and_was_given_back() -> None:
    """It has no outcome here, and is not inside any more; the other worker counts it."""
    gate, read = Gate(is_open=False), Reader(meter := Meter())
    bench = await Bench.begin(pipeline(gate, ack_wait_s=60.0))
    first = await bench.work(slots=2, meter=meter)
    first.phase._executor.wanted = lambda: 10  # type: ignore[method-assign]
    await bench.send(*[b"%d" % n for n in range(8)])
    await until(read.until(lambda r: r[IN, PHASE] == 8 and r["module_processing", GATE] == 2))
    draining = asyncio.create_task(first.drain())
    await until(read.until(lambda r: r[OUT, (*PHASE, "given_back")] == 6))
    assert read()["phase_processing", PHASE] == 2
    gate.opened.set()
    await until(read.until(lambda r: r[OUT, (*PHASE, "success")] == 2))
    await draining
    other = Meter()
    await bench.work(meter=other)
    await bench.left(8)
    assert Reader(other)()[IN, PHASE] == 6
    assert not [s for s in meter.read() if s.name.endswith("_processing")], "its end is the end"
    await bench.end()


async def test_inputs_that_are_run_again_for_a_state_are_no_packages() -> None:
    """They are counted as what they are, and neither the phase nor its modules have them again."""

    class Count(msgspec.Struct):
        n: int = 0

    class Fold(StatefulModule[bytes, Count]):
        def initial_state(self) -> Count:
            return Count()

        def execute(self, package: Any, run: Any, state: Count) -> Count:
            state.n += 1
            return state

    fold = Pipeline("demo", [Controller("c", [Phase("p0", [Fold()])], mode=Mode.NOT_PARALLEL)])
    bench = await Bench.begin(fold)
    first = await bench.work()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(state_keeper, "STORE_EVERY_S", 1000.0)
        await bench.send(b"1", b"2", b"3")
        await bench.left(3)
        await first.vanish()
    read = Reader(meter := Meter())
    second = await bench.work(meter=meter)
    await bench.send(b"4")
    await bench.left(4)
    found = read()
    assert second.phase._states is not None
    assert found["states_rerun_total", PHASE] == second.phase._states.caught_up > 0
    assert found[IN, PHASE] == found["module_packages_in_total", (*PHASE, "Fold")] == 1
    assert found["states_held", PHASE] == 1
    bench.workers.remove(first)
    await bench.end()


async def test_what_a_bridge_gives_back_was_in_its_modules_until_then() -> None:
    """A reading while it waits for a server has it in the module; the drain gives it back, and no
    count goes back."""
    servers, read = Servers(room=1, answering=False), Reader(meter := Meter())
    far = ExternalModule("far", target="registry:///far")
    bench = await Bench.begin(pipeline(far))
    worker = await bench.work(slots=4, relays=servers, meter=meter)
    worker.phase._executor.wanted = lambda: 4  # type: ignore[method-assign]
    await bench.send(b"1", b"2", b"3")
    labels = (*PHASE, "far")
    await until(read.until(lambda r: r["module_processing", labels] == 3))
    assert read()["relay_calls", (*labels, "registry:///far")] == 1
    draining = asyncio.create_task(worker.drain())
    await until(read.until(lambda r: r["module_packages_out_total", (*labels, "given_back")] == 2))
    servers.change(answering=True)
    await until(read.until(lambda r: r["module_packages_out_total", (*labels, "success")] == 1))
    await draining
    assert Reader(meter)()["relay_time_seconds", (*labels, "registry:///far", "success")] == 1
    await bench.end()


@pytest.mark.parametrize("slots", [1, 4])
async def test_readings_while_threads_run_always_balance(slots: int) -> None:
    """Packages through nested modules, read without a pause: no reading finds one missing or
    twice, whatever a slot's thread is doing at that moment."""
    tree = CombinationModule([Say(name="a"), CombinationModule([Say(name="b")], name="in")])
    read = Reader(meter := Meter())
    bench = await Bench.begin(pipeline(tree, Say(), mode=Mode.NO_ORDER))
    await bench.work(slots=slots, meter=meter)
    await bench.work(1, slots=slots, meter=meter)
    count = 600
    sending = asyncio.create_task(bench.send(*[b"error", b"exit", b"x", b"y"] * (count // 4)))
    done = 0.0
    while done < count:
        done = sum(v for (name, labels), v in read().items() if name == OUT and labels[2] == "p0")
        await asyncio.sleep(0)
    await sending
    assert read.readings > 20
    await bench.end()
