"""The leader's housekeeping: purge history, close ingress when the log fills up, open it again.

Everything is derived from what the broker says and from the newest stored snapshot, so that any
leader goes on where another one died. Nothing here is on the way of a package.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from broker_pipeline.broker.port import Broker, StreamState, StreamStatus
from broker_pipeline.client.deploy import deployed_plan
from broker_pipeline.core import retention
from broker_pipeline.core.machine import Machine
from broker_pipeline.core.names import (
    TICK_PAUSE,
    TICK_RESUME,
    Subjects,
    log_subjects,
    stream_name,
)
from broker_pipeline.core.plan import Plan
from broker_pipeline.core.snapshot import Head
from broker_pipeline.errors import (
    BrokerError,
    ConnectionLostError,
    NotFoundError,
    StorageFullError,
)

log = logging.getLogger(__name__)

PURGE_EVERY_S = 10.0
"""Between two looks for history that is too old, where the log has no bound."""
LOOK_EVERY_S = 0.25
"""Between two looks at the level of a bounded log. It fills up in between where it is small: then
the broker refuses the leader too, and the next one makes room."""
LOOK_COST = 20
"""Looking and purging may take 1/20 of the time: a slow broker is asked less often, but at least
every PURGE_EVERY_S."""
PURGE_MAX = 200_000
"""Messages purged at once: the broker does nothing else with the stream for about 65 ms."""


class Retention:
    """Retention of one shard's log, for one term of leadership.

    Args:
        machine: gives the leader's machine; it has no plan before the first deploy.

    Attributes:
        head: of the newest stored snapshot; None where there is none.
    """

    def __init__(
        self, broker: Broker, pipeline: str, shard: int, machine: Callable[[], Machine]
    ) -> None:
        self._broker = broker
        self._pipeline = pipeline
        self._shard = shard
        self._stream = stream_name(pipeline, shard)
        self._subjects = Subjects(pipeline, shard)
        self._machine = machine
        self.head: Head | None = None
        self._purge_due = 0.0
        self._granted: int | None = None

    async def make_room(self) -> None:
        """Look before anything is published; what fails is tried again by `run`, for a log that
        nobody leads gets no room either. Raises ConnectionLostError."""
        try:
            await self.look()
        except ConnectionLostError:
            raise
        except BrokerError as error:
            log.warning("room in %s was not made, tried again: %s", self._stream, error)

    async def run(self) -> None:
        """Keep house until cancelled, or until the connection is lost."""
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            try:
                wait_s = await self.look()
            except ConnectionLostError:
                return  # the leader ends for the same reason
            except BrokerError as error:
                log.warning("housekeeping of %s failed, tried again: %s", self._stream, error)
                wait_s = LOOK_EVERY_S
            took_s = loop.time() - begun
            await asyncio.sleep(max(wait_s, min(took_s * LOOK_COST, PURGE_EVERY_S)))

    async def look(self) -> float:
        """Purge and open or close ingress, as it is due; returns after how long to look again."""
        # A new leader has read no plan yet, and must make room before it publishes anything.
        plan = self._machine().plan or await deployed_plan(self._broker, self._pipeline)
        if plan is None:
            return LOOK_EVERY_S
        size = plan.log_bytes_max
        status = await self._broker.stream_status(self._stream)
        pressed = retention.is_pressed(size, status.state.bytes)
        now = asyncio.get_running_loop().time()
        if pressed or now >= self._purge_due:
            self._purge_due = now + PURGE_EVERY_S
            if await self._purge(plan, status.state, pressed):
                status = await self._broker.stream_status(self._stream)
        was_open = self._is_open(status)
        is_open = await self._set_gate(plan, status)
        if not await self._pause_gaps(is_open, opened=is_open and not was_open) and not is_open:
            await self._reach_the_end(status.state)
        return PURGE_EVERY_S if size is None else LOOK_EVERY_S

    # -- history --------------------------------------------------------------------------------
    async def _purge(self, plan: Plan, state: StreamState, pressed: bool) -> bool:
        head = self.head
        if head is None or not state.messages:
            return False
        young = None
        if not pressed:
            young = await self._first_since(head.time - plan.replay_window_ns, state, head)
            if young <= state.first_seq:
                return False
        states = await self._broker.consumer_states(self._stream)
        names = [
            name
            for controller in plan.controllers
            for phase in controller.phases
            for name, _ in self._subjects.consumers(controller.name, phase.name, phase.lanes)
        ]
        missing = [name for name in names if name not in states]
        if missing:
            log.warning("nothing of %s is purged: no answer about %s", self._stream, missing)
            return False
        consumers = [states[name].needs for name in names]
        below = retention.purge_below(head, consumers, state.first_seq, young)
        if below is None:
            return False
        most = state.first_seq + PURGE_MAX
        if below > most:
            below, self._purge_due = most, 0.0
        await self._broker.purge(self._stream, below=below)
        log.debug("purged %s from %d to below %d", self._stream, state.first_seq, below)
        return True

    async def _first_since(self, time: int, state: StreamState, head: Head) -> int:
        """The first message that was stored at `time` or later: times never go back in a log."""
        if await self._stored_since(time, state.first_seq):
            return state.first_seq  # as mostly: one look is enough
        low, high = state.first_seq, head.applied + 1
        while low + 1 < high:
            middle = (low + high) // 2
            if await self._stored_since(time, middle):
                high = middle
            else:
                low = middle
        return high

    async def _stored_since(self, time: int, stream_seq: int) -> bool:
        try:
            return (await self._broker.get_message(self._stream, stream_seq)).time >= time
        except NotFoundError:
            return False  # another leader has purged meanwhile

    # -- ingress --------------------------------------------------------------------------------
    def _is_open(self, status: StreamStatus) -> bool:
        return set(log_subjects(self._pipeline, self._shard)) <= set(status.subjects)

    async def _set_gate(self, plan: Plan, status: StreamStatus) -> bool:
        """Open or close ingress; whether it is open."""
        size, level = plan.log_bytes_max, status.state.bytes
        opened = log_subjects(self._pipeline, self._shard)
        closed = log_subjects(self._pipeline, self._shard, ingress=False)
        is_open = self._is_open(status)
        be_open = retention.should_be_open(size, level, is_open)
        taken = retention.max_bytes(plan, level, be_open)
        if taken is not None and self._granted is not None:
            taken = min(taken, self._granted)
        if (is_open, status.max_bytes) != (be_open, taken):
            await self._limit(opened if be_open else closed, taken, status.max_bytes)
        if is_open and not be_open:
            log.warning(
                "the log %s has %d of %s bytes: producers are refused until there is room again; "
                "if that lasts, start more workers, or deploy with a larger log_bytes_max",
                self._stream,
                level,
                size,
            )
        elif be_open and not is_open:
            log.warning("the log %s has room again: producers are let in", self._stream)
        return be_open

    async def _pause_gaps(self, is_open: bool, *, opened: bool) -> bool:
        """Let the log say whether gaps are paused, where it says otherwise, and that they have
        their time again when producers are let in. Whether that was said now."""
        machine = self._machine()
        if machine.plan is None:
            return False  # it has not read its log yet
        paused = retention.should_pause_gaps(is_open, machine.tallies.pipeline.inside)
        if machine.gaps.paused == paused and not (opened and machine.gaps):
            return False
        await self._broker.publish(self._subjects.tick, TICK_PAUSE if paused else TICK_RESUME)
        return True

    async def _limit(self, subjects: tuple[str, ...], taken: int | None, now: int | None) -> None:
        """Let the stream take so much, or as much more than now as the broker grants."""
        while True:
            try:
                await self._broker.limit_stream(self._stream, subjects=subjects, max_bytes=taken)
                return
            except StorageFullError as error:
                if taken is None or now is None or taken <= now:
                    raise
                taken = self._granted = max(now, taken // 2)
                log.warning("%s may have %d bytes, and no more: %s", self._stream, taken, error)

    async def _reach_the_end(self, state: StreamState) -> None:
        """What was published after the last event is needed until there is another; while nobody
        is let in nothing else may come, and ingress would be closed for ever."""
        if self.head is not None and self.head.applied == self._machine().applied < state.last_seq:
            await self._broker.publish(self._subjects.tick, b"")
