"""Numbered producers: each package once, in order, and no gap waited for longer than it should."""

from driving import SECOND, START, World, dispatches, make_plan
from hypothesis import given
from hypothesis import strategies as st
from naive import NaiveProducer

from broker_pipeline.core.events import Arrived, Deployed, Ticked
from broker_pipeline.core.machine import Machine
from broker_pipeline.journey import Mode

GAP = 2 * SECOND
FREE = [(Mode.NO_ORDER, None, None)]
steps = st.one_of(
    st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["p", "q"]), st.integers(1, 9)),
    st.tuples(st.none(), st.none(), st.integers(0, 3 * SECOND)),
)


@given(st.lists(steps, max_size=60))
def test_numbered_packages_are_taken_as_the_naive_producer_takes_them(schedule):
    """Repeats are dropped, early ones wait, a gap is given up at its deadline, and the machine
    asks for a tick exactly at the first of the deadlines."""
    machine, naive, seq, now = Machine(), {}, 1, START
    machine.step(Deployed(1, now, make_plan(FREE)))
    for token, name, value in schedule:
        seq += 1
        now += value if token is None else 1
        expected = []
        for model in sorted(naive.values(), key=lambda m: m.missing_since or 0):
            expected += model.pass_time(now)
        if token is None:
            commands = machine.step(Ticked(seq, now))
        else:
            model = naive.setdefault((token, name), NaiveProducer(GAP))
            expected += model.arrive(value, seq, now)
            commands = machine.step(Arrived(seq, now, token, name, value))
        assert [command.package.id for command in commands] == expected
        due = [m.missing_since + GAP for m in naive.values() if m.missing_since is not None]
        idle = min((i.active for i in machine.instances.values()), default=now)
        idle_ends = idle + machine.plan.instance_idle_ns * 9 // 8
        if machine.instances:
            assert machine.next_deadline() == min([*due, idle_ends])
        else:
            assert machine.next_deadline() is None


def test_a_package_that_comes_after_its_gap_was_given_up_is_taken_once():
    """Its sender was told that it is stored: it has lost its place, and is not lost."""
    world = World(make_plan(FREE))
    assert world.arrive("a", b"2", producer="p", number="2") == []
    assert len(world.tick(world.machine.next_deadline())) == 1
    assert len(world.arrive("a", b"1", producer="p", number="1")) == 1
    assert world.arrive("a", b"1", producer="p", number="1") == []


@given(
    st.permutations(range(1, 9)),
    st.lists(st.integers(1, 8), max_size=8),
    st.sets(st.integers(1, 8)),
)
def test_shuffled_and_repeated_packages_come_out_once_and_in_order(order, again, missing):
    """With nothing missing they come out at once; with gaps after as many waits as there are."""
    world = World(make_plan(FREE))
    taken = []
    for number in [n for n in (*order, *again) if n not in missing]:
        taken += world.arrive("a", bytes([number]), producer="p", number=str(number))
    if not missing:
        assert len(taken) == 8
    deadline = None
    while world.machine.gaps:
        assert world.machine.next_deadline() != deadline
        deadline = world.machine.next_deadline()
        assert deadline <= world.now + GAP
        taken += world.tick(deadline)
    numbers = [world.log[command.package.source - 1].data[0] for command in taken]
    assert numbers == sorted(set(range(1, 9)) - missing)


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 9), st.integers(0, 4 * SECOND)),
        max_size=25,
    )
)
def test_ticking_at_the_next_deadline_always_makes_progress(schedule):
    """A shell that ticks when it is told to never gets the same deadline twice, and without
    packages at work it comes to rest with nothing held and nobody remembered."""
    world = World(make_plan([(Mode.ORDER_BY_SEQUENCE, 2, None)], idle_s=1))
    for token, number, wait in schedule:
        world.tick(world.now + wait)
        world.arrive(token, producer="p" if number else "", number=str(number))
        for _ in range(2):
            deadline = world.machine.next_deadline()
            world.tick(deadline)
            assert world.machine.next_deadline() is None or world.machine.next_deadline() > deadline
    world.finish()
    for _ in range(8 * len(schedule) + 8):
        deadline = world.machine.next_deadline()
        if deadline is None:
            break
        world.tick(deadline)
        world.finish()
        assert world.machine.next_deadline() is None or world.machine.next_deadline() > deadline
    assert not world.machine.instances
    assert not world.machine.gaps
    assert not dispatches(world.tick())
