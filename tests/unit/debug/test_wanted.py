"""Which one package somebody means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker_pipeline import Outcome
from broker_pipeline.debug.inspection.history import recorded_history
from broker_pipeline.debug.inspection.wanted import Wanted
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.errors import SelectionError, UnknownPackageError
from tests.unit.debug.recorded import META, arrival, left


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "no package is named"),
        ({"package_id": "talk/0/1", "last": True}, "several packages"),
        ({"error": 1, "last": True}, "several packages"),
        ({"instance": "room"}, "no package is named"),
        ({"sequence": 1}, "a sequence id alone"),
        ({"package_id": "talk/0/1", "instance": "room"}, "says of which instance"),
        ({"error": 1, "epoch": 3}, "a life alone"),
        ({"error": 0}, "no ERROR 0"),
    ],
)
def test_what_names_no_one_package_is_refused(options: dict[str, Any], said: str) -> None:
    """With the ways to name one."""
    with pytest.raises(SelectionError, match=f"{said}.*--error N"):
        Wanted(**options)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """With two lives of an instance."""
    path = tmp_path / "talk.bprec"
    with Recording.create(path, META) as new:
        for number in (2, 3, 12, 13):
            new.add_event(arrival(number))
        new.add_outcome(left(2, 1, epoch=2, outcome=Outcome.ERROR, stream_seq=5))
        new.add_outcome(left(3, 2, epoch=2, stream_seq=6))
        new.add_outcome(left(12, 1, epoch=12, outcome=Outcome.ERROR, stream_seq=20))
    return path


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ({"package_id": "talk/0/3"}, 3),
        ({"package_id": "13"}, 13),
        ({"instance": "room", "sequence": 1}, 12),
        ({"instance": "room", "sequence": 1, "epoch": 2}, 2),
        ({"instance": "room", "sequence": 2}, 3),
        ({"error": 1}, 2),
        ({"error": -1}, 12),
        ({"error": 2, "instance": "room"}, 12),
        ({"last": True}, 12),
    ],
)
def test_a_package_is_found_in_a_recording(
    recording: Path, options: dict[str, Any], number: int
) -> None:
    """By each of the ways."""
    with Recording.open(recording) as opened:
        assert Wanted(**options).in_recording(opened) == number


@pytest.mark.parametrize(
    "options",
    [{"instance": "room", "sequence": 9}, {"error": 3}, {"last": True, "instance": "other"}],
)
def test_one_that_is_not_in_it_is_told(recording: Path, options: dict[str, Any]) -> None:
    """By the same error as one that the log does not have."""
    with Recording.open(recording) as opened, pytest.raises(UnknownPackageError, match="no such"):
        Wanted(**options).in_recording(opened)


def test_a_name_that_no_instance_can_have_is_told(recording: Path) -> None:
    """Before anything is looked for."""
    with Recording.open(recording) as opened, pytest.raises(SelectionError, match="no instance"):
        Wanted(instance="x" * 200, sequence=1).in_recording(opened)


def test_the_history_in_a_recording_is_its_arrival_and_its_outcome(recording: Path) -> None:
    """Of one that was inside, the arrival; and notes say what there is not."""
    with Recording.open(recording) as opened:
        history = recorded_history(opened, 2)
        assert history.arrival is not None and history.arrival.data == b"sound"
        assert history.outcome is not None and history.package().outcome == "ERROR"
        assert (history.inputs, history.completions) == ((), ())
        assert "no inputs of phases" in history.notes[0]
        inside = recorded_history(opened, 13)
        assert inside.outcome is None
        assert inside.latest.data == b"sound"
        with pytest.raises(UnknownPackageError, match="no package 'talk/0/99'"):
            recorded_history(opened, 99)
