"""`top` on a terminal: whatever there is to show, no line wraps and none is too many."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from broker_pipeline.debug.operation import screen
from broker_pipeline.debug.operation.top import (
    ControllerRow,
    Flow,
    PhaseRow,
    RoleRow,
    ServerRow,
    Shard,
    Total,
    View,
)

OUT = {"success": 50.0, "exit": 1.5, "error": 3.0, "overflow": 0.0, "outdated": 12.0}
FLOW = Flow(512.0, OUT, 0.0012, 1.25)
NONE = Flow(None, None, None, None)
VIEW = View(
    pipeline="shout",
    at=1_700_000_000.0,
    over_s=5.0,
    shards=(Shard(0, "host-1-abcdef", True, 1, 12, 0.5, 2000.0, 12345, 2**30, 2**32, True),),
    total=Total(FLOW, 42),
    controllers=(ControllerRow("tidy", "ORDER_BY_SEQUENCE", FLOW, 40, 0, 2, 0.3),),
    phases=(PhaseRow("tidy", "upper", "worker", 2, FLOW, 7, 1234, 9, 1, 61.0),),
    roles=(
        RoleRow("controller", "host-1", (), "1", 99.0, True, None, None, None, None, 0, 0),
        RoleRow("worker", "host-2", ("tidy.upper",), "1", 9.0, False, 512.0, 3, 4, 0.75, 1, 2),
    ),
    servers=(ServerRow("asr", "host:50051", "host-3", "1 good", 12.0, 4, 1, 4, 1.0, 0.02),),
)
UNKNOWN = View(
    pipeline="shout",
    at=0.0,
    over_s=1.0,
    shards=(Shard(0, None, False, 0, None, 99.0, 0.0, 0, 0, None, False),),
    total=Total(NONE, None),
    controllers=(ControllerRow("tidy", "NO_ORDER", NONE, None, None, None, None),),
    phases=(PhaseRow("tidy", "upper", "worker", 0, NONE, None, 0, 0, 0, None),),
    roles=(),
    servers=(),
)
TALL = 1000


def shown(view: View, width: int = 80, height: int = 24) -> list[str]:
    """The lines as text."""
    return screen.plain(screen.lines(view, width, height)).split("\n")


def test_everything_is_on_eighty_columns() -> None:
    """Who leads, what flows, who works; nothing is cut."""
    text = "\n".join(shown(VIEW))
    for part in (
        "shout", "led by host-1-abcdef", "1 standby", "behind 12", "1.0 GiB of 4.0 GiB",
        "in 512/s", "out 66/s", "inside 42", "p50 1.2 ms", "error 3", "outdated 12",
        "host-2", "tidy.upper", "75%", "1 lost", "2 held", "leads", "asr",
        "host:50051 (1 good)", "100%", "1234", "61 s",
    ):  # fmt: skip
        assert part in text, part
    assert "…" not in text


def test_wide_terminals_show_more() -> None:
    """What is lost, and what was delivered again."""
    assert "lost/s" not in "\n".join(shown(VIEW))
    assert "lost/s" in "\n".join(shown(VIEW, 132))


def test_what_nobody_tells_is_a_dash_and_said() -> None:
    """Nobody leads, nobody answers, producers are refused."""
    text = "\n".join(shown(UNKNOWN))
    for part in ("nobody leads", "no role answers", "are refused", "in -", "no leader says"):
        assert part in text, part


def test_a_low_terminal_says_how_much_is_missing() -> None:
    """Instead of its last lines."""
    lines = shown(VIEW, 80, 10)
    assert len(lines) == 10 and "more lines" in lines[-1]


names = st.text(max_size=80)
rows = st.integers(0, 12)


@given(names, names, rows, rows, st.integers(20, 200), st.integers(1, 60), st.booleans())
def test_no_line_is_wider_and_none_too_many(
    name: str, other: str, many: int, more: int, width: int, height: int, known: bool
) -> None:
    """Whatever is called how, and however many there are; nothing is a command to the terminal."""
    base = VIEW if known else UNKNOWN
    view = msgspec.structs.replace(
        base,
        pipeline=name,
        shards=(msgspec.structs.replace(base.shards[0], leader=other),),
        controllers=(msgspec.structs.replace(base.controllers[0], name=name),) * many,
        phases=(msgspec.structs.replace(base.phases[0], controller=name, name=other),) * 2,
        roles=(msgspec.structs.replace(VIEW.roles[1], name=name, phases=(other,) * many),) * more,
        servers=(msgspec.structs.replace(VIEW.servers[0], module=name, address=other),) * more,
    )
    lines = screen.lines(view, width, height, [1.0, 2.0, 0.5])
    assert len(lines) <= height
    for line in lines:
        text = "".join(each.text for each in line)
        assert cell_len(text) <= width
        assert all(each.isprintable() for each in text)
    tall = screen.lines(view, width, TALL)
    assert {cell_len("".join(each.text for each in line)) <= width for line in tall} == {True}


@given(st.text(max_size=40), st.integers(0, 50))
def test_a_cut_text_has_its_width(text: str, width: int) -> None:
    """Exactly, wide characters included; its beginning and its end are kept."""
    assert cell_len(screen.cut(text, width)) == width


def test_a_cut_text_keeps_both_ends() -> None:
    """The host and the process."""
    assert screen.cut("transcriber-7f9c-3812", 12) == "trans…c-3812"


def test_the_trend_of_what_left_is_drawn_where_there_is_room() -> None:
    """As bars; not for a pipeline that stands."""
    drawn = screen.plain(screen.lines(VIEW, 132, 40, [0.0, 5.0, 10.0]))
    assert "▁▄█" in drawn
    assert "█" not in screen.plain(screen.lines(VIEW, 132, 40, [0.0, 0.0]))
