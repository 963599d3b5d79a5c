"""Taking what a log has of packages into a recording, message by message."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import dataclass
from functools import partial

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.large_payloads import LargePayloads
from broker_pipeline.broker.port import Broker, Message
from broker_pipeline.core.envelope import Ignored, read_event
from broker_pipeline.core.events import Arrived, Closed, Opened
from broker_pipeline.core.names import (
    HEADER_CONTENT_TYPE,
    HEADER_MSG_ID,
    Subjects,
    canonical_token,
    completion_id,
    dispatch_id,
)
from broker_pipeline.debug.recordings.log_reading import patiently
from broker_pipeline.debug.recordings.recorded import (
    ARRIVAL,
    CLOSING,
    COMPLETION,
    OPENING,
    RecordedEvent,
    RecordedOutcome,
)
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.errors import MalformedPackageError, NotFoundError, PayloadGoneError
from broker_pipeline.journey import outcome_of
from broker_pipeline.package import CONTENT_TYPE, parse_envelope

OF_COMPLETIONS = completion_id(0, "").partition("0")[0]
OF_INPUTS = dispatch_id(0, "", "").partition("0")[0]
"""What the ids of messages begin with that are about a package; its number follows."""
NUMBER_MAX = (1 << 63) - 1
"""The largest that SQLite has; only a stranger writes larger ones into an envelope."""
_SIZE = "Nats-Msg-Size"
"""What the broker adds to headers that come alone."""
_KINDS = {Arrived: ARRIVAL, Opened: OPENING, Closed: CLOSING}


@dataclass
class Summary:
    """What was recorded.

    Attributes:
        arrivals, outcomes: how many.
        purged: packages that are meant and left, and whose arrivals the log has no longer; they
            are not recorded.
        gone: payloads that were objects and could not be read any more.
        unreadable: messages among the outcomes that were no packages.
        ended: why following ended before it was to; '' where it did not.
    """

    arrivals: int = 0
    outcomes: int = 0
    purged: int = 0
    gone: int = 0
    unreadable: int = 0
    ended: str = ""

    def notes(self) -> tuple[str, ...]:
        """What whoever reads the recording should know."""
        said = (
            (self.purged, "packages are left out: their arrivals were purged"),
            (self.gone, "payloads were objects and are gone"),
            (self.unreadable, "outcomes are left out: somebody wrote what is no package"),
        )
        counted = tuple(f"{count} {what}" for count, what in said if count)
        return (*counted, f"it ended early: {self.ended}") if self.ended else counted


class Taking:
    """What is taken from the log of a pipeline into a recording.

    Attributes:
        summary: of what was taken so far.
    """

    def __init__(self, broker: Broker, subjects: Subjects, recording: Recording) -> None:
        self.summary = Summary()
        self._broker = broker
        self._stream = subjects.stream
        self._subjects = subjects
        self._recording = recording
        self._payloads = LargePayloads(broker, subjects.pipeline)

    async def arrival(self, message: Message, *, packages: bool) -> bool:
        """Record an arrival, an opening or a closing; whether it is the arrival of a package."""
        try:
            event, _ = read_event(
                self._subjects,
                message.subject,
                message.headers,
                message.data,
                message.stream_seq,
                message.time,
            )
        except Ignored:
            return False
        if not isinstance(event, Arrived | Opened | Closed):
            return False
        is_package = isinstance(event, Arrived)
        if is_package and not packages:
            return False
        data, gone = message.data, ""
        if is_package and message.headers.get(HEADER_CONTENT_TYPE) == CONTENT_TYPE:
            data, gone = await self._with_payload(message.data)
        known = self._recording.has_arrival(message.stream_seq)
        self._recording.add_event(
            RecordedEvent(
                message.stream_seq,
                message.time,
                _KINDS[type(event)],
                event.instance,
                message.subject,
                {key: value for key, value in message.headers.items() if key != _SIZE},
                data,
                gone=gone,
            )
        )
        self.summary.arrivals += is_package and not known
        return is_package

    async def arrivals(self, numbers: list[int]) -> None:
        """Record the arrivals of packages by their numbers, as far as they are there."""
        missing = [number for number in numbers if not self._recording.has_arrival(number)]
        getting = [self._get(number) for number in missing]
        for found in await asyncio.gather(*getting, return_exceptions=True):
            if isinstance(found, Message):
                await self.arrival(found, packages=True)
            elif not isinstance(found, NotFoundError):
                raise found

    async def outcome(self, message: Message, envelope: pb.DataPackage) -> None:
        """Record how a package left."""
        data, gone = message.data, ""
        if envelope.HasField("reference"):
            data, gone = await self._with_payload(message.data)
        outcome = outcome_of(envelope.outcome)
        assert outcome is not None
        self._recording.add_outcome(
            RecordedOutcome(
                envelope.id,
                canonical_token(message.subject.rpartition(".")[2]),
                envelope.epoch,
                envelope.sequence,
                outcome,
                message.stream_seq,
                message.time,
                data,
                gone,
            )
        )
        self.summary.outcomes += 1

    def completion(self, message: Message, number: int) -> None:
        """Record where a package came back to a controller."""
        rest = message.subject[len(self._subjects.ctl_done) :]
        controller, _, instance = rest.partition(".")
        self._recording.add_event(
            RecordedEvent(
                message.stream_seq,
                message.time,
                COMPLETION,
                canonical_token(instance),
                message.subject,
                package_id=number,
                controller=controller,
            )
        )

    async def number(self, message: Message, begins: str) -> int:
        """Which package a message is about, by its id, or by its bytes where it has none; 0 where
        it says nothing of the kind."""
        said = message.headers.get(HEADER_MSG_ID, "")
        if said:
            number = said.removeprefix(begins).partition(".")[0]
            right = said.startswith(begins) and number.isascii() and number.isdigit()
            return int(number) if right and len(number) < 19 else 0
        try:
            whole = await self._get(message.stream_seq)
            found = parse_envelope(whole.data).id
        except (NotFoundError, MalformedPackageError):
            return 0
        return found if found <= NUMBER_MAX else 0

    async def _get(self, stream_seq: int) -> Message:
        get = partial(self._broker.get_message, self._stream, stream_seq)
        return await patiently(self._broker, get)

    async def _with_payload(self, data: bytes) -> tuple[bytes, str]:
        """A package with its large payload in place; or as it is, and why it is gone."""
        try:
            envelope = parse_envelope(data)
            if not envelope.HasField("reference"):
                return data, ""
            await patiently(self._broker, partial(self._payloads.load, envelope))
        except PayloadGoneError as error:
            self.summary.gone += 1
            return data, str(error)
        except MalformedPackageError:
            return data, ""  # for whoever replays it to see
        return envelope.SerializeToString(), ""


class Numbers:
    """A set of numbers of any size, on the disk where it is large."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("CREATE TABLE numbers (number INTEGER PRIMARY KEY)")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("BEGIN")

    def add(self, number: int) -> bool:
        """Add a number; whether it is new."""
        added = self._database.execute("INSERT OR IGNORE INTO numbers VALUES (?)", (number,))
        return added.rowcount > 0

    def close(self) -> None:
        """Remove it."""
        self._database.close()
