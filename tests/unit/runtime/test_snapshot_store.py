"""Snapshots in the broker: half-written, raced, damaged."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest

from broker_pipeline import Mode
from broker_pipeline.core import snapshot
from broker_pipeline.core.machine import Machine
from broker_pipeline.core.names import STATE_BUCKET, snapshot_key, snapshot_stream
from broker_pipeline.errors import ConnectionLostError, LeadershipLostError, SnapshotError
from broker_pipeline.runtime.snapshots import SnapshotStore
from tests.unit.runtime.shard import NAME, CrashingBroker, Shard, pipeline

KEY = snapshot_key(NAME, 0)


def taken(applied: int) -> tuple[bytes, list[bytes], int]:
    """The snapshot of an empty machine that has applied so much."""
    machine = Machine()
    machine.applied = applied
    return (*snapshot.take(machine), applied)


async def begin() -> tuple[Shard, SnapshotStore]:
    """A shard, and a store over a connection of its own."""
    shard = await Shard.begin(pipeline(Mode.ORDER_BY_SEQUENCE))
    return shard, SnapshotStore(shard.server.connect(), NAME, 0)


async def test_the_newest_snapshot_is_loaded_and_older_parts_are_gone() -> None:
    """One snapshot is kept."""
    shard, store = await begin()
    assert (await store.load()).applied == 0
    for applied in (5, 9, 9):
        await store.save(*taken(applied))
        assert (await store.load()).applied == applied
    assert (await shard.broker.stream_state(snapshot_stream(NAME))).messages == 1


@pytest.mark.parametrize("after", [False, True])
async def test_a_half_written_snapshot_is_invisible(after: bool) -> None:
    """Wherever saving breaks off, the one before or the new one is loaded whole."""
    for k in range(1, 6):
        shard, store = await begin()
        await store.save(*taken(5))
        crashing = CrashingBroker(shard.server, k, after=after)
        dying = SnapshotStore(crashing, NAME, 0)  # type: ignore[arg-type]
        with contextlib.suppress(ConnectionLostError):
            await dying.save(*taken(8))
        assert crashing.crashed == (k <= 4), "four operations: look, part, head, purge"
        assert (await store.load()).applied in (5, 8)
        await store.save(*taken(9))
        assert (await store.load()).applied == 9


async def test_a_stale_leader_cannot_put_an_older_head() -> None:
    """LeadershipLostError, and the newer one stays."""
    _, store = await begin()
    await store.save(*taken(8))
    with pytest.raises(LeadershipLostError):
        await store.save(*taken(5))
    assert (await store.load()).applied == 8


@pytest.mark.parametrize("stale_applied", [6, 8, 20])
@pytest.mark.parametrize("pause_before", ["kv_get", "publish", "kv_update", "purge"])
async def test_two_leaders_that_store_at_once_leave_a_whole_snapshot(
    pause_before: str, stale_applied: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pauses anywhere in its saving while the other stores and purges: what the head names is
    there, whichever of them was ahead."""
    shard, store = await begin()
    await store.save(*taken(5))
    broker = shard.server.connect()
    real = getattr(broker, pause_before)
    gate, reached = asyncio.Event(), asyncio.Event()

    async def paused(*args: object, **options: object) -> object:
        reached.set()
        await gate.wait()
        return await real(*args, **options)

    monkeypatch.setattr(broker, pause_before, paused)
    slow = asyncio.create_task(SnapshotStore(broker, NAME, 0).save(*taken(stale_applied)))
    async with asyncio.timeout(10):
        await reached.wait()
        try:
            await store.save(*taken(8))
        except LeadershipLostError:
            assert pause_before == "purge"
            assert stale_applied > 8
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
    await store.save(*taken(5))
    await shard.broker.kv_put(STATE_BUCKET, KEY, raw)
    with pytest.raises(SnapshotError, match=r"demo\.0\.snapshot.*delete the key"):
        await store.load()


async def test_a_missing_part_is_a_clear_error() -> None:
    """SnapshotError, not a message about some stream."""
    shard, store = await begin()
    await store.save(*taken(5))
    await shard.broker.purge(snapshot_stream(NAME), below=10**6)
    with pytest.raises(SnapshotError, match="a part is missing"):
        await store.load()


async def test_a_snapshot_that_is_replaced_while_it_is_read_is_read_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its parts are purged between the head and the parts: the newer one is loaded."""
    shard, store = await begin()
    await store.save(*taken(5))
    broker = shard.server.connect()
    real = broker.get_message

    async def late(stream: str, stream_seq: int) -> object:
        if (await store.load()).applied == 5:
            await store.save(*taken(7))
        return await real(stream, stream_seq)

    monkeypatch.setattr(broker, "get_message", late)
    assert (await SnapshotStore(broker, NAME, 0).load()).applied == 7
