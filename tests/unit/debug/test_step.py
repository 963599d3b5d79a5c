"""A package in a phase again: its input and its states from a log in memory, today's modules."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
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
    Phase,
    Pipeline,
    StatefulModule,
)
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.core.names import module_bucket
from broker_pipeline.debug.inspection.wanted import Wanted
from broker_pipeline.debug.steps.step import How, Stepped, run_step
from broker_pipeline.debug.steps.step_report import Report, report
from broker_pipeline.debug.steps.step_source import Given, look_up
from broker_pipeline.errors import (
    BrokerPipelineError,
    ClientError,
    PayloadGoneError,
    SetupError,
    StepError,
    StepStateError,
    UnknownPackageError,
    UnknownPhaseError,
)
from broker_pipeline.journey import Status
from broker_pipeline.runtime import states as keeping
from tests.unit.runtime.bench import Bench

PAYLOADS = [b"one", b"two", b"bad", b"four", b"exit", b"six"]


class Tally(msgspec.Struct):
    """What a `Count` has seen."""

    seen: list[str] = []


class Count(StatefulModule[str, Tally]):
    """Says how many it has seen; some of them badly."""

    bad = "bad"

    def initial_state(self) -> Tally:
        """Nothing."""
        return Tally()

    def execute(self, package: Any, run: Any, state: Tally) -> Tally:
        """One."""
        text = package.data
        state.seen.append(text)  # in place: a state that failed must be as it was
        if text == self.bad:
            raise ValueError(f"{text} is bad")
        if text == "exit":
            run.exit("as asked", state=state)
        package.data = f"{text} {len(state.seen)}"
        run.message = f"{len(state.seen)} seen"
        return state


class Upper(ExecutionModule[str]):
    """In upper case; `async`, with something that is bound to the loop of its `setup`."""

    async def setup(self) -> None:
        """On the loop."""
        self.loop = asyncio.get_running_loop()

    async def execute(self, package: Any, run: Any) -> None:
        """One."""
        assert asyncio.get_running_loop() is self.loop
        await asyncio.sleep(0)
        package.data = package.data.upper()


def pipeline(*phases: Phase, mode: Mode = Mode.NOT_PARALLEL, **options: Any) -> Pipeline:
    """One controller of these phases."""
    return Pipeline("demo", [Controller("c", list(phases), mode=mode)], **options)


def counting(module: Any = None) -> Pipeline:
    """A stateful phase and an async one."""
    return pipeline(Phase("count", [module or Count()]), Phase("upper", [Upper()]))


def recorded(
    run: Pipeline,
    payloads: list[bytes],
    then: Callable[[Bench, list[str]], Awaitable[Any]],
    **options: Any,
) -> Any:
    """Have packages go through, and look at what that left. Gets their ids in order of arrival."""

    async def main() -> Any:
        bench = await Bench.begin(run, **options)
        for phase in range(len(run.controllers[0].phases)):
            await bench.work(phase)
        for number, payload in enumerate(payloads, start=1):
            await bench.send(payload)
            await bench.left(number)
        left = await bench.left(len(payloads))
        await bench.end()
        return await then(bench, [f"demo/0/{n}" for n in sorted(each.id for each in left)])

    return asyncio.run(main())


def given(
    run: Pipeline,
    payloads: list[bytes],
    number: int,
    phase: str | None = None,
    today: Pipeline | None = None,
    **options: Any,
) -> Given:
    """What the package of that number had in a phase, of a pipeline that may be another today."""

    async def find(bench: Bench, ids: list[str]) -> Given:
        return await look_up(bench.broker, today or run, Wanted(ids[number - 1]), phase, **options)

    found = recorded(run, payloads, find)
    assert isinstance(found, Given)
    return found


def stepped(what: Given, **how: Any) -> tuple[Stepped, Report]:
    """Run it, and compare."""
    result = run_step(what, How(**how))
    return result, report(what, result)


def test_every_package_comes_out_of_every_phase_as_it_was_recorded() -> None:
    """With a state, async, as SUCCESS, ERROR and EXIT: the same code gives the same."""
    run = counting()

    async def find(bench: Bench, ids: list[str]) -> list[Given]:
        return [await look_up(bench.broker, run, Wanted(each)) for each in ids] + [
            await look_up(bench.broker, run, Wanted(each), "c.count") for each in ids
        ]

    everything = recorded(run, PAYLOADS, find)
    assert [f"{g.controller.name}.{g.phase.name}" for g in everything[: len(PAYLOADS)]] == [
        "c.upper", "c.upper", "c.count", "c.upper", "c.count", "c.upper",
    ]  # fmt: skip
    for what in everything:
        result, found = stepped(what)
        assert found.differences == (), list(found.lines())
        assert not result.left


@pytest.mark.parametrize("store_every_s", [0.0, 1e9])
def test_the_state_is_that_which_the_package_found(
    store_every_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it was stored or is to be computed again; an ERROR left none."""
    monkeypatch.setattr(keeping, "STORE_EVERY_S", store_every_s)
    what = given(counting(), PAYLOADS, 6, "c.count")
    result, _ = stepped(what)
    assert result.before == {"0": Tally(["one", "two", "four", "exit"])}
    assert result.after == {"0": Tally(["one", "two", "four", "exit", "six"])}


def test_a_stored_state_that_is_newer_is_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is computed from the beginning of the instance's life."""
    monkeypatch.setattr(keeping, "STORE_EVERY_S", 0.0)
    what = given(counting(), PAYLOADS, 4, "c.count")
    assert what.before is not None
    assert (what.before.sequence, len(what.before.inputs)) == (0, 2)
    result, found = stepped(what)
    assert result.before == {"0": Tally(["one", "two"])} and found.same


def test_what_todays_code_does_otherwise_is_said() -> None:
    """The recorded ERROR is mended: status, payload and errors differ."""

    class Mended(Count):
        bad = ""

    today = counting(Mended(name="Count"))
    result, found = stepped(given(counting(), PAYLOADS, 3, "c.count", today))
    assert result.status is Status.SUCCESS
    assert data_of(result) == "bad 3"
    assert not found.same and found.differences
    text = "\n".join(found.lines())
    assert "ValueError: bad is bad in c/count/Count" in text
    assert "not the same as recorded:" in text
    assert found.to_json()["recorded"]["errors"][0]["message"] == "bad is bad"
    assert found.to_json()["now"]["errors"] == []


def data_of(result: Stepped) -> str:
    """The payload."""
    return result.envelope.data.decode()


def test_a_traceback_is_shown_once() -> None:
    """Where it is the same."""
    _, found = stepped(given(counting(), PAYLOADS, 3, "c.count"))
    text = "\n".join(found.lines())
    assert text.count("ValueError: bad is bad in c/count/Count") == 2
    assert text.count("Traceback (most recent call last)") == 1


def test_nothing_that_a_package_says_moves_the_terminal() -> None:
    """Escape sequences in errors, messages and attributes are not written."""

    class Rude(Count):
        def execute(self, package: Any, run: Any, state: Tally) -> Tally:
            run.message = "\x1b[2J"
            package.attributes["\x1b[31m"] = "\r"
            if package.data == "bad":
                raise ValueError("\x1b[0m\x07")
            return state

    for number in (1, 3):
        _, found = stepped(given(counting(Rude()), PAYLOADS, number, "c.count"))
        lines = list(found.lines())
        assert all(line.isprintable() for line in lines) and len(lines) > 8


def test_an_initial_state_can_be_asked_for() -> None:
    """Whatever came before."""
    what = given(counting(), PAYLOADS, 4, "c.count", initial_state=True)
    result, found = stepped(what)
    assert result.before == {"0": Tally()} and not found.same


def test_history_that_is_gone_is_said_and_can_be_done_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The inputs before it were purged, and no state is stored that would help."""
    monkeypatch.setattr(keeping, "STORE_EVERY_S", 1e9)
    run = counting()

    async def find(bench: Bench, ids: list[str]) -> Given:
        queue = f"{bench.subjects.work}c.count."
        second = bench.messages(queue)[1].stream_seq
        await bench.broker.purge(bench.stream, below=second)
        with pytest.raises(StepStateError, match=r"does not have any more.*--initial-state"):
            await look_up(bench.broker, run, Wanted(ids[2]), "c.count")
        with pytest.raises(UnknownPackageError, match="purged"):
            await look_up(bench.broker, run, Wanted(ids[0]), "c.count")
        return await look_up(bench.broker, run, Wanted(ids[2]), "c.count", initial_state=True)

    what = recorded(run, PAYLOADS[:3], find)
    assert stepped(what)[1].same  # bad with any state


def test_a_package_whose_arrival_is_purged_is_found_by_what_is_left() -> None:
    """Its way through the queues may be in the log still."""
    run = counting()

    async def find(bench: Bench, ids: list[str]) -> Given:
        number = int(ids[-1].rpartition("/")[2])
        await bench.broker.purge(bench.stream, below=number + 1)
        return await look_up(bench.broker, run, Wanted(ids[-1]))

    assert stepped(recorded(run, PAYLOADS, find))[1].same


def test_an_input_that_fails_today_when_it_is_run_again_is_named() -> None:
    """The state cannot be had by a code that fails on the way to it."""

    class Worse(Count):
        bad = "two"

    what = given(counting(), PAYLOADS, 4, "c.count", counting(Worse(name="Count")))
    with pytest.raises(StepStateError, match=r"fails today.*ValueError: two is bad"):
        run_step(what)


def test_several_lives_of_an_instance_are_told_apart() -> None:
    """Each begins with the initial state; the package's own life counts."""
    run = counting()

    async def find(bench: Bench, ids: list[str]) -> list[Given]:
        return [await look_up(bench.broker, run, Wanted(each), "c.count") for each in ids]

    async def lives(bench: Bench, ids: list[str]) -> Any:
        return await find(bench, ids)

    async def main() -> list[Given]:
        bench = await Bench.begin(run)
        for phase in range(2):
            await bench.work(phase)
        for life in range(2):
            for number, payload in enumerate(PAYLOADS[:2], start=1):
                await bench.send(payload)
                await bench.left(2 * life + number)
            close = bench.subjects.arrival("a").replace(".0.ctl.in.", ".in.")
            await bench.broker.publish(close, b"", headers={"Bp-Control": "close"})
        left = sorted(each.id for each in await bench.left(4))
        await bench.end()
        return await lives(bench, [f"demo/0/{number}" for number in left])

    befores = [stepped(what)[0].before["0"] for what in asyncio.run(main())]
    assert befores == [Tally(), Tally(["one"])] * 2


def test_nothing_is_written_and_no_consumer_is_left() -> None:
    """The log, the consumers and the stored states are what they were."""
    run = counting()

    async def find(bench: Bench, ids: list[str]) -> None:
        async def everything() -> Any:
            keys = await bench.broker.kv_keys(module_bucket("demo"))
            return (
                await bench.broker.stream_state(bench.stream),
                await bench.broker.consumer_states(bench.stream),
                [await bench.broker.kv_get(module_bucket("demo"), key) for key in keys],
            )

        before = await everything()
        for each in ids:
            await look_up(bench.broker, run, Wanted(each), "c.count")
        assert await everything() == before

    recorded(run, PAYLOADS, find)


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
