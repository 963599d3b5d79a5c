"""The machine's counts against what it decided and what its instances hold, at every step."""

from collections import Counter

import msgspec
from driving import SECOND, Shelf, World, act, make_plan, rough_actions, rule_lists
from hypothesis import given, settings
from hypothesis import strategies as st
from test_snapshots_change_nothing import small

from broker_pipeline.core import snapshot
from broker_pipeline.core.commands import Emit, Left
from broker_pipeline.core.tallies import OUTCOMES, Tallies
from broker_pipeline.journey import Mode, Outcome

steps = st.lists(
    st.one_of(
        rough_actions,
        rough_actions,
        st.just(("restore",)),
        st.tuples(st.just("replan"), rule_lists(), st.booleans()),
    ),
    max_size=60,
)


class Counted:
    """What left, from the commands alone: by controller and outcome, and of the pipeline."""

    def __init__(self):
        self.pipeline = Counter()
        self.controllers = {}

    def note(self, plan, commands):
        """What a step decided, under the plan that it left in force."""
        names = [controller.name for controller in plan.controllers]
        self.controllers = {name: self.controllers.get(name, Counter()) for name in names}
        for command in commands:
            for stamp in command.stamps:
                if isinstance(stamp, Left):
                    self.controllers[names[stamp.controller]][stamp.outcome] += 1
            if isinstance(command, Emit):
                self.pipeline[command.outcome] += 1


def check(machine, counted):
    """The counts are what the commands and the instances say."""
    tallies = machine.tallies
    assert tallies.pipeline.left == [counted.pipeline[outcome] for outcome in OUTCOMES]
    instances = machine.instances.values()
    assert tallies.pipeline.inside == sum(instance.inside for instance in instances)
    assert tallies.pipeline.inside == sum(tally.inside for tally in tallies.controllers)
    assert tallies.pipeline.came == sum(tallies.pipeline.left) + tallies.pipeline.inside
    told_later = Counter()  # by those that have left one controller and wait in the next
    for instance in instances:
        for ticket in (each for state in instance.controllers for each in state.waiting or ()):
            told_later.update((s.controller, s.outcome) for s in ticket.stamps if type(s) is Left)
    for index, controller in enumerate(machine.plan.controllers):
        tally = tallies.controllers[index]
        for outcome, left in zip(OUTCOMES, tally.left, strict=True):
            told = counted.controllers[controller.name][outcome]
            assert left == told + told_later[index, outcome]
        states = [instance.controllers[index] for instance in instances]
        ids = [each for state in states for each in state.ids_inside()]
        assert machine.oldest_by_controller()[index] == min(ids, default=None)
        assert tally.processing == sum(len(state.in_flight) for state in states)
        assert tally.waiting_in == sum(len(state.waiting or ()) for state in states)
        assert tally.waiting_out == sum(state.release.holding for state in states)
        assert tally.came == sum(tally.left) + tally.inside


@settings(max_examples=200)
@given(rule_lists(), steps)
def test_what_came_is_what_left_and_what_is_inside_at_every_step(rules, schedule):
    """Through every mode, ages, overflow, numbered and malformed arrivals, lives that end, plans
    that change, and machines that are replaced by what was stored of them: the counts are those of
    all that was ever decided, and the sums over the instances."""
    world = World(make_plan(rules, idle_s=3))
    counted = Counted()
    chain, shelf = snapshot.Chain(), Shelf()
    with small(3):
        for action in schedule:
            commands = []
            if action[0] == "restore":
                shelf.put(chain.take(world.machine))
                world.machine, chain = shelf.restore()
            elif action[0] == "replan":
                plan = make_plan(action[1], idle_s=3)
                if action[2]:  # other controllers: only where nothing is inside
                    first, *rest = plan.controllers
                    other = msgspec.structs.replace(first, name="new")
                    plan = msgspec.structs.replace(plan, controllers=(*rest, other))
                if any(i.inside or i.producers for i in world.machine.instances.values()):
                    continue  # `World` writes stamps by the plan that it knows
                commands = world.deploy(plan)
            elif action[0] in ("complete", "repeat") and "new" in names(world):
                continue  # the workers of `World` know the controllers by their places
            else:
                commands = act(world, action)
            counted.note(world.machine.plan, commands)
            check(world.machine, counted)


def names(world):
    """The controllers of the plan in force."""
    return [controller.name for controller in world.machine.plan.controllers]


def test_rarer_ways_through_a_controller_are_counted_too():
    """An overflow, a deploy that lets those start that wait, and packages that are too old when
    they come into the next controller."""
    first = (Mode.ORDER_BY_SEQUENCE, 2, 1, None)
    world = World(make_plan([first, (Mode.NO_ORDER, None, None, 5 * SECOND)]))
    counted = Counted()

    def step(commands):
        counted.note(world.machine.plan, commands)
        check(world.machine, counted)
        return world.machine.tallies.controllers

    step(world.deploy(world.plan))
    for _ in range(3):
        step(world.arrive("a"))
    step(world.complete(1))  # number 2 waits for number 1, number 3 starts
    step(world.arrive("a"))
    assert step(world.complete(1))[0].waiting_out == 2
    assert step(world.arrive("a"))[0].waiting_in == 1
    assert step(world.arrive("a"))[0].left == [0, 0, 0, 1, 0]  # number 5, the oldest waiting
    wide = (Mode.ORDER_BY_SEQUENCE, 3, 1, None)
    tallies = step(world.deploy(make_plan([wide, (Mode.NO_ORDER, None, None, 5 * SECOND)])))
    assert (tallies[0].processing, tallies[0].waiting_in) == (3, 0)
    world.now += 6 * SECOND
    tallies = step(world.complete(0))  # number 1, and 2 and 3 that waited for it: all too old
    assert tallies[1].left == [0, 0, 0, 0, 3]
    assert tallies[0].waiting_out == 0


def test_one_that_grows_old_while_it_waits_for_its_turn_is_counted_once():
    """Number 2 is done and number 1 is not: by its deadline 2 is OUTDATED, and waits no more."""
    world = World(make_plan([(Mode.ORDER_BY_SEQUENCE, 2, None, 5 * SECOND)]))
    counted = Counted()
    for commands in (world.arrive("a"), world.arrive("a"), world.complete(1)):
        counted.note(world.machine.plan, commands)
    assert world.machine.tallies.controllers[0].waiting_out == 1
    counted.note(world.machine.plan, world.tick(world.now + 6 * SECOND))
    assert world.machine.tallies.controllers[0].left == [0, 0, 0, 0, 1]
    check(world.machine, counted)


def test_a_package_that_cannot_be_read_is_in_and_out_of_the_pipeline_and_in_no_controller():
    """So the pipeline's counts hold, and no controller has seen it."""
    world = World(make_plan([(Mode.NO_ORDER, None, None)]))
    world.arrive_packed("a", b"\xff\xff")
    tallies = world.machine.tallies
    assert (tallies.pipeline.came, tallies.pipeline.left) == (1, [0, 0, 1, 0, 0])
    assert tallies.controllers[0].came == 0


def test_a_snapshot_of_before_begins_to_count_with_what_is_inside():
    """An older program kept no counts: what is inside came, and nothing has left; from then on it
    is counted."""
    world = World(make_plan([(Mode.ORDER_BY_SEQUENCE, 2, None), (Mode.NO_ORDER, None, None)]))
    for _ in range(5):
        world.arrive("a")
    world.complete(1)  # number 2, which waits for number 1; number 3 starts
    shelf = Shelf()
    shelf.put(snapshot.Chain().take(world.machine))
    head = msgspec.structs.replace(snapshot.read_head(shelf.head), tallies=[])
    world.machine, _ = snapshot.restore(head, shelf.parts)
    first = world.machine.tallies.controllers[0]
    assert (first.came, first.processing, first.waiting_in, first.waiting_out) == (5, 2, 2, 1)
    assert world.machine.tallies.pipeline.came == world.machine.tallies.pipeline.inside == 5
    assert sum(world.machine.tallies.pipeline.left) == 0
    world.complete(0, Outcome.EXIT)
    counted = Counted()
    counted.controllers = {"c0": Counter(EXIT=1, SUCCESS=1), "c1": Counter()}
    counted.pipeline = Counter(EXIT=1)
    check(world.machine, counted)


def test_an_older_program_reads_a_snapshot_that_has_counts():
    """It knows a head of seven fields and passes over the rest: a rollback finds the log led on."""

    class Before(msgspec.Struct, frozen=True, array_like=True):
        """`Head`, before there were counts."""

        version: int
        applied: int
        time: int
        plan: bytes
        oldest_source: int
        slices: list[snapshot.Slice]
        oldest_inside: int = 0

    world = World(make_plan([(Mode.NO_ORDER, None, None)]))
    world.arrive("a")
    head = snapshot.Chain().take(world.machine).head[: -snapshot._CHECKSUM_BYTES]
    old, new = (msgspec.msgpack.decode(head, type=kind) for kind in (Before, snapshot.Head))
    assert msgspec.structs.astuple(old) == msgspec.structs.astuple(new)[:7]


def test_what_was_stored_is_not_counted_on_in():
    """The head of a snapshot stays what it was when the machine that was made from it goes on."""
    world = World(make_plan([(Mode.NO_ORDER, None, None)]))
    shelf = Shelf()
    shelf.put(snapshot.Chain().take(world.machine))
    head = snapshot.read_head(shelf.head)
    world.machine, _ = snapshot.restore(head, shelf.parts)
    world.arrive("a")
    assert head.tallies == Tallies().dump() + Tallies().dump()
