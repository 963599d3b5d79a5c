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
        server = self.server()
        now = asyncio.get_running_loop().time()
        server.object_bucket(bucket).set(name, bytes(data), now, server.now_ns())

    async def object_get(self: _Connected, bucket: str, name: str) -> bytes | None:
        """See `Broker.object_get`."""
        found = self.server().object_bucket(bucket).value(name, asyncio.get_running_loop().time())
        return None if found is None else found.value

    async def object_delete(self: _Connected, bucket: str, name: str) -> None:
        """See `Broker.object_delete`."""
        server = self.server()
        now = asyncio.get_running_loop().time()
        server.object_bucket(bucket).set(name, None, now, server.now_ns())

    async def oldest_object(self: _Connected, bucket: str) -> int | None:
        """See `Broker.oldest_object`."""
        found = self.server().object_bucket(bucket)
        return min(found.times(asyncio.get_running_loop().time()).values(), default=None)

    async def objects_purge(self: _Connected, bucket: str, *, before: int) -> None:
        """See `Broker.objects_purge`."""
        found = self.server().object_bucket(bucket)
        for name, put in found.times(asyncio.get_running_loop().time()).items():
            if put < before:
                found.erase(name)


def ensure_bucket(buckets: dict[str, Bucket], name: str, ttl_s: float | None) -> Change:
    """Make a bucket, or give it another TTL."""
    if name not in buckets:
        buckets[name] = Bucket(ttl_s)
        return Change.CREATED
    if buckets[name].ttl_s == ttl_s:
        return Change.UNCHANGED
    buckets[name].ttl_s = ttl_s
    return Change.UPDATED
