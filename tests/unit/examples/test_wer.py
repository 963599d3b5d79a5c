"""Word error rate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.transcribe.wer import word_errors

TEXT = st.lists(st.sampled_from("abcd"), max_size=8).map(" ".join)


@pytest.mark.parametrize(
    ("said", "heard", "errors"),
    [
        ("a b c", "a b c", (0, 0, 0, 3)),
        ("a b c", "", (0, 3, 0, 3)),
        ("", "a", (0, 0, 1, 0)),
        ("a b c d", "a x c d e", (1, 0, 1, 4)),
        ("It\u2019s ON\u2014not off.", "it's on not off", (0, 0, 0, 4)),
    ],
)
def test_errors_are_counted_by_kind(said: str, heard: str, errors: tuple[int, ...]) -> None:
    """Case and punctuation do not count, apostrophes do."""
    assert word_errors(said, heard) == errors


@given(TEXT, TEXT)
def test_the_distance_is_what_edits_add_up_to(said: str, heard: str) -> None:
    """Swapping the texts swaps what is missing and what is too much; lengths add up."""
    one, other = word_errors(said, heard), word_errors(heard, said)
    assert sum(one[:3]) == sum(other[:3])
    assert one.deletions - one.insertions == len(said.split()) - len(heard.split())
    assert (sum(one[:3]) == 0) == (said == heard)


def test_the_rate_may_exceed_one_and_needs_no_reference() -> None:
    """Too many words are errors too."""
    assert word_errors("a", "a b c").rate == 2.0
    assert word_errors("", "").rate == 0.0
    assert word_errors("", "a").rate == float("inf")
