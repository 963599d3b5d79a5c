"""Logs of the roles: one event a line, for programs as JSON, for a person on a terminal as text.

Only the commands set this up; a program that uses the library configures logging as it likes. Who
logs never waits for whoever reads: lines go through a bounded queue to a thread that writes them.
"""

from __future__ import annotations

import json
import logging
import math
import os
import select
import socket
import sys
import threading
import time
import traceback
from collections import deque
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from broker_pipeline.errors import SettingError

FORMAT_ENV = "BROKER_PIPELINE_LOG_FORMAT"
LEVEL_ENV = "BROKER_PIPELINE_LOG_LEVEL"
"""What holds for this process and those that it starts."""
TEXT_CHARS_MAX = 16_384
"""Of an event, a traceback or another field; the middle of a longer one is left out."""
QUEUE_BYTES_MAX = 8 << 20
"""Lines that wait to be written; more are dropped, and counted."""
FLUSH_S = 1.0
"""How long a role that ends waits for its last lines to be taken."""
FIELDS = ("role", "pipeline", "instance", "package", "phase", "worker", "trace_id")
"""What says whom a line is about, in this order; given by `extra=`."""
_CUT = " [...] "
# What every record has, and what other libraries add for themselves.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LogFormat(StrEnum):
    """How lines look."""

    JSON = "json"
    TEXT = "text"


class LogLevel(StrEnum):
    """From which level on events are told."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def set_up(role: str, form: LogFormat | None = None, level: LogLevel | None = None) -> None:
    """Have the events of this process written to standard error.

    Args:
        role: who it is, such as "worker".
        form: None: what the environment says, or text on a terminal and JSON elsewhere.
        level: None: what the environment says, or info.

    Raises:
        SettingError: the environment says what is none of them.
    """
    chosen = form or _setting(FORMAT_ENV, LogFormat)
    told_from = level or _setting(LEVEL_ENV, LogLevel) or LogLevel.INFO
    for name, given in ((FORMAT_ENV, form), (LEVEL_ENV, level)):
        if given is not None:
            os.environ[name] = given.value  # for the processes that this one starts
    if chosen is None:
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        chosen = LogFormat.TEXT if on_terminal else LogFormat.JSON
    handler = LineHandler(_standard_error())
    handler.setFormatter(JsonLines(role) if chosen is LogFormat.JSON else TextLines(role))
    root = logging.getLogger()
    for other in [each for each in root.handlers if isinstance(each, LineHandler)]:
        root.removeHandler(other)
        other.close()
    root.addHandler(handler)
    root.setLevel(told_from.value.upper())
    logging.captureWarnings(True)


def about(pipeline: str) -> None:
    """Whose events this process tells from now on, where it does not say otherwise."""
    if (handler := _handler()) is not None and isinstance(handler.formatter, Lines):
        handler.formatter.pipeline = pipeline


def is_set_up() -> bool:
    """Whether lines have fields, so that their text need not repeat them."""
    return _handler() is not None


def tell(line: str, level: int = logging.INFO) -> None:
    """A line for whoever started the role: as it is to a person, an event to a program."""
    handler = _handler()
    if handler is not None and isinstance(handler.formatter, JsonLines):
        logger = "broker_pipeline"
        handler.handle(logging.LogRecord(logger, level, __file__, 0, line, None, None))
    elif handler is not None:
        handler.write(line)
    elif sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)


def _standard_error() -> int:
    """A descriptor of its own; -1, to which nothing can be written, where it is closed."""
    try:
        return os.dup(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):
        return -1


def _handler() -> LineHandler | None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LineHandler):
            return handler
    return None


def _setting(name: str, kind: type[Any]) -> Any:
    text = os.environ.get(name)
    if not text:
        return None
    try:
        return kind(text.lower())
    except ValueError:
        raise SettingError(
            f"the environment variable {name} is {text!r}; expected one of "
            f"{', '.join(map(str, kind.__members__.values()))}: correct it, or take it away",
            name=name,
        ) from None


class LineHandler(logging.Handler):
    """Writes lines to a descriptor, from a thread of its own.

    While nobody takes them they wait, up to QUEUE_BYTES_MAX; then new ones are dropped, and a line
    says how many as soon as there is room. Nothing is written twice or in part.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._change = threading.Condition()
        self._writing = self._closed = False
        self._thread = threading.Thread(target=self._serve, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record's line. Never raises, never waits."""
        try:
            text = self.format(record)
        except Exception:  # whatever an argument's __str__ did
            text = f"a log line of {record.name} cannot be written"
        self.write(text)

    def write(self, text: str) -> None:
        """Queue a line as it is."""
        line = text.encode("utf-8", "backslashreplace") + b"\n"
        with self._change:
            if self._closed or self._bytes + len(line) > QUEUE_BYTES_MAX:
                self._dropped += 1
                return
            self._lines.append(line)
            self._bytes += len(line)
            self._change.notify_all()

    def flush(self) -> None:
        """Wait until all is written, for FLUSH_S at most."""
        with self._change:
            self._change.wait_for(lambda: not self._lines and not self._writing, FLUSH_S)

    def close(self) -> None:
        """Write no more."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        super().close()

    def _serve(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._lines or self._closed)
                if not self._lines:
                    return
                line = self._lines.popleft()
                dropped, self._dropped = self._dropped, 0
                self._writing = True
            self._write(line)
            if dropped:
                self._write(self._told(dropped))
            with self._change:
                self._bytes -= len(line)
                self._writing = False
                self._change.notify_all()

    def _told(self, dropped: int) -> bytes:
        text = f"{dropped} log lines were dropped: nobody took what was written to standard error"
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None)
        return self.format(record).encode() + b"\n"

    def _write(self, line: bytes) -> None:
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:  # somebody else made the descriptor so
                select.select([], [self._descriptor], [], 1.0)
            except OSError:  # nobody will ever read it
                return


class Lines(logging.Formatter):
    """What both forms have in common: whom a record is about."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self.role = role
        self.pipeline = ""
        self.process = f"{socket.gethostname()}-{os.getpid()}"

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """What is known of a record, FIELDS first, then what else was given by `extra=`."""
        given = vars(record)
        known = {"role": self.role, "pipeline": self.pipeline, "worker": self.process}
        found = {name: given.get(name, known.get(name)) for name in FIELDS}
        named = {name: value for name, value in found.items() if value not in (None, "")}
        others = {
            name: value
            for name, value in given.items()
            if name not in _STANDARD and name not in FIELDS and not name.startswith("_")
        }
        return {**named, **others}

    def event(self, record: logging.LogRecord) -> str:
        """The text, also where its arguments do not fit it."""
        try:
            return bounded(record.getMessage())
        except Exception as error:  # user code's arguments
            return bounded(f"{record.msg!s} ({type(error).__name__}: its arguments do not fit it)")

    def told(self, record: logging.LogRecord) -> str:
        """The traceback, if there is one."""
        found = record.exc_info
        if found and found[0] is not None:
            try:
                return bounded("".join(traceback.format_exception(*found)).rstrip())
            except Exception:  # a __str__ of user code
                return f"{found[0].__name__}: its text cannot be read"
        return bounded(record.exc_text or "")


class JsonLines(Lines):
    """An object a line: ts, level, logger, event, then whom it is about, then exc."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
        line: dict[str, Any] = {
            "ts": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": self.event(record),
        }
        for name, value in self.fields(record).items():
            line.setdefault(name, value)
        if told := self.told(record):
            line["exc"] = told
        # ASCII: no terminal, encoding or line separator can break it.
        return json.dumps({str(name): _plain(value) for name, value in line.items()})


class TextLines(Lines):
    """For a person; what takes several lines stands indented below its own."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = self.fields(record)
        same = {"role": self.role, "pipeline": self.pipeline, "worker": self.process}
        for name, said in same.items():  # as on every other line
            if fields.get(name) == said:
                del fields[name]
        head = f"{clock}.{int(record.msecs):03d} {record.levelname.lower():<7} {self.role}"
        named = " ".join(f"{name}={_plain(value)}" for name, value in fields.items())
        text = _printable(self.event(record)) + (f"  [{_printable(named)}]" if named else "")
        if told := self.told(record):
            text += f"\n{_printable(told)}"
        return f"{head}: " + "\n    ".join(text.splitlines())


def bounded(text: str) -> str:
    """At most TEXT_CHARS_MAX of a text: its beginning and its end."""
    if len(text) <= TEXT_CHARS_MAX:
        return text
    half = (TEXT_CHARS_MAX - len(_CUT)) // 2
    return f"{text[:half]}{_CUT}{text[-half:]}"


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    try:
        return bounded(str(value))
    except Exception:  # user code
        return f"a {type(value).__name__} that cannot be written"


def _printable(text: str) -> str:
    """Without what a terminal would obey; lines stay lines."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode()
        for each in text
    )
