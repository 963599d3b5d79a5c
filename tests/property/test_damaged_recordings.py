"""Recordings from strangers: whatever the bytes are, they are read or refused, and nothing else."""

from __future__ import annotations

import sqlite3
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_pipeline import DataPackage, Outcome
from broker_pipeline.core.envelope import Ignored
from broker_pipeline.debug.inspection.history import recorded_history
from broker_pipeline.debug.recordings.recorded import RecordedEvent, RecordedOutcome, RecordingMeta
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.debug.recordings.recording_report import as_lines, report
from broker_pipeline.debug.recordings.splitting import join, split
from broker_pipeline.errors import BrokerPipelineError, RecordingError
from broker_pipeline.package import CONTENT_TYPE, parse_envelope
from tests.golden.recordings import FILE

GOLDEN = FILE.read_bytes()


def read_everything(path: Path) -> None:
    """Ask a recording whatever can be asked."""
    with Recording.open(path) as recording:
        report(recording)
        list(as_lines(report(recording)))
        try:
            recording.plan  # noqa: B018 - it reads
        except RecordingError:
            raise
        except BrokerPipelineError:
            pass  # of another version, or none: said by what a plan says
        for event in recording.events():
            if event.kind != "done":
                with suppress(Ignored, BrokerPipelineError):
                    event.read(recording.subjects)
            recording.done_seq(event.package_id, event.controller)
            recording.arrival_of(event.stream_seq)
        for outcome in recording.outcomes():
            recording.outcome_of(outcome.package_id)
            recorded_history(recording, outcome.package_id)
        recording.find("room", 1)
        recording.nth(None, -1)


@contextmanager
def file(raw: bytes) -> Iterator[Path]:
    """A file with these bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "talk.bprec"
        path.write_bytes(raw)
        yield path


def read_or_refuse(raw: bytes) -> None:
    """It is one or the other."""
    with file(raw) as path:
        before = path.read_bytes()
        with suppress(RecordingError):
            read_everything(path)
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, len(GOLDEN) - 1), st.binary(min_size=1, max_size=8)),
                min_size=1, max_size=6))  # fmt: skip
def test_a_damaged_recording_is_read_or_refused(damage: list[tuple[int, bytes]]) -> None:
    """Bytes changed anywhere: as it was, or RecordingError; and the file is left as it is."""
    raw = bytearray(GOLDEN)
    for at, new in damage:
        raw[at : at + len(new)] = new
    read_or_refuse(bytes(raw))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, len(GOLDEN)), st.binary(max_size=64))
def test_a_cut_recording_is_read_or_refused(length: int, more: bytes) -> None:
    """The beginning of one, with something else behind it."""
    read_or_refuse(GOLDEN[:length] + more)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=4_096))
def test_what_is_no_recording_is_refused(raw: bytes) -> None:
    """Whatever it is."""
    with file(raw) as path, pytest.raises(RecordingError):
        read_everything(path)


@contextmanager
def changed(*statements: str, values: tuple[object, ...] = ()) -> Iterator[Path]:
    """The golden recording, changed by somebody who knows SQLite."""
    with file(GOLDEN) as path:
        database = sqlite3.connect(path, isolation_level=None)
        database.execute("PRAGMA writable_schema = ON")
        for statement in statements:
            database.execute(statement, values if "?" in statement else ())
        database.close()
        yield path


BOMB = zlib.compress(bytes(100_000_000))


@pytest.mark.parametrize(
    ("statements", "values", "said"),
    [
        (["PRAGMA application_id = 7"], (), "another application"),
        (["PRAGMA user_version = 99"], (), "format 99"),
        (["PRAGMA user_version = 0"], (), "format 0"),
        (["DROP TABLE outcomes"], (), "lacks.*outcomes"),
        (["ALTER TABLE events RENAME COLUMN gone TO went"], (), "lacks.*events.gone"),
        (["CREATE VIEW more AS SELECT 1"], (), "has.*more"),
        (
            ["CREATE TRIGGER t AFTER INSERT ON meta BEGIN SELECT 1; END"],
            (),
            "has.*'t'",
        ),
        (
            ["DROP TABLE meta", "CREATE VIEW meta AS SELECT 'pipeline' AS key, '1' AS value"],
            (),
            "laid out",
        ),
        (
            [
                "DROP TABLE meta",
                "CREATE TABLE meta (key TEXT, value TEXT AS (upper(key)) STORED)",
            ],
            (),
            "lacks.*meta.value",
        ),
        (["CREATE TABLE more (x)"], (), "has.*more"),
        (["UPDATE payloads SET data = x'00', codec = 'raw'"], (), "not what its hash says"),
        (["UPDATE payloads SET size = -1"], (), "said to have -1"),
        (["UPDATE payloads SET size = 1 << 40"], (), "said to have"),
        (["UPDATE payloads SET data = ?, codec = 'zlib', size = 1000"], (BOMB,), "hash says"),
        (["UPDATE payloads SET data = x'00', codec = 'zlib'"], (), "payload"),
        (["UPDATE payloads SET codec = 'other'"], (), "hash says"),
        (["DELETE FROM payloads"], (), "is missing"),
        (["UPDATE events SET kind = 'other'"], (), "of kind 'other'"),
        (["UPDATE events SET headers = '[1]'"], (), "headers"),
        (["UPDATE events SET headers = ?"], ("[" * 100_000,), "headers"),
        (["UPDATE events SET payload_at = -5, envelope = x'00ff'"], (), "outcome|BP701|^$"),
        (["UPDATE outcomes SET outcome = 'LOST'"], (), "a row is not"),
        (["UPDATE outcomes SET envelope = x'ffff', payload = NULL"], (), "outcome of package"),
        (["UPDATE meta SET value = '7' WHERE key = 'pipeline'"], (), "says of itself"),
        (["UPDATE meta SET value = '{' WHERE key = 'notes'"], (), "says of itself"),
        (["UPDATE meta SET value = ?"], ("[" * 100_000,), "says of itself"),
    ],
)
def test_what_a_stranger_may_have_changed_is_refused(
    statements: list[str], values: tuple[object, ...], said: str
) -> None:
    """What could run something, what could fill the memory, and what is not as it should be."""
    with changed(*statements, values=values) as path:
        if said.endswith("^$"):  # strange, and harmless
            with suppress(RecordingError):
                read_everything(path)
            return
        with pytest.raises(RecordingError, match=said):
            read_everything(path)


def test_nothing_beside_a_recording_is_read() -> None:
    """A journal that somebody put there is not played back into it."""
    with file(GOLDEN) as path:
        path.with_name(path.name + "-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" * 99)
        path.with_name(path.name + "-wal").write_bytes(b"\x37\x7f\x06\x82" * 99)
        read_everything(path)
        assert path.read_bytes() == GOLDEN


def test_a_recording_cannot_be_changed_by_reading_it() -> None:
    """Not even by whoever has it open."""
    with (
        file(GOLDEN) as path,
        Recording.open(path) as recording,
        pytest.raises(RecordingError, match="writing"),
    ):
        recording.add_event(RecordedEvent(99, 99, "tick"))


texts = st.text(st.characters(exclude_categories=()), max_size=20)
numbers = st.integers(1, 2**63 - 1)
packages = st.builds(
    lambda data, attributes: DataPackage(data, attributes=attributes).to_bytes(),
    st.binary(max_size=300),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
events = st.lists(
    st.builds(
        RecordedEvent,
        numbers,
        numbers,
        st.sampled_from(["in", "open", "close", "tick", "plan"]),
        st.from_regex(r"[a-z0-9=_-]{1,20}", fullmatch=True),
        st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
        st.dictionaries(texts, texts, max_size=3) | st.just({"Content-Type": CONTENT_TYPE}),
        st.binary(max_size=300) | packages,
        gone=st.text(max_size=5),
    ),
    max_size=8,
    unique_by=lambda event: event.stream_seq,
)


@settings(deadline=None, max_examples=60)
@given(events, st.lists(packages, max_size=5))
def test_whatever_is_recorded_is_read_as_it_was(
    written: list[RecordedEvent], left: list[bytes]
) -> None:
    """Any bytes, any headers, any subject; in the order of the log."""
    outcomes = [
        RecordedOutcome(n, "room", 1, n, Outcome.EXIT, n, n, raw) for n, raw in enumerate(left, 1)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "talk.bprec"
        with Recording.create(path, RecordingMeta(pipeline="talk")) as recording:
            for event in written:
                recording.add_event(event)
            for outcome in outcomes:
                recording.add_outcome(outcome)
        with Recording.open(path) as recording:
            assert list(recording.events()) == sorted(written, key=lambda e: e.stream_seq)
            assert list(recording.outcomes()) == outcomes


@given(st.binary(max_size=200) | packages)
def test_what_is_split_is_put_together_again(raw: bytes) -> None:
    """Exactly; and what is left without its payload is a package as it was."""
    parts = split(raw)
    if parts is not None:
        envelope, at, payload = parts
        assert join(envelope, at, payload) == raw
        try:
            whole = parse_envelope(raw)
        except BrokerPipelineError:
            return
        assert whole.data == payload
        whole.ClearField("data")
        assert parse_envelope(envelope) == whole
