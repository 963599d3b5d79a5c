"""States that are larger than a message may be: objects, written as often as their cost allows."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from broker_pipeline.broker.port import Broker
from broker_pipeline.core.names import object_bucket
from broker_pipeline.errors import NotFoundError, ObjectDamagedError

log = logging.getLogger(__name__)

COST_SHARE = 0.1
"""At most so much of a worker's time goes into encoding and storing large states."""


class Reference(msgspec.Struct, frozen=True):
    """What a key holds instead of a large state. It is a map, where a state is an array: a program
    that does not know it finds it unreadable and computes the state from the log.

    The broker checks the object's digest.

    Attributes:
        object: its name.
        epoch, sequence: which state it is; 0 where an older program has written it.
    """

    object: str
    epoch: int = 0
    sequence: int = 0


class LargeStates:
    """The large states of one phase in one worker."""

    def __init__(self, broker: Broker, pipeline: str) -> None:
        self._broker = broker
        self._bucket = object_bucket(pipeline)
        self._due = 0.0

    @property
    def is_due(self) -> bool:
        """Whether storing one now stays within COST_SHARE."""
        return asyncio.get_running_loop().time() >= self._due

    def spent(self, seconds: float) -> None:
        """So long was spent on one."""
        self._due = asyncio.get_running_loop().time() + seconds / COST_SHARE

    async def put(self, key: str, encoded: bytes) -> None:
        """Store one. It counts as cost how long it takes."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            await self._broker.object_put(self._bucket, key, encoded)
        finally:
            self.spent(loop.time() - begun)

    async def get(self, key: str) -> bytes | None:
        """One that was stored; None where it is missing or damaged."""
        try:
            found = await self._broker.object_get(self._bucket, key)
        except (NotFoundError, ObjectDamagedError) as error:
            log.warning("the stored state %s is lost, it is computed from the log: %s", key, error)
            return None
        if found is None:
            log.warning("the stored state %s is gone, it is computed from the log", key)
        return found

    async def delete(self, key: str) -> None:
        """Delete one that nothing refers to any more."""
        await self._broker.object_delete(self._bucket, key)
