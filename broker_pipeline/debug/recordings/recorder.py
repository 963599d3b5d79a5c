"""Recording: from a log into a file, beside live traffic.

Kind by kind, for the file puts things into the order of the log by itself: arrivals; how packages
left, which says whether they are meant; where they came back to controllers, by headers alone; the
ticks and plans between. Each is read a stretch at a time, and nothing waits in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial

import msgspec

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.port import Broker, Message, StreamState
from broker_pipeline.client.deploy import SHARD, deployed_plan, require_deployed
from broker_pipeline.core.envelope import Ignored, read_event
from broker_pipeline.core.events import Deployed
from broker_pipeline.core.names import Subjects, stream_name
from broker_pipeline.core.plan import Plan
from broker_pipeline.debug.recordings.log_reading import first_since, patiently, read_log
from broker_pipeline.debug.recordings.recorded import PLAN, TICK, RecordedEvent
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.debug.recordings.selection import Selection
from broker_pipeline.debug.recordings.taking import (
    NUMBER_MAX,
    OF_COMPLETIONS,
    OF_INPUTS,
    Numbers,
    Summary,
    Taking,
)
from broker_pipeline.errors import (
    BrokerError,
    MalformedPackageError,
    NewerVersionError,
    NotFoundError,
    PlanError,
)
from broker_pipeline.journey import outcome_of
from broker_pipeline.package import parse_envelope

FOLLOW_S = 1.0
"""Between two looks at what is new, while following."""
AT_ONCE = 16
"""Messages that are asked for one by one, at a time."""

Progress = Callable[[str, float], None]
"""Takes what is being read, and how much of it is done, 0 to 1."""


async def record_log(
    broker: Broker,
    pipeline: str,
    selection: Selection,
    recording: Recording,
    progress: Progress = lambda what, done: None,
    *,
    follow: asyncio.Event | None = None,
) -> Summary:
    """Record what is meant, up to where the log ends now.

    That is what has left, and, where no outcome is selected, what is inside still; of that, where
    sequence ids are selected, what was given to workers: before, the log does not say its number.
    Openings and closings of an instance come with it. The recording's meta is completed.

    A broker that is away is waited for; see `patiently`.

    Args:
        recording: new, and being written.
        follow: go on with what comes, until this is set, or until the broker is gone for too long:
            then the summary and the recording's notes say so.

    Raises:
        PlanError: the pipeline is not deployed.
        BrokerError: the broker does not answer.
        RecordingError: the file cannot be written.
    """
    recorder = _Recorder(broker, pipeline, selection, recording, progress)
    try:
        await recorder.run(follow)
    finally:
        recorder.left.close()
    return recorder.taking.summary


class _Recorder:
    def __init__(
        self,
        broker: Broker,
        pipeline: str,
        selection: Selection,
        recording: Recording,
        progress: Progress,
    ) -> None:
        self.left = Numbers()
        self.taking = Taking(broker, Subjects(pipeline, SHARD), recording)
        self._broker = broker
        self._pipeline = pipeline
        self._stream = stream_name(pipeline, SHARD)
        self._subjects = Subjects(pipeline, SHARD)
        self._selection = selection
        self._recording = recording
        self._progress = progress
        self._tokens = selection.instances or ("*",)
        # Whether all that arrives is meant, for whatever becomes of it.
        self._all = not (selection.by_sequence or selection.outcomes)
        self._log_first = 0
        self._until = 0
        self._lowest = 0
        self._step, self._steps = 0, 1
        self._done = 0
        self._plan = ""
        self._plan_notes: list[str] = []
        self._plan_is_known = False

    async def run(self, follow: asyncio.Event | None) -> None:
        state = await self._state()
        begin, since = state.first_seq, self._selection.since_ns
        if since is not None:
            begin = await first_since(self._broker, self._stream, since, state)
        await self._stretch(begin, state)
        try:
            if follow is not None:
                state = await self._follow(follow, state)
            if self._selection.by_sequence and not self._selection.outcomes:
                await self._inside(begin, state)
        except BrokerError as error:
            if follow is None:
                raise
            self.taking.summary.ended = str(error)  # what was recorded until then is whole
        self._recording.trim()
        self._recording.meta = msgspec.structs.replace(
            self._recording.meta,
            pipeline=self._pipeline,
            shard=SHARD,
            selection=str(self._selection),
            first_seq=begin,
            last_seq=self._done,
            plan=self._plan,
            notes=(*self.taking.summary.notes(), *self._plan_notes),
        )

    async def _follow(self, follow: asyncio.Event, state: StreamState) -> StreamState:
        """Record what comes, with a last look at the end; gives the extent of the log then."""
        is_last = False
        while not is_last:
            self._progress(f"what comes; {self.taking.summary.arrivals:,} packages so far", 1.0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FOLLOW_S):
                    await follow.wait()
            is_last = follow.is_set()
            state = await self._state()
            if state.last_seq > self._done:
                await self._stretch(self._done + 1, state)
        return state

    async def _state(self) -> StreamState:
        return await patiently(
            self._broker, partial(require_deployed, self._broker, self._pipeline)
        )

    async def _stretch(self, start: int, state: StreamState) -> None:
        """Record what is new from `start` to the end of the log."""
        end = state.last_seq
        self._log_first, self._lowest = state.first_seq, end + 1
        self._until = end
        if self._selection.until_ns is not None:
            until = self._selection.until_ns
            self._until = min(end, await first_since(self._broker, self._stream, until, state) - 1)
        outcomes = sorted(each.lower() for each in self._selection.outcomes) or ["*"]
        self._step, self._steps = 0, len(self._tokens) * (2 + len(outcomes)) + 2
        for token in self._tokens:
            await self._arrivals(token, start)
        for token in self._tokens:
            for outcome in outcomes:
                filter = f"{self._subjects.out}{outcome}.{token}"
                async for batch in self._read("outcomes", filter, start, end):
                    await self._take_outcomes(batch)
        for token in self._tokens:
            lowest = min(start, self._lowest) if self._all else self._lowest
            await self._completions(token, lowest, end)
        for kind, subject in ((TICK, self._subjects.tick), (PLAN, self._subjects.plan)):
            async for batch in self._read("ticks and plans", subject, start, end):
                for each in batch:
                    self._recording.add_event(
                        RecordedEvent(
                            each.stream_seq, each.time, kind, subject=subject, data=each.data
                        )
                    )
        self._done = end
        if not self._plan_is_known:
            await self._note_plan(state)

    async def _arrivals(self, token: str, start: int) -> None:
        """All of them where all are meant; else the openings and closings, which headers tell."""
        filter = self._subjects.arrival(token)
        what = "arrivals" if self._all else "openings and closings"
        reading = self._read(what, filter, start, self._until, headers_only=not self._all)
        async for batch in reading:
            for message in batch:
                await self.taking.arrival(message, packages=self._all)

    async def _take_outcomes(self, batch: list[Message]) -> None:
        for at in range(0, len(batch), AT_ONCE):
            meant = [each for message in batch[at : at + AT_ONCE] if (each := self._meant(message))]
            await self.taking.arrivals([envelope.id for _, envelope in meant])
            for message, envelope in meant:
                if self._recording.has_arrival(envelope.id):
                    await self.taking.outcome(message, envelope)
                    self._lowest = min(self._lowest, envelope.id)
                else:
                    self.taking.summary.purged += 1

    def _meant(self, message: Message) -> tuple[Message, pb.DataPackage] | None:
        """The package that left, if it is one that is meant and whose arrival may be there."""
        try:
            envelope = parse_envelope(message.data)
        except MalformedPackageError:
            self.taking.summary.unreadable += 1
            return None
        outcome = outcome_of(envelope.outcome)
        too_large = max(envelope.id, envelope.epoch, envelope.sequence) > NUMBER_MAX
        if outcome is None or too_large:
            self.taking.summary.unreadable += 1
            return None
        selection = self._selection
        if selection.by_sequence:
            self.left.add(envelope.id)
        token = message.subject.rpartition(".")[2]
        if not selection.takes(token, envelope.sequence, envelope.start_time_ns, outcome):
            return None
        if envelope.id < self._log_first:
            self.taking.summary.purged += 1
            return None
        return message, envelope

    async def _completions(self, token: str, start: int, end: int) -> None:
        """Where recorded packages came back to controllers."""
        filter = f"{self._subjects.ctl_done}*.{token}"
        async for batch in self._read("completions", filter, start, end, headers_only=True):
            for message in batch:
                number = await self.taking.number(message, OF_COMPLETIONS)
                if number and self._recording.has_arrival(number):
                    self.taking.completion(message, number)

    async def _inside(self, begin: int, state: StreamState) -> None:
        """What is inside and has one of the sequence ids: its inputs of phases say which it has."""
        for token in self._tokens:
            for lanes in ("", "*."):
                filter = f"{self._subjects.work}*.*.{lanes}{token}"
                reading = self._read("inside", filter, begin, state.last_seq, headers_only=True)
                async for batch in reading:
                    for message in batch:
                        number = await self.taking.number(message, OF_INPUTS)
                        if number and self.left.add(number):
                            await self._take_inside(number, message)
            await self._completions(token, min(begin, self._lowest), state.last_seq)

    async def _take_inside(self, number: int, message: Message) -> None:
        with contextlib.suppress(NotFoundError, MalformedPackageError):
            get = partial(self._broker.get_message, self._stream, message.stream_seq)
            message = await patiently(self._broker, get)
            envelope = parse_envelope(message.data)
            token = message.subject.rpartition(".")[2]
            if self._selection.takes(token, envelope.sequence, envelope.start_time_ns, None):
                await self.taking.arrivals([number])

    async def _note_plan(self, state: StreamState) -> None:
        """The plan in force at the first event: the last before it, as far as the log goes back."""
        first = self._recording.first_event()
        plan: Plan | None = None
        reading = read_log(
            self._broker, self._stream, self._subjects.plan, start_seq=1, end_seq=first
        )
        async with aclosing(reading) as batches:
            async for batch in batches:
                for message in batch:
                    plan = self._plan_in(message) or plan
        self._plan_is_known, self._plan_notes = first > 0, []
        if plan is None and (state.first_seq > 1 or not first):
            with contextlib.suppress(PlanError, NewerVersionError):
                plan = await patiently(
                    self._broker, partial(deployed_plan, self._broker, self._pipeline)
                )
            if first:
                self._plan_notes = ["the plan is the one deployed now: that of its time was purged"]
        self._plan = plan.to_bytes().decode() if plan is not None else ""

    def _plan_in(self, message: Message) -> Plan | None:
        try:
            event, _ = read_event(
                self._subjects, message.subject, {}, message.data, message.stream_seq, message.time
            )
        except (Ignored, NewerVersionError):
            return None
        return event.plan if isinstance(event, Deployed) else None

    async def _read(
        self, what: str, filter: str, start: int, end: int, *, headers_only: bool = False
    ) -> AsyncGenerator[list[Message], None]:
        """A stretch of the log, and how far it is with that."""
        self._step += 1
        self._progress(what, min(1.0, (self._step - 1) / self._steps))
        reading = read_log(
            self._broker,
            self._stream,
            filter,
            start_seq=start,
            end_seq=end,
            headers_only=headers_only,
        )
        async with aclosing(reading) as batches:
            async for batch in batches:
                yield batch
                part = (batch[-1].stream_seq - start + 1) / (end - start + 1)
                self._progress(what, min(1.0, (self._step - 1 + part) / self._steps))
