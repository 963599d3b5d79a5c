"""`run_in_memory`: the core as users' own tests see it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from broker_pipeline import (
    Controller,
    DataPackage,
    ExecutionModule,
    Mode,
    Outcome,
    Phase,
    Pipeline,
    Run,
    StatefulModule,
)
from broker_pipeline.errors import ClientError, SetupError, StateError
from broker_pipeline.testing import START_NS, run_in_memory
from tests.unit.running_in_memory import Life, Remember, Upper, pipeline


def seconds(*by_sequence: float) -> Any:
    return lambda phase, package: by_sequence[package.sequence - 1]


def left(packages: list[DataPackage[Any]]) -> list[tuple[int, str]]:
    return [(package.sequence, str(package.outcome)) for package in packages]


def test_packages_go_through_and_carry_their_journey() -> None:
    """A package comes out decoded, with controllers, phases and modules as in production."""
    (package,) = run_in_memory(pipeline(Mode.ORDER_BY_SEQUENCE), ["a"], duration_s=2.0)
    assert package.data == "A"
    assert package.outcome is Outcome.SUCCESS
    assert package.start_time_ns == START_NS
    assert package.to_json()["total_time"] == 2.0
    (controller,) = package.controllers
    assert (controller.name, controller.sequence, controller.status) == ("only", 1, "SUCCESS")
    (phase,) = controller.phases
    assert (phase.name, phase.total_time_ns) == ("work", 2_000_000_000)
    assert [module.name for module in phase.modules] == ["Upper"]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (Mode.NOT_PARALLEL, [1, 2, 3, 4, 5]),
        (Mode.ORDER_BY_SEQUENCE, [1, 2, 3, 4, 5]),
        (Mode.NO_ORDER, [1, 3, 2, 5, 4]),
        (Mode.FIRST_WINS, [1, 3, 2, 5, 4]),
    ],
)
def test_each_mode_lets_packages_leave_in_its_order(mode: Mode, expected: list[int]) -> None:
    """Finishing as 1 3 2 5 4 leaves as the mode says."""
    packages = run_in_memory(
        pipeline(mode), ["a", "b", "c", "d", "e"], duration_s=seconds(1, 3, 2, 5, 4)
    )
    assert [package.sequence for package in packages] == expected


def test_overtaken_packages_are_outdated_under_first_wins() -> None:
    """The example of the design: finishing as 1 3 2 5 4 gives 1 3 5, and 2 and 4 OUTDATED."""
    packages = run_in_memory(
        pipeline(Mode.FIRST_WINS), ["a", "b", "c", "d", "e"], duration_s=seconds(1, 3, 2, 5, 4)
    )
    assert left(packages) == [
        (1, "SUCCESS"),
        (3, "SUCCESS"),
        (2, "OUTDATED"),
        (5, "SUCCESS"),
        (4, "OUTDATED"),
    ]


def test_the_oldest_waiting_package_overflows() -> None:
    """One works, one waits; with each further arrival the waiting one leaves."""
    packages = run_in_memory(
        pipeline(Mode.ORDER_BY_SEQUENCE, max_workers=1, queue_size=1),
        ["a", "b", "c", "d"],
        interval_s=0.1,
        duration_s=1.0,
    )
    assert left(packages) == [(2, "OVERFLOW"), (3, "OVERFLOW"), (1, "SUCCESS"), (4, "SUCCESS")]
    assert [package.to_json()["total_time"] for package in packages] == [0.1, 0.1, 1.0, 1.7]


def test_what_is_too_old_is_outdated_and_not_run() -> None:
    """One works; who waits too long is not run, and who takes too long was run in vain."""
    packages = run_in_memory(
        pipeline(Mode.NOT_PARALLEL, max_age_s=2.0),
        ["a", "b", "c", "d"],
        interval_s=0.5,
        duration_s=seconds(1.6, 1.0, 2.0, 2.0),
    )
    assert left(packages) == [(1, "SUCCESS"), (2, "OUTDATED"), (4, "OUTDATED"), (3, "OUTDATED")]
    assert [package.to_json()["total_time"] for package in packages] == [1.6, 2.1, 2.0, 3.6]
    assert [len(package.controllers[0].phases) for package in packages] == [1, 1, 0, 1]


def test_a_phase_leaves_out_what_got_too_old_in_the_one_before() -> None:
    """As a worker does: a record of it, and no module in it."""
    one, two = Phase("one", [Upper()]), Phase("two", [Upper()])
    chain = Pipeline("test", [Controller("only", [one, two], mode=Mode.NO_ORDER, max_age_s=1.0)])
    (package,) = run_in_memory(chain, ["a"], duration_s=1.0)
    assert (package.data, package.outcome) == ("A", Outcome.OUTDATED)
    phases = package.controllers[0].phases
    assert [(phase.status, len(phase.modules)) for phase in phases] == [
        ("SUCCESS", 1),
        ("OUTDATED", 0),
    ]
    assert package.to_json()["total_time"] == 1.0


def test_nothing_overflows_where_work_takes_no_time() -> None:
    """What ends at the moment of an arrival ends first: its place is free."""
    packages = run_in_memory(
        pipeline(Mode.NOT_PARALLEL, queue_size=0), ["a", "b"], interval_s=1, duration_s=1
    )
    assert left(packages) == [(1, "SUCCESS"), (2, "SUCCESS")]
    packages = run_in_memory(pipeline(Mode.NOT_PARALLEL, queue_size=0), ["a", "b", "c"])
    assert {package.outcome for package in packages} == {Outcome.SUCCESS}


def test_an_exit_does_not_hold_up_those_behind_it() -> None:
    """EXIT leaves at once with its reason, an ERROR with the payload as the module got it."""
    exited, failed, passed = run_in_memory(
        pipeline(Mode.ORDER_BY_SEQUENCE), ["ok", "", "bad"], duration_s=seconds(3, 1, 2)
    )
    assert exited.outcome is Outcome.EXIT
    assert exited.controllers[0].phases[0].modules[0].message == "empty"
    assert failed.outcome is Outcome.ERROR
    assert failed.data == "bad"
    assert failed.errors[0].type == "ValueError"
    assert failed.errors[0].path == "only/work/Upper"
    assert passed.data == "OK"


def test_a_state_is_a_fold_and_an_error_leaves_it_as_it_was() -> None:
    """Each instance has its own state, and what a failing module did to it is not kept."""
    packages = run_in_memory(
        pipeline(Mode.NOT_PARALLEL, Remember()),
        ["a", ("other", "x"), "bad", "b"],
    )
    assert [(p.instance, p.data, p.outcome) for p in packages] == [
        ("test", "a", Outcome.SUCCESS),
        ("other", "x", Outcome.SUCCESS),
        ("test", "bad", Outcome.ERROR),
        ("test", "a+b", Outcome.SUCCESS),
    ]


def test_an_idle_instance_begins_a_new_life() -> None:
    """Log time passes between arrivals: after `instance_idle_s` numbers and states begin again."""
    idle = Pipeline("test", [Controller("only", [Phase("work", [Remember()])])], instance_idle_s=10)
    packages = run_in_memory(idle, ["a", "b"], interval_s=20)
    assert [(p.sequence, p.data) for p in packages] == [(1, "a"), (1, "b")]
    assert packages[0].epoch != packages[1].epoch


def test_the_same_run_gives_the_same_bytes() -> None:
    """Nothing depends on a clock, a thread or a random number."""
    chunks = ["a", "", "bad", b"raw", DataPackage("p", attributes={"k": "v"}), ("other", "b")]

    def once() -> list[bytes]:
        packages = run_in_memory(
            pipeline(Mode.FIRST_WINS, max_workers=2, queue_size=1),
            chunks,
            interval_s=0.25,
            duration_s=lambda phase, package: (package.sequence * 7) % 3,
        )
        return [package.to_bytes() for package in packages]

    assert once() == once()
    assert len(once()) == len(chunks)


def test_a_package_goes_through_every_phase_and_controller() -> None:
    """Phases are named `controller.phase`, ids are stream sequences as the log gives them."""
    seen = []

    def duration(phase: str, package: DataPackage[Any]) -> float:
        seen.append((phase, package.data))
        return 1.0

    two = Pipeline(
        "test",
        [
            Controller("one", [Phase("a", [Upper()]), Phase("b", [Upper()])]),
            Controller("two", [Phase("c", [Upper()])], mode=Mode.NO_ORDER),
        ],
    )
    first, second = run_in_memory(two, ["x", "y"], duration_s=duration)
    assert seen[:3] == [("one.a", "x"), ("one.b", "X"), ("two.c", "X")]
    # The plan is message 1; the first arrival 2 and its dispatch 3; so the second arrival is 4.
    assert (first.id, second.id) == ("test/0/2", "test/0/4")
    assert first.to_json()["total_time"] == 3.0
    assert second.controllers[0].input_waiting_time_ns == 2_000_000_000


def test_attributes_and_content_type_travel_along() -> None:
    """A DataPackage is sent as it is."""
    (package,) = run_in_memory(
        pipeline(Mode.NO_ORDER), [DataPackage("p", attributes={"k": "v"})], close=False
    )
    assert (package.data, dict(package.attributes)) == ("P", {"k": "v"})


def test_async_modules_are_set_up_and_torn_down_on_one_loop() -> None:
    """`setup`, packages and `teardown` share a loop, once for each module object."""
    life = Life()
    run_in_memory(pipeline(Mode.NOT_PARALLEL, life, life), ["a"])
    assert life.calls == ["setup", "a", "a", "teardown"]


async def test_async_modules_under_a_running_loop_are_refused() -> None:
    """The error says what to do, and that works."""
    life = Life()
    with pytest.raises(ClientError, match="to_thread"):
        run_in_memory(pipeline(Mode.NOT_PARALLEL, life), ["a"])
    await asyncio.to_thread(run_in_memory, pipeline(Mode.NOT_PARALLEL, life), ["a"])
    assert life.calls == ["setup", "a", "teardown"]


def test_teardown_may_be_all_that_is_async() -> None:
    """Every module is let go, the last one first."""
    calls = []

    class Last(ExecutionModule[str]):
        def execute(self, package: DataPackage[str], run: Run) -> None:
            calls.append(self.name)

        async def teardown(self) -> None:
            calls.append(f"{self.name} gone")

    modules = [Last(name="a"), Last(name="b")]
    run_in_memory(pipeline(Mode.NOT_PARALLEL, *modules), ["x"])
    assert calls == ["a", "b", "b gone", "a gone"]


def test_a_setup_that_fails_stops_the_run() -> None:
    """What was ready by then is let go."""

    class Broken(ExecutionModule[str]):
        def setup(self) -> None:
            raise OSError("no model")

    life = Life()
    with pytest.raises(SetupError, match="'Broken' failed: OSError: no model"):
        run_in_memory(pipeline(Mode.NOT_PARALLEL, life, Broken()), ["a"])
    assert life.calls == ["setup", "teardown"]


class Odd(msgspec.Struct):
    what: Any


class Strange(StatefulModule[str, Odd]):
    def initial_state(self) -> Odd:
        return Odd(print)

    def execute(self, package: DataPackage[str], run: Run, state: Odd) -> Odd:
        return state


def test_a_state_that_cannot_be_stored_is_found() -> None:
    """Its module would fail in production."""
    with pytest.raises(StateError, match="cannot be stored"):
        run_in_memory(pipeline(Mode.NOT_PARALLEL, Strange()), ["a"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"interval_s": -1.0},
        {"duration_s": -1.0},
        {"duration_s": lambda phase, package: float("nan")},
        {"instance": ""},
    ],
)
def test_bad_arguments_are_refused(wrong: dict[str, Any]) -> None:
    """Negative or endless times, and instances that no subject can hold."""
    with pytest.raises(ClientError):
        run_in_memory(pipeline(Mode.NO_ORDER), ["a"], **wrong)


def test_a_tuple_that_is_no_pair_is_refused() -> None:
    """Rather than sent as something else."""
    with pytest.raises(ClientError, match="expected a pair"):
        run_in_memory(pipeline(Mode.NO_ORDER), [(1, "a")])
