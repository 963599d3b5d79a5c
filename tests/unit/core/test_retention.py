"""Retention's rules: what may go, and when producers are refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from broker_pipeline import Controller, ExecutionModule, Mode, Phase, Pipeline, StatefulModule
from broker_pipeline.core import retention
from broker_pipeline.core.controller import ControllerState
from broker_pipeline.core.events import Arrived, Completed, Deployed, Opened
from broker_pipeline.core.machine import Machine
from broker_pipeline.core.plan import Plan, compile_plan, differences
from broker_pipeline.core.snapshot import Chain, Head, read_head, restore
from broker_pipeline.errors import DeclarationError
from broker_pipeline.journey import Outcome

SIZE = 1000


class Count(StatefulModule[bytes, int]):
    """Has a state."""

    def initial_state(self) -> int:
        """None yet."""
        return 0

    def execute(self, package: object, run: object, state: int) -> int:
        """One more."""
        return state + 1


class Plain(ExecutionModule[bytes]):
    """Has none."""

    def execute(self, package: object, run: object) -> None:
        """Nothing."""


def pipeline(mode: Mode = Mode.NOT_PARALLEL, **settings: Any) -> Pipeline:
    """Two controllers; the first phase of the first is stateful where it can be."""
    first = Count() if mode is Mode.NOT_PARALLEL else Plain()
    ordered = Controller("d", [Phase("p", [Plain()])], mode=Mode.ORDER_BY_SEQUENCE, max_workers=2)
    phases = [Phase("p", [first]), Phase("q", [Plain()])]
    return Pipeline("talk", [Controller("c", phases, mode=mode), ordered], **settings)


def machine(mode: Mode = Mode.NOT_PARALLEL) -> Machine:
    """After the deploy, at 1."""
    made = Machine()
    made.step(Deployed(1, 0, compile_plan(pipeline(mode))))
    return made


def done(at: int, sequence: int, controller: str = "c", stored: int = 0, id: int = 0) -> Completed:
    """A completion of instance a, whose life began at 2."""
    found = id or sequence + 1
    return Completed(
        at, 0, "a", 2, found, controller, sequence, Outcome.SUCCESS, 1, states=(stored, 0)
    )


def test_a_stateful_instance_needs_the_log_from_its_life_on_until_a_state_is_stored() -> None:
    """And from behind the stored input's on then; a claim never goes back."""
    made = machine()
    made.step(Arrived(2, 0, "a"))
    assert made.oldest_source() == 2
    made.step(done(5, 1))
    assert made.oldest_source() == 2
    made.step(Arrived(6, 0, "a"))
    made.step(done(7, 2, stored=4, id=6))
    made.step(done(8, 1, "d"))
    made.step(done(9, 2, "d", id=6))
    assert made.oldest_source() == 5
    made.step(Arrived(10, 0, "a"))
    made.step(done(11, 3, stored=3, id=10))
    assert made.oldest_source() == 5


def test_an_instance_that_no_package_has_reached_needs_nothing_for_its_states() -> None:
    """Nor does one without states."""
    made = machine()
    made.step(Opened(2, 0, "a"))
    assert made.oldest_source() is None
    made = machine(Mode.NO_ORDER)
    made.step(Arrived(2, 0, "a"))
    assert made.oldest_source() is None


def test_what_a_snapshot_needs_is_in_its_head_and_survives_it() -> None:
    """The claims of stored states, too: a new leader keeps what the last one kept."""
    made = machine()
    made.step(Arrived(2, 0, "a"))
    made.step(done(5, 1, stored=4))
    made.step(done(6, 1, "d"))
    taken = Chain().take(made)
    head = read_head(taken.head)
    assert (head.applied, head.oldest_source) == (6, 5)
    again, _ = restore(head, taken.parts)
    assert again.oldest_source() == 5


def test_the_head_of_a_snapshot_says_who_has_been_inside_for_longest() -> None:
    """With the workers, waiting for a place, or held for a missing number; none: the next to come.
    An older program reads such a head, and one of an older program says nothing."""
    made = machine(Mode.NOT_PARALLEL)
    chain = Chain()

    def oldest() -> int:
        return read_head(chain.take(made).head).oldest_inside

    assert oldest() == made.applied + 1
    made.step(Arrived(2, 0, "a"))
    made.step(Arrived(3, 0, "a"))
    made.step(Arrived(4, 0, "b", "p", 2))
    assert oldest() == 2
    made.step(done(5, 1))
    made.step(done(6, 1, "d"))
    assert oldest() == 3
    made.step(done(7, 2, id=3))
    made.step(done(8, 2, "d", id=3))
    assert oldest() == 4
    head = read_head(chain.take(made).head)
    fields = msgspec.to_builtins(head)
    assert msgspec.convert(fields[:6], Head).oldest_inside == 0
    assert msgspec.convert([*fields, 7], Head) == head


def test_a_snapshot_of_before_says_nothing_of_stored_states_and_all_is_needed() -> None:
    """From the beginning of the life on."""
    made = machine()
    made.step(Arrived(2, 0, "a"))
    made.step(done(5, 1, stored=4))
    controller = made.instances["a"].controllers[0]
    rules = compile_plan(pipeline()).controllers[0]
    older = msgspec.structs.replace(controller.dump(), stored=[])
    assert ControllerState.load(rules, older).oldest_state_input(2) == 2
    assert ControllerState.load(rules, controller.dump()).oldest_state_input(2) == 5


def head(applied: int, oldest_source: int) -> Head:
    """Of a snapshot."""
    return Head(2, applied, 0, b"", oldest_source, [])


@pytest.mark.parametrize(
    ("stored", "consumers", "young", "below"),
    [
        (head(10, 99), [99], None, 11),
        (head(10, 4), [99], None, 4),
        (head(10, 99), [99, 7], None, 7),
        (head(10, 99), [99], 8, 8),
        (head(10, 3), [99], None, None),
    ],
)
def test_the_lowest_need_bounds_a_purge(
    stored: Head, consumers: list[int], young: int | None, below: int | None
) -> None:
    """Each of them; None where there is nothing below it."""
    assert retention.purge_below(stored, consumers, 3, young) == below


def test_ingress_closes_and_opens_at_levels_that_lie_apart() -> None:
    """Below REOPEN it opens, from CLOSE on it closes, in between it stays."""
    assert [retention.should_be_open(SIZE, n, True) for n in (650, 699, 700)] == [True, True, False]
    assert [retention.should_be_open(SIZE, n, False) for n in (599, 600)] == [True, False]
    assert retention.should_be_open(None, 10**12, False)
    assert [retention.is_pressed(SIZE, n) for n in (499, 500)] == [False, True]
    assert not retention.is_pressed(None, 10**12)


def test_a_closed_log_has_room_for_all_that_its_packages_become() -> None:
    """Each makes 7 messages here, twice as large as it at most; where small ones have become more
    than that, there is always as much room again as is used."""
    plan = compile_plan(pipeline(log_bytes_max=1 << 20))
    room = 14 << 20
    assert retention.room_factor(plan) == 14
    assert retention.max_bytes(plan, 1 << 20, True) == 1 << 20
    assert retention.max_bytes(plan, 1 << 20, False) == room
    assert retention.max_bytes(plan, room // 2, False) == room
    assert retention.max_bytes(plan, room // 2 + 1, False) == 2 * room
    assert retention.max_bytes(compile_plan(pipeline()), 10**12, False) is None


def test_the_settings_are_in_the_plan_and_an_older_plan_has_their_defaults() -> None:
    """And a deploy says what it changes of them."""
    plain = compile_plan(pipeline())
    bound = compile_plan(pipeline(log_bytes_max=1 << 20, replay_window_s=120.0))
    assert differences(plain, bound) == [
        "replay_window_ns: 3600000000000 -> 120000000000",
        "log_bytes_max: None -> 1048576",
    ]
    raw = plain.to_bytes().replace(b'"replay_window_ns":3600000000000,"log_bytes_max":null,', b"")
    assert b"log_bytes_max" not in raw
    assert Plan.from_bytes(raw) == plain


@pytest.mark.parametrize(
    "settings",
    [
        {"replay_window_s": 119.0},
        {"log_bytes_max": 1000},
        {"large_payload_bytes": 1000},
        {"large_payload_bytes": "1 MB"},
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    """A window below the dedup window; a log that could not hold a message; objects for less than
    they cost."""
    with pytest.raises(DeclarationError, match="BP103"):
        pipeline(**settings)
