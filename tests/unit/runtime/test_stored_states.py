"""Stored states are replaced by newer ones only."""

from __future__ import annotations

import msgspec
import pytest

from broker_pipeline.broker.memory import MemoryBroker, MemoryServer
from broker_pipeline.runtime.large_states import LargeStates
from broker_pipeline.runtime.stored_states import StateStore, Stored, pack

KEY = "0.c.p.a"
BUCKET = "states"


async def store(broker: MemoryBroker, limit: int) -> StateStore:
    """Of a phase of pipeline `demo`."""
    await broker.ensure_bucket(BUCKET)
    await broker.ensure_object_bucket("demo_objects")
    large = LargeStates(broker, "demo")
    large._bucket = "demo_objects"
    return StateStore(broker, BUCKET, large, limit)


def state(epoch: int, sequence: int) -> Stored:
    """With some bytes."""
    return Stored(epoch, sequence, epoch + sequence, {"0": msgspec.msgpack.encode("x" * 100)})


@pytest.mark.parametrize("limit", [10_000, 10])
async def test_an_older_state_does_not_take_the_place_of_a_newer_one(limit: int) -> None:
    """By life and number; small ones and large ones."""
    broker = MemoryServer().connect()
    states = await store(broker, limit)
    assert await states.get(KEY) is None
    assert await states.put(KEY, pack(state(1, 5)))
    for older in (state(1, 4), state(1, 5), state(0, 9)):
        assert not await states.put(KEY, pack(older))
        assert await states.get(KEY) == state(1, 5)
    for newer in (state(1, 6), state(7, 1)):
        assert await states.put(KEY, pack(newer))
        assert await states.get(KEY) == newer
    await broker.close()


async def test_a_large_state_takes_its_predecessors_object_away() -> None:
    """Each has a name of its own, and one is there at a time."""
    broker = MemoryServer().connect()
    states = await store(broker, 10)
    await states.put(KEY, pack(state(1, 1)))
    await states.put(KEY, pack(state(1, 2)))
    assert await broker.object_get("demo_objects", f"{KEY}.1.1") is None
    assert await broker.object_get("demo_objects", f"{KEY}.1.2") is not None
    await broker.close()


async def test_what_cannot_be_read_is_no_state_and_is_replaced() -> None:
    """The state is computed from the log then, where that has it."""
    broker = MemoryServer().connect()
    states = await store(broker, 10_000)
    await broker.kv_put(BUCKET, KEY, b"\xc1junk")
    assert await states.get(KEY) is None
    assert await states.put(KEY, pack(state(1, 1)))
    assert await states.get(KEY) == state(1, 1)
    await broker.close()
