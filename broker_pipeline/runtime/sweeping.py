"""The leader removes large payloads that nothing refers to any more. Nothing here is on the way of
a package, and no package is followed: what is known is a place and a time of the log.

A mark is set at a place in the log. When every package has left that had arrived by then, and the
log has none of their messages any more, and the replay window is over for all of them, then nothing
refers to an object that was put before the mark, nor ever will (docs/adr/0023).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from broker_pipeline.broker.large_payloads import PUT_S
from broker_pipeline.broker.port import Broker
from broker_pipeline.core.machine import Machine
from broker_pipeline.core.names import (
    STATE_BUCKET,
    Subjects,
    payload_bucket,
    payload_mark_key,
)
from broker_pipeline.core.snapshot import Head
from broker_pipeline.errors import BrokerError, ConnectionLostError, NotFoundError
from broker_pipeline.journey import NS

log = logging.getLogger(__name__)

LOOK_EVERY_S = 10.0
"""Between two looks: one request each where there is no large payload. As often as history is
purged, which is waited for."""


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """What is known of the log. All of it stays true, whoever leads.

    Attributes:
        applied: a place in the log.
        time: its time there, ns: what arrives behind it does so at that time or later.
        end: behind this place there is nothing of packages that had arrived by `applied`, for all
            have left; 0: some may be inside.
        end_time: the log's clock when that was seen, ns.
    """

    applied: int
    time: int
    end: int = 0
    end_time: int = 0


class Sweeper:
    """Removes the payloads of one shard's packages, for one term of leadership.

    Args:
        machine: gives the leader's machine; it has no plan before the first deploy.
        head: gives the newest stored snapshot's head: what it claims has left is in the log.
    """

    def __init__(
        self,
        broker: Broker,
        pipeline: str,
        shard: int,
        machine: Callable[[], Machine],
        head: Callable[[], Head | None],
    ) -> None:
        self._broker = broker
        self._subjects = Subjects(pipeline, shard)
        self._stream = self._subjects.stream
        self._bucket = payload_bucket(pipeline)
        self._key = payload_mark_key(pipeline, shard)
        self._machine = machine
        self._head = head
        self._mark: Mark | None = None
        self._read = False

    async def run(self) -> None:
        """Sweep until cancelled, or until the connection is lost."""
        while True:
            try:
                await self.look()
            except ConnectionLostError:
                return  # the leader ends for the same reason
            except BrokerError as error:
                log.warning("payloads of %s were not swept, tried again: %s", self._stream, error)
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Go one step on, if there is anything to sweep and it is time for that."""
        plan, head = self._machine().plan, self._head()
        if plan is None or head is None:
            return
        try:
            oldest = await self._broker.oldest_object(self._bucket)
        except NotFoundError:
            return  # an older program has deployed it, and nothing is large
        if oldest is None:
            return
        if not self._read:
            self._mark, self._read = await self._stored(), True
        mark = self._mark
        if mark is None:
            # Of no use before it removes something.
            begin = oldest + int(PUT_S * NS)
            if head.time <= begin:
                await self._pass_time(begin)
                return
            mark = await self._note(Mark(head.applied, head.time))
        if not mark.end:
            if head.oldest_inside <= mark.applied:
                return
            # In this order: the time is that of the last of them, or later.
            end = (await self._broker.stream_state(self._stream)).last_seq
            end_time = await self._broker.time_ns(self._stream)
            mark = await self._note(Mark(mark.applied, mark.time, end, end_time))
        over = mark.end_time + plan.replay_window_ns
        if head.time <= over:
            await self._pass_time(over)
        elif (await self._broker.stream_state(self._stream)).first_seq > mark.end:
            before = mark.time - int(PUT_S * NS)
            await self._broker.objects_purge(self._bucket, before=before)
            log.debug("payloads of %s are swept that were put before %d", self._stream, before)
            self._mark = None

    async def _pass_time(self, until: int) -> None:
        """Where nothing happens no time passes in the log; a tick lets it."""
        if self._machine().time <= until < await self._broker.time_ns(self._stream):
            await self._broker.publish(self._subjects.tick, b"")

    async def _stored(self) -> Mark | None:
        """How far the leader before has come."""
        entry = await self._broker.kv_get(STATE_BUCKET, self._key)
        try:
            return None if entry is None else msgspec.msgpack.decode(entry.value, type=Mark)
        except (msgspec.MsgspecError, ValueError):
            log.warning("the mark %s is unreadable, a new one is set", self._key)
            return None

    async def _note(self, mark: Mark) -> Mark:
        self._mark = mark
        await self._broker.kv_put(STATE_BUCKET, self._key, msgspec.msgpack.encode(mark))
        return mark
