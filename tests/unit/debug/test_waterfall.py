"""How the history of a package looks in a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from rich.cells import cell_len

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.debug.inspection.history import PackageHistory
from broker_pipeline.debug.inspection.waterfall import duration, waterfall
from tests.unit.debug.journeys import at, failed, inside, message

FAILED = """\
talk/0/17  room #7  ERROR after 400 ms
arrived 2023-11-14 22:13:20.000  life 2  who=me
cannot bear this one

arrived                             22:13:20.000 ▏
hear NOT_PARALLEL #7                     80.0 ms ───────
  waited to be admitted                  5.00 ms ░
  waited for split                       15.0 ms ░░
  split by alpha-1                       50.0 ms  █████
    Split                                50.0 ms  ▆▆▆▆▆
      » two words
      » �[31mred
  waited for its turn                    10.0 ms      ░░
say ERROR ORDER_BY_SEQUENCE #7            320 ms       ─────────────────────────
  waited to be admitted                  10.0 ms       ░
  waited for upper                       10.0 ms       ░░
  upper by beta-2                         100 ms        █████████
    Both                                  100 ms        ▆▆▆▆▆▆▆▆▆
      Upper on gpu-1                     90.0 ms         ▆▆▆▆▆▆▆▆
        waited for a server              30.0 ms         ░░░
  waited for speak                       50.0 ms                ░░░░░
  speak ERROR by beta-2                   150 ms                    ████████████
    Speak ERROR                           150 ms                    ▆▆▆▆▆▆▆▆▆▆▆▆
      » ValueError: cannot bear this one
left ERROR                          22:13:20.400                               ▏

ValueError in say/speak/Speak (by beta-2, beta)
  cannot bear this one
  Traceback (most recent call last):
    File "speak.py", line 7, in execute
  ValueError: cannot bear this one

payload as it arrived
  6 bytes
  000000  6c 6f 75 64 65 72                                louder

payload before say.upper
  6 bytes of text/plain
  louder

payload before say.speak
  6 bytes of text/plain
  LOUDER

note: something is gone
note: say.speak was begun 3 times more, after two deliveries to it
"""


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times of day are local: let that be UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def drawn(history: PackageHistory, width: int = 80) -> list[str]:
    """The lines as text."""
    return [line.plain.rstrip() for line in waterfall(history, {}, now_ns=at(500), width=width)]


def test_a_package_that_failed_is_told_from_its_arrival_to_its_end() -> None:
    """What waited and what ran, to scale; messages, the error with its traceback, and the payload
    wherever it changed. Nothing that is in it moves the cursor."""
    assert "\n".join(drawn(failed())) + "\n" == FAILED


def test_a_package_that_is_inside_says_where_and_for_how_long() -> None:
    """Up to now."""
    lines = drawn(inside())
    assert lines[0] == "talk/0/17  room #7  INSIDE for 500 ms"
    assert "It is in the queue of say.upper, or being run there." in lines
    last = next(line for line in lines if line.startswith("inside"))
    assert "410 ms" in last and last.endswith("░")
    assert any(line.startswith("say RUNNING") for line in lines)


def test_a_package_that_has_just_arrived_can_be_looked_at() -> None:
    """There is no journey yet, and no sequence id."""
    new = PackageHistory("talk", 0, 17, "room", message("ctl.in.room", 17, 0), pb.DataPackage())
    lines = drawn(new)
    assert lines[0] == "talk/0/17  room #?  INSIDE for 500 ms"
    assert "It waits to be admitted: no worker is free for it, or no controller runs." in " ".join(
        lines
    )


@pytest.mark.parametrize("width", [20, 60, 80, 81, 120, 200])
def test_the_bars_fit_into_the_terminal(width: int) -> None:
    """Whatever its width; below 60 columns as for 60."""
    for history in (failed(), inside()):
        assert max(cell_len(line) for line in drawn(history, width)) <= max(60, width)


def test_names_of_any_length_and_script_leave_the_bars_in_line() -> None:
    """They are cut; wide characters count twice."""
    history = failed()
    assert history.outcome is not None
    history.outcome.controllers[0].name = "聴" * 40
    history.outcome.controllers[1].name = "x" * 100
    lines = drawn(history)
    assert max(cell_len(line) for line in lines) <= 80
    bars = [line for line in lines if "─" in line]
    assert [cell_len(bar[: bar.index("─")]) for bar in bars] == [49, 55]


def test_clocks_that_disagree_do_not_break_the_drawing() -> None:
    """A worker's clock may be behind the broker's, or ahead of it."""
    for shift in (-10_000, 10_000):
        history = failed()
        assert history.outcome is not None
        history.outcome.controllers[0].phases[0].start_time_ns = at(shift)
        assert any("split by alpha-1" in line for line in drawn(history))


def test_a_package_that_never_ran_shows_what_it_waited_for() -> None:
    """As one that left as OVERFLOW."""
    history = failed()
    assert history.outcome is not None
    outcome = pb.DataPackage()
    outcome.CopyFrom(history.outcome)
    del outcome.controllers[1:]
    del outcome.controllers[0].phases[:]
    outcome.controllers[0].input_waiting_time_ns = outcome.controllers[0].total_time_ns
    lines = drawn(replace(history, outcome=outcome, inputs=()))
    assert any(
        line.startswith("  waited to be admitted                  80.0 ms ░") for line in lines
    )


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 µs"),
        (999, "1 µs"),
        (41_000, "41 µs"),
        (999_999, "1000 µs"),
        (3_100_000, "3.10 ms"),
        (31_000_000, "31.0 ms"),
        (380_000_000, "380 ms"),
        (999_600_000, "1.00 s"),
        (12_340_000_000, "12.3 s"),
        (59_960_000_000, "1 min 00 s"),
        (184_000_000_000, "3 min 04 s"),
        (7_380_000_000_000, "2 h 03 min"),
        (-5_000, "-5 µs"),
    ],
)
def test_lengths_of_time_have_three_digits(ns: int, text: str) -> None:
    """From microseconds to hours."""
    assert duration(ns) == text


def test_the_history_as_json_has_everything() -> None:
    """The package, its inputs with their payloads, and where it stands."""
    told = failed().to_json()
    assert (told["id"], told["outcome"], told["inside"]) == ("talk/0/17", "ERROR", None)
    assert [each["data"] for each in told["inputs"]] == ["bG91ZGVy", "louder", "LOUDER"]
    assert told["inputs"][2]["begun"] == 3
    assert told["arrival"]["data"] == "bG91ZGVy"
    assert told["notes"] == ["something is gone"]
    assert told["errors"][0]["message"] == "cannot bear this one"
    assert inside().to_json()["inside"].startswith("is in the queue of say.upper")
