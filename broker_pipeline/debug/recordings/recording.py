"""Recordings: what happened to instances of a pipeline, in one file that replays with no broker.

    with Recording.create("talk.bprec", meta) as recording:     # written under another name until
        recording.add_event(...)                                # the block ends well
    with Recording.open("talk.bprec") as recording:
        for event in recording.events(): ...

A recording holds the events of the log that the controllers decide by, in the order of the log, and
the outcomes. Everything streams: neither reading nor writing holds more than a few packages in
memory, however long the recording is. docs/recordings.md describes the format.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from types import TracebackType

import msgspec

from broker_pipeline.codecs import Types
from broker_pipeline.core.names import HEADER_CONTENT_TYPE
from broker_pipeline.core.plan import Plan
from broker_pipeline.debug.recordings.recorded import (
    RecordedEvent,
    RecordedOutcome,
    RecordingMeta,
    headers_text,
)
from broker_pipeline.debug.recordings.recorded_rows import RecordedRows
from broker_pipeline.debug.recordings.recording_file import NewFile, open_file, speaking_of
from broker_pipeline.debug.recordings.splitting import split
from broker_pipeline.package import CONTENT_TYPE

COMMIT_EVERY = 1_000
"""Rows of a transaction."""
ZLIB_LEVEL = 1
"""Audio does not get smaller with a higher one, and text little."""


class Recording(RecordedRows):
    """A recording, open for reading (`open`) or being written (`create`); use it as `with`.

    One that is being written can be read, too. For one thread.
    """

    def __init__(self, path: Path, new: NewFile | None) -> None:
        super().__init__(path, open_file(path) if new is None else new.database, {})
        self._new = new
        self._uncommitted = 0
        self.meta = RecordingMeta() if new is not None else self._read_meta()

    @classmethod
    def create(cls, path: str | Path, meta: RecordingMeta, *, overwrite: bool = False) -> Recording:
        """A new recording. It gets its name when the `with` block ends well; where it raises,
        nothing is left, and a file that was to be replaced stays.

        Raises:
            RecordingError: there is such a file, or it cannot be written.
        """
        recording = cls(Path(path), NewFile(Path(path), overwrite=overwrite))
        recording.meta = meta
        return recording

    @classmethod
    def open(cls, path: str | Path, types: Types | None = None) -> Recording:
        """Open a recording for reading. It is safe to open a stranger's.

        Args:
            types: payload types by name, as `Pipeline.payload_types` has them.

        Raises:
            RecordingError: there is no such file, it is no recording, or it is damaged. Damage
                further inside is told where it is read.
        """
        recording = cls(Path(path), None)
        recording._types = types or {}
        return recording

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._new is None:
            self._database.close()
        elif error is None:
            try:
                self._write_meta()
                self._drop_unused()
                self._new.finish()
            except BaseException:
                self._new.discard()
                raise
        else:
            self._new.discard()

    # -- what it is of --------------------------------------------------------------------------
    @property
    def plan(self) -> Plan | None:
        """The plan in force at the first event; None where that was not known any more.

        Raises:
            PlanError: it cannot be read.
            NewerVersionError: this program cannot follow it.
        """
        return Plan.from_bytes(self.meta.plan.encode()) if self.meta.plan else None

    # -- writing --------------------------------------------------------------------------------
    def add_event(self, event: RecordedEvent) -> None:
        """Add an event; in any order. One with the same stream sequence is there already: nothing
        changes. Raises RecordingError where it cannot be written."""
        envelope, at, payload = None, None, event.data
        if event.headers.get(HEADER_CONTENT_TYPE) == CONTENT_TYPE:
            envelope, at, payload = _take_apart(event.data)
        plain = event.subject == self._plain_subject(event.kind, event.instance, event.controller)
        self._insert(
            "events",
            (
                event.stream_seq,
                event.time_ns,
                event.kind,
                event.instance or None,
                None if plain else event.subject.encode("utf-8", "surrogateescape"),
                headers_text(event.headers),
                event.package_id or None,
                event.controller or None,
                self._put(payload),
                at,
                envelope,
                event.gone or None,
            ),
        )

    def add_outcome(self, outcome: RecordedOutcome) -> None:
        """Add how a package left. The first of a package stays. Raises as `add_event`."""
        envelope, at, payload = _take_apart(outcome.data)
        self._insert(
            "outcomes",
            (
                outcome.package_id,
                outcome.instance,
                outcome.epoch,
                outcome.sequence,
                outcome.outcome.value,
                outcome.stream_seq,
                outcome.time_ns,
                self._put(payload),
                at,
                envelope,
                outcome.gone or None,
            ),
        )

    def trim(self) -> None:
        """Drop what says nothing of a package that is here: openings and closings of instances
        without one, and plans and plain ticks before the first event of another kind."""
        with speaking_of(self.path, "writing"):
            self._database.execute(
                "DELETE FROM events WHERE kind IN ('open', 'close') AND instance NOT IN "
                "(SELECT instance FROM events WHERE kind = 'in')"
            )
            self._database.execute(
                "DELETE FROM events WHERE (kind = 'plan' OR kind = 'tick' AND payload IS NULL) "
                "AND stream_seq < ifnull("
                "(SELECT min(stream_seq) FROM events WHERE kind NOT IN ('tick', 'plan')), "
                "stream_seq + 1)"
            )

    def _insert(self, table: str, row: tuple[object, ...]) -> None:
        places = ", ".join("?" * len(row))
        with speaking_of(self.path, "writing"):
            self._database.execute(f"INSERT OR IGNORE INTO {table} VALUES ({places})", row)
            self._uncommitted += 1
            if self._uncommitted >= COMMIT_EVERY:
                self._uncommitted = 0
                self._database.execute("COMMIT")
                self._database.execute("BEGIN")

    def _put(self, payload: bytes) -> bytes | None:
        """Store a payload once; gives its hash, None for an empty one."""
        if not payload:
            return None
        key = hashlib.sha256(payload).digest()
        with speaking_of(self.path, "writing"):
            known = self._database.execute("SELECT 1 FROM payloads WHERE sha256 = ?", (key,))
            if known.fetchone() is None:
                packed = zlib.compress(payload, ZLIB_LEVEL)
                smaller = len(packed) < len(payload)
                row = (key, len(payload), "zlib" if smaller else "raw",
                       packed if smaller else payload)  # fmt: skip
                self._database.execute("INSERT INTO payloads VALUES (?, ?, ?, ?)", row)
        return key

    def _drop_unused(self) -> None:
        """Payloads of rows that were there already."""
        with speaking_of(self.path, "writing"):
            self._database.execute(
                "DELETE FROM payloads WHERE sha256 NOT IN (SELECT payload FROM events WHERE "
                "payload IS NOT NULL UNION ALL SELECT payload FROM outcomes WHERE payload IS "
                "NOT NULL)"
            )

    def _write_meta(self) -> None:
        rows = msgspec.to_builtins(self._meta)
        with speaking_of(self.path, "writing"):
            self._database.executemany(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)",
                [(key, json.dumps(value)) for key, value in rows.items()],
            )


def _take_apart(raw: bytes) -> tuple[bytes, int | None, bytes]:
    """The envelope, where its payload was, and that; all of it, where it stays in its place."""
    parts = split(raw)
    return (raw, None, b"") if parts is None else parts
