"""Which names are those of secrets."""

from __future__ import annotations

import pytest

from broker_pipeline.observe.masking import is_secret, masked


@pytest.mark.parametrize(
    "name", ["pass", "DB_PASS", "SMTP_PASS", "user-pass", "pass_phrase", "passcode", "PGPASSWORD"]
)
def test_a_password_by_any_name_is_one(name: str) -> None:
    """As a name, and before its value in a text."""
    assert is_secret(name)
    assert "hunter2" not in masked(f"{name}=hunter2")


@pytest.mark.parametrize("name", ["compass", "bypass", "passed", "passenger"])
def test_what_only_has_the_letters_is_none(name: str) -> None:
    """It is shown."""
    assert not is_secret(name)
    assert masked(f"{name}=north") == f"{name}=north"
