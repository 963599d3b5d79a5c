"""The leader of a shard: reads the log, lets the machine decide, publishes what it decided.

Crash-only. On anything that it does not understand - a refused publish, a lost connection, a lost
lease - `run` raises, and whoever called it begins anew with a new connection: it loads the newest
snapshot, looks up what is published already after it, and computes the rest again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.large_payloads import LargePayloads
from broker_pipeline.broker.port import Broker, Message, OrderedPublisher, Subscription
from broker_pipeline.core import snapshot
from broker_pipeline.core.commands import Command, Emit
from broker_pipeline.core.envelope import Ignored, message_of, read_event, write
from broker_pipeline.core.machine import Machine
from broker_pipeline.core.names import HEADER_MSG_ID, Subjects, stream_name
from broker_pipeline.errors import LeadershipLostError, PayloadTooLargeError, SnapshotError
from broker_pipeline.journey import NS
from broker_pipeline.observe.about import about
from broker_pipeline.observe.tracing import Traces
from broker_pipeline.runtime.leader_meter import LeaderMeter
from broker_pipeline.runtime.lifecycle import unless_stopped
from broker_pipeline.runtime.oversize import instead, moved_out
from broker_pipeline.runtime.payloads import WaitingMessages
from broker_pipeline.runtime.retention import Retention
from broker_pipeline.runtime.snapshots import SnapshotStore
from broker_pipeline.runtime.sweeping import Sweeper

log = logging.getLogger(__name__)

SNAPSHOT_INTERVAL_S = 2.0
"""Between two snapshots at most: what a new leader has to read again."""
INBOX_MAX = 4_000
"""Messages read and not yet applied, beyond which reading pauses; it goes on at half of them. What
was asked for by then, READ_CREDIT at most, may still come."""
APPLY_MAX = 256
"""Messages applied in one turn, about 10 ms: the lease is renewed and acks are read in between."""
READ_CREDIT = 2_000
"""Messages asked of the broker at once: 100,000/s were measured with it."""
TICK_RETRY_S = 1.0
"""A tick that was not seen after so long is published again."""
TICK_NEXT_S = 0.05
"""Where packages get too old one after the other: between two ticks for two deadlines. They leave
so much late, and not with a tick each."""
TICK_SOONEST_S = 0.001
"""Ticks are for deadlines of seconds; two are at least so far apart."""


class Leader:
    """One term of leadership over one shard.

    Args:
        broker: a connection of its own that never reconnects.
        now_ns: the wall clock, for guessing when a tick is due; decisions do not depend on it.
        ready: called when the leader knows what its predecessor published, and goes on from there.
        is_held: whether the lease is: what was read while it was not may have gaps, which another
            leader has purged.
        traces: which packages are traced, and who tells of them; None: those that come so.
        meter: counts what it does; None: nothing does.
    """

    def __init__(
        self,
        broker: Broker,
        pipeline: str,
        shard: int,
        *,
        now_ns: Callable[[], int],
        ready: Callable[[Leader], None] = lambda leader: None,
        is_held: Callable[[], bool] = lambda: True,
        traces: Traces | None = None,
        meter: LeaderMeter | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.shard = shard
        self.machine = Machine()
        self._broker = broker
        self._now_ns = now_ns
        self._ready = ready
        self._is_held = is_held
        self._traces = traces or Traces(pipeline, shard)
        self._meter = meter
        self._behind = False
        self._newest: Message | None = None
        self._subjects = Subjects(pipeline, shard)
        self._stream = stream_name(pipeline, shard)
        self._snapshots = SnapshotStore(broker, pipeline, shard)
        self._waiting = WaitingMessages(broker, self._stream)
        self._retention = Retention(broker, pipeline, shard, lambda: self.machine)
        self._payloads = LargePayloads(broker, pipeline)
        self._sweeper = Sweeper(
            broker, pipeline, shard, lambda: self.machine, lambda: self._retention.head
        )
        self._inbox: deque[Message] = deque()
        self._subscription: Subscription | None = None
        self._paused = False
        self._wake = asyncio.Event()
        self._published: set[str] = set()
        self._published_until = 0
        self._stored_applied = 0
        self._saving: asyncio.Task[None] | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._tick_sent_at = float("-inf")
        self._tick_for = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Lead until `stop` is set, then store a snapshot and return. Raises on any trouble."""
        if self._meter is None:
            await self._lead(stop)
            return
        self._meter.begins(self)
        try:
            await self._lead(stop)
        finally:
            self._meter.ends()

    async def _lead(self, stop: asyncio.Event) -> None:
        if not await unless_stopped(stop, self._recover()):
            return
        publisher = self._broker.ordered_publisher(self._stream)
        self._subscription = subscription = await self._broker.read(
            self._stream,
            self._subjects.ctl,
            self._arrived,
            start_seq=self.machine.applied + 1,
            credit=READ_CREDIT,
        )
        await self._require_unpurged()
        housekeeping = asyncio.create_task(self._retention.run(), name=f"keep {self._stream}")
        sweeping = asyncio.create_task(self._sweeper.run(), name=f"sweep {self._stream}")
        looking = None if self._meter is None else self._meter.looking(self._broker, self)
        watched = (subscription.failed, publisher.failed, self._broker.lost, housekeeping, sweeping)
        stopping = asyncio.ensure_future(stop.wait())
        for future in (*watched, stopping):
            future.add_done_callback(lambda _: self._wake.set())
        next_snapshot = asyncio.get_running_loop().time() + SNAPSHOT_INTERVAL_S
        self._ready(self)
        try:
            while not stop.is_set():
                self._wake.clear()  # before anything is looked at: what comes from here on counts
                for future in watched:
                    if future.done():
                        future.result()
                await self._apply_inbox(publisher)
                self._read_on()
                next_snapshot = await self._snapshot_if_due(publisher, next_snapshot)
                await self._wait(next_snapshot)
            await subscription.stop()
            await self._finish(publisher)
        finally:
            stopping.cancel()
            for task in (self._saving, self._ticking, housekeeping, sweeping, looking):
                if task is not None:
                    task.cancel()

    # -- what a meter asks ----------------------------------------------------------------------
    def lag(self) -> tuple[int, float]:
        """How many messages of the log are not applied yet, and how many seconds ago the first of
        them that is known was stored, by this machine's clock."""
        newest, inbox = self._newest, self._inbox
        messages = len(inbox) + (newest.pending if newest is not None else 0)
        if not messages or newest is None:
            return messages, 0.0
        oldest = inbox[0] if inbox else newest
        return messages, max(0.0, (self._now_ns() - oldest.time) / NS)

    @property
    def unsaved(self) -> bool:
        """Whether something was applied that is in no stored snapshot."""
        return self.machine.applied > self._stored_applied

    # -- beginning and end ----------------------------------------------------------------------
    async def _recover(self) -> None:
        """Load the newest snapshot, and see what was published after it."""
        self.machine = await self._snapshots.load()
        applied = self._stored_applied = self.machine.applied
        self._published_until = (await self._broker.stream_state(self._stream)).last_seq
        for kind in (f"{self._subjects.work}>", f"{self._subjects.out}>"):
            published = await self._broker.read_range(
                self._stream, kind, start_seq=applied + 1, headers_only=True
            )
            self._published.update(m.headers.get(HEADER_MSG_ID, "") for m in published)
        self._retention.head = self._snapshots.stored
        await self._retention.make_room()
        if self._meter is not None:
            behind = await self._broker.next_message(
                self._stream, self._subjects.ctl, start_seq=applied + 1
            )
            self._behind = behind is not None
            self._meter.recovered(behind=self._behind)

    async def _require_unpurged(self) -> None:
        """Raises LeadershipLostError where events behind the snapshot are gone."""
        first = (await self._broker.stream_state(self._stream)).first_seq
        if self.machine.applied == 0 and first > 1:
            raise SnapshotError(
                f"the log {self._stream} begins at {first}, and there is no snapshot of what came "
                f"before: it cannot be gone on from; delete the stream and deploy again",
                first_seq=first,
            )
        if first > self.machine.applied + 1:
            raise LeadershipLostError(
                f"the log {self._stream} begins at {first}, and the snapshot ends at "
                f"{self.machine.applied}: another leader has gone on and purged meanwhile; "
                f"begin anew",
                first_seq=first,
            )

    async def _finish(self, publisher: OrderedPublisher) -> None:
        await publisher.seal()  # not `close` alone, which says nothing of a refusal before it
        await publisher.close()
        if self._saving is not None:
            await self._saving
        if self.machine.applied == self._stored_applied:
            return
        await self._save(self._snapshots.take(self.machine))

    # -- the loop -------------------------------------------------------------------------------
    def _arrived(self, message: Message) -> None:
        inbox = self._inbox
        self._newest = message
        inbox.append(message)
        if len(inbox) == 1:
            self._wake.set()
        elif len(inbox) > INBOX_MAX and not self._paused and self._subscription is not None:
            # Here, not in the loop: that may be waiting for the broker while messages pour in.
            self._paused = True
            self._subscription.set_credit(0)

    def _read_on(self) -> None:
        if self._paused and len(self._inbox) <= INBOX_MAX // 2 and self._subscription is not None:
            self._paused = False
            self._subscription.set_credit(READ_CREDIT)

    async def _apply_inbox(self, publisher: OrderedPublisher) -> None:
        """Apply a part of the inbox, so that the loop sees to its other duties in between."""
        if self._inbox and not self._is_held():
            raise LeadershipLostError("the lease is not held any more; begin anew")
        for _ in range(min(APPLY_MAX, len(self._inbox))):
            await self._apply(self._inbox.popleft(), publisher)

    async def _apply(self, message: Message, publisher: OrderedPublisher) -> None:
        if self._behind and (not message.pending or message.stream_seq > self._published_until):
            self._behind = False
            if self._meter is not None:
                self._meter.caught_up()
        try:
            event, envelope = read_event(
                self._subjects,
                message.subject,
                message.headers,
                message.data,
                message.stream_seq,
                message.time,
            )
        except Ignored as reason:
            log.warning("message %d of %s ignored: %s", message.stream_seq, self._stream, reason)
            self.machine.applied = message.stream_seq
            return
        if self._published and message.stream_seq > self._published_until:
            self._published.clear()  # what they were published for has been applied
        used = envelope is None
        for command in self.machine.step(event):
            if command.package.source == message.stream_seq:
                used = True
            await self._publish(command, publisher, message, envelope)
        if not used:
            self._waiting.put(message)

    async def _publish(
        self,
        command: Command,
        publisher: OrderedPublisher,
        message: Message,
        envelope: pb.DataPackage | None,
    ) -> None:
        plan = self.machine.plan
        assert plan is not None  # nothing is decided before the first plan
        subject, msg_id = message_of(plan, self._subjects, command)
        source = command.package.source
        if msg_id in self._published:
            self._published.discard(msg_id)
            self._waiting.drop(source)
            return
        if source != message.stream_seq or envelope is None:
            message = await self._waiting.take(source)
            envelope = self._envelope_in(message)
        data = write(plan, self.shard, command, envelope)
        context = self._traces.carried(message.headers, command.package)
        if self._meter is not None:
            self._meter.publishes(plan, command, envelope)
        try:
            await publisher.publish(subject, data, msg_id=msg_id, headers=context)
        except PayloadTooLargeError as error:
            # It arrived just below the limit and does not fit with its journey.
            if await moved_out(self._payloads, envelope, self._broker.max_payload):
                data = envelope.SerializeToString()
            else:  # it leaves as ERROR, for it would stop this leader and the next one too
                what = about(envelope)
                log.warning(
                    "message %d of %s leaves as ERROR: %s", source, self._stream, error, extra=what
                )
                subject, data, msg_id = instead(
                    self._subjects, self._stream, command, envelope, error, self._broker.max_payload
                )
            await publisher.publish(subject, data, msg_id=msg_id, headers=context)
        if isinstance(command, Emit):
            self._traces.left(context, envelope)

    def _envelope_in(self, message: Message) -> pb.DataPackage:
        _, envelope = read_event(
            self._subjects, message.subject, message.headers, message.data, message.stream_seq, 0
        )
        assert envelope is not None  # the machine refers to messages with a package only
        return envelope

    async def _wait(self, next_snapshot: float) -> None:
        """Until there is something to apply, or a tick or a snapshot is due."""
        if self._inbox:
            await asyncio.sleep(0)  # the connection's turn
            return
        loop = asyncio.get_running_loop()
        timeout = self._tick_in(loop.time())
        if self.unsaved and self._saving is None:
            due = max(0.0, next_snapshot - loop.time())
            timeout = due if timeout is None else min(timeout, due)
        handle = loop.call_later(timeout, self._wake.set) if timeout is not None else None
        await self._wake.wait()
        if handle is not None:
            handle.cancel()

    def _tick_in(self, now: float) -> float | None:
        """Seconds until a tick is due, after publishing one that is; None where none will be."""
        deadline = self.machine.next_deadline()
        if deadline is None:
            return None
        left = (deadline - self._now_ns()) / NS
        if left > 0:
            return left + TICK_SOONEST_S
        another = self.machine.ages and deadline != self._tick_for
        again_s = TICK_NEXT_S if another else TICK_RETRY_S
        if now - self._tick_sent_at >= again_s and self._ticking is None:
            self._tick_sent_at, self._tick_for = now, deadline
            self._ticking = asyncio.create_task(self._tick(), name=f"tick {self._stream}")
            self._ticking.add_done_callback(self._ticked)
        return again_s

    async def _tick(self) -> None:
        await self._broker.publish(self._subjects.tick, b"")

    def _ticked(self, task: asyncio.Task[None]) -> None:
        self._ticking = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a tick was not stored, another follows: %s", error)

    # -- snapshots ------------------------------------------------------------------------------
    async def _snapshot_if_due(self, publisher: OrderedPublisher, due: float) -> float:
        """Store a snapshot in the background when it is time; returns when the next is due."""
        loop = asyncio.get_running_loop()
        if self._saving is not None:
            if not self._saving.done():
                return due
            saved, self._saving = self._saving, None
            saved.result()
        if loop.time() < due and len(self.machine.changed) < snapshot.CHANGED_MAX:
            return due
        if self.unsaved:
            begun_ns = time.monotonic_ns()
            await publisher.seal()  # a snapshot claims that the output up to it is stored
            if self._meter is not None:
                self._meter.sealed(time.monotonic_ns() - begun_ns)
            self._saving = asyncio.create_task(
                self._save(self._snapshots.take(self.machine)), name=f"snapshot {self._stream}"
            )
            self._saving.add_done_callback(self._saved)
        return loop.time() + SNAPSHOT_INTERVAL_S

    def _saved(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # the loop raises it, unless it ends for another reason first
        self._wake.set()

    async def _save(self, taken: snapshot.Taken) -> None:
        begun_ns = time.monotonic_ns()
        await self._snapshots.save(taken)
        self._stored_applied = taken.applied
        self._retention.head = self._snapshots.stored
        if self._meter is not None:
            size = len(taken.head) + sum(map(len, taken.parts))
            self._meter.saved(time.monotonic_ns() - begun_ns, size)
