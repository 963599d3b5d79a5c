"""Packages that are too old to be run (`max_age_s`), as a worker can tell: by the broker's clock.

A worker's own wall clock may be wrong by more than a package may be old. It asks the broker for the
time now and then, and counts on with its monotonic clock. The answer is taken for the time at which
it came: what the worker believes is never ahead of the broker, so it leaves no package out before
its time. One that it runs in vain is found too old by the controller.
"""

from __future__ import annotations

import asyncio
import logging

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.port import Broker
from broker_pipeline.core.plan import max_age_ns
from broker_pipeline.errors import BrokerPipelineError
from broker_pipeline.journey import NS, STATUS_TO_PB, Status
from broker_pipeline.pipeline import Controller

log = logging.getLogger(__name__)

CLOCK_EVERY_S = 5.0
"""Between two looks at the broker's clock: two oscillators differ by under 1 ms in that time."""
CLOCK_BEGIN_S = 1.0
"""For how long a phase waits for the first one before it takes packages without it."""
_OUTDATED = STATUS_TO_PB[Status.OUTDATED]


class Ages:
    """How old packages are, for one phase. Without a `max_age_s` it does nothing at all."""

    def __init__(self, broker: Broker, stream: str, controller: Controller) -> None:
        self._broker = broker
        self._stream = stream
        self._max_age_ns = max_age_ns(controller)
        self._read_at: float | None = None
        self._read_ns = 0

    async def begin(self) -> None:
        """Look at the broker's clock before the first package; without it nothing is too old."""
        if self._max_age_ns is None:
            return
        try:
            async with asyncio.timeout(CLOCK_BEGIN_S):
                await self._read()
        except TimeoutError:
            log.warning("the broker does not tell the time; packages are run however old they are")

    def keep(self, group: asyncio.TaskGroup, name: str) -> list[asyncio.Task[None]]:
        """Look at it again and again, in a task of the group."""
        return [] if self._max_age_ns is None else [group.create_task(self._keep(), name=name)]

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(CLOCK_EVERY_S)
            await self._read()

    async def _read(self) -> None:
        try:
            told_ns = await self._broker.time_ns(self._stream)
        except BrokerPipelineError as error:
            log.warning("the broker's clock was not read, the last time holds: %s", error)
            return
        self._read_ns, self._read_at = told_ns, asyncio.get_running_loop().time()

    def too_old(self, envelope: pb.DataPackage) -> bool:
        """Whether the package is so old that it leaves as OUTDATED whatever comes of it."""
        if self._max_age_ns is None or self._read_at is None or not envelope.start_time_ns:
            return False
        since = asyncio.get_running_loop().time() - self._read_at
        now_ns = self._read_ns + int(since * NS)
        return envelope.start_time_ns + self._max_age_ns <= now_ns


def pass_over(envelope: pb.DataPackage, phase: str, worker: str, now_ns: int) -> None:
    """The phase's record of a package that it did not run: OUTDATED, and no module in it."""
    envelope.controllers[-1].phases.add(
        name=phase, status=_OUTDATED, worker=worker, start_time_ns=now_ns
    )
