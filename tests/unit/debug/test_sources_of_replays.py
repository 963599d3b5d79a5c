"""What is replayed, and what somebody is told of it before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from broker_pipeline import Controller, Outcome, Phase, Pipeline
from broker_pipeline.core.plan import compile_plan
from broker_pipeline.debug.recordings.recorded import RecordedEvent, RecordedOutcome, RecordingMeta
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.debug.recordings.selection import Selection
from broker_pipeline.debug.replays.replay_source import source, warnings
from broker_pipeline.errors import ReplayError
from tests.unit.debug.recorded import Pass, arrival, done, left
from tests.unit.debug.test_replaying_in_memory import Counting


def talk(**options: int) -> Pipeline:
    return Pipeline("talk", [Controller("c", [Phase("p", [Pass()])], **options)])


def write(
    path: Path, *rows: RecordedEvent | RecordedOutcome, pipeline: str = "talk",
    plan: str = "", notes: tuple[str, ...] = (),
) -> Path:  # fmt: skip
    with Recording.create(path, RecordingMeta(pipeline=pipeline, plan=plan, notes=notes)) as new:
        for row in rows:
            if isinstance(row, RecordedEvent):
                new.add_event(row)
            else:
                new.add_outcome(row)
    return path


WHOLE = (arrival(1), done(2, 1, "c"), left(1, 1, stream_seq=3), arrival(4))
"""A package that left, and one that is inside."""


def test_a_whole_recording_of_the_same_pipeline_is_replayed_without_a_word(tmp_path: Path) -> None:
    """Also where something is inside still."""
    plan = compile_plan(talk()).to_bytes().decode()
    assert list(warnings(write(tmp_path / "r", *WHOLE, plan=plan), talk())) == []


def test_what_may_make_a_replay_another_one_is_said(tmp_path: Path) -> None:
    """Packages that are missing, a plan that has changed, what the recorder noted."""
    rows = (arrival(9), left(9, 5, epoch=2, stream_seq=11))
    plan = compile_plan(talk()).to_bytes().decode()
    path = write(tmp_path / "r", *rows, plan=plan, notes=("3 were purged\x1b[2J",))
    note, changed, cut = warnings(path, talk(queue_size=3))
    assert note == r"the recording: 3 were purged\x1b[2J"
    assert changed == "the plan has changed: controllers[c].queue_size: None -> 3"
    assert "missing in the lives of 'room' (1 of 5): the queues of controllers" in cut
    stateful = Pipeline("talk", [Controller("c", [Phase("p", [Counting()])])])
    assert "the states of modules and the queues" in list(warnings(path, stateful))[-1]


def test_another_pipelines_recording_and_a_newer_plan_are_no_obstacle(tmp_path: Path) -> None:
    """They are said; what is in force is today's plan."""
    (line,) = warnings(write(tmp_path / "a", *WHOLE, pipeline="old"), talk())
    assert line == "it is a recording of pipeline 'old', and 'talk' replays it"
    newer = json.dumps({"pipeline": "talk", "version": 99})
    (line,) = warnings(write(tmp_path / "b", *WHOLE, plan=newer), talk())
    assert "its plan cannot be compared with today's" in line


async def test_a_file_is_replayed_as_it_is_or_in_part(tmp_path: Path) -> None:
    """What is made for a replay is gone after it; the file itself stays as it was."""
    file = write(tmp_path / "r", *WHOLE)
    async with source(talk(), Selection(), file=file, url="") as path:
        assert path == file
    success = Selection(outcomes=frozenset([Outcome.SUCCESS]))
    async with source(talk(), success, file=file, url="") as path:
        assert path != file
        with Recording.open(path) as part:
            assert part.counts().events == {"in": 1, "done": 1}
            assert part.meta.selection == "everything; of that SUCCESS"
    assert not path.exists()
    assert file.exists()
    error = Selection(outcomes=frozenset([Outcome.ERROR]))
    with pytest.raises(ReplayError, match="has no package of ERROR; expected at least one"):
        async with source(talk(), error, file=file, url=""):
            pass
