"""The batches of the README."""

from __future__ import annotations

from broker_pipeline import Outcome
from broker_pipeline.testing import run_in_memory
from examples.batches import pipeline


def test_squares_in_memory_end_as_in_a_worker() -> None:
    """One is bad, one has nothing to do, and neither is of the others' concern."""
    left = sorted(run_in_memory(pipeline, ["3", "x", "0"]), key=lambda package: package.sequence)
    assert [package.outcome for package in left] == [Outcome.SUCCESS, Outcome.ERROR, Outcome.EXIT]
    assert [package.data for package in left] == ["9", "x", "0"]
    assert left[2].reason == "nothing to do"
