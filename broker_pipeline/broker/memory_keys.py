"""The in-memory broker's keys and values."""

from __future__ import annotations

import asyncio
from typing import Protocol

from broker_pipeline.broker.memory_store import Store
from broker_pipeline.broker.port import Entry


class _Connected(Protocol):
    def server(self) -> Store:
        """The server, while connected."""


class MemoryKeys:
    """The part of `MemoryBroker` that has to do with buckets."""

    async def kv_get(self: _Connected, bucket: str, key: str) -> Entry | None:
        """See `Broker.kv_get`."""
        return self.server().bucket(bucket).value(key, _now())

    async def kv_put(self: _Connected, bucket: str, key: str, value: bytes) -> int:
        """See `Broker.kv_put`."""
        return self.server().bucket(bucket).set(key, value, _now())

    async def kv_create(self: _Connected, bucket: str, key: str, value: bytes) -> int | None:
        """See `Broker.kv_create`."""
        return self.server().bucket(bucket).create(key, value, _now())

    async def kv_update(
        self: _Connected, bucket: str, key: str, value: bytes, revision: int
    ) -> int | None:
        """See `Broker.kv_update`."""
        return self.server().bucket(bucket).update(key, value, revision, _now())

    async def kv_delete(
        self: _Connected, bucket: str, key: str, revision: int | None = None
    ) -> bool:
        """See `Broker.kv_delete`."""
        found, now = self.server().bucket(bucket), _now()
        if revision is None:
            found.set(key, None, now)
            return True
        return found.update(key, None, revision, now) is not None

    async def kv_keys(self: _Connected, bucket: str, prefix: str = "") -> list[str]:
        """See `Broker.kv_keys`."""
        return [key for key in self.server().bucket(bucket).keys(_now()) if key.startswith(prefix)]

    async def kv_listed(self: _Connected, bucket: str, prefix: str) -> list[str]:
        """See `Broker.kv_listed`."""
        return [key for key in self.server().bucket(bucket).keys(_now()) if key.startswith(prefix)]

    async def kv_erase(self: _Connected, bucket: str, key: str) -> None:
        """See `Broker.kv_erase`."""
        self.server().bucket(bucket).erase(key)


def _now() -> float:
    return asyncio.get_running_loop().time()
