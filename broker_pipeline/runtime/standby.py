"""Standing by: waiting for a shard's lease, and taking it from a leader that has died.

A leader that dies takes its connection with it, and the broker knows at once: a standby asks, and
need not wait for the lease to run out. A wrong verdict does no harm, for two leaders interleave
into the same order, and the lease changes hands by compare-and-set only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from broker_pipeline.broker.introspection import Presence
from broker_pipeline.broker.lease import Held, Lease
from broker_pipeline.broker.port import Broker
from broker_pipeline.core.names import LEASE_BUCKET, LEASE_TTL_S, lease_key, presence_subject

log = logging.getLogger(__name__)

STANDBY_POLL_S = 0.1
"""How often a standby looks whether the shard is free: a clean stop hands over within 300 ms."""
GONE_TIMES = 2
"""Answers in a row that nobody is there, before a holder is taken for dead: a cluster may not have
told all its servers of a new connection yet."""


class Standby:
    """One connection's wait for the lead of a shard.

    Args:
        holder: this process's id, unlike any other's.
        trusts_from: the loop's time before which only the lease's TTL counts.
        announce: takes a line for the person who started the role.
    """

    def __init__(
        self,
        broker: Broker,
        pipeline: str,
        shard: int,
        holder: str,
        *,
        trusts_from: float,
        announce: Callable[[str], None],
    ) -> None:
        self.lease = Lease(
            broker, LEASE_BUCKET, lease_key(pipeline, shard), holder=holder, ttl_s=LEASE_TTL_S
        )
        self._broker = broker
        self._pipeline = pipeline
        self._shard = shard
        self._holder = holder
        self._trusts_from = trusts_from
        self._announce = announce
        self._doubted: Held | None = None
        self._gone_times = 0

    async def until_leading(self) -> None:
        """Return when the lease is held."""
        loop = asyncio.get_running_loop()
        # Before it can hold the lease: nobody must find it absent then.
        await self._broker.be_present(self._subject(self._holder))
        while True:
            begun = loop.time()
            if await self.lease.acquire() or await self._took_over():
                return
            await asyncio.sleep(max(0.0, begun + STANDBY_POLL_S - loop.time()))
            if self._broker.lost.done():
                self._broker.lost.result()

    async def _took_over(self) -> bool:
        """Whether the lease's holder is dead, and this process has the lease now."""
        held = self.lease.seen
        if held is None or asyncio.get_running_loop().time() < self._trusts_from:
            return False
        presence = await self._broker.presence(self._subject(held.holder), timeout_s=STANDBY_POLL_S)
        if presence is not Presence.GONE:
            self._doubted = None
            return False
        # A holder that has renewed in between lives, whatever the broker says.
        self._gone_times = self._gone_times + 1 if held == self._doubted else 1
        self._doubted = held
        if self._gone_times < GONE_TIMES or not await self.lease.take_over(held):
            return False
        self._announce(f"takes {self._pipeline!r} over from {held.holder!r}, which is gone")
        return True

    def _subject(self, holder: str) -> str:
        return presence_subject(self._pipeline, self._shard, holder)
