"""What a phase worker does with results: publish them, await the ack, then ack the package."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.port import Broker, Message, PubAck
from broker_pipeline.core.names import Subjects, completion_id, dispatch_id
from broker_pipeline.core.plan import lanes_in
from broker_pipeline.errors import BrokerPipelineError, PayloadTooLargeError
from broker_pipeline.journey import Status
from broker_pipeline.observe.about import in_phase
from broker_pipeline.observe.context import carried
from broker_pipeline.package import DataPackage, parse_envelope
from broker_pipeline.pipeline import Controller, Phase
from broker_pipeline.runtime.execution.executor import Finished, Job
from broker_pipeline.runtime.failures import ROOM_BYTES, Failures
from broker_pipeline.runtime.holding import Holding, Send
from broker_pipeline.runtime.oversize import without_details
from broker_pipeline.runtime.states import StateKeeper
from broker_pipeline.runtime.stored_states import ToStore

if TYPE_CHECKING:
    from broker_pipeline.runtime.loading import Fetched, Loading
    from broker_pipeline.runtime.phase_meter import PhaseMeter
    from broker_pipeline.runtime.suspects import Attempt

log = logging.getLogger(__name__)


class Here:
    """A message in this process, from its delivery to its ack.

    Attributes:
        fetched: its large payload as it came; None where the payload was in the message.
        as_it_came: it goes on with what the message held, for what was made of it fits nowhere.
        came_ns: when it came, on `time.monotonic_ns`; like `sent_ns`, for whoever measures only.
        sent_ns: when its result was sent.
    """

    __slots__ = (
        "as_it_came", "attempt", "came_ns", "fetched", "message", "new_state", "sent_ns", "since",
        "token",
    )  # fmt: skip

    def __init__(self, message: Message, token: str, since: float) -> None:
        self.as_it_came = False
        self.attempt: Attempt | None = None
        self.came_ns = self.sent_ns = 0
        self.fetched: Fetched | None = None
        self.message = message
        self.new_state: ToStore | None = None
        self.token = token
        self.since = since


class Results:
    """The results of one phase in one worker.

    Args:
        name: of the phase, for logs.
        gone: takes a package that is not here any more, whatever became of it.
        done: called with the instance when a package of it is done with, for good.
        room: called when the broker, which had no room for results, has room again.

    Attributes:
        meter: counts what it does; None: nothing does.
    """

    def __init__(
        self,
        broker: Broker,
        subjects: Subjects,
        controller: Controller,
        phase: Phase,
        *,
        failures: Failures,
        states: StateKeeper | None,
        loading: Loading,
        gone: Callable[[Here], None],
        done: Callable[[str], Awaitable[None]],
        room: Callable[[], None],
    ) -> None:
        self.name = f"{controller.name}.{phase.name}"
        self._broker = broker
        self._subjects = subjects
        self._controller = controller
        self._failures = failures
        self._states = states
        self._loading = loading
        self._gone = gone
        self._done = done
        self._holding = Holding(self.name, room)
        names = [each.name for each in controller.phases]
        following = controller.phases[names.index(phase.name) + 1 :]
        self._next_phase = following[0].name if following else None
        self._next_lanes = lanes_in(following[0]) if following else 0
        self.meter: PhaseMeter | None = None
        # Both hold at most what was delivered: `wanted` of the executor bounds that.
        self._results: asyncio.Queue[Finished] = asyncio.Queue()
        self._stored: asyncio.Queue[Here] = asyncio.Queue()
        self._storing: asyncio.Task[None] | None = None
        self._putting_away: set[asyncio.Task[None]] = set()

    @property
    def full(self) -> bool:
        """Whether the broker has no room for results: take nothing more."""
        return self._holding.full or self._loading.full

    @property
    def held(self) -> int:
        """How many results it holds, for which the broker has no room."""
        return self._holding.count

    def put(self, finished: Finished) -> None:
        """Publish it, and so on."""
        self._results.put_nowait(finished)

    def put_stored(self, here: Here) -> None:
        """There is no result to publish: only the ack is left."""
        self._stored.put_nowait(here)

    def fail(self, here: Here, envelope: pb.DataPackage, error: BrokerPipelineError) -> None:
        """Complete the package as ERROR with its payload as it came."""
        self._failures.note(envelope, error)
        job = Job(DataPackage.wrap(envelope), here, None)
        self._results.put_nowait(Finished(job, envelope, Status.ERROR, None))

    async def publish_all(self) -> None:
        """Publish what comes, for ever."""
        while True:
            finished = await self._results.get()
            here = finished.job.token
            assert isinstance(here, Here)
            if finished.status is Status.ERROR:
                self._failures.require_record(finished.envelope)
            if self._states is not None and finished.status is not Status.OUTDATED:
                here.new_state = self._states.keep(
                    here.token, finished.envelope, here.message.stream_seq, finished.states
                )
            try:
                await self._publish(here, finished.envelope, finished.status)
            except BrokerPipelineError as error:
                self._fail_or_leave(here, error)

    async def _publish(self, here: Here, envelope: pb.DataPackage, status: Status) -> None:
        """Publish a result; where its payload must be stored before, beside the others."""
        data = envelope.SerializeToString()
        if here.as_it_came or not self._loading.concerns(here, len(data)):
            await self._send(here, envelope, status, data)
            return
        work = self._put_away(here, envelope, status, len(data))
        task = asyncio.create_task(work, name=f"put away {self.name}")
        self._putting_away.add(task)  # bounded as the queues: no more are delivered when it is full
        task.add_done_callback(self._putting_away.discard)

    async def _put_away(
        self, here: Here, envelope: pb.DataPackage, status: Status, size: int
    ) -> None:
        try:
            data = await self._loading.put_away(here, envelope, size)
            await self._send(here, envelope, status, data)
        except BrokerPipelineError as error:
            self._fail_or_leave(here, error)

    def _fail_or_leave(self, here: Here, error: BrokerPipelineError) -> None:
        if not isinstance(error, PayloadTooLargeError):
            self.unpublished(here, error)
            return
        envelope = parse_envelope(here.message.data)
        self._failures.note(envelope, error)
        self._failures.fit(envelope, self._broker.max_payload)
        here.as_it_came = True
        job = Job(DataPackage.wrap(envelope), here, None)
        self._results.put_nowait(Finished(job, envelope, Status.ERROR, None))

    async def _send(
        self, here: Here, envelope: pb.DataPackage, status: Status, data: bytes
    ) -> None:
        if status is not Status.ERROR:
            self._failures.check_size(len(data), self._broker.max_payload)
        elif len(data) > self._broker.max_payload - ROOM_BYTES:
            without_details(envelope)
            data = envelope.SerializeToString()
        controller = self._controller.name
        if status is Status.SUCCESS and self._next_phase is not None:
            next_phase, lanes = self._next_phase, self._next_lanes
            subject = self._subjects.queue(controller, next_phase, here.token, lanes)
            msg_id = dispatch_id(envelope.id, controller, next_phase)
        else:
            subject = self._subjects.completion(controller, here.token)
            msg_id = completion_id(envelope.id, controller)
        context = carried(here.message.headers)
        send = partial(self._broker.start_publish, subject, data, msg_id=msg_id, headers=context)
        if self.meter is not None:
            self.meter.sent(here)
        (await send()).add_done_callback(partial(self._acknowledged, here, send))

    def _acknowledged(self, here: Here, send: Send, ack: asyncio.Future[PubAck]) -> None:
        if ack.cancelled():
            return
        error = ack.exception()
        if error is None:
            if self.meter is not None:
                self.meter.published(here)
            if self._states is None:
                pass
            elif ack.result().duplicate:
                # Another result was first: the state is what that one left, not this one.
                self._states.forget(here.token)
                here.new_state = None
            else:
                self._states.confirm(here.token, here.message.stream_seq)
            self._stored.put_nowait(here)
        elif not self._holding.hold(error, send, partial(self._acknowledged, here, send)):
            self.unpublished(here, error)

    def unpublished(self, here: Here, error: BaseException) -> None:
        """The result is not known to be stored: the broker redelivers the package after a while,
        and a second result is dropped where the first was stored after all."""
        what = in_phase(self.name, here.token)
        log.warning(
            "a result of %s was not stored, it is run again: %s", self.name, error, extra=what
        )
        self._gone(here)

    async def finish_all(self) -> None:
        """What is left to do once a result is stored: the ack, and the new state."""
        while True:
            here = await self._stored.get()
            await self._broker.ack(here.message)
            if self.meter is not None:
                self.meter.acked(here)
            if here.new_state is not None and self._states is not None:
                if self._states.is_large(here.new_state):
                    self._store_beside(self._states, here.token, here.new_state)
                else:
                    await self._store_state(here.token, here.new_state)
            self._gone(here)
            await self._done(here.token)

    def _store_beside(self, states: StateKeeper, token: str, new: ToStore) -> None:
        """Store a large state while acks go on; one at a time, a later one will be stored too."""
        if self._storing is not None and not self._storing.done():
            return
        self._storing = asyncio.create_task(
            self._store_state(token, new), name=f"store a state of {self.name}"
        )

    def close(self) -> None:
        """Hold nothing any longer: what is held is redelivered to another worker."""
        self._holding.close()
        for task in self._putting_away:
            task.cancel()

    async def settle(self, timeout_s: float) -> None:
        """Wait for a large state that is being stored, and give it up after `timeout_s`."""
        if self._storing is not None:
            await asyncio.wait((self._storing,), timeout=timeout_s)
            self._storing.cancel()
            await asyncio.wait((self._storing,))

    async def _store_state(self, token: str, new: ToStore) -> None:
        assert self._states is not None
        try:
            await self._states.store(token, new)
        except BrokerPipelineError as error:
            log.warning(
                "a state of %s was not stored, a later one will be: %s",
                self.name,
                error,
                extra=in_phase(self.name, token),
            )
