"""Snapshots and determinism: a machine that was stored and read again is the same machine."""

import zlib
from contextlib import contextmanager
from unittest.mock import patch

import msgspec
import pytest
from driving import (
    SECOND,
    Shelf,
    World,
    act,
    make_plan,
    rough_actions,
    rule_lists,
    state_of,
    whole,
)
from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.core import snapshot
from broker_pipeline.core.machine import Machine
from broker_pipeline.errors import SnapshotError
from broker_pipeline.journey import Mode

schedules = st.lists(rough_actions, max_size=40)


@contextmanager
def small(slices, part_bytes=60, looks=8):
    """Chains that few instances fill."""
    with (
        patch.object(snapshot, "WHOLE_MAX", 0),
        patch.object(snapshot, "SLICES", slices),
        patch.object(snapshot, "SLICES_MAX", 2 * slices),
        patch.object(snapshot, "LOOKS", looks),
        patch.object(snapshot, "PART_BYTES", part_bytes),
    ):
        yield


steps = st.lists(
    st.one_of(rough_actions, rough_actions, st.just(("take",)), st.just(("restore",))),
    max_size=60,
)


@given(rule_lists(), steps, st.integers(1, 4), st.integers(0, 8))
def test_snapshots_taken_and_restored_anywhere_change_nothing(rules, schedule, slices, looks):
    """Two worlds see the same; one's machine is stored as a chain of slices and is replaced by what
    was stored now and then, after instances have ended and begun again and plans have changed. They
    publish the same bytes, and wait for the same deadlines. No chain gets longer than it may."""
    plan = make_plan(rules, idle_s=3)
    steady, restored = World(plan), World(plan)
    chain, shelf = snapshot.Chain(), Shelf()
    with small(slices, looks=looks):
        for action in schedule:
            if action == ("take",) or action == ("restore",):
                shelf.put(chain.take(restored.machine))
                head = snapshot.read_head(shelf.head)
                assert len(head.slices) <= 2 * slices
                assert len(shelf.parts) == sum(each.parts for each in head.slices)
                again, its_chain = shelf.restore()
                assert state_of(again) == state_of(restored.machine)
                if action == ("restore",):
                    restored.machine, chain = again, its_chain
                continue
            act(steady, action)
            act(restored, action)
            assert restored.machine.next_deadline() == steady.machine.next_deadline()
            assert restored.machine.oldest_source() == steady.machine.oldest_source()
    assert restored.given == steady.given
    assert state_of(restored.machine) == state_of(steady.machine)


@given(schedules)
def test_the_oldest_source_is_that_of_all_instances(schedule):
    """What is kept of those that did not change is what they would say."""
    world = World(make_plan(rules_of_all_kinds(), idle_s=3))
    chain = snapshot.Chain()
    for place, action in enumerate(schedule):
        act(world, action)
        if place % 3 == 0:
            chain.take(world.machine)
        sources = [instance.oldest_source() for instance in world.machine.instances.values()]
        known = [source for source in sources if source is not None]
        assert world.machine.oldest_source() == min(known, default=None)


@given(schedules)
def test_what_has_left_by_a_snapshot_never_comes_again(schedule):
    """Below the oldest package inside nothing is dispatched or let go any more: payloads may go."""
    world = World(make_plan(rules_of_all_kinds(), idle_s=3))
    chain = snapshot.Chain()
    noted = []
    for place, action in enumerate(schedule):
        act(world, action)
        if place % 3 == 0:
            head = snapshot.read_head(chain.take(world.machine).head)
            noted.append((len(world.given), head.applied, head.oldest_inside))
    world.finish()
    for begin, applied, oldest in noted:
        assert oldest <= applied + 1
        for _, msg_id, _ in (each for step in world.given[begin:] for each in step):
            package_id = int(msg_id.split(".")[1])
            assert package_id >= oldest or package_id > applied


def test_a_slice_holds_what_changed_and_a_long_chain_moves_on():
    """20 instances, one of which changes: a slice has the one until the chain is long, then as many
    more as it takes to be rid of the oldest slice. All is there at any time."""
    world = World(make_plan([(Mode.NO_ORDER, None, None)]))
    for number in range(20):
        world.arrive(f"i{number}")
    chain, shelf = snapshot.Chain(), Shelf()
    sizes, lengths = [], []
    with small(4, part_bytes=10**6):
        for _ in range(12):
            taken = chain.take(world.machine)
            shelf.put(taken)
            sizes.append(len(msgspec.msgpack.decode(taken.parts[0])[0]))
            lengths.append(len(snapshot.read_head(taken.head).slices))
            assert state_of(shelf.restore()[0]) == state_of(world.machine)
            world.arrive("i7")
    assert sizes[:5] == [20, 1, 1, 1, 6]
    assert lengths[:5] == [1, 2, 3, 4, 5]
    assert max(sizes[4:]) == 6
    assert lengths[-1] <= 8


def test_a_chain_with_a_large_oldest_slice_is_no_longer_than_it_may_be():
    """Instances that come and go hide that the oldest slice is hardly moved on: at SLICES_MAX what
    is left of it is moved at once."""
    world = World(make_plan([(Mode.NO_ORDER, None, None)]))
    for number in range(30):
        world.arrive(f"i{number}")
    chain, shelf = snapshot.Chain(), Shelf()
    with small(3, looks=0):
        for number in range(12):
            shelf.put(chain.take(world.machine))
            assert len(snapshot.read_head(shelf.head).slices) <= 6
            assert state_of(shelf.restore()[0]) == state_of(world.machine)
            world.arrive(f"j{number}")


def test_instances_that_ended_or_were_idle_come_back_right():
    """One is closed, one gets idle, snapshots in between: both leave memory and the chain, and
    begin again at 1 with a new epoch; one that goes on goes on, in the restored machine too."""
    world = World(make_plan([(Mode.ORDER_BY_SEQUENCE, 2, None)], idle_s=10))
    chain, shelf = snapshot.Chain(), Shelf()

    def stored():
        shelf.put(chain.take(world.machine))
        return shelf.restore()[0]

    with small(10):
        for token in ("closed", "idle", "on"):
            world.arrive(token)
        world.finish()
        epochs = {token: i.epoch for token, i in stored().instances.items()}
        world.close("closed")
        world.now += 8 * SECOND
        world.arrive("on")
        world.arrive("quiet")
        world.finish()
        assert set(stored().instances) == {"idle", "on", "quiet"}
        world.now += 4 * SECOND
        world.tick()
        assert set(world.machine.instances) == set(stored().instances) == {"on", "quiet"}
        world.machine, chain = shelf.restore()
        for token in ("closed", "idle", "on"):
            world.arrive(token)
        again = stored().instances
    assert len(snapshot.read_head(shelf.head).slices) > 1
    assert {i.token: i.sequence for i in again.values()} == {
        "closed": 1,
        "idle": 1,
        "on": 3,
        "quiet": 1,
    }
    assert again["on"].epoch == epochs["on"]
    assert again["closed"].epoch > epochs["closed"]
    assert again["idle"].epoch > epochs["idle"]


def test_what_changes_by_no_event_of_its_own_is_in_the_next_slice():
    """A wider window lets a package go, and a gap is given up by another instance's event: both are
    changes of instances that saw nothing themselves."""
    world = World(make_plan([(Mode.NO_ORDER, 1, None)], gap_s=2))
    for token in ("waits", "waits", "other"):
        world.arrive(token)
    world.arrive("gap", producer="p", number="2")
    chain, shelf = snapshot.Chain(), Shelf()
    with small(10):
        shelf.put(chain.take(world.machine))
        assert len(world.deploy(make_plan([(Mode.NO_ORDER, 2, None)]))) == 1
        shelf.put(chain.take(world.machine))
        assert state_of(shelf.restore()[0]) == state_of(world.machine)
        world.now += 3 * SECOND
        assert [each.instance for each in world.open("other")] == ["gap"]
        shelf.put(chain.take(world.machine))
        assert state_of(shelf.restore()[0]) == state_of(world.machine)
    assert len(snapshot.read_head(shelf.head).slices) == 3


def test_a_new_plan_leaves_nothing_of_the_old_one_in_a_chain():
    """Another pipeline under the same name: the old instances are gone, and the first slice after
    it stands alone."""
    world = World(make_plan([(Mode.NO_ORDER, None, None)]))
    chain, shelf = snapshot.Chain(), Shelf()
    with small(10):
        for token in ("a", "b"):
            world.arrive(token)
            shelf.put(chain.take(world.machine))
        world.finish()
        shelf.put(chain.take(world.machine))
        world.deploy(make_plan(rules_of_all_kinds()))
        world.arrive("b")
        shelf.put(chain.take(world.machine))
        assert len(snapshot.read_head(shelf.head).slices) == 1
        assert state_of(shelf.restore()[0]) == state_of(world.machine)
        assert list(world.machine.instances) == ["b"]


@given(rule_lists(), schedules)
def test_the_same_log_gives_the_same_bytes_and_every_command_its_own_id(rules, schedule):
    """A second leader that reads the log decides, byte for byte, what the first has decided; no
    two commands share a message id, so the broker's dedup can only ever drop a repeat."""
    first = World(make_plan(rules, idle_s=3))
    for action in schedule:
        act(first, action)
    second = World(first.plan)
    for message in first.log[1:]:
        second.now = message.time - 1
        headers = {
            {"Bp-Producer": "producer", "Bp-Number": "number", "Bp-Control": "control"}.get(
                name, "content_type"
            ): value
            for name, value in message.headers.items()
        }
        second.publish(message.subject, message.data, **headers)
    assert second.given == first.given
    ids = [message_id for given_ in first.given for _, message_id, _ in given_]
    assert len(ids) == len(set(ids))


@given(schedules)
def test_the_oldest_source_is_never_above_what_is_read_again(schedule):
    """Every command's source is at or above what the machine said to keep before the step, or is
    the event itself: a purge up to there loses nothing."""
    world = World(make_plan(rules_of_all_kinds(), idle_s=3))
    for action in schedule:
        oldest = world.machine.oldest_source()
        for command in act(world, action):
            source = command.package.source
            assert source == world.machine.applied or (oldest is not None and source >= oldest)


def rules_of_all_kinds():
    """An ordered controller before one that overflows."""
    return [(Mode.ORDER_BY_SEQUENCE, 2, None), (Mode.NOT_PARALLEL, 1, 1)]


def some_machine():
    """A machine with something in every place."""
    world = World(make_plan(rules_of_all_kinds(), idle_s=3))
    for _ in range(6):
        world.arrive("a")
    world.complete(1)
    world.arrive("b", producer="p", number="5")
    world.close("a")
    world.arrive("a")
    return world.machine


HEAD, PARTS = whole(some_machine())


def read(head, parts):
    """All of it."""
    return snapshot.restore(snapshot.read_head(head), parts)[0]


@given(st.data())
def test_a_flipped_bit_or_a_cut_is_always_found(data):
    """Bytes that are not exactly what was stored give SnapshotError: no other exception, and never
    a machine that remembers something else."""
    of_head = data.draw(st.booleans())
    raw = bytearray(HEAD if of_head else b"".join(PARTS))
    if data.draw(st.booleans()):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    with pytest.raises(SnapshotError):
        read(*((bytes(raw), PARTS) if of_head else (HEAD, [bytes(raw)])))


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_arbitrary_bytes_are_no_snapshot_even_with_a_right_checksum(head, body):
    """Whoever wrote it: SnapshotError, or a machine."""
    with pytest.raises(SnapshotError):
        snapshot.read_head(head)
    signed = head + zlib.crc32(head).to_bytes(4, "big")
    slices = [snapshot.Slice(version, 1, zlib.crc32(body)) for version in (1, 2)]
    claimed = [snapshot.Head(2, 1, 1, b"", 1, [each]) for each in slices]
    for attempt in (
        lambda: snapshot.read_head(signed),
        lambda: snapshot.restore(claimed[0], [body])[0],
        lambda: snapshot.restore(claimed[1], [body])[0],
    ):
        try:
            found = attempt()
        except SnapshotError:
            continue
        assert isinstance(found, Machine | snapshot.Head)


def test_a_snapshot_is_cut_into_parts_that_fit_the_broker(monkeypatch):
    """However many instances there are, no piece is larger than PART_BYTES; a missing part or one
    of another snapshot is found."""
    monkeypatch.setattr(snapshot, "PART_BYTES", 50)
    machine = some_machine()
    head, parts = whole(machine)
    assert len(parts) == snapshot.read_head(head).slices[0].parts > 2
    assert all(len(part) <= 50 for part in parts)
    assert whole(read(head, parts)) == (head, parts)
    for wrong in (parts[:-1], [*parts, b""]):
        with pytest.raises(SnapshotError):
            read(head, wrong)
    machine.step(machine_tick(machine))
    machine.instances["b"].sequence += 1
    with pytest.raises(SnapshotError):
        read(head, whole(machine)[1])


def machine_tick(machine):
    """A tick long after."""
    from broker_pipeline.core.events import Ticked

    return Ticked(machine.applied + 1, machine.time + 60 * SECOND)
