"""Which recorded arrivals a replay through a log publishes, in which order and lives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from broker_pipeline import Controller, Phase, Pipeline
from broker_pipeline.core.names import HEADER_NUMBER, HEADER_PRODUCER, TICK_PAUSE
from broker_pipeline.core.plan import compile_plan
from broker_pipeline.debug.recordings.recorded import RecordedEvent, RecordedOutcome
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.debug.replays.admission import Admission, Admitted, Cuts
from broker_pipeline.journey import NS
from tests.unit.debug.recorded import META, SUBJECTS, Pass, arrival, at, done, left

PLAN = compile_plan(
    Pipeline(
        "talk", [Controller("c", [Phase("p", [Pass()])])], instance_idle_s=60.0, producer_gap_s=2.0
    )
)


def numbered(stream_seq: int, number: int, token: str = "room") -> RecordedEvent:
    return arrival(
        stream_seq, token=token, headers={HEADER_PRODUCER: "p", HEADER_NUMBER: str(number)}
    )


def later(event: RecordedEvent, seconds: float) -> RecordedEvent:
    return replace(event, time_ns=event.time_ns + int(seconds * NS))


def taken(tmp_path: Path, *rows: RecordedEvent | RecordedOutcome) -> list[int | str]:
    """What is published: ids of packages, and `end ROOM`."""
    with Recording.create(tmp_path / "r", META) as recording:
        for row in rows:
            add: Any = (
                recording.add_event if isinstance(row, RecordedEvent) else recording.add_outcome
            )
            add(row)
    found: list[int | str] = []
    with Recording.open(tmp_path / "r") as recording:
        admission = Admission(recording, PLAN)
        for event in recording.events():
            for each in admission.take(event):
                found.append(each.package_id if isinstance(each, Admitted) else f"end {each.token}")
        for each in admission.rest():
            found.append(each.package_id if isinstance(each, Admitted) else f"end {each.token}")
    return found


def test_raw_packages_come_as_they_came(tmp_path: Path) -> None:
    """And every life ends at the end, so that nothing of the replay goes on."""
    rows = [arrival(1), arrival(2, token="b"), arrival(3)]
    assert taken(tmp_path, *rows) == [1, 2, 3, "end b", "end room"]


def test_repeats_are_dropped_and_early_ones_wait(tmp_path: Path) -> None:
    """By the producer's numbers, as the recorded controllers took them."""
    rows = [numbered(1, 1), numbered(2, 3), numbered(3, 1), numbered(4, 2), numbered(5, 4)]
    assert taken(tmp_path, *rows) == [1, 4, 2, 5, "end room"]


def test_a_gap_is_given_up_by_the_recorded_time(tmp_path: Path) -> None:
    """At the next event, or at the end; the missing one may come after that."""
    rows = [numbered(1, 1), numbered(2, 3), later(numbered(3, 4), 5), later(numbered(4, 2), 6)]
    assert taken(tmp_path, *rows) == [1, 2, 3, 4, "end room"]
    (tmp_path / "r").unlink()
    assert taken(tmp_path, numbered(1, 1), numbered(2, 3)) == [1, 2, "end room"]


def test_a_gap_is_not_given_up_while_it_is_paused(tmp_path: Path) -> None:
    """As the log's leader said; what waits still at the end comes then."""
    tick = RecordedEvent(3, 3, "tick", subject=SUBJECTS.tick, data=TICK_PAUSE)
    rows = [numbered(1, 1), numbered(2, 3), tick, later(numbered(4, 2), 60), numbered(5, 5)]
    assert taken(tmp_path, *rows) == [1, 4, 2, 5, "end room"]


def test_lives_end_where_they_ended(tmp_path: Path) -> None:
    """By a close, or by silence; a completion is a sign of life."""
    close = RecordedEvent(
        3, at(3), "close", "room", SUBJECTS.arrival("room"), {"Bp-Control": "close"}
    )
    rows = [arrival(1), close, arrival(4)]
    assert taken(tmp_path, *rows) == [1, "end room", 4, "end room"]
    (tmp_path / "r").unlink()
    assert taken(tmp_path, arrival(1), later(arrival(2), 61)) == [1, "end room", 2, "end room"]
    (tmp_path / "r").unlink()
    rows = [arrival(1), later(done(2, 1, "c"), 40), later(arrival(3), 70)]
    assert taken(tmp_path, *rows) == [1, 3, "end room"]


def test_a_life_that_ends_and_begins_in_one_event_ends_first(tmp_path: Path) -> None:
    """An arrival just after the idle time, before any tick."""
    rows = [numbered(1, 1), later(numbered(2, 1), 62)]
    assert taken(tmp_path, *rows) == [1, "end room", 2, "end room"]


def test_what_cannot_be_read_arrives_too(tmp_path: Path) -> None:
    """It left as ERROR then, and will now."""
    bad = arrival(1, b"\xff", headers={"Content-Type": (
        "application/vnd.broker-pipeline.package.v1+protobuf")})  # fmt: skip
    nobody = RecordedEvent(2, at(2), "in", "", SUBJECTS.ctl_in)
    assert taken(tmp_path, bad, nobody) == [1, "end room"]


def test_nothing_is_waited_for_that_the_recording_does_not_have(tmp_path: Path) -> None:
    """A part of a life begins with any number, and has holes."""
    rows = [numbered(11, 5), numbered(15, 9), numbered(16, 9)]
    outcomes = [left(11, 5, epoch=1, stream_seq=12), left(15, 9, epoch=1, stream_seq=17)]
    assert taken(tmp_path, *rows, *outcomes) == [11, 15, "end room"]


def test_what_is_inside_at_the_end_does_not_stand_for_what_is_missing(tmp_path: Path) -> None:
    """Numbers 1 and 2 are not in the recording; two that came later had not left when it ended."""
    rows = [
        numbered(5, 3), numbered(6, 4), done(7, 5, "c"), done(8, 6, "c"),
        left(5, 3, epoch=1, stream_seq=9), left(6, 4, epoch=1, stream_seq=10),
        numbered(11, 5), numbered(12, 6),
    ]  # fmt: skip
    assert taken(tmp_path, *rows) == [5, 6, 11, 12, "end room"]
    with Recording.open(tmp_path / "r") as recording:
        assert [life.instance for life in Cuts(recording).lives] == ["room"]
