"""A package's history for a terminal: its way as a waterfall, its errors, its payload. Pure.

arrived                       14:00:01.234 ▏
transcribe ORDER_BY_SEQUENCE #17    412 ms
  waited for segment                3.1 ms ░░
  segment by worker-1               5.0 ms   ██
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from datetime import datetime

from rich.text import Text

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.codecs import Types
from broker_pipeline.debug.inspection.history import PackageHistory
from broker_pipeline.debug.inspection.payloads import LINES_MAX, describe
from broker_pipeline.debug.inspection.spans import Kind, Span, spans
from broker_pipeline.journey import NS, ErrorRecord, Status
from broker_pipeline.package import DataPackage

WIDTH_MIN = 60
LABEL_SHARE = 0.46
TIME_COLUMNS = 12
MESSAGE_LINES = 3
"""Of what a module says, so many are shown; all of it is in the JSON."""
_BARS = {
    Kind.CONTROLLER: ("─", "dim"),
    Kind.WAIT: ("░", "yellow"),
    Kind.PHASE: ("█", "blue"),
    Kind.MODULE: ("▆", "cyan"),
}
_STATUS = {
    Status.SUCCESS: "bold green",
    Status.EXIT: "bold blue",
    Status.ERROR: "bold red",
    Status.OVERFLOW: "bold magenta",
    Status.OUTDATED: "bold magenta",
}
_INSIDE = "bold yellow"


def waterfall(
    history: PackageHistory,
    types: Types,
    *,
    now_ns: int,
    width: int = 80,
    payload_lines: int = LINES_MAX,
) -> list[Text]:
    """Everything that there is of a package, as lines.

    Args:
        types: payload types by name.
        now_ns: until when one that is inside has been there, ns since the epoch.
        width: of the terminal, at least WIDTH_MIN.
        payload_lines: of each payload.
    """
    width = max(width, WIDTH_MIN)
    package = history.package(types)
    return [
        *_title(history, package, now_ns, width),
        Text(),
        *_way(spans(history, now_ns), width),
        *_errors(package.errors, width),
        *_payloads(history, types, width, payload_lines),
        *_notes(history, width),
    ]


def _title(
    history: PackageHistory, package: DataPackage[object], now_ns: int, width: int
) -> Iterator[Text]:
    outcome = package.outcome
    line = Text(history.package_id, "bold")
    line.append(f"  {_shown(history.instance)} #{package.sequence or '?'}  ")
    if outcome is None:
        line.append("INSIDE", _INSIDE)
        took = now_ns - package.start_time_ns
        line.append(f" for {duration(took)}")
    else:
        line.append(outcome.value, _STATUS[Status(outcome.value)])
        line.append(f" after {duration(package.end_time_ns - package.start_time_ns)}")
    yield line
    facts = [_date(package.start_time_ns)]
    if package.epoch:
        facts.append(f"life {package.epoch}")
    facts += [f"{key}={_shown(value)}" for key, value in sorted(package.attributes.items())]
    yield from (Text(each, "dim") for each in textwrap.wrap("  ".join(facts), width))
    if outcome is None:
        yield from (Text(each) for each in textwrap.wrap(f"It {history.standing()[0]}.", width))
    elif package.reason:
        reason = _wrapped(package.reason, width)
        yield from (Text(each) for each in reason)


# -- the way ------------------------------------------------------------------------------------
def _way(way: list[Span], width: int) -> Iterator[Text]:
    start = min(span.start_ns for span in way)
    scale = max(1, max(span.end_ns for span in way) - start)
    label = int(width * LABEL_SHARE)
    columns = width - label - TIME_COLUMNS - 1
    for span in way:
        yield _line(span, start, scale, label, columns)
        if span.message:
            indent = "  " * (span.depth + 1)
            style = "red" if span.status is Status.ERROR else "italic"
            for text in _wrapped(span.message, width - len(indent) - 2)[:MESSAGE_LINES]:
                yield Text(f"{indent}» {text}", style)


def _line(span: Span, start: int, scale: int, label: int, columns: int) -> Text:
    style = "bold" if span.kind in (Kind.CONTROLLER, Kind.MARK) else ""
    line = Text("  " * span.depth)
    line.append(_shown(span.name), "dim" if span.kind is Kind.WAIT else style)
    if span.status is not None:
        line.append(f" {span.status.value}", _STATUS.get(span.status, _INSIDE))
    if span.note and span.name != "inside":
        line.append(f" {_shown(span.note)}", "dim")
    line.truncate(label, overflow="ellipsis", pad=True)
    said = _clock(span.start_ns) if span.kind is Kind.MARK else duration(span.duration_ns)
    line.append(f"{said:>{TIME_COLUMNS}} ", "" if span.kind is not Kind.WAIT else "dim")
    first = min(columns - 1, (span.start_ns - start) * columns // scale)
    if span.kind is Kind.MARK:
        return line.append(" " * first + "▏", "bold")
    last = max(first + 1, -((start - span.end_ns) * columns // scale))
    character, style = _BARS[span.kind]
    if span.status is Status.ERROR:
        style = "red"
    return line.append(" " * first).append(character * (min(last, columns) - first), style)


# -- errors -------------------------------------------------------------------------------------
def _errors(errors: tuple[ErrorRecord, ...], width: int) -> Iterator[Text]:
    for error in errors:
        yield Text()
        head = Text(error.type or "Error", "bold red")
        head.append(f" in {error.path}" if error.path else "")
        by = ", ".join(each for each in (error.worker, error.host) if each)
        head.append(f" (by {by})" if by else "", "dim")
        yield head
        yield from (Text(f"  {each}", "red") for each in _wrapped(error.message, width - 2))
        for row in error.traceback.splitlines():
            yield Text(f"  {_shown(row)}", "dim")
        for key, value in error.details.items() if hasattr(error, "details") else ():
            yield Text(f"  {_shown(key)}:", "bold")
            yield from (Text(f"    {_shown(row)}") for row in value.splitlines())


# -- payloads -----------------------------------------------------------------------------------
def _payloads(history: PackageHistory, types: Types, width: int, lines_max: int) -> Iterator[Text]:
    """The payload where it came, and wherever it changed."""
    before: tuple[bytes, str, str] | None = None
    for title, envelope in stations(history):
        kept = envelope.reference.object if envelope.HasField("reference") else ""
        payload = (envelope.data, envelope.content_type, kept)
        if payload == before:
            continue
        before = payload
        yield Text()
        yield Text(f"payload {title}", "bold")
        if kept:
            reference = envelope.reference
            yield Text(f"  {reference.size:,} bytes, in object {kept} of {reference.bucket}")
            continue
        shown = describe(
            envelope.data, envelope.content_type, types, width=width - 2, lines_max=lines_max
        )
        yield from (Text(f"  {_shown(row)}", "" if at else "dim") for at, row in enumerate(shown))


def stations(history: PackageHistory) -> Iterator[tuple[str, pb.DataPackage]]:
    """Where the payload is known, in order: each with words that say where."""
    if history.arrived is not None:
        yield "as it arrived", history.arrived
    for each in history.inputs:
        yield f"before {each.controller}.{each.phase}", each.envelope
    if history.outcome is not None:
        yield "as it left", history.outcome


def _notes(history: PackageHistory, width: int) -> Iterator[Text]:
    notes = list(history.notes)
    for each in history.inputs:
        if each.begun:
            where = f"{each.controller}.{each.phase}"
            notes.append(f"{where} was begun {each.begun} times more, after two deliveries to it")
    if notes:
        yield Text()
    for note in notes:
        yield from (Text(row, "yellow") for row in textwrap.wrap(f"note: {note}", width))


# -- words --------------------------------------------------------------------------------------
def duration(ns: int) -> str:
    """A length of time, with three digits."""
    if ns < 0:
        return f"-{duration(-ns)}"
    if ns < 1_000_000:
        return f"{ns / 1_000:.0f} µs"
    if ns < 999_500_000:
        return f"{ns / 1_000_000:.{_digits(ns / 1_000_000)}f} ms"
    seconds = ns / NS
    if seconds < 59.95:
        return f"{seconds:.{_digits(seconds)}f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def _digits(value: float) -> int:
    return 2 if value < 9.995 else 1 if value < 99.95 else 0


def _clock(ns: int) -> str:
    return f"{datetime.fromtimestamp(ns // NS):%H:%M:%S}.{ns % NS // 1_000_000:03}"


def _date(ns: int) -> str:
    return f"arrived {datetime.fromtimestamp(ns // NS):%Y-%m-%d} {_clock(ns)}"


def _wrapped(text: str, width: int) -> list[str]:
    rows: Iterable[str] = text.splitlines()
    return [part for row in rows for part in textwrap.wrap(_shown(row), width) or [""]]


def _shown(text: str) -> str:
    """Text that cannot move the cursor, whatever is in it."""
    return "".join(each if each.isprintable() else "�" for each in text.expandtabs(4))
