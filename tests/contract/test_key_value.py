"""Buckets, on both brokers."""

from __future__ import annotations

import pytest

from broker_pipeline.broker.port import Broker
from broker_pipeline.errors import NotFoundError
from tests.contract.waiting import Connect, until


@pytest.fixture
async def bucket(broker: Broker) -> Broker:
    """A connection to a broker with bucket B."""
    await broker.ensure_bucket("B")
    return broker


async def test_a_value_is_read_as_it_was_written(bucket: Broker) -> None:
    """With its revision, by the key that it was written to and no other."""
    assert await bucket.kv_get("B", "k") is None
    revision = await bucket.kv_put("B", "k", b"one")
    entry = await bucket.kv_get("B", "k")
    assert entry is not None and (entry.value, entry.revision) == (b"one", revision)
    assert await bucket.kv_put("B", "k", b"") > revision
    empty = await bucket.kv_get("B", "k")
    assert empty is not None and empty.value == b""
    assert await bucket.kv_get("B", "other") is None


async def test_only_one_of_two_creates_a_key(bucket: Broker, open_connection: Connect) -> None:
    """The second gets None; a removed key may be created again."""
    other = await open_connection()
    assert await bucket.kv_create("B", "k", b"1") is not None
    assert await other.kv_create("B", "k", b"2") is None
    assert await other.kv_delete("B", "k")
    assert await bucket.kv_get("B", "k") is None
    assert await other.kv_create("B", "k", b"3") is not None


async def test_an_update_compares_the_revision(bucket: Broker) -> None:
    """A stale revision changes nothing."""
    first = await bucket.kv_put("B", "k", b"1")
    second = await bucket.kv_update("B", "k", b"2", first)
    assert second is not None and second > first
    assert await bucket.kv_update("B", "k", b"3", first) is None
    entry = await bucket.kv_get("B", "k")
    assert entry is not None and entry.value == b"2"
    assert await bucket.kv_update("B", "new", b"1", first) is None


async def test_a_delete_compares_the_revision(bucket: Broker) -> None:
    """A stale revision removes nothing."""
    first = await bucket.kv_put("B", "k", b"1")
    second = await bucket.kv_put("B", "k", b"2")
    assert not await bucket.kv_delete("B", "k", first)
    assert await bucket.kv_get("B", "k") is not None
    assert await bucket.kv_delete("B", "k", second)
    assert await bucket.kv_get("B", "k") is None


async def test_keys_are_listed_by_prefix(bucket: Broker) -> None:
    """Without those that were removed."""
    assert await bucket.kv_keys("B") == []
    for key in ("snap.a", "snap.b", "snap.c", "lease/x=1_2-3"):
        await bucket.kv_put("B", key, b"v")
    await bucket.kv_delete("B", "snap.b")
    assert sorted(await bucket.kv_keys("B")) == ["lease/x=1_2-3", "snap.a", "snap.c"]
    assert sorted(await bucket.kv_keys("B", "snap.")) == ["snap.a", "snap.c"]


async def test_keys_are_listed_in_one_request(bucket: Broker, open_connection: Connect) -> None:
    """Those below a prefix; an erased one is not among them any more, at once."""
    assert await bucket.kv_listed("B", "m.0.") == []
    for key in ("m.0.a", "m.0.b", "m.1.a", "m.0.c.d"):
        await bucket.kv_put("B", key, b"")
    assert sorted(await bucket.kv_listed("B", "m.0.")) == ["m.0.a", "m.0.b", "m.0.c.d"]
    await bucket.kv_erase("B", "m.0.b")
    await bucket.kv_erase("B", "m.0.never")
    other = await open_connection()
    assert sorted(await other.kv_listed("B", "m.0.")) == ["m.0.a", "m.0.c.d"]
    assert await bucket.kv_get("B", "m.0.b") is None
    assert await bucket.kv_create("B", "m.0.b", b"again") is not None
    with pytest.raises(NotFoundError):
        await bucket.kv_listed("NONE", "m.")


async def test_a_key_whose_ttl_has_passed_is_not_listed(broker: Broker) -> None:
    """It is there until then."""
    await broker.ensure_bucket("T", ttl_s=0.5)
    await broker.kv_put("T", "m.a", b"")
    assert await broker.kv_listed("T", "m.") == ["m.a"]

    async def is_gone() -> bool:
        return await broker.kv_listed("T", "m.") == []

    await until(is_gone)


async def test_a_value_vanishes_after_its_ttl(broker: Broker) -> None:
    """And its key can be created by another then."""
    await broker.ensure_bucket("T", ttl_s=0.5)
    await broker.kv_create("T", "k", b"1")
    assert await broker.kv_create("T", "k", b"2") is None
    await until(lambda: broker.kv_create("T", "k", b"2"))


async def test_a_missing_bucket_is_not_found(broker: Broker) -> None:
    """NotFoundError, not an empty answer."""
    with pytest.raises(NotFoundError):
        await broker.kv_get("NONE", "k")
    with pytest.raises(NotFoundError):
        await broker.kv_keys("NONE")
