"""The file that a recording is: its tables, and how one from a stranger is opened.

docs/recordings.md describes the format. A change that a reader of today would misread gets a new
FORMAT; tests/golden holds files that must be readable for ever.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from broker_pipeline.errors import RecordingError

APPLICATION_ID = 0x42507263
"""`BPrc`: what `file` and SQLite see of whose file it is."""
FORMAT = 1
"""The `user_version` of what is written; what is read may be of any version up to it."""
PARTIAL = ".partial"
"""Behind the name of a recording while it is written."""
COLUMNS = {
    "meta": ("key", "value"),
    "payloads": ("sha256", "size", "codec", "data"),
    "events": (
        "stream_seq",
        "time_ns",
        "kind",
        "instance",
        "subject",
        "headers",
        "package_id",
        "controller",
        "payload",
        "payload_at",
        "envelope",
        "gone",
    ),
    "outcomes": (
        "package_id",
        "instance",
        "epoch",
        "sequence",
        "outcome",
        "stream_seq",
        "time_ns",
        "payload",
        "payload_at",
        "envelope",
        "gone",
    ),
}
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE payloads (
    sha256 BLOB PRIMARY KEY, size INTEGER NOT NULL, codec TEXT NOT NULL, data BLOB NOT NULL
) STRICT;
CREATE TABLE events (
    stream_seq INTEGER PRIMARY KEY, time_ns INTEGER NOT NULL, kind TEXT NOT NULL, instance TEXT,
    subject BLOB, headers TEXT, package_id INTEGER, controller TEXT, payload BLOB,
    payload_at INTEGER, envelope BLOB, gone TEXT
) STRICT;
CREATE INDEX events_done ON events (package_id, controller) WHERE kind = 'done';
CREATE TABLE outcomes (
    package_id INTEGER PRIMARY KEY, instance TEXT NOT NULL, epoch INTEGER NOT NULL,
    sequence INTEGER NOT NULL, outcome TEXT NOT NULL, stream_seq INTEGER NOT NULL,
    time_ns INTEGER NOT NULL, payload BLOB, payload_at INTEGER, envelope BLOB NOT NULL, gone TEXT
) STRICT;
CREATE UNIQUE INDEX outcomes_order ON outcomes (stream_seq);
CREATE INDEX outcomes_place ON outcomes (instance, epoch, sequence);
"""
_EXPECTED = "expected a recording, as `broker-pipeline record` makes it"


@contextlib.contextmanager
def speaking_of(path: Path, doing: str) -> Iterator[None]:
    """What SQLite or the system says of a file, as a RecordingError."""
    try:
        yield
    except (sqlite3.Error, OSError, OverflowError, UnicodeError) as error:
        raise RecordingError(
            f"{doing} {str(path)!r} failed: {error}; {_EXPECTED}, on a disk with room: record "
            f"again, or take another copy of the file",
            path=str(path),
        ) from error


def open_file(path: Path) -> sqlite3.Connection:
    """Open a recording for reading; nothing that is in it is run, and nothing beside it is read.

    Raises:
        RecordingError: it is none, or is of a newer version.
    """
    with speaking_of(path, "opening"):
        with path.open("rb"):
            pass  # says better than SQLite what is wrong with a name
        # Immutable: a journal that somebody has put beside the file is not looked at.
        database = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None
        )
    try:
        with speaking_of(path, "opening"):
            _guard(database)
            _check(database, path)
    except BaseException:
        database.close()
        raise
    return database


def _guard(database: sqlite3.Connection) -> None:
    for pragma in ("trusted_schema = OFF", "query_only = ON", "cell_size_check = ON"):
        database.execute(f"PRAGMA {pragma}")
    database.execute("PRAGMA mmap_size = 0")  # a file that shrinks is an error, and no SIGBUS
    database.execute("PRAGMA temp_store = FILE")


def _check(database: sqlite3.Connection, path: Path) -> None:
    whose = database.execute("PRAGMA application_id").fetchone()[0]
    if whose != APPLICATION_ID:
        raise RecordingError(
            f"{str(path)!r} is an SQLite file of another application ({whose:#x}); {_EXPECTED}",
            path=str(path),
        )
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if not 1 <= version <= FORMAT:
        raise RecordingError(
            f"{str(path)!r} is a recording of format {version}; this program knows formats up to "
            f"{FORMAT}: read it with the program that made it, or a later one",
            path=str(path),
        )
    found = list(database.execute("SELECT type, name, sql FROM sqlite_schema"))
    tables = {str(name) for kind, name, _ in found if kind == "table"}
    strange = [
        str(name)
        for kind, name, sql in found
        if kind not in ("table", "index")
        or "virtual" in str(sql).lower()
        or (kind == "table" and name not in COLUMNS)
    ]
    missing = [name for name in COLUMNS if name not in tables]
    for table in tables.intersection(COLUMNS):
        # The last column says 0 of a plain one; what is computed could run what it likes.
        plain = {row[1] for row in database.execute(f"PRAGMA table_xinfo({table})") if not row[6]}
        missing += [f"{table}.{column}" for column in COLUMNS[table] if column not in plain]
    if strange or missing:
        raise RecordingError(
            f"{str(path)!r} is not laid out as a recording: it lacks {missing[:5]} and has "
            f"{strange[:5]} besides; {_EXPECTED}",
            path=str(path),
        )


class NewFile:
    """A recording that is being written, under a name that says so; `finish` gives it its own.

    A process that dies leaves the partial file, which the next that writes this recording
    replaces; no crash leaves one that looks whole.

    Raises:
        RecordingError: there is such a file already, another process is writing it, or it cannot
            be written.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self._path = path
        self._partial = path.with_name(path.name + PARTIAL)
        if path.exists() and not overwrite:
            raise RecordingError(
                f"there is a file {str(path)!r} already; expected a new name: choose another, or "
                f"remove it first (`record` replaces it with --force)",
                path=str(path),
            )
        with speaking_of(path, "writing"):
            self._lock = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with speaking_of(path, "writing"):
                self._take()
                self.database = sqlite3.connect(self._partial, isolation_level=None)
                self._prepare()
        except BaseException:
            os.close(self._lock)
            raise

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self._lock), os.stat(self._partial)):
                raise BlockingIOError  # it had just been finished by another
        except BlockingIOError:
            raise RecordingError(
                f"another process is writing the recording {str(self._path)!r}; expected to be "
                f"the only one: wait for it, or choose another name",
                path=str(self._path),
            ) from None
        os.ftruncate(self._lock, 0)

    def _prepare(self) -> None:
        # Nobody reads the file before it is whole, and after a crash nobody does: no journal.
        for pragma in (
            "journal_mode = OFF",
            "synchronous = OFF",
            "locking_mode = EXCLUSIVE",
            "temp_store = FILE",
            f"application_id = {APPLICATION_ID}",
            f"user_version = {FORMAT}",
        ):
            self.database.execute(f"PRAGMA {pragma}")
        self.database.executescript(_SCHEMA)
        self.database.execute("BEGIN")

    def finish(self) -> None:
        """Close it and give it its name, when all of it is on the disk."""
        with speaking_of(self._path, "writing"):
            self.database.execute("COMMIT")
            self.database.close()
            os.fsync(self._lock)
            os.replace(self._partial, self._path)
            directory = os.open(self._path.absolute().parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
                os.close(self._lock)

    def discard(self) -> None:
        """Close it and remove it."""
        with contextlib.suppress(sqlite3.Error, OSError):
            self.database.close()
        with contextlib.suppress(OSError):
            self._partial.unlink()
        with contextlib.suppress(OSError):
            os.close(self._lock)
