"""Recordings that were made once must be readable for ever."""

from __future__ import annotations

from broker_pipeline.core.plan import Plan
from broker_pipeline.debug.recordings.recording import Recording
from tests.golden.recordings import EVENTS, FILE, META, OUTCOMES, PLAN


def test_a_recording_of_format_1_reads_as_it_was_written() -> None:
    """Every kind of event, every outcome, what is gone, and what it says of itself."""
    with Recording.open(FILE) as recording:
        assert recording.meta == META
        assert recording.plan == Plan.from_bytes(PLAN.encode())
        assert list(recording.events()) == EVENTS
        assert list(recording.outcomes()) == OUTCOMES
        assert recording.done_seq(4, "c") == 12
        package = recording.outcome_of(3)
        assert package is not None
        assert package.id == "talk/0/3"
