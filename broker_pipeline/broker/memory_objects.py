"""The in-memory broker's objects: each is one value, and never in pieces."""

from __future__ import annotations

import asyncio
from typing import Protocol

from broker_pipeline.broker.memory_store import Bucket, Store
from broker_pipeline.broker.port import Change


class _Connected(Protocol):
    def server(self) -> Store:
        """The server, while connected."""


class MemoryObjects:
    """The part of `MemoryBroker` that has to do with objects."""

    async def ensure_object_bucket(
        self: _Connected, name: str, *, ttl_s: float | None = None, replicas: int | None = None
    ) -> Change:
        """See `Broker.ensure_object_bucket`."""
        return ensure_bucket(self.server().objects, name, ttl_s)

    async def delete_object_bucket(self: _Connected, name: str) -> None:
        """See `Broker.delete_object_bucket`."""
        self.server().objects.pop(name, None)

    async def object_put(self: _Connected, bucket: str, name: str, data: bytes) -> None:
        """See `Broker.object_put`."""
        self.server().object_bucket(bucket).set(
            name, bytes(data), asyncio.get_running_loop().time()
        )

    async def object_get(self: _Connected, bucket: str, name: str) -> bytes | None:
        """See `Broker.object_get`."""
        found = self.server().object_bucket(bucket).value(name, asyncio.get_running_loop().time())
        return None if found is None else found.value

    async def object_delete(self: _Connected, bucket: str, name: str) -> None:
        """See `Broker.object_delete`."""
        self.server().object_bucket(bucket).set(name, None, asyncio.get_running_loop().time())


def ensure_bucket(buckets: dict[str, Bucket], name: str, ttl_s: float | None) -> Change:
    """Make a bucket, or give it another TTL."""
    if name not in buckets:
        buckets[name] = Bucket(ttl_s)
        return Change.CREATED
    if buckets[name].ttl_s == ttl_s:
        return Change.UNCHANGED
    buckets[name].ttl_s = ttl_s
    return Change.UPDATED
