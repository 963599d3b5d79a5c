"""Selections: what a person may write, and which packages that means."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from time import tzset
from typing import Any

import pytest

from broker_pipeline import Outcome
from broker_pipeline.debug.recordings.selection import Selection, parse_sequences, parse_time
from broker_pipeline.errors import SelectionError
from broker_pipeline.journey import NS

NOW = datetime(2026, 2, 3, 15, 30, tzinfo=timezone(timedelta(hours=2)))


def parsed(**options: Any) -> Selection:
    """A selection, at NOW."""
    return Selection.parse(now=NOW, **options)


@pytest.mark.parametrize(
    ("text", "sequences"),
    [("12", (12, 12)), ("3..9", (3, 9)), (" 3.. ", (3, None)), ("..9", (1, 9)), ("1..1", (1, 1))],
)
def test_sequence_ids(text: str, sequences: tuple[int, int | None]) -> None:
    """One, or from and to, both included; either may be left out."""
    assert parse_sequences(text) == sequences


@pytest.mark.parametrize(
    "text", ["", "..", "0", "0..3", "9..3", "a", "3-9", "-1", "1..2..3", "٣", "1" * 30, "1.5"]
)
def test_sequence_ids_that_are_none(text: str) -> None:
    """The error shows what can be written."""
    with pytest.raises(SelectionError, match=r"expected.*'3\.\.9'"):
        parse_sequences(text)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("14:00", datetime(2026, 2, 3, 12, 0, tzinfo=UTC)),
        ("9:05", datetime(2026, 2, 3, 7, 5, tzinfo=UTC)),
        ("14:00:30.5", datetime(2026, 2, 3, 12, 0, 30, 500_000, tzinfo=UTC)),
        ("2026-02-01", datetime(2026, 1, 31, 22, 0, tzinfo=UTC)),
        ("2026-02-01T14:00", datetime(2026, 2, 1, 12, 0, tzinfo=UTC)),
        ("2026-02-01 14:00Z", datetime(2026, 2, 1, 14, 0, tzinfo=UTC)),
        ("2026-02-01T14:00:00-05:00", datetime(2026, 2, 1, 19, 0, tzinfo=UTC)),
        ("10m ago", datetime(2026, 2, 3, 13, 20, tzinfo=UTC)),
        ("1.5h", datetime(2026, 2, 3, 12, 0, tzinfo=UTC)),
        ("90 S AGO", datetime(2026, 2, 3, 13, 28, 30, tzinfo=UTC)),
        ("2d ago", datetime(2026, 2, 1, 13, 30, tzinfo=UTC)),
        (" now ", datetime(2026, 2, 3, 13, 30, tzinfo=UTC)),
    ],
)
def test_times(text: str, time: datetime) -> None:
    """Of today, with a date, with an offset, and how long ago."""
    assert parse_time(text, NOW) == round(time.timestamp() * 1_000_000) * 1_000


def test_ago_is_by_the_seconds_that_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour was gone through twice at the end of summer time."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    tzset()
    try:
        here = datetime(2026, 10, 25, 3, 30)
        assert parse_time("2h ago", here) == (int(here.timestamp()) - 7200) * NS
    finally:
        monkeypatch.undo()
        tzset()


def test_times_are_local_where_now_is() -> None:
    """A time without an offset is one of this machine's zone."""
    here = datetime(2026, 7, 3, 15, 30)
    assert parse_time("14:00", here) == int(datetime(2026, 7, 3, 14).timestamp()) * NS
    assert parse_time("2026-01-03", here) == int(datetime(2026, 1, 3).timestamp()) * NS


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "25:00", "14:61", "14", "10 ago", "999999999d ago", "2026-13-01",
     "0001-01-01", "1e9s ago", "-5m ago"],
)  # fmt: skip
def test_times_that_are_none(text: str) -> None:
    """The error shows what can be written."""
    with pytest.raises(SelectionError, match="'10m ago'"):
        parse_time(text, NOW)


def test_what_a_selection_takes() -> None:
    """Whose it is, its number, when it arrived, how it left: all of them must fit."""
    chosen = parsed(
        instances=["room 1", "room 1"], sequences="2..3", since="14:00", until="15:00", errors=True
    )
    assert chosen.instances == ("room=201",)
    two = parse_time("14:00", NOW)
    assert chosen.takes("room=201", 2, two, Outcome.ERROR)
    assert not chosen.takes("room=202", 2, two, Outcome.ERROR)
    assert not chosen.takes("room=201", 1, two, Outcome.ERROR)
    assert not chosen.takes("room=201", 4, two, Outcome.ERROR)
    assert not chosen.takes("room=201", 2, two - 1, Outcome.ERROR)
    assert not chosen.takes("room=201", 2, two + 3_600 * NS, Outcome.ERROR)
    assert not chosen.takes("room=201", 2, two, Outcome.EXIT)
    assert not chosen.takes("room=201", 2, two, None)
    assert chosen.cuts_lives
    assert str(chosen).startswith("instances 'room 1', sequences 2..3, since 2026-02-03T")
    assert str(chosen).endswith("ERROR")


def test_an_empty_selection_takes_everything() -> None:
    """What is inside still, too."""
    assert parsed() == Selection()
    assert Selection().takes("room", 1, 0, None)
    assert not Selection().cuts_lives
    assert not parsed(instances=["room"]).cuts_lives
    assert str(Selection()) == "everything"


@pytest.mark.parametrize(
    "options",
    [{"since": "15:00", "until": "14:00"}, {"instances": [""]}, {"instances": ["x" * 129]}],
)
def test_selections_that_mean_nothing(options: dict[str, Any]) -> None:
    """They are refused before anything is read."""
    with pytest.raises(SelectionError, match="expected"):
        parsed(**options)
