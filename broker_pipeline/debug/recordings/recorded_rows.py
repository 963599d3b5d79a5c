"""Reading a recording: its rows, checked, as values. Nothing is believed that a file says."""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from broker_pipeline.codecs import Types
from broker_pipeline.core.names import Subjects
from broker_pipeline.debug.recordings.recorded import (
    ARRIVAL,
    CLOSING,
    COMPLETION,
    KINDS,
    OPENING,
    TICK,
    Counts,
    CutLife,
    RecordedEvent,
    RecordedOutcome,
    RecordingMeta,
    read_headers,
)
from broker_pipeline.debug.recordings.recording_file import speaking_of
from broker_pipeline.debug.recordings.splitting import join
from broker_pipeline.errors import MalformedPackageError, RecordingError
from broker_pipeline.journey import Outcome
from broker_pipeline.package import DataPackage

ROWS_AT_ONCE = 64
"""Rows read from the file at a time."""
PAYLOAD_BYTES_MAX = 1 << 30
"""A larger payload is not read: a stranger's file may say of a few bytes that they are so many."""

_Row = TypeVar("_Row", bound=msgspec.Struct)


class _EventRow(msgspec.Struct, array_like=True):
    stream_seq: int
    time_ns: int
    kind: str
    instance: str | None
    subject: bytes | None
    headers: str | None
    package_id: int | None
    controller: str | None
    payload: bytes | None
    payload_at: int | None
    envelope: bytes | None
    gone: str | None


class _OutcomeRow(msgspec.Struct, array_like=True):
    package_id: int
    instance: str
    epoch: int
    sequence: int
    outcome: Outcome
    stream_seq: int
    time_ns: int
    payload: bytes | None
    payload_at: int | None
    envelope: bytes
    gone: str | None


_EVENT = ", ".join(_EventRow.__struct_fields__)
_OUTCOME = ", ".join(_OutcomeRow.__struct_fields__)


class RecordedRows:
    """What can be read of a recording."""

    def __init__(self, path: Path, database: sqlite3.Connection, types: Types) -> None:
        self.path = path
        self._database = database
        self._types = types
        self._meta = RecordingMeta()
        self._subjects = Subjects("")

    @property
    def meta(self) -> RecordingMeta:
        """What was recorded, when and how; can be set while it is written."""
        return self._meta

    @meta.setter
    def meta(self, meta: RecordingMeta) -> None:
        self._meta = meta
        self._subjects = Subjects(meta.pipeline, meta.shard)

    @property
    def subjects(self) -> Subjects:
        """The subjects of the log that it is of."""
        return self._subjects

    def counts(self) -> Counts:
        """What it holds."""
        ask = self._ask
        gone = "SELECT count(*) FROM {} WHERE gone IS NOT NULL"
        payloads = ask("SELECT count(*), total(size), total(length(data)) FROM payloads")[0]
        return Counts(
            {str(kind): n for kind, n in ask("SELECT kind, count(*) FROM events GROUP BY kind")},
            {str(o): n for o, n in ask("SELECT outcome, count(*) FROM outcomes GROUP BY outcome")},
            ask("SELECT count(DISTINCT instance) FROM events WHERE kind = 'in'")[0][0],
            payloads[0],
            int(payloads[1]),
            int(payloads[2]),
            ask(gone.format("events"))[0][0] + ask(gone.format("outcomes"))[0][0],
        )

    def instances(self, limit: int = -1) -> Iterator[tuple[str, int, int]]:
        """The tokens of the instances, in the order of their first arrivals, each with how many of
        its packages arrived and how many left."""
        wanted = (
            "SELECT instance, count(*), (SELECT count(*) FROM outcomes WHERE outcomes.instance = "
            "events.instance) FROM events WHERE kind = 'in' GROUP BY instance "
            "ORDER BY min(stream_seq) LIMIT ?"
        )
        for token, arrivals, outcomes in self._rows(wanted, limit):
            yield str(token), int(str(arrivals)), int(str(outcomes))

    def times(self) -> tuple[int, int]:
        """When the first and the last of what it holds happened, ns since the epoch; 0, 0 where
        there is nothing."""
        rows = self._ask(
            "SELECT ifnull(min(time_ns), 0), ifnull(max(time_ns), 0) FROM "
            "(SELECT time_ns FROM events UNION ALL SELECT time_ns FROM outcomes)"
        )
        return int(rows[0][0]), int(rows[0][1])

    def cut_lives(self, limit: int = 1_000) -> list[CutLife]:
        """The lives that do not begin with their first package, or have holes; by instance."""
        rows = self._ask(
            "SELECT instance, epoch, min(sequence), max(sequence), count(*) FROM outcomes "
            "GROUP BY instance, epoch HAVING min(sequence) > 1 OR count(*) < max(sequence) "
            "LIMIT ?",
            limit,
        )
        return [CutLife(*row) for row in rows]

    def overtaken(self, instance: str, epoch: int) -> int:
        """How many arrivals of a life did not leave, or are repeats that were dropped, though one
        behind them left."""
        (row,) = self._ask(
            "SELECT count(*) FROM events LEFT JOIN outcomes "
            "ON outcomes.package_id = events.stream_seq WHERE events.kind = 'in' "
            "AND events.instance = ?1 AND outcomes.package_id IS NULL AND events.stream_seq >= ?2 "
            "AND events.stream_seq < "
            "(SELECT max(package_id) FROM outcomes WHERE instance = ?1 AND epoch = ?2)",
            instance,
            epoch,
        )
        return int(str(row[0]))

    def events(self, *, after: int = 0) -> Iterator[RecordedEvent]:
        """The events, in the order of the log; those with a higher stream sequence than `after`.

        Raises:
            RecordingError: the file is damaged here.
        """
        wanted = f"SELECT {_EVENT} FROM events WHERE stream_seq > ? ORDER BY stream_seq"
        for row in self._rows(wanted, after):
            yield self._event(row)

    def outcomes(self) -> Iterator[RecordedOutcome]:
        """How packages left, in the order in which they did. Raises as `events`."""
        for row in self._rows(f"SELECT {_OUTCOME} FROM outcomes ORDER BY stream_seq"):
            yield self._outcome(row)

    def ids_that_left(self) -> Iterator[int]:
        """The ids of the packages that left, in the order in which they did."""
        for row in self._rows("SELECT package_id FROM outcomes ORDER BY stream_seq"):
            if not isinstance(row[0], int):
                raise self._damaged(f"the id of a package that left is {row[0]!r}")
            yield row[0]

    def recorded_outcome(self, package_id: int) -> RecordedOutcome | None:
        """How a package left, by the stream sequence of its arrival; None: that is not in it."""
        wanted = f"SELECT {_OUTCOME} FROM outcomes WHERE package_id = ?"
        return next((self._outcome(row) for row in self._rows(wanted, package_id)), None)

    def outcome_of(self, package_id: int) -> DataPackage[Any] | None:
        """The package as it left, with its payload in place; None: that is not in it."""
        found = self.recorded_outcome(package_id)
        if found is None:
            return None
        try:
            return found.package(self._types)
        except MalformedPackageError as error:
            raise self._damaged(f"the outcome of package {package_id}: {error}") from error

    def arrival_of(self, package_id: int) -> RecordedEvent | None:
        """The arrival of a package, by its stream sequence; None: it is not in it."""
        wanted = f"SELECT {_EVENT} FROM events WHERE stream_seq = ? AND kind = 'in'"
        return next((self._event(row) for row in self._rows(wanted, package_id)), None)

    def has_arrival(self, package_id: int) -> bool:
        """Whether the arrival of a package is in it."""
        wanted = "SELECT 1 FROM events WHERE stream_seq = ? AND kind = 'in'"
        return bool(self._ask(wanted, package_id))

    def first_event(self) -> int:
        """The stream sequence of the first event that is of an instance; 0 where there is none."""
        wanted = "SELECT ifnull(min(stream_seq), 0) FROM events WHERE kind NOT IN ('tick', 'plan')"
        return int(self._ask(wanted)[0][0])

    def done_seq(self, package_id: int, controller: str) -> int | None:
        """Where in the log the package came back to a controller, the first time; None: never."""
        rows = self._ask(
            "SELECT min(stream_seq) FROM events WHERE kind = 'done' AND package_id = ? "
            "AND controller = ?",
            package_id,
            controller,
        )
        return None if rows[0][0] is None else int(rows[0][0])

    def completions(self, package_id: int) -> list[RecordedEvent]:
        """Where a package came back to each of its controllers, in the order of the log."""
        wanted = (
            f"SELECT {_EVENT} FROM events WHERE kind = 'done' AND package_id = ? "
            "ORDER BY stream_seq"
        )
        return [self._event(row) for row in self._rows(wanted, package_id)]

    def find(self, instance: str, sequence: int, epoch: int | None = None) -> int | None:
        """The id of a package that left, by its instance's token and its sequence id; of the newest
        life that has it, unless `epoch` says which. None: it is not in it."""
        rows = self._ask(
            "SELECT package_id FROM outcomes WHERE instance = ? AND sequence = ? "
            "AND epoch = ifnull(?, epoch) ORDER BY epoch DESC LIMIT 1",
            instance,
            sequence,
            epoch,
        )
        return int(rows[0][0]) if rows else None

    def nth(self, outcome: Outcome | None, n: int, instance: str | None = None) -> int | None:
        """The id of the n-th package that left, with an outcome where one is given: 1 is the
        oldest, -1 the newest. None: there are not so many. Raises ValueError for 0."""
        if n == 0:
            raise ValueError("n counts from 1, the oldest, or from -1, the newest")
        rows = self._ask(
            "SELECT package_id FROM outcomes WHERE outcome = ifnull(?, outcome) AND "
            "instance = ifnull(?, instance) ORDER BY stream_seq "
            f"{'DESC' if n < 0 else 'ASC'} LIMIT 1 OFFSET ?",
            None if outcome is None else outcome.value,
            instance,
            abs(n) - 1,
        )
        return int(rows[0][0]) if rows else None

    def payload(self, sha256: bytes) -> bytes:
        """A payload by its hash. Raises RecordingError where it is missing or damaged."""
        rows = self._ask("SELECT size, codec, data FROM payloads WHERE sha256 = ?", sha256)
        if not rows:
            raise self._damaged(f"payload {sha256.hex()[:12]} is missing")
        size, codec, data = rows[0]
        if not isinstance(size, int) or not 0 < size <= PAYLOAD_BYTES_MAX:
            raise self._damaged(f"payload {sha256.hex()[:12]} is said to have {size!r} bytes")
        if codec == "zlib" and isinstance(data, bytes):
            try:
                data = zlib.decompressobj().decompress(data, size)
            except zlib.error as error:
                raise self._damaged(f"payload {sha256.hex()[:12]}: {error}") from error
        if not isinstance(data, bytes) or hashlib.sha256(data).digest() != sha256:
            raise self._damaged(f"payload {sha256.hex()[:12]} is not what its hash says")
        return data

    def _event(self, row: tuple[object, ...]) -> RecordedEvent:
        read = self._checked(row, _EventRow)
        if read.kind not in KINDS:
            raise self._damaged(f"event {read.stream_seq} is of kind {read.kind!r}")
        instance, controller = read.instance or "", read.controller or ""
        return RecordedEvent(
            read.stream_seq,
            read.time_ns,
            read.kind,
            instance,
            self._plain_subject(read.kind, instance, controller)
            if read.subject is None
            else read.subject.decode("utf-8", "surrogateescape"),
            self._headers(read),
            self._put_together(read.envelope, read.payload_at, read.payload),
            read.package_id or 0,
            controller,
            read.gone or "",
        )

    def _headers(self, row: _EventRow) -> dict[str, str]:
        try:
            return read_headers(row.headers)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"the headers of event {row.stream_seq}: {error}") from error

    def _outcome(self, row: tuple[object, ...]) -> RecordedOutcome:
        read = self._checked(row, _OutcomeRow)
        return RecordedOutcome(
            read.package_id,
            read.instance,
            read.epoch,
            read.sequence,
            read.outcome,
            read.stream_seq,
            read.time_ns,
            self._put_together(read.envelope, read.payload_at, read.payload),
            read.gone or "",
        )

    def _put_together(
        self, envelope: bytes | None, payload_at: int | None, sha256: bytes | None
    ) -> bytes:
        payload = b"" if sha256 is None else self.payload(sha256)
        if envelope is None:
            return payload
        if payload_at is None:
            return envelope
        return join(envelope, payload_at, payload)

    def _plain_subject(self, kind: str, instance: str, controller: str) -> str:
        """The subject of an event that nobody wrote in a way of his own."""
        subjects = self._subjects
        if kind in (ARRIVAL, OPENING, CLOSING):
            return subjects.arrival(instance)
        if kind == COMPLETION:
            return subjects.completion(controller, instance)
        return subjects.tick if kind == TICK else subjects.plan

    def _rows(self, wanted: str, *values: object) -> Iterator[tuple[object, ...]]:
        with speaking_of(self.path, "reading"):
            cursor = self._database.execute(wanted, values)
        while True:
            with speaking_of(self.path, "reading"):
                rows = cursor.fetchmany(ROWS_AT_ONCE)
            if not rows:
                return
            yield from rows

    def _ask(self, wanted: str, *values: object) -> list[Any]:
        with speaking_of(self.path, "reading"):
            return self._database.execute(wanted, values).fetchall()

    def _checked(self, row: tuple[object, ...], kind: type[_Row]) -> _Row:
        try:
            return msgspec.convert(row, kind, builtin_types=(bytes,))
        except (msgspec.ValidationError, ValueError) as error:
            raise self._damaged(f"a row is not what it should be: {error}") from error

    def _read_meta(self) -> RecordingMeta:
        try:
            found = {
                key: msgspec.json.decode(value) for key, value in self._ask("SELECT * FROM meta")
            }
            return msgspec.convert(found, RecordingMeta)
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
            raise self._damaged(f"what it says of itself is unreadable: {error}") from error

    def _damaged(self, what: str) -> RecordingError:
        return RecordingError(
            f"the recording {str(self.path)!r} is damaged: {what}; expected it to be as it was "
            f"made: take another copy of it, or record again",
            path=str(self.path),
        )
