"""Questions to all who answer on a subject, on both brokers."""

from __future__ import annotations

import asyncio
import logging

import pytest

from broker_pipeline.broker.port import Broker, StreamSpec
from broker_pipeline.errors import ConnectionLostError
from tests.contract.waiting import Connect, until

SUBJECT = "bp-status.p"
WAIT_S = 0.3


async def test_all_who_answer_are_heard(broker: Broker, open_connection: Connect) -> None:
    """Each with its own answer to the question; the one who asks among them."""
    others = [await open_connection() for _ in range(3)]
    for name, each in zip((b"a", b"b", b"c", b"d"), [broker, *others], strict=True):
        await each.answer(SUBJECT, lambda data, name=name: name + data)
    answers = await broker.ask_all(SUBJECT, b"?", wait_s=WAIT_S)
    assert sorted(answers) == [b"a?", b"b?", b"c?", b"d?"]


async def test_where_nobody_answers_nobody_waits(broker: Broker, open_connection: Connect) -> None:
    """There never was anybody, or he has left: known at once."""
    async with asyncio.timeout(5):
        assert await broker.ask_all(SUBJECT, b"", wait_s=60) == []
    other = await open_connection()
    await other.answer(SUBJECT, lambda data: b"here")
    assert await broker.ask_all(SUBJECT, b"", wait_s=WAIT_S) == [b"here"]
    await other.close()

    async def nobody() -> bool:
        return await broker.ask_all(SUBJECT, b"", wait_s=WAIT_S) == []

    await until(nobody)


async def test_who_cannot_answer_is_not_heard_and_lives_on(
    broker: Broker, open_connection: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """An error and an answer that is too large are logged; both go on, and so do the others."""
    one, two = await open_connection(), await open_connection()

    def refuses(data: bytes) -> bytes:
        raise ValueError(data)

    await one.answer(SUBJECT, refuses)
    await two.answer(SUBJECT, lambda data: bytes(two.max_payload + 1) if data == b"much" else b"ok")
    with caplog.at_level(logging.WARNING):
        assert await broker.ask_all(SUBJECT, b"much", wait_s=WAIT_S) == []
        assert await broker.ask_all(SUBJECT, b"little", wait_s=WAIT_S) == [b"ok"]
    assert "is not answered" in caplog.text
    assert not one.lost.done() and not two.lost.done()


async def test_questions_and_answers_are_stored_nowhere(
    broker: Broker, open_connection: Connect
) -> None:
    """The log holds nothing of them."""
    await broker.ensure_stream(StreamSpec("BP_p_0", ("bp.p.0.>", "bp.p.in.*")))
    other = await open_connection()
    await other.answer(SUBJECT, lambda data: bytes(1000))
    for _ in range(3):
        assert len(await broker.ask_all(SUBJECT, b"", wait_s=WAIT_S)) == 1
    assert (await broker.publish("bp.p.0.ctl.tick", b"")).stream_seq == 1


async def test_a_connection_that_is_closed_asks_nobody(open_connection: Connect) -> None:
    """ConnectionLostError, which is not the same as that nobody is there."""
    broker = await open_connection()
    await broker.close()
    with pytest.raises(ConnectionLostError):
        await broker.ask_all(SUBJECT, b"", wait_s=WAIT_S)
