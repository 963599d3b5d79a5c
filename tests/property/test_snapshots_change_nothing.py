"""Snapshots and determinism: a machine that was stored and read again is the same machine."""

import zlib

import pytest
from driving import SECOND, World, act, make_plan, rough_actions, rule_lists
from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.core import snapshot
from broker_pipeline.core.machine import Machine
from broker_pipeline.errors import SnapshotError

schedules = st.lists(rough_actions, max_size=40)


def reread(machine):
    """Through bytes and back."""
    head, parts = snapshot.take(machine)
    return snapshot.restore(snapshot.read_head(head), parts)


@given(rule_lists(), schedules, st.lists(st.integers(0, 40), max_size=6))
def test_a_snapshot_taken_anywhere_changes_nothing(rules, schedule, places):
    """Two worlds see the same; one's machine goes through a snapshot now and then. They publish
    the same bytes, and wait for the same deadlines."""
    plan = make_plan(rules, idle_s=3)
    steady, restored = World(plan), World(plan)
    for place, action in enumerate(schedule):
        if place in places:
            before = snapshot.take(restored.machine)
            restored.machine = reread(restored.machine)
            assert snapshot.take(restored.machine) == before
        act(steady, action)
        act(restored, action)
        assert restored.machine.next_deadline() == steady.machine.next_deadline()
        assert restored.machine.oldest_source() == steady.machine.oldest_source()
    assert restored.given == steady.given
    assert snapshot.take(restored.machine) == snapshot.take(steady.machine)


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
    from broker_pipeline.journey import Mode

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


HEAD, PARTS = snapshot.take(some_machine())


def read(head, parts):
    """All of it."""
    return snapshot.restore(snapshot.read_head(head), parts)


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
    claimed = snapshot.Head(1, 1, 1, b"", 1, zlib.crc32(body), 1)
    for attempt in (
        lambda: snapshot.read_head(signed),
        lambda: snapshot.restore(claimed, [body]),
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
    head, parts = snapshot.take(machine)
    assert len(parts) == snapshot.read_head(head).parts > 2
    assert all(len(part) <= 50 for part in parts)
    assert snapshot.take(read(head, parts)) == (head, parts)
    with pytest.raises(SnapshotError):
        read(head, parts[:-1])
    machine.step(machine_tick(machine))
    machine.instances["b"].sequence += 1
    with pytest.raises(SnapshotError):
        read(head, snapshot.take(machine)[1])


def machine_tick(machine):
    """A tick long after."""
    from broker_pipeline.core.events import Ticked

    return Ticked(machine.applied + 1, machine.time + 60 * SECOND)
