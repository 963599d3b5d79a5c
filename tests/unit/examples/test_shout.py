"""The small pipeline of the README."""

from __future__ import annotations

from broker_pipeline import Outcome
from broker_pipeline.testing import run_in_memory
from examples.shout import pipeline as shout


def test_shout_upper_cases_text_and_lets_empty_text_go() -> None:
    """Raw bytes are text here; nothing comes out as EXIT with the reason."""
    empty, hello = sorted(run_in_memory(shout, [b"hello", b""]), key=lambda p: str(p.outcome))
    assert (hello.data, hello.outcome) == ("HELLO", Outcome.SUCCESS)
    assert hello.controllers[0].phases[0].modules[0].message == "upper-cased"
    assert empty.controllers[0].phases[0].modules[0].message == "empty"
