"""Objects, on both brokers; and as nats-py's own object store sees them, on a real one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import nats
import pytest
from nats.js import JetStreamContext

from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.jetstream import JetStreamBroker, connect
from broker_pipeline.broker.objects import CHUNK_BYTES, chunk_subject, meta_subject
from broker_pipeline.broker.port import Broker, Change, StreamSpec
from broker_pipeline.errors import NotFoundError, ObjectDamagedError, PublishRefusedError
from tests.contract.waiting import Connect, until

SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3_000_000]


def some(size: int, seed: int = 0) -> bytes:
    """So many bytes."""
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("size", SIZES)
async def test_an_object_is_read_as_it_was_put(broker: Broker, size: int) -> None:
    """Of any size, by its name and no other."""
    assert await broker.ensure_object_bucket("O") is Change.CREATED
    assert await broker.ensure_object_bucket("O") is Change.UNCHANGED
    assert await broker.object_get("O", "a name/ö.bin") is None
    await broker.object_put("O", "a name/ö.bin", some(size))
    assert await broker.object_get("O", "a name/ö.bin") == some(size)
    assert await broker.object_get("O", "another") is None


async def test_the_last_put_wins_and_a_delete_removes(broker: Broker) -> None:
    """Also a shorter one, and after a delete; what never was is no error."""
    await broker.ensure_object_bucket("O")
    await broker.object_put("O", "x", some(400_000))
    await broker.object_put("O", "x", b"short")
    assert await broker.object_get("O", "x") == b"short"
    await broker.object_delete("O", "x")
    await broker.object_delete("O", "x")
    await broker.object_delete("O", "never")
    assert await broker.object_get("O", "x") is None
    await broker.object_put("O", "x", b"again")
    assert await broker.object_get("O", "x") == b"again"


async def test_of_writers_at_once_one_wins_and_is_whole(open_connection: Connect) -> None:
    """Readers meanwhile see one version or another, never a mixture."""
    brokers = [await open_connection() for _ in range(3)]
    await brokers[0].ensure_object_bucket("O")
    versions = [some(300_000 + n, n) for n in range(3)]
    await brokers[0].object_put("O", "x", versions[0])
    for _ in range(3):
        puts = [b.object_put("O", "x", v) for b, v in zip(brokers, versions, strict=True)]
        gets = [b.object_get("O", "x") for b in brokers]
        *_, one, two, three = await asyncio.gather(*puts, *gets)
        assert {one, two, three} <= set(versions)
        assert await brokers[0].object_get("O", "x") in versions


async def test_an_object_vanishes_after_its_ttl(broker: Broker) -> None:
    """With its bucket's."""
    await broker.ensure_object_bucket("O", ttl_s=0.5)
    await broker.object_put("O", "x", b"1")

    async def gone() -> bool:
        try:
            return await broker.object_get("O", "x") is None
        except ObjectDamagedError:  # its chunks went first
            return False

    await until(gone)


async def test_a_bucket_that_is_deleted_or_missing_is_not_found(broker: Broker) -> None:
    """NotFoundError; deleting it again is no error."""
    await broker.ensure_object_bucket("O")
    await broker.delete_object_bucket("O")
    await broker.delete_object_bucket("O")
    with pytest.raises(NotFoundError):
        await broker.object_get("O", "x")
    with pytest.raises(NotFoundError):
        await broker.object_put("O", "x", b"1")


async def test_objects_are_purged_by_when_they_were_put(broker: Broker) -> None:
    """All that were put before a time, whole, and none that was put after it."""
    await broker.ensure_object_bucket("O")
    assert await broker.oldest_object("O") is None
    await broker.objects_purge("O", before=1 << 62)
    times = []
    for n in range(4):
        await broker.ensure_stream(StreamSpec("CLOCK", ("clock",)))
        times.append(await broker.time_ns("CLOCK"))
        await broker.object_put("O", f"x{n}", some(300_000, n))
    assert times[0] <= (await broker.oldest_object("O") or 0) <= times[1]
    await broker.object_delete("O", "x1")  # what is missing in between is no trouble
    await broker.objects_purge("O", before=times[0])
    assert await broker.object_get("O", "x0") == some(300_000, 0)
    await broker.objects_purge("O", before=times[2])
    assert [await broker.object_get("O", f"x{n}") for n in (0, 1)] == [None, None]
    assert [await broker.object_get("O", f"x{n}") for n in (2, 3)] == [
        some(300_000, 2),
        some(300_000, 3),
    ]
    await broker.objects_purge("O", before=1 << 62)
    assert await broker.oldest_object("O") is None
    with pytest.raises(NotFoundError):
        await broker.oldest_object("P")
    with pytest.raises(NotFoundError):
        await broker.objects_purge("P", before=1)


# -- on a real broker -----------------------------------------------------------------------------
@pytest.fixture
async def both() -> AsyncIterator[tuple[JetStreamBroker, JetStreamContext]]:
    """Our connection and nats-py's, to one server with the bucket O."""
    async with EmbeddedServer() as server:
        broker = await connect(server.url, reconnect=False, name="objects")
        await broker.ensure_object_bucket("O")
        client = await nats.connect(server.url)
        yield broker, client.jetstream()
        await client.close()
        await broker.close()


@pytest.mark.parametrize("size", SIZES)
async def test_nats_py_reads_what_we_write_and_we_what_it_writes(
    both: tuple[JetStreamBroker, JetStreamContext], size: int
) -> None:
    """The layout is that of the NATS clients, deletes included."""
    broker, js = both
    theirs = await js.object_store("O")
    await broker.object_put("O", "ours", some(size))
    found = await theirs.get("ours")
    assert (found.data, found.info.size) == (some(size), size)
    await theirs.put("theirs", some(size, 1))
    assert await broker.object_get("O", "theirs") == some(size, 1)
    await theirs.put("ours", b"replaced by them")
    assert await broker.object_get("O", "ours") == b"replaced by them"
    await broker.object_delete("O", "theirs")
    assert [each.name for each in await theirs.list(ignore_deletes=True)] == ["ours"]
    await theirs.delete("ours")
    assert await broker.object_get("O", "ours") is None


async def test_chunks_of_older_versions_are_removed(
    both: tuple[JetStreamBroker, JetStreamContext],
) -> None:
    """Whoever replaces a version removes it, also with many writers at once."""
    broker, _ = both
    for _ in range(3):
        puts = [broker.object_put("O", "x", some(300_000, n)) for n in range(4)]
        await asyncio.gather(*puts)
    state = await broker.stream_state("OBJ_O")
    assert state.messages == 3 + 1
    await broker.object_delete("O", "x")
    assert (await broker.stream_state("OBJ_O")).messages == 1


async def test_a_damaged_object_is_an_error_and_never_wrong_bytes(
    both: tuple[JetStreamBroker, JetStreamContext],
) -> None:
    """A chunk is missing or another, or the meta is unreadable; a new put mends it."""
    broker, js = both
    await broker.object_put("O", "x", some(400_000))
    meta = await broker.last_message("OBJ_O", meta_subject("O", "x"))
    assert meta is not None
    nuid = meta.data.partition(b'"nuid":"')[2].partition(b'"')[0].decode()
    await js.purge_stream("OBJ_O", subject=chunk_subject("O", nuid), keep=3)
    with pytest.raises(ObjectDamagedError, match="BP318"):
        await broker.object_get("O", "x")
    await broker.publish(chunk_subject("O", nuid), some(100_000, 5))
    with pytest.raises(ObjectDamagedError):
        await broker.object_get("O", "x")
    await broker.publish(meta_subject("O", "x"), meta.data.replace(b'"chunks":4', b'"chunks":0'))
    with pytest.raises(ObjectDamagedError):
        await broker.object_get("O", "x")
    await broker.publish(meta_subject("O", "x"), b"junk")
    with pytest.raises(ObjectDamagedError):
        await broker.object_get("O", "x")
    await broker.object_put("O", "x", b"mended")
    assert await broker.object_get("O", "x") == b"mended"


async def test_a_put_that_is_refused_leaves_what_was_there(
    both: tuple[JetStreamBroker, JetStreamContext],
) -> None:
    """The bucket is full in the middle of it: its chunks are removed."""
    broker, js = both
    await broker.object_put("O", "x", b"before")
    config = (await js.stream_info("OBJ_O")).config
    config.max_bytes = 1_000_000
    await js.update_stream(config)
    with pytest.raises(PublishRefusedError):
        await broker.object_put("O", "x", some(3_000_000))
    assert await broker.object_get("O", "x") == b"before"
    assert (await broker.stream_state("OBJ_O")).messages == 2
