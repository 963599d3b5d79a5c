"""Packages that came before and left no result: one of them may be killing its workers.

The broker counts deliveries, and a delivery is no run: what a worker held when a neighbour killed
it, and what a drain gave back, was delivered too. So from the third delivery on a package is a
suspect: a run of it is recorded before it begins, and suspects run one at a time in a process, so
that none is charged for another's crash (docs/adr/0013).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

import msgspec

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.port import Broker, Message
from broker_pipeline.core.names import attempts_bucket, attempts_key
from broker_pipeline.errors import BrokerPipelineError, NotFoundError
from broker_pipeline.observe.about import about, in_phase
from broker_pipeline.pipeline import Controller, Phase
from broker_pipeline.runtime.results import Here

log = logging.getLogger(__name__)

TRUSTED_DELIVERIES = 2
"""So many are run without a record, and count as begun: a worker that dies once costs nothing."""
SUSPECTS_MAX = 256
"""Suspects of a phase that wait in a worker, beside its prefetch; more are left to redelivery."""
PATIENCE_S = 30.0
"""After so long without a turn those that wait are left to redelivery: another worker may be free.
Longer than most modules run."""
RECORD_S = 10.0
"""Until a record that is not read or written by then counts as failed."""
SPARE_S = 2.0
"""How long a drain may write down what it gives back; what is left then counts as begun."""


class Record(msgspec.Struct, frozen=True, array_like=True):
    """What is known of a package in a phase.

    Attributes:
        begun: runs that were recorded before they began.
        spared: trusted deliveries that a drain gave back before they began.
    """

    begun: int = 0
    spared: int = 0


class Attempt:
    """A suspect whose turn it is.

    Attributes:
        revision: of its record; None: it has none yet.
        recorded: whether there are records at all.
        admitted: its record says that it begins.
    """

    __slots__ = ("admitted", "ended", "record", "recorded", "revision")

    def __init__(self, record: Record, revision: int | None, *, recorded: bool = True) -> None:
        self.record = record
        self.revision = revision
        self.recorded = recorded
        self.admitted = False
        self.ended = asyncio.Event()


class Suspects:
    """The suspects of one phase in one worker.

    Args:
        turn: of whom all suspects of the process have theirs.
        begin: runs a package.
        fail: completes one that was begun too often; gets the number.
        leave: lets go of a package: the broker redelivers it.
    """

    def __init__(
        self,
        broker: Broker,
        pipeline: str,
        shard: int,
        controller: Controller,
        phase: Phase,
        *,
        turn: asyncio.Lock,
        begin: Callable[[Here, pb.DataPackage], None],
        fail: Callable[[Here, pb.DataPackage, int], None],
        leave: Callable[[Here], None],
    ) -> None:
        self.name = f"{controller.name}.{phase.name}"
        self.trusted = min(TRUSTED_DELIVERIES, phase.max_deliver)
        self._begun_max = phase.max_deliver
        self._broker = broker
        self._bucket = attempts_bucket(pipeline)
        self._key_of = partial(attempts_key, shard, controller.name, phase.name)
        self._turn = turn
        self._begin = begin
        self._fail = fail
        self._leave = leave
        self._parked: deque[tuple[Here, pb.DataPackage]] = deque()
        self._arrived = asyncio.Event()
        self._missing_said = False

    def park(self, here: Here, envelope: pb.DataPackage) -> None:
        """Run the package when its turn comes. It takes no room of the prefetch meanwhile."""
        if len(self._parked) < SUSPECTS_MAX:
            self._parked.append((here, envelope))
            self._arrived.set()
        else:
            self._leave(here)

    def withdraw(self, gone: Callable[[str], bool]) -> list[Here]:
        """Take back what waits of these instances; none of it has begun."""
        taken = [here for here, _ in self._parked if gone(here.token)]
        self._parked = deque(each for each in self._parked if not gone(each[0].token))
        return taken

    async def serve(self) -> None:
        """Give one suspect after the other its turn, for ever."""
        while True:
            while not self._parked:
                self._arrived.clear()
                await self._arrived.wait()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._turn.acquire()
            except TimeoutError:
                self._leave_all()
                continue
            try:
                await self._next()
            finally:
                self._turn.release()

    async def _next(self) -> None:
        if not self._parked:
            return
        here, envelope = self._parked[0]
        attempt: Attempt | None = None
        try:
            attempt = await self._attempt(here)
        except (BrokerPipelineError, TimeoutError) as error:
            what = about(envelope, self.name)
            log.warning(
                "the attempts of a package in %s are not known: %s", self.name, error, extra=what
            )
        if not self._parked or self._parked[0][0] is not here:
            return  # a drain has taken it back meanwhile
        self._parked.popleft()
        if attempt is None:
            self._leave(here)
            return
        begun = self.trusted - attempt.record.spared + attempt.record.begun
        if begun >= self._begun_max:
            self._fail(here, envelope, begun)
            return
        here.attempt = attempt
        self._begin(here, envelope)
        while not attempt.ended.is_set():
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await attempt.ended.wait()
            except TimeoutError:
                self._leave_all()

    async def admit(self, here: Here) -> bool:
        """Record that the package begins: it has its slot. Whether it may."""
        attempt = here.attempt
        assert attempt is not None
        if not attempt.recorded:
            return True
        record = msgspec.structs.replace(attempt.record, begun=attempt.record.begun + 1)
        what = in_phase(self.name, here.token)
        try:
            async with asyncio.timeout(RECORD_S):
                revision = await self._write(here, record, attempt.revision)
            if revision is not None:
                attempt.record, attempt.revision, attempt.admitted = record, revision, True
                return True
            log.info("a package in %s is being run by another worker", self.name, extra=what)
        except (BrokerPipelineError, TimeoutError) as error:
            log.warning(
                "an attempt in %s cannot be recorded, it waits: %s", self.name, error, extra=what
            )
        self._leave(here)
        return False

    async def spare(self, given_back: Iterable[Here]) -> None:
        """What was not begun is not to count as begun: neither what was admitted, and no module
        server had room for it, nor what was delivered."""
        try:
            async with asyncio.timeout(SPARE_S):
                for here in given_back:
                    attempt = here.attempt
                    if attempt is not None and attempt.admitted:
                        begun = attempt.record.begun - 1
                        record = msgspec.structs.replace(attempt.record, begun=begun)
                        await self._write(here, record, attempt.revision)
                    elif self._counts(here.message):
                        record, revision = await self._read(here)
                        record = msgspec.structs.replace(record, spared=record.spared + 1)
                        await self._write(here, record, revision)
        except (BrokerPipelineError, TimeoutError) as error:
            what = in_phase(self.name)
            log.warning(
                "packages of %s that did not begin may count: %s", self.name, error, extra=what
            )

    def _counts(self, message: Message) -> bool:
        """Whether a trusted delivery matters. Two that a drain took leave runs enough where
        `max_deliver` is larger."""
        return self._begun_max <= TRUSTED_DELIVERIES and message.delivered <= self.trusted

    def _leave_all(self) -> None:
        """They did not get a turn here for long: others may be free."""
        while self._parked:
            self._leave(self._parked.popleft()[0])

    # -- records --------------------------------------------------------------------------------
    async def _attempt(self, here: Here) -> Attempt:
        try:
            async with asyncio.timeout(RECORD_S):
                record, revision = await self._read(here)
        except NotFoundError:
            if not self._missing_said:
                self._missing_said = True
                log.warning(
                    "there is no bucket %s: deliveries are counted instead of attempts; deploy "
                    "the pipeline again to have it made",
                    self._bucket,
                    extra=in_phase(self.name),
                )
            begun = here.message.delivered - 1 - self.trusted
            return Attempt(Record(begun), None, recorded=False)
        return Attempt(record, revision)

    async def _read(self, here: Here) -> tuple[Record, int | None]:
        entry = await self._broker.kv_get(self._bucket, self._key_of(here.message.stream_seq))
        if entry is None:
            return Record(), None
        try:
            return msgspec.msgpack.decode(entry.value, type=Record), entry.revision
        except (msgspec.MsgspecError, ValueError):
            log.warning(
                "a record of attempts in %s is unreadable: begun anew",
                self.name,
                extra=in_phase(self.name, here.token),
            )
            return Record(), entry.revision

    async def _write(self, here: Here, record: Record, revision: int | None) -> int | None:
        """Its new revision; None where somebody else has written it since it was read."""
        key, value = self._key_of(here.message.stream_seq), msgspec.msgpack.encode(record)
        if revision is None:
            return await self._broker.kv_create(self._bucket, key, value)
        return await self._broker.kv_update(self._bucket, key, value, revision)
