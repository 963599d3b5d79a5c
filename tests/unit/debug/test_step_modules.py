"""`replay step` with every kind of module, and what cannot be stepped into."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from broker_pipeline import (
    CombinationModule,
    ConditionModule,
    ExecutionModule,
    ExternalModule,
    ModuleOptions,
    Phase,
)
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.debug.inspection.wanted import Wanted
from broker_pipeline.debug.steps.step import How, run_step
from broker_pipeline.debug.steps.step_source import Given, look_up
from broker_pipeline.errors import (
    BrokerPipelineError,
    ClientError,
    PayloadGoneError,
    SetupError,
    StepError,
    UnknownPackageError,
    UnknownPhaseError,
)
from broker_pipeline.journey import Status
from tests.unit.debug.stepping import (
    PAYLOADS,
    Count,
    Tally,
    Upper,
    counting,
    data_of,
    given,
    pipeline,
    recorded,
    stepped,
)
from tests.unit.runtime.bench import Bench


# -- kinds of modules ---------------------------------------------------------------------------
class Batch(ExecutionModule[str]):
    """Batches only."""

    def execute_batch(self, packages: Any, runs: Any) -> None:
        """All of them."""
        for package, run in zip(packages, runs, strict=True):
            run.message = f"of {len(packages)}"
            package.data = f"<{package.data}>"


class Spoken(ExecutionModule[str]):
    """Says where it runs."""

    def execute(self, package: Any, run: Any) -> None:
        """One."""
        package.attributes["spoken"] = "yes"


def test_batches_conditions_and_nested_modules_run() -> None:
    """A batch is of one; a condition may be async."""

    async def long(package: Any) -> bool:
        return len(package.data) > 3

    batch = Batch(options=ModuleOptions(max_batch=8))
    inner = CombinationModule([Spoken(), Batch(name="again")])
    run = pipeline(Phase("p", [batch, ConditionModule(inner, condition=long)]))
    what = given(run, [b"two", b"four"], 2)
    result, found = stepped(what)
    assert found.same and data_of(result) == "<<four>>"


def test_an_isolated_module_runs_here() -> None:
    """So that a debugger sees it."""
    run = pipeline(Phase("p", [Upper()]))
    today = pipeline(Phase("p", [Upper(options=ModuleOptions(isolation="process"))]))
    assert stepped(given(run, [b"x"], 1, None, today))[1].same


def test_external_modules_want_a_stand_in() -> None:
    """Without one, and without leave to call servers, that is said; with one it runs."""
    run = pipeline(Phase("p", [Upper(name="up")]))
    today = pipeline(Phase("p", [ExternalModule("up", target="localhost:1")]))
    what = given(run, [b"x"], 1, None, today)
    with pytest.raises(StepError, match="runs in module servers; expected --external up="):
        run_step(what)
    with pytest.raises(ClientError, match="external names 'pu'"):
        run_step(what, How(external={"up": Upper(), "pu": Upper()}))
    result, _ = stepped(what, external={"up": Upper()})
    assert data_of(result) == "X"


def test_a_module_over_its_time_is_ended_only_where_that_was_asked_for() -> None:
    """As in a worker, with the line at which it was; otherwise it may take as long as it likes."""

    class Slow(ExecutionModule[bytes]):
        seconds = 0.0

        def execute(self, package: Any, run: Any) -> None:
            run.message = f"deadline {run.deadline is not None}"
            until = time.monotonic() + self.seconds
            while time.monotonic() < until:
                pass

    slow = Slow(options=ModuleOptions(timeout_s=0.1))
    what = given(pipeline(Phase("p", [Slow()])), [b"x"], 1, None, pipeline(Phase("p", [slow])))
    slow.seconds = 0.2
    result, _ = stepped(what)
    assert result.status is Status.SUCCESS
    assert result.envelope.controllers[0].phases[0].modules[0].message == "deadline False"
    slow.seconds = 60
    result, _ = stepped(what, timeouts=True)
    assert result.status is Status.ERROR
    [error] = result.envelope.errors
    assert error.type == "ModuleTimeoutError" and "in execute" in error.traceback


def test_an_async_module_over_its_time_is_ended_too() -> None:
    """Wherever it waits."""

    class Waits(ExecutionModule[bytes]):
        forever = False

        async def execute(self, package: Any, run: Any) -> None:
            if self.forever:
                await asyncio.Event().wait()

    waits = Waits(options=ModuleOptions(timeout_s=0.1))
    today = pipeline(Phase("p", [waits]))
    what = given(pipeline(Phase("p", [Waits()])), [b"x"], 1, None, today)
    waits.forever = True
    result, _ = stepped(what, timeouts=True)
    assert [error.type for error in result.envelope.errors] == ["ModuleTimeoutError"]


def test_a_large_payload_is_loaded_and_one_that_is_gone_is_said() -> None:
    """It lies beside the log."""

    class Swell(ExecutionModule[str]):
        def execute(self, package: Any, run: Any) -> None:
            package.data = package.data * 10_000

    run = pipeline(Phase("a", [Swell()]), Phase("b", [Upper()]), large_payload_bytes=1_024)

    async def find(bench: Bench, ids: list[str]) -> list[Given]:
        found = [
            await look_up(bench.broker, run, Wanted(ids[0]), phase) for phase in ("c.a", "c.b")
        ]
        await bench.broker.delete_object_bucket("bp_payloads_demo")
        with pytest.raises(PayloadGoneError):
            await look_up(bench.broker, run, Wanted(ids[0]), "c.b")
        found.append(await look_up(bench.broker, run, Wanted(ids[0]), "c.a"))
        return found

    swelling, upper, without = recorded(run, [b"x"], find)
    assert data_of(stepped(upper)[0]) == "X" * 10_000
    assert stepped(swelling)[1].same and stepped(upper)[1].same
    # What was recorded is gone in part: the rest is compared, and it is said.
    lines = list(stepped(without)[1].lines())
    assert "which are not there any more" in "\n".join(lines)
    assert lines[-1] == "the same as recorded, but for the payload, which is gone"


def test_a_setup_that_fails_is_said_and_what_was_set_up_is_torn_down() -> None:
    """Nothing runs."""
    told: list[str] = []

    class First(Spoken):
        def teardown(self) -> None:
            told.append("torn down")

    class Second(Spoken):
        def setup(self) -> None:
            raise OSError("no model")

    today = pipeline(Phase("p", [First(), Second()]))
    what = given(pipeline(Phase("p", [Spoken()])), [b"x"], 1, None, today)
    with pytest.raises(SetupError, match="'Second' failed: OSError: no model"):
        run_step(what)
    assert told == ["torn down"]


def test_breakpoints_stop_for_the_package_and_not_for_those_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Inputs that are run again for the state run through."""
    stops: list[str] = []
    monkeypatch.setattr("sys.breakpointhook", lambda: stops.append("here"))

    class Stops(Count):
        def execute(self, package: Any, run: Any, state: Tally) -> Tally:
            breakpoint()
            return super().execute(package, run, state)

    what = given(counting(), PAYLOADS, 4, "c.count", counting(Stops(name="Count")))
    run_step(what)
    assert stops == ["here"]


# -- what cannot be ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("package_id", "phase", "error", "says"),
    [
        ("nonsense", None, UnknownPackageError, "is no package's id"),
        ("other/0/2", None, UnknownPackageError, "is of pipeline 'other'"),
        ("demo/0/1", None, UnknownPackageError, "that place in the log holds"),
        ("demo/0/999999", None, UnknownPackageError, "the log ends at"),
        ("demo/0/2", "c.none", UnknownPhaseError, "it has: 'c.count', 'c.upper'"),
        ("bad", "c.upper", UnknownPackageError, "those that it has: 'c.count'"),
    ],
)
def test_a_package_that_is_not_there_is_said_to_be_none(
    package_id: str, phase: str | None, error: type[BrokerPipelineError], says: str
) -> None:
    """With what there is instead."""
    run = counting()

    async def find(bench: Bench, ids: list[str]) -> None:
        which = ids[2] if package_id == "bad" else package_id
        with pytest.raises(error, match=says):
            await look_up(bench.broker, run, Wanted(which), phase)

    recorded(run, PAYLOADS, find)


def test_a_package_that_is_still_inside_is_run_and_not_compared() -> None:
    """One that hangs is just what one wants to look at."""
    run = counting()

    async def main() -> Given:
        bench = await Bench.begin(run)
        await bench.work(0)
        await bench.send(b"one")
        queue = f"{bench.subjects.work}c.upper."
        async with asyncio.timeout(20):
            while not bench.messages(queue):  # noqa: ASYNC110 - the broker in memory has no event
                await asyncio.sleep(0)
        [arrival] = bench.messages(bench.subjects.ctl_in)
        found = await look_up(bench.broker, run, Wanted(f"demo/0/{arrival.stream_seq}"))
        await bench.end()
        return found

    result, found = stepped(asyncio.run(main()))
    assert result.status is Status.SUCCESS
    assert found.differences is None and not found.same
    assert "there is nothing recorded to compare it with" in list(found.lines())


def test_a_debugger_wants_a_module_that_is_there() -> None:
    """By its name."""
    what = given(counting(), PAYLOADS, 1, "c.count")
    with pytest.raises(StepError, match=r"no module 'Cuont'.*expected one of 'Count'"):
        run_step(what, How(stop_at_start=True, module="Cuont"))


def test_a_package_from_a_newer_writer_without_records_does_no_harm() -> None:
    """What was recorded need not be what we would write."""
    what = given(counting(), PAYLOADS, 1, "c.count")
    what.recorded = pb.DataPackage(id=2, pipeline="demo")
    _, found = stepped(what)
    assert not found.same and "no record of the phase" in "\n".join(found.lines())
