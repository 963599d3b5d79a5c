"""A replay through a log of its own: the real roles, with their threads, processes and timeouts.

Recorded arrivals are published in the order and lives in which the recorded controllers took them
(`Admission`); everything after that is decided anew, as fast as it goes here. Flat out, as many of
an instance are inside at most as fit into its controllers without an overflow: else nearly all of
them would overflow.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

from broker_pipeline.broker.large_payloads import LargePayloads, Upload
from broker_pipeline.client.deploy import SHARD
from broker_pipeline.client.producer import Log, Producer
from broker_pipeline.client.results import ResultsReader
from broker_pipeline.core.names import (
    CONTROL_CLOSE,
    HEADER_CONTENT_TYPE,
    HEADER_CONTROL,
    ingress_subject,
    stream_name,
)
from broker_pipeline.core.plan import Plan, compile_plan
from broker_pipeline.debug.recordings.recorded import ARRIVAL, RecordedEvent
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.debug.replays.admission import Admission, Admitted, Ended, arrival_in
from broker_pipeline.debug.replays.private_log import PrivateLog
from broker_pipeline.debug.replays.replaying import Replayed, Watch
from broker_pipeline.errors import MalformedPackageError, ReplayError
from broker_pipeline.package import CONTENT_TYPE, DataPackage

INSIDE_MAX = 500
"""Packages inside at the same time, flat out."""
INSIDE_PACED_MAX = 20_000
"""The same at a pace that was asked for: what the roles do not keep up with waits in the broker."""
INSIDE_BYTES_MAX = 32 << 20
"""Of what they arrived with. A log holds each about five times."""
REFILL_SHARE = 0.75
"""Once there is no room, nothing is sent until so much of it is taken."""
IN_A_ROW = 32
"""Packages that are given to the connection before the others have their turn."""
SEND_S = 30.0
"""For how long a package that gets no answer is sent again."""
KEPT_HEADERS = (HEADER_CONTENT_TYPE, HEADER_CONTROL)
"""Others say who sent it, and which message it was; that is another one now."""
LOOK_S = 0.05
"""How often it is looked whether somebody has stopped the replay."""


async def replay_through_log(
    recording: Recording, log: PrivateLog, watch: Watch
) -> AsyncGenerator[Replayed, None]:
    """Replay a recording; what leaves, in order, with the ids that the packages had.

    Ends when all have left, or soon after the watch was stopped.

    Raises:
        BrokerError, RecordingError: it cannot go on; or what ended a role.
    """
    replay = _LogReplay(recording, log, watch)
    running: set[asyncio.Future[None]] = {
        asyncio.create_task(replay.feed(), name="feed the replay"),
        asyncio.create_task(replay.read(), name="read what it gives"),
        asyncio.create_task(_stopped(watch), name="stop the replay"),
    }
    coming: asyncio.Task[Replayed | None] | None = None
    try:
        while not watch.stopped:
            coming = asyncio.create_task(replay.left.get(), name="the next that leaves")
            watched: set[asyncio.Future[Any]] = {coming, log.failed, *running}
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            for ended in [each for each in watched if each.done() and each is not coming]:
                running -= {ended}
                ended.result()
                if ended is log.failed:
                    raise ReplayError("a role of the replay has ended before its time; try again")
            if not coming.done():
                coming.cancel()
                continue
            left = coming.result()
            while left is not None:
                yield left
                if replay.left.empty():
                    break
                left = replay.left.get_nowait()
            else:
                return
    finally:
        for task in (*running, *((coming,) if coming is not None else ())):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _stopped(watch: Watch) -> None:
    """The watch is stopped from another thread, or by a signal: there is no event to wait for."""
    while not watch.stopped:  # noqa: ASYNC110
        await asyncio.sleep(LOOK_S)


def inside_max(plan: Plan) -> int:
    """How many packages of an instance can be inside so that none overflows whatever happens."""
    bounds = [
        (each.window or 0) + each.queue_size
        for each in plan.controllers
        if each.queue_size is not None
    ]
    return max(1, min(bounds, default=INSIDE_MAX))


class _LogReplay:
    """Feeds a log, and reads what leaves it."""

    def __init__(self, recording: Recording, log: PrivateLog, watch: Watch) -> None:
        plan = compile_plan(log.pipeline)
        self._recording, self._log, self._watch = recording, log, watch
        self._admission = Admission(recording, plan)
        self._payloads = LargePayloads(
            log.broker, log.pipeline.name, log.pipeline.large_payload_bytes
        )
        self._producers: dict[str, Producer] = {}
        paced = watch.speed is not None
        self._most = INSIDE_PACED_MAX if paced else INSIDE_MAX
        self._most_of_one = self._most if paced else inside_max(plan)
        self._inside: Counter[str] = Counter()
        self._inside_bytes = 0
        self._sizes: dict[int, tuple[str, int]] = {}  # by the recorded id: the token and the size
        self._ids: dict[int, int] = {}  # by the id here: the recorded one
        self._early: dict[int, DataPackage[object]] = {}  # left before their ack came
        self._sending: set[asyncio.Task[None]] = set()
        self._failed: BaseException | None = None
        self._room = asyncio.Event()
        self._fed = False
        self._fed_in_a_row = 0
        self.left: asyncio.Queue[Replayed | None] = asyncio.Queue()
        """What has left, and None at the end; bounded by what may be inside."""

    # -- in -------------------------------------------------------------------------------------
    async def feed(self) -> None:
        """Publish everything that arrives."""
        watch = self._watch
        for event in self._recording.events():
            early_s = watch.seen(event.time_ns, arrival=event.kind == ARRIVAL)
            if early_s > 0:
                await asyncio.sleep(early_s)
            for what in self._admission.take(event):
                await self._do(what, event)
        for what in self._admission.rest():
            await self._do(what, None)
        await asyncio.gather(*self._sending)
        self._raise_failure()
        self._fed = True
        self._tell_the_end()

    async def _do(self, what: Admitted | Ended, event: RecordedEvent | None) -> None:
        if isinstance(what, Ended):
            await self._end(what.token)
            return
        if event is None or event.stream_seq != what.package_id:  # it has waited for another
            event = arrival_in(self._recording, what.package_id)
        token, size = event.instance, len(event.data)
        if self._is_full(token, size):
            # Until there is room for several: they go out together, which costs the roles less.
            while self._is_full(token, size, REFILL_SHARE):
                self._room.clear()
                await self._room.wait()
                self._raise_failure()
        self._inside[token] += 1
        self._inside_bytes += size
        self._sizes[what.package_id] = (token, size)
        if token not in self._producers:
            subject = ingress_subject(self._log.pipeline.name, self._written(event))
            self._producers[token] = self._producer(subject)
        sending = self._send(self._producers[token], event)
        task = asyncio.create_task(sending, name=f"send {what.package_id}")
        self._sending.add(task)
        task.add_done_callback(self._sent)
        self._fed_in_a_row += 1
        if self._fed_in_a_row % IN_A_ROW == 0:
            await asyncio.sleep(0)

    def _is_full(self, token: str, size: int, share: float = 1.0) -> bool:
        """Whether there is no room for a package, in that share of what there may be."""
        many = len(self._sizes) >= max(1, self._most * share)
        of_one = self._inside[token] >= max(1, self._most_of_one * share)
        bytes_max = INSIDE_BYTES_MAX * share
        large = self._inside_bytes > 0 and self._inside_bytes + size > bytes_max
        return many or of_one or large

    def _written(self, event: RecordedEvent) -> str:
        """The instance's token as its producer wrote it."""
        return event.subject.removeprefix(self._recording.subjects.ctl_in)

    def _producer(self, subject: str) -> Producer:
        log = Log(stream_name(self._log.pipeline.name, SHARD), wait_full_s=math.inf)
        return Producer(
            self._log.broker, subject, timeout_s=SEND_S, renew_after_s=math.inf, log=log
        )

    async def _send(self, producer: Producer, event: RecordedEvent) -> None:
        headers = {name: event.headers[name] for name in KEPT_HEADERS if name in event.headers}
        data: bytes | Upload = event.data
        if self._payloads.is_large(len(event.data)):
            data = self._upload(event, headers)
        ack = await producer.send(data, headers)
        early = self._early.pop(ack.stream_seq, None)
        if early is not None:
            self._give(event.stream_seq, early)
        else:
            self._ids[ack.stream_seq] = event.stream_seq

    def _upload(self, event: RecordedEvent, headers: dict[str, str]) -> bytes | Upload:
        """A package whose payload travels by reference; its headers say that it is one."""
        said = headers.get(HEADER_CONTENT_TYPE, "")
        if said == CONTENT_TYPE:
            try:
                package = DataPackage[object].from_bytes(event.data)
            except MalformedPackageError:
                return event.data  # it leaves as ERROR, if it arrives at all
        else:
            package = DataPackage[object](event.data, content_type=said)
        headers[HEADER_CONTENT_TYPE] = CONTENT_TYPE
        return Upload(self._payloads, package.envelope)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed = self._failed or error
            self._room.set()

    def _raise_failure(self) -> None:
        if self._failed is not None:
            raise self._failed

    async def _end(self, token: str) -> None:
        """The recorded life of an instance is over: so is that here."""
        producer = self._producers.pop(token, None)
        if producer is None:
            return
        await asyncio.sleep(0)  # what was sent last has taken its turn, which is waited for
        await producer.settled()
        self._raise_failure()
        await producer.send(b"", {HEADER_CONTROL: CONTROL_CLOSE})

    # -- out ------------------------------------------------------------------------------------
    async def read(self) -> None:
        """Take everything that leaves."""
        reader = ResultsReader(self._log.broker, self._log.pipeline)
        packages = reader.read("beginning", None)
        async with contextlib.aclosing(packages):
            async for package in packages:
                recorded_id = self._ids.pop(package.envelope.id, None)
                if recorded_id is None:
                    self._early[package.envelope.id] = package
                else:
                    self._give(recorded_id, package)

    def _give(self, recorded_id: int, package: DataPackage[object]) -> None:
        token, size = self._sizes.pop(recorded_id)
        self._inside[token] -= 1
        if not self._inside[token]:
            del self._inside[token]
        self._inside_bytes -= size
        package.envelope.id = recorded_id
        package.envelope.pipeline = self._recording.subjects.pipeline
        self._watch.left += 1
        self.left.put_nowait(Replayed(recorded_id, token, package))
        self._room.set()
        self._tell_the_end()

    def _tell_the_end(self) -> None:
        if self._fed and not self._sizes:
            self.left.put_nowait(None)
