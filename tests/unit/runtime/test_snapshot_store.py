"""Snapshots in the broker: half-written, raced, damaged."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest

from broker_pipeline import Mode
from broker_pipeline.broker.port import Broker
from broker_pipeline.core import snapshot
from broker_pipeline.core.machine import Machine
from broker_pipeline.core.names import STATE_BUCKET, snapshot_key, snapshot_stream
from broker_pipeline.errors import ConnectionLostError, LeadershipLostError, SnapshotError
from broker_pipeline.runtime.snapshots import SnapshotStore
from tests.property.driving import World, make_plan, state_of
from tests.unit.runtime.shard import NAME, CrashingBroker, Shard, pipeline

KEY = snapshot_key(NAME, 0)


def empty(applied: int) -> Machine:
    """An empty machine that has applied so much."""
    machine = Machine()
    machine.applied = applied
    return machine


async def save(store: SnapshotStore, applied: int) -> None:
    """The snapshot of an empty machine."""
    await store.save(store.take(empty(applied)))


async def loaded(broker: Broker) -> SnapshotStore:
    """A store as a new leader has it."""
    store = SnapshotStore(broker, NAME, 0)
    await store.load()
    return store


async def begin() -> tuple[Shard, SnapshotStore]:
    """A shard, and a store over a connection of its own."""
    shard = await Shard.begin(pipeline(Mode.ORDER_BY_SEQUENCE))
    return shard, SnapshotStore(shard.server.connect(), NAME, 0)


async def test_the_newest_snapshot_is_loaded_and_older_parts_are_gone() -> None:
    """One snapshot is kept."""
    shard, store = await begin()
    assert (await store.load()).applied == 0
    for applied in (5, 9, 9):
        await save(store, applied)
        assert (await store.load()).applied == applied
    assert (await shard.broker.stream_state(snapshot_stream(NAME))).messages == 1


@pytest.mark.parametrize("after", [False, True])
async def test_a_half_written_snapshot_is_invisible(after: bool) -> None:
    """Wherever saving breaks off, the one before or the new one is loaded whole."""
    for k in range(1, 7):
        shard, store = await begin()
        await save(store, 5)
        crashing = CrashingBroker(shard.server, k, after=after)
        dying = SnapshotStore(crashing, NAME, 0)  # type: ignore[arg-type]
        with contextlib.suppress(ConnectionLostError):
            await dying.load()
            await save(dying, 8)
        assert crashing.crashed == (k <= 5), "five operations: look, read, part, head, purge"
        assert (await store.load()).applied in (5, 8)
        await save(store, 9)
        assert (await store.load()).applied == 9


@pytest.mark.parametrize("stale_applied", [5, 20])
@pytest.mark.parametrize("first", [False, True])
async def test_a_stale_leader_cannot_put_its_head(stale_applied: int, first: bool) -> None:
    """It builds on a snapshot that another has replaced, or on none: LeadershipLostError however
    far it is, the other's stays, and what the stale one has published is purged in time."""
    shard, store = await begin()
    if not first:
        await save(store, 3)
    stale = await loaded(shard.server.connect())
    await save(store, 8)
    with pytest.raises(LeadershipLostError):
        await save(stale, stale_applied)
    assert (await store.load()).applied == 8
    await save(store, 9)
    assert (await store.load()).applied == 9
    assert (await shard.broker.stream_state(snapshot_stream(NAME))).messages == 1


@pytest.mark.parametrize("stale_applied", [6, 8, 20])
@pytest.mark.parametrize("pause_before", ["publish", "kv_update", "purge"])
async def test_two_leaders_that_store_at_once_leave_a_whole_snapshot(
    pause_before: str, stale_applied: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pauses anywhere in its saving while the other stores and purges: what the head names is
    there, whichever of them was ahead."""
    shard, store = await begin()
    await save(store, 5)
    broker = shard.server.connect()
    real = getattr(broker, pause_before)
    gate, reached = asyncio.Event(), asyncio.Event()

    async def paused(*args: object, **options: object) -> object:
        reached.set()
        await gate.wait()
        return await real(*args, **options)

    monkeypatch.setattr(broker, pause_before, paused)
    slow = asyncio.create_task(save(await loaded(broker), stale_applied))
    async with asyncio.timeout(10):
        await reached.wait()
        try:
            await save(store, 8)
        except LeadershipLostError:
            assert pause_before == "purge"
        gate.set()
        await asyncio.gather(slow, return_exceptions=True)
    assert isinstance(slow.exception(), LeadershipLostError | None)
    assert (await store.load()).applied in (8, stale_applied)


@pytest.mark.parametrize(
    "raw", [b"", b"x", b"\xff" * 40, b"\xa1\xff", msgspec.msgpack.encode((5, b"head", [1]))]
)
async def test_a_damaged_head_is_a_clear_error(raw: bytes) -> None:
    """SnapshotError with the key, and what to do."""
    shard, store = await begin()
    await save(store, 5)
    await shard.broker.kv_put(STATE_BUCKET, KEY, raw)
    with pytest.raises(SnapshotError, match=r"demo\.0\.snapshot.*delete the key"):
        await store.load()


async def test_a_missing_part_is_a_clear_error() -> None:
    """SnapshotError, not a message about some stream."""
    shard, store = await begin()
    await save(store, 5)
    await shard.broker.purge(snapshot_stream(NAME), below=10**6)
    with pytest.raises(SnapshotError, match="a part is missing"):
        await store.load()


async def test_a_snapshot_that_is_replaced_while_it_is_read_is_read_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its parts are purged between the head and the parts: the newer one is loaded."""
    shard, store = await begin()
    await save(store, 5)
    broker = shard.server.connect()
    real = broker.get_message

    async def late(stream: str, stream_seq: int) -> object:
        if (await store.load()).applied == 5:
            await save(store, 7)
        return await real(stream, stream_seq)

    monkeypatch.setattr(broker, "get_message", late)
    assert (await SnapshotStore(broker, NAME, 0).load()).applied == 7


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains of two slices and more, each of several parts."""
    monkeypatch.setattr(snapshot, "WHOLE_MAX", 0)
    monkeypatch.setattr(snapshot, "SLICES", 2)
    monkeypatch.setattr(snapshot, "SLICES_MAX", 4)
    monkeypatch.setattr(snapshot, "PART_BYTES", 40)


def grow(world: World, number: int) -> None:
    """Something that changes an instance, ends one, and begins one."""
    world.arrive("on")
    world.arrive(f"i{number}")
    world.finish()
    world.close(f"i{number - 1}")


@pytest.mark.usefixtures("short")
async def test_a_chain_is_stored_and_loaded_and_what_it_does_not_need_is_purged() -> None:
    """At each length, by the same leader and by new ones, which go on with the chain."""
    shard, store = await begin()
    world = World(make_plan([(Mode.ORDER_BY_SEQUENCE, 2, None)]))
    for token in "abcdef":
        world.arrive(token)
    lengths = set()
    for number in range(20):
        grow(world, number)
        await store.save(store.take(world.machine))
        entry = await shard.broker.kv_get(STATE_BUCKET, KEY)
        assert entry is not None
        stored = store._read(entry.value)
        lengths.add(len(snapshot.read_head(stored.head).slices))
        assert len(stored.parts) == sum(s.parts for s in snapshot.read_head(stored.head).slices)
        held = await shard.broker.stream_state(snapshot_stream(NAME))
        assert held.first_seq == stored.parts[0]
        other = SnapshotStore(shard.server.connect(), NAME, 0)
        again = await other.load()
        assert state_of(again) == state_of(world.machine)
        if number % 4 == 3:
            store, world.machine = other, again
    assert lengths == {1, 2, 3}


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("after", [False, True])
async def test_a_slice_that_is_half_stored_is_invisible(after: bool) -> None:
    """A leader dies at its k-th operation, for every k; the next loads the chain with the slice or
    without it, and goes on with it. The first loses its place to it."""
    for k in range(1, 30):
        shard, store = await begin()
        world = World(make_plan([(Mode.ORDER_BY_SEQUENCE, 2, None)]))
        world.arrive("a")
        states = []
        crashing = CrashingBroker(shard.server, k, after=after)
        dying = SnapshotStore(crashing, NAME, 0)  # type: ignore[arg-type]
        states.append(state_of(Machine()))
        with contextlib.suppress(ConnectionLostError):
            for number in range(4):
                grow(world, number)
                states.append(state_of(world.machine))
                await dying.save(dying.take(world.machine))
        found = await store.load()
        assert state_of(found) in states[-2:]
        if found.applied:
            world.machine = found
        grow(world, 9)
        await store.save(store.take(world.machine))
        assert state_of(await SnapshotStore(shard.server.connect(), NAME, 0).load()) == state_of(
            world.machine
        )
    assert not crashing.crashed, "there are fewer operations than that"
