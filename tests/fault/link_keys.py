"""The part of a simulated link that has to do with keys and objects."""

from __future__ import annotations

from typing import Any

from broker_pipeline.broker.port import Change, Entry
from broker_pipeline.core.names import object_bucket
from broker_pipeline.errors import ObjectDamagedError
from tests.fault.network import Network

STATES = object_bucket("")
"""How the buckets of states begin: what is lost of them is computed again, and of payloads not."""


class LinkKeys:
    """Buckets; `Link` has the rest."""

    network: Network
    _do: Any

    async def kv_get(self, bucket: str, key: str) -> Entry | None:
        """See `Broker`."""
        return await self._do("kv_get", bucket, key)

    async def kv_put(self, bucket: str, key: str, value: bytes) -> int:
        """See `Broker`."""
        return await self._do("kv_put", bucket, key, value)

    async def kv_create(self, bucket: str, key: str, value: bytes) -> int | None:
        """See `Broker`."""
        return await self._do("kv_create", bucket, key, value)

    async def kv_update(self, bucket: str, key: str, value: bytes, revision: int) -> int | None:
        """See `Broker`."""
        return await self._do("kv_update", bucket, key, value, revision)

    async def kv_delete(self, bucket: str, key: str, revision: int | None = None) -> bool:
        """See `Broker`."""
        return await self._do("kv_delete", bucket, key, revision)

    async def ensure_object_bucket(
        self, name: str, *, ttl_s: float | None = None, replicas: int = 1
    ) -> Change:
        """See `Broker`."""
        return await self._do("ensure_object_bucket", name, ttl_s=ttl_s)

    async def delete_object_bucket(self, name: str) -> None:
        """See `Broker`."""
        await self._do("delete_object_bucket", name)

    async def object_put(self, bucket: str, name: str, data: bytes) -> None:
        """See `Broker`."""
        await self._do("object_put", bucket, name, data)

    async def object_get(self, bucket: str, name: str) -> bytes | None:
        """See `Broker`."""
        lost = self.network.weather.lost_objects if bucket.startswith(STATES) else 0.0
        if self.network.chance_of(lost, "object damaged"):
            raise ObjectDamagedError(f"object {name!r} is damaged")
        return await self._do("object_get", bucket, name)

    async def object_delete(self, bucket: str, name: str) -> None:
        """See `Broker`."""
        await self._do("object_delete", bucket, name)

    async def oldest_object(self, bucket: str) -> int | None:
        """See `Broker`."""
        return await self._do("oldest_object", bucket)

    async def objects_purge(self, bucket: str, *, before: int) -> None:
        """See `Broker`."""
        await self._do("objects_purge", bucket, before=before)

    async def kv_keys(self, bucket: str, prefix: str = "") -> list[str]:
        """See `Broker`."""
        return await self._do("kv_keys", bucket, prefix)

    async def kv_listed(self, bucket: str, prefix: str) -> list[str]:
        """See `Broker`."""
        return await self._do("kv_listed", bucket, prefix)

    async def kv_erase(self, bucket: str, key: str) -> None:
        """See `Broker`."""
        await self._do("kv_erase", bucket, key)
