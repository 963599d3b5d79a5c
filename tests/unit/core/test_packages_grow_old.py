"""Packages that get too old: when they come, while they wait, and when they come back."""

import msgspec
import pytest
from driving import SECOND, World, dispatches, emits, make_plan, whole

from broker_pipeline.core import ages, snapshot
from broker_pipeline.core.events import Completed
from broker_pipeline.core.plan import Plan
from broker_pipeline.journey import Mode, Outcome

AGE = 2 * SECOND
SERIAL = (Mode.NOT_PARALLEL, 1, None, AGE)
ORDERED = (Mode.ORDER_BY_SEQUENCE, None, None, AGE)
FREE = (Mode.NO_ORDER, None, None, AGE)


def left(commands):
    """Sequence and outcome of each that is out, and has never been with a worker."""
    return [(emit.stamps[-2].sequence, emit.outcome) for emit in emits(commands)]


def outcomes(commands):
    """The outcome of each that is out."""
    return [emit.outcome for emit in emits(commands)]


def first_id(dispatch):
    """The newest that is in the first controller comes last."""
    return dispatch.package.id if dispatch.controller == 0 else 0


def reread(machine):
    """Through a snapshot and back."""
    head, parts = whole(machine)
    return snapshot.restore(snapshot.read_head(head), parts)[0]


@pytest.mark.parametrize("restored", [False, True])
def test_what_waits_in_a_queue_leaves_when_it_is_too_old_and_is_never_run(restored):
    """A tick is due at its deadline, also for a leader that has loaded a snapshot; not before."""
    world = World(make_plan([SERIAL]))
    for _ in range(3):
        world.arrive("a")
    second = world.log[2].time
    if restored:
        world.machine = reread(world.machine)
    assert world.machine.next_deadline() == second + AGE
    assert world.tick(second + AGE - 1) == []
    assert left(world.tick(second + AGE)) == [(2, Outcome.OUTDATED)]
    assert left(world.tick(world.machine.next_deadline())) == [(3, Outcome.OUTDATED)]
    assert len(world.queue) == 1


def test_a_result_at_or_past_its_deadline_is_outdated_and_one_before_it_is_not():
    """By the log time of the completion; EXIT and ERROR stay what they are."""
    world = World(make_plan([FREE]))
    for _ in range(4):
        world.arrive("a")
    first = world.log[1].time
    world.now = first + AGE - 2
    assert outcomes(world.complete(0)) == [Outcome.SUCCESS]
    world.now = first + AGE + 9
    assert outcomes(world.complete(0)) == [Outcome.OUTDATED]
    assert outcomes(world.complete(0, Outcome.EXIT)) == [Outcome.EXIT]
    assert outcomes(world.complete(0, Outcome.ERROR)) == [Outcome.ERROR]


@pytest.mark.parametrize("restored", [False, True])
def test_one_held_back_for_its_turn_gets_too_old_and_holds_up_nobody(restored):
    """In ORDER_BY_SEQUENCE, with what it became; the young ones behind it leave in their turn."""
    world = World(make_plan([ORDERED]))
    for _ in range(2):
        world.arrive("a", b"early")
    world.tick(world.now + SECOND)
    world.arrive("a", b"late")
    world.complete(1)
    world.complete(1)
    if restored:
        world.machine = reread(world.machine)
    assert world.machine.next_deadline() == world.log[2].time + AGE
    (gone,) = emits(world.tick(world.machine.next_deadline()))
    assert gone.outcome is Outcome.OUTDATED
    record = world.read(world.log[gone.package.source - 1])[1].controllers[-1]
    assert len(record.phases) == 2
    commands = world.complete(0)
    assert outcomes(commands) == [Outcome.OUTDATED, Outcome.SUCCESS]


def test_one_that_comes_too_late_to_a_controller_is_not_dispatched_there():
    """Its age counts from its arrival at the pipeline; it has its number, and holds up nobody."""
    world = World(make_plan([(Mode.NO_ORDER, None, None), ORDERED]))
    world.arrive("a")
    world.tick(world.now + AGE)
    world.arrive("a")
    commands = world.complete(0)
    assert not dispatches(commands)
    assert left(commands) == [(1, Outcome.OUTDATED)]
    world.complete(0)
    assert outcomes(world.complete(0)) == [Outcome.SUCCESS]


def test_a_too_old_arrival_throws_nobody_out_of_the_queue():
    """What waited for a producer's gap may be too old when it is taken: it is not queued."""
    world = World(make_plan([(Mode.NOT_PARALLEL, 1, 1, AGE)], gap_s=3))
    world.arrive("a", producer="p", number="2")
    world.tick(world.now + 2 * SECOND + 5)
    world.arrive("a")
    world.arrive("a")
    commands = world.tick(world.machine.next_deadline())
    assert outcomes(commands) == [Outcome.OUTDATED]
    assert commands[0].package.id == 2
    assert [t.sequence for t in world.machine.instances["a"].controllers[0].waiting] == [2]


def test_an_outdated_package_does_not_move_the_mark_of_first_wins():
    """Too old is not overtaking: an older package that is done later, and has more time after a
    deploy, still wins."""
    world = World(make_plan([(Mode.FIRST_WINS, None, None, AGE)]))
    world.arrive("a")
    world.arrive("a")
    world.tick(world.now + AGE)
    assert outcomes(world.complete(1)) == [Outcome.OUTDATED]
    world.deploy(make_plan([(Mode.FIRST_WINS, None, None, 10 * AGE)]))
    assert outcomes(world.complete(0)) == [Outcome.SUCCESS]


def test_a_worker_that_left_a_package_out_left_the_state_as_it_was():
    """OUTDATED is taken from the worker whatever the plan says, and its phase is no input of the
    state; those that it went through before are."""
    world = World(make_plan([(Mode.NOT_PARALLEL, 1, None)]))
    for _ in range(3):
        world.arrive("a")
    world.complete(0)
    assert outcomes(world.complete(0, Outcome.OUTDATED)) == [Outcome.OUTDATED]
    assert world.machine.instances["a"].controllers[0].reached == [2, 1]
    assert world.queue[0][0].stamps[-1].previous == (2, 1)


def test_a_deploy_changes_the_age_of_what_waits():
    """What is too old by the new plan leaves with it, and is not dispatched by it; one that has no
    age any more stays."""
    world = World(make_plan([(Mode.NO_ORDER, 1, None)]))
    for _ in range(2):
        world.arrive("a")
    world.tick(world.now + AGE)
    world.arrive("a")
    commands = world.deploy(make_plan([(Mode.NO_ORDER, 2, None, AGE)]))
    assert outcomes(commands) == [Outcome.OUTDATED]
    assert [command.package.id for command in dispatches(commands)] == [5]
    world.arrive("a")
    assert world.machine.next_deadline() == world.log[6].time + AGE
    world.deploy(make_plan([(Mode.NO_ORDER, 2, None)]))
    assert world.tick(world.now + 10 * AGE) == []
    assert len(world.machine.ages) == 0


def test_a_closing_instance_ends_with_the_last_that_gets_too_old():
    """And its next life begins with what waited for that."""
    world = World(make_plan([ORDERED]))
    world.arrive("a")
    world.arrive("a")
    world.complete(1)
    world.close("a")
    world.arrive("a")
    assert outcomes(world.tick(world.machine.next_deadline())) == [Outcome.OUTDATED]
    assert outcomes(world.complete(0)) == [Outcome.OUTDATED]
    assert world.machine.instances["a"].epoch == 6


def test_overflow_and_age_do_not_disturb_each_other():
    """The oldest waiting one overflows as ever; its deadline comes to nothing."""
    world = World(make_plan([(Mode.NOT_PARALLEL, 1, 1, AGE)]))
    world.arrive("a")
    world.arrive("a")
    assert left(world.arrive("a")) == [(2, Outcome.OVERFLOW)]
    assert world.machine.next_deadline() == world.log[3].time + AGE
    assert left(world.tick(world.now + 2 * AGE)) == [(3, Outcome.OUTDATED)]


def test_deadlines_of_another_life_come_to_nothing():
    """A number may wait again, in the instance's next life, with a deadline of its own."""
    world = World(make_plan([SERIAL]))
    for token in "bbaacc":
        world.arrive(token)
    for number in (1, -1, 1, -1):
        world.complete(number)
    world.close("a")
    world.close("c")
    assert list(world.machine.instances) == ["b"]
    assert len(world.machine.ages) == 3
    watched = world.log[6].time + AGE
    world.tick(watched - SECOND)
    world.arrive("a")
    world.arrive("a")
    assert [gone.instance for gone in emits(world.tick(watched))] == ["b"]
    (gone,) = emits(world.tick(world.machine.next_deadline()))
    assert (gone.instance, world.now - watched > SECOND // 2) == ("a", True)


def test_a_package_whose_arrival_is_not_known_is_never_too_old():
    """A leader of before has held it, and not kept its arrival."""
    world = World(make_plan([ORDERED]))
    world.arrive("a")
    world.arrive("a")
    epoch = world.machine.instances["a"].epoch
    world.tick(world.now + AGE)
    old = Completed(9, world.now, "a", epoch, 3, "c0", 2, Outcome.SUCCESS, 2)
    assert world.machine.step(old) == []
    assert len(world.machine.ages) == 0


def test_a_completion_that_was_stored_without_an_arrival_can_be_read():
    """Snapshots of before hold such ones."""
    stored = msgspec.msgpack.encode(("done", 9, 9, "a", 1, 2, "c0", 1, "SUCCESS", 1))
    assert msgspec.msgpack.decode(stored, type=Completed).arrived == 0


def test_the_heap_does_not_grow_with_what_has_left():
    """However many have waited behind one that still does: most of what has left is forgotten."""
    world = World(make_plan([SERIAL]))
    for token in "bbaa":
        world.arrive(token)
    oldest = world.log[2].time + AGE
    for _ in range(5 * ages.STALE_MIN):
        world.arrive("a")
        world.complete(-1)
        assert len(world.machine.ages) <= ages.STALE_MIN
        assert world.machine.next_deadline() == oldest
    for _ in range(3 * ages.STALE_MIN):
        world.arrive("a")
    assert len(world.machine.ages) >= 3 * ages.STALE_MIN
    assert len(emits(world.tick(world.now + AGE))) == 3 * ages.STALE_MIN + 2


def test_without_ages_nothing_is_watched():
    """The heap is for those who ask for it."""
    world = World(make_plan([(Mode.NOT_PARALLEL, 1, None)]))
    for _ in range(9):
        world.arrive("a")
    assert len(world.machine.ages) == 0


def test_a_plan_without_an_age_is_as_it_was():
    """Byte for byte; and an age is read back."""
    assert b"max_age" not in make_plan([(Mode.NO_ORDER, None, None)]).to_bytes()
    aged = make_plan([FREE])
    assert Plan.from_bytes(aged.to_bytes()) == aged


def test_what_is_too_old_is_found_in_the_middle_of_a_queue():
    """In a second controller those that wait are not sorted by age."""
    world = World(make_plan([(Mode.NO_ORDER, None, None), SERIAL]))
    for _ in range(4):
        world.arrive("a")
    for _ in range(4):
        world.complete(max(range(len(world.queue)), key=lambda at: first_id(world.queue[at][0])))
    waiting = world.machine.instances["a"].controllers[1].waiting
    assert [ticket.package.id for ticket in waiting] == [4, 3, 2]
    assert left(world.tick(world.log[1].time + AGE)) == [(4, Outcome.OUTDATED)]
    assert [ticket.package.id for ticket in waiting] == [4, 3]
