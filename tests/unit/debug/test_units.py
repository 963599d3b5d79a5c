"""Times, sizes and rates: short, and right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.debug.operation.units import duration, number, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.0000004, "0 us"), (0.0009, "900 us"), (0.00096, "1.0 ms"), (0.0123, "12 ms"),
        (0.9996, "1.0 s"), (1.25, "1.2 s"), (59, "59 s"), (99.6, "2 m"), (3600, "60 m"),
        (7200, "2 h"), (500_000, "6 d"), (-0.25, "-250 ms"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    """In the unit that suits."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (150 * 2**20, "150 MiB"), (2**50, "1.0 PiB")],
)  # fmt: skip
def test_sizes(count: float, text: str) -> None:
    """In the unit that suits."""
    assert size(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.04, "0"), (0.5, "0.5"), (2.0, "2"), (9.96, "10"), (999.6, "1000"),
        (9999, "9999"), (12_345, "12.3k"), (999_999, "1.0M"), (2.5e9, "2G"), (-3, "-3"),
    ],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    """With a decimal where it says something."""
    assert number(value) == text


@given(st.floats(0, 86_400 * 999), st.floats(0, 999e9))
def test_they_fit_their_columns(seconds: float, value: float) -> None:
    """Whatever they are: 6 and 5 characters."""
    assert len(duration(seconds)) <= 6
    assert len(number(value)) <= 5
