"""The lanes of a stateful phase that this worker pulls: each worker's own, as long as none comes or
goes, so that it holds the states that its packages need (docs/adr/0015).

Workers of a phase announce themselves under keys that vanish when they are silent, and each works
out its lanes from who is there (`core/lanes.py`). Views differ for a moment when a worker comes or
goes: two workers then pull a lane, or none does. Neither harms: a state is right whoever gets the
package (`states.py`), and what nobody pulls waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable

from broker_pipeline.broker.lease import RENEWALS_PER_TTL
from broker_pipeline.broker.port import READ_BYTES_MAX, Broker, Handler, Subscription
from broker_pipeline.core.lanes import lane_of, lanes_of
from broker_pipeline.core.names import (
    LEASE_BUCKET,
    LEASE_TTL_S,
    Subjects,
    escape_instance,
    lane_consumer,
)
from broker_pipeline.errors import BrokerError, BrokerPipelineError, NotFoundError
from broker_pipeline.observe.about import in_phase
from broker_pipeline.runtime.states import StateKeeper

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""How often a worker looks who else is there: a lane has two owners or none for about so long."""
ANNOUNCE_S = LEASE_TTL_S / RENEWALS_PER_TTL
"""How often a worker says that it is there."""
LEAVE_S = 1.0
"""How long taking leave may take: a broker that does not answer forgets us after LEASE_TTL_S."""

GiveBack = Callable[[Callable[[str], bool]], Awaitable[None]]
"""Gives what has not begun of these instances back to the broker."""


class Lanes:
    """A `Subscription` on those lanes of a stateful phase's queue that are this worker's.

    Args:
        phase: controller and phase.
        count: into how many lanes the queue is cut.
        worker: this process's name, for people: the member's is made unlike any other.
        states: what this worker holds, of its own lanes at last.
        is_here: whether a package of an instance is in this worker.
    """

    def __init__(
        self,
        broker: Broker,
        subjects: Subjects,
        phase: tuple[str, str],
        count: int,
        *,
        worker: str,
        states: StateKeeper,
        handler: Handler,
        give_back: GiveBack,
        is_here: Callable[[str], bool],
    ) -> None:
        self._broker = broker
        self._stream = subjects.stream
        self._phase = phase
        self._count = count
        self._members = subjects.members(*phase)
        self._name = f"{escape_instance(worker[-64:])}-{secrets.token_hex(4)}"
        self._states = states
        self._handler = handler
        self._give_back = give_back
        self._is_here = is_here
        self._mine: frozenset[int] = frozenset()
        self._pulled: dict[int, Subscription] = {}
        self._wanted = 0
        self._each = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._giving: asyncio.Future[None] | None = None
        self._stopped = False
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def failed(self) -> asyncio.Future[None]:
        """See `Subscription.failed`."""
        return self._failed

    async def start(self, credit: int) -> Lanes:
        """Announce this worker and pull its lanes; itself. Raises as `Broker.consume` does."""
        self._wanted = credit
        try:
            await self._announce()
            await self._look()
        except BaseException:
            await self.stop()
            raise
        name = ".".join(self._phase)
        loop = asyncio.get_running_loop()
        for work, every_s, what in (
            (self._announce, ANNOUNCE_S, "announce"),
            (self._look, LOOK_S, "look for lanes of"),
        ):
            tending = self._again_and_again(work, every_s)
            task = loop.create_task(tending, name=f"{what} {name}")
            task.add_done_callback(self._ended)
            self._tasks.append(task)
        return self

    def set_credit(self, messages: int) -> None:
        """See `Subscription.set_credit`. Each lane has a share, at least one: a lane that asks for
        nothing gets nothing. So up to one a lane more is held than is wanted."""
        self._wanted = messages
        self._share()

    async def stop(self) -> None:
        """Take leave, so that others take over; then see `Subscription.stop`."""
        if self._stopped:
            return
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        ending = [*self._tasks, self._giving] if self._giving is not None else self._tasks
        if ending:
            await asyncio.wait(ending)
        with contextlib.suppress(BrokerPipelineError, TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await self._broker.kv_erase(LEASE_BUCKET, self._members + self._name)
        await self._end(self._pulled.keys())
        self._failed.cancel()

    # -- who is there ---------------------------------------------------------------------------
    async def _again_and_again(self, work: Callable[[], Awaitable[None]], every_s: float) -> None:
        """What fails for now is tried again: without the broker the lanes stay as they are."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await work()
            except BrokerError as error:
                if isinstance(error, NotFoundError):
                    self._fail(error)  # a consumer is gone, or the bucket
                    return
                log.debug("lanes of %s: %s", self._members, error)

    async def _announce(self) -> None:
        # One answer in vain is no harm; the next is asked for in time.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANNOUNCE_S):
                key = self._members + self._name
                await self._broker.kv_put(LEASE_BUCKET, key, self._name.encode())

    async def _look(self) -> None:
        keys = await self._broker.kv_listed(LEASE_BUCKET, self._members)
        others = [key[len(self._members) :] for key in keys]
        mine = lanes_of(self._name, others, self._count)
        if mine != self._pulled.keys():
            await self._take(mine)

    # -- lanes ----------------------------------------------------------------------------------
    async def _take(self, mine: frozenset[int]) -> None:
        """Pull these lanes and no others."""
        self._mine = mine
        lost = frozenset(self._pulled) - mine
        phase = ".".join(self._phase)
        log.info("pulls %d of %d lanes of %s", len(mine), self._count, phase, extra=in_phase(phase))
        self._share()
        opening = (self._open(lane) for lane in sorted(mine - self._pulled.keys()))
        for error in await asyncio.gather(*opening, return_exceptions=True):
            if error is not None:
                raise error
        if lost:
            await self._end(lost)
            # Not cut off half-way by `stop`: who is given back to nobody waits for his ack_wait.
            self._giving = asyncio.ensure_future(self._give_back(self._is_anothers))
            await asyncio.shield(self._giving)
            for token in self._states.tokens():
                await self.let_go_of_another(token)

    def _is_anothers(self, token: str) -> bool:
        return lane_of(token, self._count) not in self._mine

    async def let_go_of_another(self, token: str) -> None:
        """Hold the states of an instance no more, if its lane is another worker's now, and store
        them for that one; unless a package of it is still here: then it is called again."""
        if not self._is_anothers(token) or self._is_here(token):
            return
        try:
            await self._states.hand_over(token)
        except BrokerPipelineError as error:
            phase = ".".join(self._phase)
            what = in_phase(phase, token)
            log.warning("a state of %s was not handed over: %s", phase, error, extra=what)

    async def _open(self, lane: int) -> None:
        asked = self._each
        subscription = await self._broker.consume(
            self._stream,
            lane_consumer(*self._phase, lane),
            self._handler,
            credit=asked,
            bytes_max=READ_BYTES_MAX // self._count,
        )
        self._pulled[lane] = subscription
        if asked != self._each:  # it has changed meanwhile, and may never again
            subscription.set_credit(self._each)
        subscription.failed.add_done_callback(self._ended)

    async def _end(self, lanes: Iterable[int]) -> None:
        ending = [self._pulled.pop(lane) for lane in sorted(lanes)]
        await asyncio.gather(*(each.stop() for each in ending))

    def _ended(self, ended: asyncio.Future[None]) -> None:
        if not ended.cancelled() and (error := ended.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self._failed.done():
            self._failed.set_exception(error)

    def _share(self) -> None:
        """Let each lane ask for its share: a power of two, so that it seldom changes."""
        each = max(1, self._wanted // max(1, len(self._mine)))
        each = 1 << (each.bit_length() - 1) if self._wanted > 0 else 0
        if each != self._each:
            self._each = each
            for subscription in self._pulled.values():
                subscription.set_credit(each)
