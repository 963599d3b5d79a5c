"""Instances begin and end; producers are waited for, forgotten and given up; plans change."""

import pytest
from driving import SECOND, World, dispatches, emits, make_plan

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.core.commands import Dispatch
from broker_pipeline.core.events import Ticked
from broker_pipeline.core.instance import PRODUCERS_MAX
from broker_pipeline.core.machine import Machine
from broker_pipeline.core.names import TICK_PAUSE, TICK_RESUME, emission_id
from broker_pipeline.core.producers import HELD_MAX
from broker_pipeline.journey import Mode, Outcome

SERIAL = (Mode.NOT_PARALLEL, 1, None)
FREE = (Mode.NO_ORDER, None, None)


def ids(commands):
    """The packages of commands."""
    return [command.package.id for command in commands]


def test_what_came_before_the_first_plan_is_taken_at_the_first_plan():
    """Arrivals wait for a plan, in order, and their bytes are kept; time alone asks for nothing."""
    machine = Machine()
    world = World(make_plan([FREE]))
    for seq, message in enumerate((world.arrive("a"), world.arrive("b")), start=1):
        assert message
        event, _ = world.read(world.log[seq])
        assert machine.step(event) == []
    assert machine.next_deadline() is None
    assert machine.oldest_source() == 2
    event, _ = world.read(world.log[0])
    assert ids(machine.step(event)) == [2, 3]
    assert machine.oldest_source() is None


def test_log_time_never_goes_back():
    """A message with an older timestamp does not turn the clock back."""
    world = World(make_plan([FREE]))
    world.machine.step(Ticked(2, 50 + world.now))
    world.machine.step(Ticked(3, 1))
    assert world.machine.time == 50 + world.now


def test_what_comes_back_from_an_earlier_life_changes_nothing():
    """A completion of an instance that has ended and begun again, or that nobody knows."""
    world = World(make_plan([FREE], idle_s=10))
    world.arrive("a")
    completed = world.complete(0)
    event, _ = world.read(world.log[-1])
    assert completed
    world.tick(world.machine.next_deadline())
    assert world.machine.step(event) == []
    world.arrive("a")
    assert world.machine.step(event) == []


def test_an_idle_instance_ends_and_begins_again_at_one():
    """After `instance_idle_s` the next package has sequence 1 and a new epoch."""
    world = World(make_plan([FREE], idle_s=10))
    first = world.arrive("a")[0]
    world.complete(0)
    world.arrive("a")
    world.complete(0)
    world.tick(world.machine.next_deadline())
    assert not world.machine.instances
    assert world.machine.next_deadline() is None
    again = world.arrive("a")[0]
    assert (first.package.sequence, again.package.sequence) == (1, 1)
    assert again.stamps[0].sequence == 1
    assert again.epoch == again.package.id != first.epoch == first.package.id


def test_an_instance_with_a_package_at_work_does_not_end():
    """However long a module takes: the instance is looked at again later."""
    world = World(make_plan([FREE], idle_s=10))
    world.arrive("a")
    for _ in range(3):
        deadline = world.machine.next_deadline()
        world.tick(deadline)
        assert world.machine.next_deadline() > deadline
    assert emits(world.complete(0))[0].outcome is Outcome.SUCCESS


def test_one_tick_ends_every_idle_instance():
    """Those that went idle shortly after one another end together."""
    world = World(make_plan([FREE], idle_s=80))
    for token in "abc":
        world.tick(world.now + SECOND)
        world.arrive(token)
        world.finish()
    world.tick(world.machine.next_deadline())
    assert not world.machine.instances


def test_opening_begins_the_life_before_its_first_package():
    """The epoch is the opening's; opening again changes nothing; closing nothing is nothing."""
    world = World(make_plan([FREE]))
    assert world.close("a") == []
    world.open("a")
    opened = world.machine.applied
    world.open("a")
    assert world.arrive("a")[0].epoch == opened


def test_what_arrives_while_an_instance_closes_belongs_to_its_next_life():
    """Parked arrivals, openings and closings are taken in order once the rest has left; each next
    life has its own epoch and begins at sequence 1."""
    world = World(make_plan([SERIAL]))
    world.arrive("a")
    world.close("a")
    assert world.arrive("a", b"second life") == []
    second = world.machine.applied
    world.open("a")
    world.close("a")
    assert world.arrive("a", b"third life") == []
    third = world.machine.applied
    assert world.machine.oldest_source() == second
    left, started = world.complete(0)
    assert left.outcome is Outcome.SUCCESS
    assert (started.package.id, started.epoch, started.package.sequence) == (second, second, 1)
    left, started = world.complete(0)
    assert (started.package.id, started.epoch, started.package.sequence) == (third, third, 1)
    assert emits(world.complete(0))


def test_closing_takes_what_was_held_for_a_missing_package():
    """Nobody will send it any more: the held ones go on, in order, and then the life ends."""
    world = World(make_plan([FREE]))
    world.arrive("a", producer="p", number="5")
    world.arrive("a", producer="p", number="3")
    world.arrive("a", producer="q", number="2")
    started = world.close("a")
    assert ids(started) == [3, 2, 4]
    assert not world.machine.gaps
    world.finish()
    assert not world.machine.instances


def test_a_closing_instance_ends_at_once_when_all_that_was_held_overflows():
    """Held packages that find no room leave as OVERFLOW; nothing stays behind."""
    world = World(make_plan([(Mode.NOT_PARALLEL, 1, 0)]))
    world.arrive("a")
    world.arrive("a", producer="p", number="2")
    commands = world.close("a")
    assert [command.outcome for command in emits(commands)] == [Outcome.OVERFLOW]
    world.complete(0)
    assert not world.machine.instances


def test_held_packages_of_a_producer_are_bounded():
    """With one more than HELD_MAX the gap is given up at once."""
    world = World(make_plan([FREE]))
    for number in range(2, HELD_MAX + 2):
        assert world.arrive("a", producer="p", number=str(number)) == []
    assert len(world.arrive("a", producer="p", number="9999")) == HELD_MAX
    assert len(world.machine.instances["a"].producers["p"].held) == 1
    assert len(world.tick(world.machine.next_deadline())) == 1


def test_the_producer_silent_longest_is_forgotten_first():
    """PRODUCERS_MAX are remembered: the others still have their repeats dropped."""
    world = World(make_plan([FREE]))
    for index in range(PRODUCERS_MAX):
        world.arrive("a", producer=f"p{index}", number="1")
    world.arrive("a", producer="p0", number="2")
    world.arrive("a", producer="new", number="1")
    remembered = world.machine.instances["a"].producers
    assert len(remembered) == PRODUCERS_MAX
    assert "p1" not in remembered
    assert world.arrive("a", producer="p0", number="2") == []


def test_producers_that_all_wait_for_a_missing_package_are_bounded_too():
    """With one more than PRODUCERS_MAX, all with a gap, the gap of the one silent longest is given
    up; the newcomer's package is held and then taken, not lost."""
    world = World(make_plan([FREE]))
    for index in range(PRODUCERS_MAX):
        assert world.arrive("a", producer=f"p{index}", number="2") == []
    assert ids(world.arrive("a", producer="new", number="2")) == [2]
    assert len(world.machine.instances["a"].producers) == len(world.machine.gaps) == PRODUCERS_MAX
    taken = []
    while world.machine.gaps:
        taken += ids(world.tick(world.machine.next_deadline()))
    assert taken == list(range(3, PRODUCERS_MAX + 3))


def test_a_parked_package_waits_its_full_time_for_a_missing_one():
    """The gap counts from when its life began, not from when it was parked."""
    world = World(make_plan([SERIAL]))
    world.arrive("a")
    world.close("a")
    world.arrive("a", producer="p", number="2")
    world.tick(world.now + 60 * SECOND)
    world.complete(0)
    assert world.machine.next_deadline() == world.now + 2 * SECOND


def test_a_deploy_with_a_shorter_gap_holds_for_gaps_that_are_open():
    """They are given up at the new time, in the order in which they began."""
    world = World(make_plan([FREE], gap_s=1000))
    world.arrive("a", producer="p", number="2")
    began = world.now
    world.deploy(make_plan([FREE], gap_s=1))
    assert world.machine.next_deadline() == began + SECOND
    assert len(world.tick(began + SECOND)) == 1


def test_a_gap_has_no_deadline_while_it_is_paused():
    """And its whole time again, in the old order, when it goes on."""
    world = World(make_plan([FREE], gap_s=2, idle_s=600))
    world.arrive("a", producer="p", number="2")
    world.arrive("b", producer="p", number="2")
    world.publish(world.subjects.tick, TICK_PAUSE)
    assert world.tick(world.now + 60 * SECOND) == []
    assert world.machine.next_deadline() > world.now + 60 * SECOND
    world.publish(world.subjects.tick, b"anything")
    assert world.machine.gaps.paused
    world.publish(world.subjects.tick, TICK_RESUME)
    assert world.machine.next_deadline() == world.now + 2 * SECOND
    assert [d.instance for d in world.tick(world.machine.next_deadline())] == ["a", "b"]
    assert not world.machine.gaps


def test_what_was_missing_may_come_while_its_gap_is_paused():
    """Then nothing waits any more."""
    world = World(make_plan([FREE]))
    world.publish(world.subjects.tick, TICK_PAUSE)
    world.arrive("a", producer="p", number="2")
    assert ids(world.arrive("a", producer="p", number="1")) == [4, 3]
    assert not world.machine.gaps


@pytest.mark.parametrize("window", [2, None])
def test_a_deploy_with_a_wider_window_starts_those_that_wait(window):
    """Oldest first, at the place of the deploy in the log."""
    world = World(make_plan([(Mode.NO_ORDER, 1, None), SERIAL]))
    for _ in range(3):
        world.arrive("a")
    started = world.deploy(make_plan([(Mode.NO_ORDER, window, None), SERIAL]))
    assert ids(started) == ([3] if window else [3, 4])


@pytest.mark.parametrize("queue_size", [0, 1, 2])
def test_after_a_deploy_with_a_smaller_queue_the_bound_holds_from_the_next_arrival_on(queue_size):
    """The deploy itself throws nothing away; the next arrival makes room, the oldest first."""
    world = World(make_plan([(Mode.ORDER_BY_SEQUENCE, 1, None)]))
    for _ in range(5):
        world.arrive("a")
    assert world.deploy(make_plan([(Mode.ORDER_BY_SEQUENCE, 1, queue_size)])) == []
    commands = world.arrive("a")
    assert ids(commands) == [3, 4, 5, 6, 8][: 5 - queue_size]
    assert {command.outcome for command in commands} == {Outcome.OVERFLOW}


def test_a_plan_that_cannot_be_followed_waits_until_nothing_is_inside():
    """While packages are on their way it is refused; when nothing is inside it takes over, and
    every instance begins anew."""
    old, new = make_plan([FREE]), make_plan([SERIAL, SERIAL])
    world = World(old)
    world.arrive("a")
    world.deploy(new)
    assert world.machine.plan == old
    world.finish()
    world.deploy(new)
    assert world.machine.plan == new
    assert not world.machine.instances
    assert world.arrive("a")[0].package.sequence == 1


def test_a_stateful_phase_is_told_who_reached_it_before():
    """`previous` of a NOT_PARALLEL controller: for each phase the last sequence id that got there,
    early leavers of the phases before not counted."""
    world = World(make_plan([SERIAL]))
    for _ in range(4):
        world.arrive("a")
    previous = [pb.DataPackage.FromString(world.queue[0][1]).controllers[0].previous_sequences]
    for outcome, phases in ((Outcome.SUCCESS, 2), (Outcome.EXIT, 1), (Outcome.ERROR, 0)):
        started = [c for c in world.complete(0, outcome, phases) if isinstance(c, Dispatch)]
        previous.append(list(started[0].stamps[0].previous))
    assert [list(p) for p in previous] == [[0, 0], [1, 1], [2, 1], [2, 1]]


def test_a_malformed_package_leaves_as_error_with_the_reason():
    """It is nobody's fault but its producer's, holds up no one, and is counted."""
    world = World(make_plan([(Mode.ORDER_BY_SEQUENCE, 1, 0)]))
    (left,) = world.arrive_packed("a", b"\xff\xff")
    subject, message_id, raw = world.given[-1][0]
    package = pb.DataPackage.FromString(raw)
    assert (subject, message_id) == ("bp.demo.0.out.error.a", emission_id(2))
    assert left.outcome is Outcome.ERROR
    assert "BP401" in package.errors[0].message
    assert (package.data, package.sequence, package.instance) == (b"\xff\xff", 1, "a")
    assert dispatches(world.arrive("a"))[0].package.sequence == 2


def test_a_package_for_a_name_that_is_too_long_leaves_as_error_under_what_fits():
    """A raw producer may write any token; what we publish must fit into a subject. Opening or
    closing such a name is nothing."""
    from broker_pipeline.core.envelope import Ignored

    world = World(make_plan([FREE]))
    (left,) = world.arrive("é" * 200)
    assert left.instance == "=C3=A9" * 64
    assert "128 bytes" in pb.DataPackage.FromString(world.given[-1][0][2]).errors[0].message
    with pytest.raises(Ignored, match="128 bytes"):
        world.close("a" * 129)


def test_a_name_that_is_no_utf8_is_shown_as_its_token():
    """Protobuf takes text only; such a name must not stop the leader."""
    world = World(make_plan([FREE]))
    world.arrive("=FF")
    assert pb.DataPackage.FromString(world.queue[0][1]).instance == "=FF"
    world.arrive("=C3=A9")
    assert pb.DataPackage.FromString(world.queue[1][1]).instance == "é"
