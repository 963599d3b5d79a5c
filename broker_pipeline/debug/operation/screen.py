"""`top` on a terminal: a `View` as lines that fit its width and height. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size

from broker_pipeline.debug.operation.top import (
    ControllerRow,
    Flow,
    PhaseRow,
    Rates,
    RoleRow,
    ServerRow,
    Shard,
    View,
)
from broker_pipeline.debug.operation.units import duration, number, size

WIDE = 100
"""From so many columns on there is room for what is rarely needed."""
NAME_MIN, BAR = 16, 10
BLOCKS = "▁▂▃▄▅▆▇█"
HISTORY_MAX = 60
LATE_S = 5.0
"""A package inside for longer is late for anything live."""
FULL = 0.95
BESIDE_HOLDER = 62
"""What else is on the line of a shard, at most."""
BEHIND, FAR_BEHIND = 100, 1_000
"""Messages that a leader has not applied: some, and more than it does in a moment."""
OLD_S, TOO_OLD_S = 10.0, 30.0
"""The age of a snapshot, of which there is a new one every two seconds."""
HEAD, DIM, BAD, WARN, GOOD, NAME = "bold", "dim", "bold red", "yellow", "green", "bold cyan"


class Span(NamedTuple):
    """Text in one style, as rich has it."""

    text: str
    style: str = ""


Line = list[Span]


class Column(NamedTuple):
    """A column of numbers: its title and how wide it is, the space before it included."""

    title: str
    width: int


def lines(view: View, width: int, height: int, history: Sequence[float] = ()) -> list[Line]:
    """The screen, top to bottom; no line is wider, and there are no more.

    Args:
        history: packages that left a second, over time, the newest last.
    """
    made = [
        _title(view, width),
        *(_fit(line, width) for shard in view.shards for line in _shard(shard, width)),
        *(_fit(line, width) for line in _totals(view)),
    ]
    if trend := _trend(history, width - sum(cell_len(each.text) for each in made[-1])):
        made[-1] = [*made[-1], trend]
    made += [[], *_flows(view, width), [], *_processes(view, width)]
    while made and not made[-1]:
        made.pop()
    if len(made) > height:
        more = len(made) - height + 1
        made = [*made[: height - 1], [Span(f"  {more} more lines need a higher terminal", DIM)]]
    return [_fit(line, width) for line in made]


def plain(made: Sequence[Line]) -> str:
    """Lines without styles."""
    return "\n".join("".join(each.text for each in line).rstrip() for line in made)


def cut(text: str, width: int) -> str:
    """Text in so many cells, with its middle left out where it is longer; what a terminal would
    take for a command is not in it."""
    text = "".join(each if each.isprintable() else "?" for each in text)
    if cell_len(text) <= width:
        return text + " " * (width - cell_len(text))
    if width < 3:
        return set_cell_size(text, max(0, width))
    head = (width - 1) // 2
    tail = width - 1 - head
    end = text
    while cell_len(end) > tail:
        end = end[1:]
    return set_cell_size(set_cell_size(text, head) + "…" + end, width)


# -- the head -------------------------------------------------------------------------------------
def _title(view: View, width: int) -> Line:
    when = datetime.fromtimestamp(view.at).strftime("%H:%M:%S")
    right = f"{when}   last {duration(view.over_s)} "
    name = cut(f" {view.pipeline}", max(4, width - len(right)))
    return [Span(name, "bold reverse"), Span(right, "reverse")]


def _shard(shard: Shard, width: int) -> Iterator[Line]:
    head = Span(f" shard {shard.shard}  ", HEAD)
    if shard.leader is None:
        yield [head, Span("nobody leads", BAD), Span(": start a controller", DIM)]
    else:
        holder = cut(shard.leader, max(8, min(len(shard.leader), width - BESIDE_HOLDER)))
        line = [head, Span("led by "), Span(holder, NAME)]
        if not shard.answers:
            line.append(Span(" (no answer)", WARN))
        if shard.standbys:
            line.append(Span(f"   {shard.standbys} standby", DIM))
        behind = shard.lag_messages
        if behind is not None:
            style = BAD if behind > FAR_BEHIND else WARN if behind > BEHIND else DIM
            line.append(Span(f"   behind {number(behind)}", style))
        age_s = shard.snapshot_age_s
        style = BAD if age_s > TOO_OLD_S else WARN if age_s > OLD_S else DIM
        yield [*line, Span(f"   snapshot {duration(age_s)}", style)]
    level = size(shard.log_bytes)
    if shard.log_bytes_max is not None:
        level += f" of {size(shard.log_bytes_max)}"
    line = [Span(" log      "), Span(f"{level}, {number(shard.log_messages)} messages", DIM)]
    line.append(Span(f", {number(shard.messages_s)}/s", DIM))
    if not shard.open:
        line.append(Span("   producers are refused: the log is full", BAD))
    yield line


def _totals(view: View) -> Iterator[Line]:
    flow = view.total.flow
    inside = view.total.inside
    yield [
        Span(" packages ", HEAD),
        Span(f"in {_rate(flow.in_s)}   out {_rate(_sum(flow.out_s))}   inside "),
        Span("-" if inside is None else number(inside)),
        Span(f"   p50 {_time(flow.p50_s)}   p99 {_time(flow.p99_s)}"),
    ]
    line = [Span(" out      ")]
    styles = {"success": GOOD, "error": BAD, "overflow": WARN, "outdated": WARN}
    for outcome, rate in (flow.out_s or {}).items():
        style = styles.get(outcome, "") if rate else DIM
        line.append(Span(f"{outcome} {number(rate)}   ", style))
    yield line if flow.out_s is not None else [*line, Span("no leader says what left", DIM)]


def _trend(history: Sequence[float], room: int) -> Span | None:
    shown = list(history)[-min(HISTORY_MAX, max(0, room - 1)) :]
    if room < 8 or len(shown) < 2 or not max(shown):
        return None
    top = max(shown)
    return Span("".join(BLOCKS[min(7, int(each / top * 7.999))] for each in shown), GOOD)


# -- controllers and phases -----------------------------------------------------------------------
FLOW = (
    Column("in/s", 6), Column("out/s", 6), Column("err/s", 6), Column("busy", 5),
    Column("wait", 6), Column("turn", 5), Column("oldest", 7), Column("p50", 7),
    Column("p99", 7), Column("by", 3),
)  # fmt: skip
FLOW_WIDE = (Column("exit/s", 7), Column("lost/s", 7), Column("again", 6))
"""`lost`: OVERFLOW and OUTDATED; `again`: delivered more than once."""


def _flows(view: View, width: int) -> Iterator[Line]:
    columns = (*FLOW, *FLOW_WIDE) if width >= WIDE else FLOW
    name_width = max(NAME_MIN, width - sum(each.width for each in columns))
    yield _header("CONTROLLER, phase", name_width, columns)
    for controller in view.controllers:
        yield [
            Span(cut(controller.name, name_width), HEAD),
            *_cells(columns, _controller_cells(controller)),
        ]
        for phase in view.phases:
            if phase.controller == controller.name:
                yield [
                    Span(cut(f"  {phase.name}", name_width)),
                    *_cells(columns, _phase_cells(phase)),
                ]


def _controller_cells(row: ControllerRow) -> list[Span]:
    lost = _lost(row.flow)
    return [
        *_flow_cells(row.flow),
        _count(row.processing),
        _count(row.waiting_in),
        _count(row.waiting_out),
        _age(row.oldest_s),
        Span(_time(row.flow.p50_s)),
        Span(_time(row.flow.p99_s)),
        Span(""),
        _some(row.flow.out_s, "exit"),
        Span("-" if lost is None else number(lost), WARN if lost else DIM),
        Span(""),
    ]


def _phase_cells(row: PhaseRow) -> list[Span]:
    return [
        *_flow_cells(row.flow),
        _count(row.processing),
        _count(row.pending),
        Span(""),
        _age(row.oldest_s),
        Span(_time(row.flow.p50_s)),
        Span(_time(row.flow.p99_s)),
        Span(str(row.running), "" if row.running else BAD),
        _some(row.flow.out_s, "exit"),
        Span(""),
        Span(number(row.redelivered), WARN if row.redelivered else DIM),
    ]


def _flow_cells(flow: Flow) -> list[Span]:
    errors = None if flow.out_s is None else flow.out_s.get("error", 0.0)
    return [
        Span("-" if flow.in_s is None else number(flow.in_s), "" if flow.in_s else DIM),
        Span("-" if flow.out_s is None else number(_sum(flow.out_s) or 0)),
        Span("-" if errors is None else number(errors), BAD if errors else DIM),
    ]


# -- processes ------------------------------------------------------------------------------------
WORK = (Column("in/s", 6), Column("busy", 5), Column("of", 5), Column("load", 6), Column("up", 6))
SERVE = (*WORK[:4], Column("each", 6))
"""`each`: how long a package takes."""
ROLE_WIDTH = 11


def _processes(view: View, width: int) -> Iterator[Line]:
    if not view.roles:
        yield [Span("no role answers: what is shown is what the broker knows", WARN)]
    bar = BAR if width >= WIDE else 0
    room = width - bar - sum(each.width for each in WORK)
    name_width = min(max(NAME_MIN, (room - ROLE_WIDTH) * 2 // 5), 40)
    runs_width = max(1, room - ROLE_WIDTH - name_width - 1)
    if view.roles:
        head = f"{'ROLE':{ROLE_WIDTH}}{'name':{name_width}} {'runs':{runs_width}}"
        yield _header(head, len(head), WORK)
    for role in view.roles:
        runs = _first_of(role.phases, runs_width - len(_faults(role)))
        if role.role == "controller":
            runs = "leads" if role.leads else "stands by"
        yield [
            Span(f"{role.role:{ROLE_WIDTH}}"),
            Span(cut(role.name, name_width), NAME),
            Span(" " + _faults(role), BAD),
            Span(cut(runs, max(0, runs_width - len(_faults(role))))),
            *_cells(WORK, _role_cells(role)),
            *_bar(role.load, bar),
        ]
    if view.servers:
        head = f"{'SERVER of':{ROLE_WIDTH + name_width}} {'at':{runs_width}}"
        yield from ([], _header(head, len(head), SERVE))
    for server in view.servers:
        yield [
            Span(cut(server.module, ROLE_WIDTH + name_width), NAME),
            Span(" " + cut(_at(server), runs_width), BAD if server.state == "none" else ""),
            *_cells(SERVE, _server_cells(server)),
            *_bar(server.load, bar),
        ]


def _at(server: ServerRow) -> str:
    return f"{server.address} ({server.state})" if server.state else server.address


def _first_of(names: Sequence[str], width: int) -> str:
    """As many of the names as there is room for, and how many more there are."""
    for count in range(len(names), 0, -1):
        more = len(names) - count
        text = ", ".join(names[:count]) + (f" +{more}" if more else "")
        if cell_len(text) <= width or count == 1:
            return text
    return ""


def _faults(role: RoleRow) -> str:
    """Slots in modules that do not come back, and results for which the broker has no room."""
    lost = f"{role.lost_slots} lost " if role.lost_slots else ""
    held = f"{role.held_results} held " if role.held_results else ""
    return lost + held


def _role_cells(role: RoleRow) -> list[Span]:
    if role.role == "controller":
        return [Span("")] * 4 + [Span(duration(role.up_s), DIM)]
    return [
        Span(_value(role.in_s)),
        _count(role.processing),
        _count(role.slots),
        _load(role.load),
        Span(duration(role.up_s), DIM),
    ]


def _server_cells(server: ServerRow) -> list[Span]:
    return [
        Span(_value(server.in_s)),
        Span(number(server.running + server.waiting)),
        Span(number(server.capacity) if server.capacity else "-"),
        _load(server.load),
        Span(_time(server.run_time_s or None), DIM),
    ]


def _load(load: float | None) -> Span:
    if load is None:
        return Span("-", DIM)
    return Span(f"{min(load, 9.99):.0%}", WARN if load >= FULL else "")


def _bar(load: float | None, width: int) -> list[Span]:
    if not width or load is None:
        return []
    full = round(min(load, 1.0) * (width - 1))
    rest = Span("╌" * (width - 1 - full), DIM)
    return [Span(" " + "━" * full, WARN if load >= FULL else GOOD), rest]


# -- cells ----------------------------------------------------------------------------------------
def _header(name: str, width: int, columns: Sequence[Column]) -> Line:
    titles = "".join(f"{each.title:>{each.width}}" for each in columns)
    return [Span(cut(name, width) + titles, "bold underline")]


def _cells(columns: Sequence[Column], cells: Sequence[Span]) -> Iterator[Span]:
    for column, cell in zip(columns, cells, strict=False):
        yield Span(f"{cell.text:>{column.width}}", cell.style)


def _fit(line: Line, width: int) -> Line:
    """The line, cut at its end."""
    fitted: Line = []
    for span in line:
        left = width - sum(cell_len(each.text) for each in fitted)
        if cell_len(span.text) > left:
            return [*fitted, Span(set_cell_size(span.text, left), span.style)]
        fitted.append(span)
    return fitted


def _sum(rates: Rates | None) -> float | None:
    return None if rates is None else sum(rates.values())


def _lost(flow: Flow) -> float | None:
    if flow.out_s is None:
        return None
    return flow.out_s.get("overflow", 0.0) + flow.out_s.get("outdated", 0.0)


def _value(rate: float | None) -> str:
    return "-" if rate is None else number(rate)


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{number(rate)}/s"


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _count(value: int | None) -> Span:
    return Span("-" if value is None else number(value), "" if value else DIM)


def _some(rates: Rates | None, outcome: str) -> Span:
    rate = None if rates is None else rates.get(outcome, 0.0)
    return Span(_value(rate), "" if rate else DIM)


def _age(seconds: float | None) -> Span:
    return Span(_time(seconds), WARN if seconds is not None and seconds > LATE_S else "")
