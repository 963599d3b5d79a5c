"""Requests to the JetStream API that nobody answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import nats.errors
import pytest

from broker_pipeline.broker.api import JetStreamApi, StreamInfo
from broker_pipeline.errors import BrokerUnavailableError


class Deaf:
    """A connection whose broker answers only after so many requests."""

    def __init__(self, unanswered: int) -> None:
        self.url = "nats://nowhere"
        self.nc = SimpleNamespace(request=self.request, is_closed=False)
        self.unanswered = unanswered
        self.asked: list[str] = []

    async def request(self, subject: str, payload: bytes, timeout: float) -> Any:
        """As nats-py's, without the wait."""
        self.asked.append(subject)
        if len(self.asked) <= self.unanswered:
            raise nats.errors.TimeoutError
        return SimpleNamespace(data=b"{}")


async def test_a_read_that_an_election_swallowed_is_asked_again() -> None:
    """Of a stream without a leader no request is answered, and none is answered later."""
    connection = Deaf(unanswered=1)
    await JetStreamApi(connection).request("STREAM.INFO.S", None, StreamInfo)  # type: ignore[arg-type]
    assert connection.asked == ["$JS.API.STREAM.INFO.S"] * 2


async def test_what_must_not_be_done_twice_is_asked_once() -> None:
    """A purge may have been done by the request that was not answered."""
    connection = Deaf(unanswered=1)
    with pytest.raises(BrokerUnavailableError, match="BP302"):
        await JetStreamApi(connection).request("STREAM.PURGE.S", None, StreamInfo)  # type: ignore[arg-type]
    assert len(connection.asked) == 1
