"""Lines of logs: whatever is logged, one event a line, and nobody waits for a reader."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline import DataPackage
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.errors import SettingError
from broker_pipeline.observe import logs
from broker_pipeline.observe.context import TraceContext
from broker_pipeline.observe.logs import JsonLines, LineHandler, LogFormat, LogLevel, TextLines
from broker_pipeline.runtime.execution.package_log import PackageLog

BOUND_S = 10.0


def record(text: object, *arguments: object, **fields: object) -> logging.LogRecord:
    """Of a warning."""
    made = logging.LogRecord("lib", logging.WARNING, "x.py", 1, text, arguments, None)
    vars(made).update(fields)
    return made


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    """What a program reads of it."""
    line = JsonLines("worker").format(made)
    assert line.isascii() and len(line.splitlines()) == 1
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


class Hostile:
    """Cannot be written."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


anything = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.just(Hostile())
)  # fmt: skip
names = st.text(max_size=8).filter(lambda name: name not in vars(record("")))


@given(
    text=st.text(), arguments=st.lists(anything, max_size=3), extra=st.dictionaries(names, anything)
)
def test_whatever_is_logged_is_one_object_on_one_line(
    text: str, arguments: list[object], extra: dict[str, object]
) -> None:
    """Also surrogates, line separators, arguments that do not fit, and what cannot be written."""
    made = record(text, *arguments, **extra)
    found = as_json(made)
    assert found["level"] == "warning" and isinstance(found["event"], str)
    shown = TextLines("worker").format(made)
    first, *more = shown.split("\n")
    assert "warning" in first and all(each.startswith("    ") for each in more)
    assert all(each.isprintable() for each in shown.splitlines())


def test_a_line_says_whom_it_is_about() -> None:
    """By the names that are written down, and what else was given."""
    made = record(
        "worked on %s", "it", package="p/0/7", instance="room", phase="c.p", trace_id="ab", mine=3
    )
    found = as_json(made)
    assert found["ts"].endswith("Z") and found["logger"] == "lib" and found["role"] == "worker"
    assert found["event"] == "worked on it"
    assert (found["package"], found["instance"], found["phase"]) == ("p/0/7", "room", "c.p")
    assert (found["trace_id"], found["mine"]) == ("ab", 3)
    named = "[instance=room package=p/0/7 phase=c.p trace_id=ab mine=3]"
    assert TextLines("worker").format(made).endswith(f"warning worker: worked on it  {named}")


def test_an_extra_does_not_take_the_place_of_what_a_line_is() -> None:
    """`event` and the like are the line's own."""
    found = as_json(record("real", event="false", level="false", ts="false"))
    assert (found["event"], found["level"]) == ("real", "warning") and found["ts"] != "false"


def test_a_traceback_is_a_field_and_stays_bounded() -> None:
    """Its beginning and its end are there."""
    made = record("failed")
    try:
        raise ValueError("x" * 100_000 + "end")
    except ValueError as error:
        made.exc_info = (ValueError, error, error.__traceback__)
    found = as_json(made)
    assert found["exc"].startswith("Traceback") and found["exc"].endswith("end")
    assert len(found["exc"]) <= logs.TEXT_CHARS_MAX
    text = TextLines("worker").format(made)
    assert "\n    Traceback" in text


def test_a_terminal_obeys_nothing_that_is_logged() -> None:
    """An escape sequence is shown, not done."""
    assert "\x1b" not in TextLines("worker").format(record("\x1b[2J\r gone"))


class Pipe:
    """A descriptor to write to, whose reader may be busy elsewhere."""

    def __init__(self) -> None:
        self.out, self.into = os.pipe()
        self.handler = LineHandler(self.into)
        self.handler.setFormatter(JsonLines("worker"))

    def read_all(self) -> list[str]:
        """What was written; nothing more is."""
        self.handler.close()
        found: list[bytes] = []

        def read() -> None:
            while raw := os.read(self.out, 1 << 16):
                found.append(raw)

        reader = threading.Thread(target=read)
        reader.start()
        self.handler._thread.join(BOUND_S)
        os.close(self.into)
        reader.join(BOUND_S)
        os.close(self.out)
        return b"".join(found).decode().splitlines()


@pytest.fixture
def pipe() -> Pipe:
    """Nobody reads from it yet."""
    return Pipe()


def test_who_logs_waits_for_no_reader(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that is full stops nobody; what does not fit is dropped, and a line says how many.
    (Were the write in the thread that logs, this test would not end.)"""
    monkeypatch.setattr(logs, "QUEUE_BYTES_MAX", 200_000)
    for number in range(10_000):
        pipe.handler.handle(record("line %d of many, and some more text", number))
    lines = [json.loads(line) for line in pipe.read_all()]
    told = [line["event"] for line in lines if "were dropped" in line["event"]]
    kept = [line for line in lines if line["event"].startswith("line")]
    assert kept[0]["event"].startswith("line 0 ")
    assert sum(int(text.split()[0]) for text in told) == 10_000 - len(kept) > 5_000


def test_a_reader_that_has_gone_stops_nobody(pipe: Pipe) -> None:
    """There is nobody left to tell."""
    os.close(pipe.out)
    for number in range(1_000):
        pipe.handler.handle(record("line %d", number))
    pipe.handler.flush()
    pipe.handler.close()
    pipe.handler._thread.join(BOUND_S)
    assert not pipe.handler._thread.is_alive()
    os.close(pipe.into)


def test_flush_waits_for_what_was_logged(pipe: Pipe) -> None:
    """For a role that ends."""
    pipe.handler.handle(record("last words"))
    pipe.handler.flush()
    assert b"last words" in os.read(pipe.out, 1 << 16)
    pipe.read_all()


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield root
    for handler in list(root.handlers):
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()
    root.setLevel(level)
    logging.captureWarnings(False)


def test_a_setting_of_the_environment_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, root: logging.Logger
) -> None:
    """With what it may be."""
    monkeypatch.setenv(logs.LEVEL_ENV, "loud")
    with pytest.raises(SettingError, match=r"BP517 .*LOG_LEVEL is 'loud'.*debug, info"):
        logs.set_up("worker")


def test_children_log_as_their_parent_was_told(
    monkeypatch: pytest.MonkeyPatch, root: logging.Logger
) -> None:
    """An option becomes a setting of the environment."""
    monkeypatch.setenv(logs.LEVEL_ENV, "error")
    monkeypatch.setenv(logs.FORMAT_ENV, "text")
    logs.set_up("worker", LogFormat.JSON, LogLevel.DEBUG)
    assert (os.environ[logs.FORMAT_ENV], os.environ[logs.LEVEL_ENV]) == ("json", "debug")
    assert root.level == logging.DEBUG and logs.is_set_up()
    monkeypatch.delenv(logs.FORMAT_ENV)
    logs.set_up("worker")
    assert sum(isinstance(each, LineHandler) for each in root.handlers) == 1
    assert root.level == logging.DEBUG


def test_run_log_says_the_package_in_fields(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And in its text where a program logs in its own way."""
    envelope = pb.DataPackage(id=7, pipeline="p", instance="room")
    package = DataPackage[bytes].wrap(envelope)
    log = PackageLog(package, "c/ph/50%", TraceContext("ab" * 16, "cd" * 8))
    log.warning("%d words", 3, extra={"mine": 1})
    (made,) = caplog.records
    assert made.getMessage() == "3 words (package p/0/7, module c/ph/50%)"
    found = as_json(made)
    assert (found["package"], found["phase"], found["instance"]) == ("p/0/7", "c.ph", "room")
    assert (found["trace_id"], found["mine"]) == ("ab" * 16, 1)
    monkeypatch.setattr("broker_pipeline.runtime.execution.package_log.is_set_up", lambda: True)
    log.warning("%d words", 3)
    assert caplog.records[1].getMessage() == "3 words"
