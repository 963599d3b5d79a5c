"""Replays in memory seen from outside: how far they are, at which pace, and how they stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from broker_pipeline import Controller, Phase, Pipeline
from broker_pipeline.debug.recordings.recorded import RecordedEvent
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.debug.replays.replay_memory import replay_in_memory
from broker_pipeline.debug.replays.replaying import Watch
from broker_pipeline.journey import NS
from tests.unit.debug.recorded import BEGIN_NS, META, SUBJECTS, Pass, arrival, done, left

PIPELINE = Pipeline("talk", [Controller("c", [Phase("p", [Pass()])])])


def write(path: Path, *rows: Any) -> Path:
    """A recording of these rows."""
    with Recording.create(path, META) as recording:
        for row in rows:
            add = recording.add_event if isinstance(row, RecordedEvent) else recording.add_outcome
            add(row)
    return path


def event(stream_seq: int, seconds: int) -> RecordedEvent:
    """Something that arrived then."""
    subject = SUBJECTS.arrival("room")
    return RecordedEvent(stream_seq, BEGIN_NS + seconds * NS, "in", "room", subject)


def waits_of(path: Path, *rows: RecordedEvent) -> list[float]:
    """For how long a replay at ten times the speed waits before each event."""
    now = [100.0]
    watch = Watch(10.0, now=lambda: now[0])
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(round(seconds, 6))
        now[0] += seconds

    watch.wait = wait  # type: ignore[method-assign]
    with Recording.open(write(path, *rows)) as recording:
        left = list(replay_in_memory(recording, PIPELINE, watch=watch))
    assert len(left) == sum(row.kind == "in" for row in rows)
    return waits


def test_a_replay_keeps_the_pace_that_was_asked_for(tmp_path: Path) -> None:
    """By a clock that the test holds: each event at its time, divided by the speed."""
    assert waits_of(tmp_path / "r", event(1, 1), event(2, 2), event(4, 4)) == [0.0, 0.1, 0.2]


def test_nothing_is_waited_for_before_the_first_arrival(tmp_path: Path) -> None:
    """A part of a recording has the ticks of all of it."""
    tick = RecordedEvent(1, BEGIN_NS - 3600 * NS, "tick", subject=SUBJECTS.tick)
    assert waits_of(tmp_path / "r", tick, event(2, 2), event(4, 4)) == [0.0, 0.0, 0.2]


def test_a_replay_can_be_stopped_and_says_how_far_it_was(tmp_path: Path) -> None:
    """What is inside then does not leave."""
    rows: list[Any] = []
    for n in range(1, 100, 4):
        rows += [arrival(n), done(n + 1, n, "c"), left(n, n, stream_seq=n + 2)]
    watch, seen = Watch(), []
    with Recording.open(write(tmp_path / "r", *rows)) as recording:
        for each in replay_in_memory(recording, PIPELINE, watch=watch):
            seen.append(each)
            if len(seen) == 5:
                watch.stop()
    assert len(seen) == watch.left == 5
    assert watch.arrived == 5
    assert watch.running is None
