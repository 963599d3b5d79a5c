"""The idempotent producer, over a broker that misbehaves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from broker_pipeline.broker.memory import MemoryBroker
from broker_pipeline.broker.port import PubAck
from broker_pipeline.client.producer import SPAN_MAX, Producer
from broker_pipeline.core.names import HEADER_MSG_ID, HEADER_NUMBER, HEADER_PRODUCER
from broker_pipeline.core.producers import HELD_MAX
from broker_pipeline.errors import (
    BrokerError,
    ConnectionLostError,
    NotStoringError,
    PayloadTooLargeError,
    PublishRefusedError,
    PublishTimeoutError,
    StorageFullError,
)

Outcome = PubAck | BrokerError


class Scripted:
    """A broker whose answers are given: an ack, an error, or None for silence until told."""

    max_payload = 1000

    def __init__(self, *answers: Outcome) -> None:
        self.answers = list(answers)
        self.sent: list[tuple[str, Mapping[str, str]]] = []
        self.silent: list[asyncio.Future[PubAck]] = []
        self.quiet = False
        self.news = asyncio.Event()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start_publish(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str,
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> asyncio.Future[PubAck]:
        """Answer as the script says; without one, with an ack."""
        self.sent.append((msg_id, headers))
        self.news.set()
        future: asyncio.Future[PubAck] = asyncio.get_running_loop().create_future()
        if self.quiet:
            self.silent.append(future)
            return future
        answer = self.answers.pop(0) if self.answers else PubAck("BP_talk_0", len(self.sent))
        if isinstance(answer, BrokerError):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        return future

    async def until_sent(self, count: int) -> None:
        """Return when so many were sent."""
        async with asyncio.timeout(10):
            while len(self.sent) < count:
                self.news.clear()
                await self.news.wait()


def producer(broker: Any, **options: Any) -> Producer:
    names = iter("abcdef")
    return Producer(
        broker, "bp.talk.in.room", timeout_s=options.pop("timeout_s", 5.0),
        new_name=lambda: next(names), **options,
    )  # fmt: skip


async def test_what_gets_no_answer_is_sent_again_with_the_same_number() -> None:
    """The message id and the number are those of the first attempt."""
    broker = Scripted(PublishTimeoutError("late"), ConnectionLostError("gone"))
    ack = await producer(broker).send(b"x", {})
    assert ack.stream_seq == 3
    assert [msg_id for msg_id, _ in broker.sent] == ["a.1"] * 3
    assert {headers[HEADER_NUMBER] for _, headers in broker.sent} == {"1"}


async def test_a_broker_that_is_starting_is_asked_again() -> None:
    """503, no responders, passes."""
    broker = Scripted(PublishRefusedError("nobody", err_code=503))
    assert (await producer(broker).send(b"x", {})).stream_seq == 2


async def test_a_broker_without_room_is_waited_for() -> None:
    """Its refusals pass; when the time is over, the last of them says what is full."""
    full = StorageFullError("no room", err_code=10023)
    assert (await producer(Scripted(full, full)).send(b"x", {})).stream_seq == 3
    with pytest.raises(StorageFullError):
        await producer(Scripted(*[full] * 9), timeout_s=0.1).send(b"x", {})


async def test_a_broker_that_stores_nothing_is_told_from_one_that_is_slow() -> None:
    """The outcome is unknown all the same, and there is something to do about it."""
    broker = Scripted(*[NotStoringError("silence")] * 9)
    with pytest.raises(NotStoringError, match=r"is not known.*restart nats-server"):
        await producer(broker, timeout_s=0.1).send(b"x", {})


async def test_a_repeat_keeps_its_number_and_its_id() -> None:
    """So that the broker and the controller both know it again, however late it comes."""
    broker = Scripted(PublishTimeoutError("late"))
    await producer(broker).send(b"x", {})
    assert len(broker.sent) == 2
    assert broker.sent[0] == broker.sent[1]
    assert {HEADER_NUMBER, HEADER_PRODUCER} <= set(broker.sent[0][1])


async def test_when_time_is_over_it_says_that_the_outcome_is_unknown() -> None:
    """It was sent, and nobody answered."""
    broker = Scripted(*[PublishTimeoutError("late")] * 9)
    with pytest.raises(PublishTimeoutError, match=r"is not known.*makes a second package"):
        await producer(broker, timeout_s=0.1).send(b"x", {})


async def test_a_refused_package_gives_its_number_back() -> None:
    """So that nothing waits for a number that never comes."""
    broker = Scripted(PublishRefusedError("full", err_code=10077))
    numbered = producer(broker)
    with pytest.raises(PublishRefusedError):
        await numbered.send(b"x", {})
    await numbered.send(b"y", {})
    assert [msg_id for msg_id, _ in broker.sent] == ["a.1", "a.1"]


async def test_too_large_a_package_uses_no_number_up() -> None:
    """It is refused before anything is sent, with the limit named."""
    broker = Scripted()
    numbered = producer(broker)
    with pytest.raises(PayloadTooLargeError, match="1000"):
        await numbered.send(bytes(2000), {})
    await numbered.send(b"y", {})
    assert [msg_id for msg_id, _ in broker.sent] == ["a.1"]


async def test_an_idle_producer_begins_anew() -> None:
    """Under a new name, from 1: the controller forgets producers of ended instances."""
    broker = Scripted()
    numbered = producer(broker, renew_after_s=0.0)
    await numbered.send(b"x", {})
    await numbered.send(b"y", {})
    assert [msg_id for msg_id, _ in broker.sent] == ["a.1", "b.1"]


async def test_a_producer_with_something_unanswered_keeps_its_name() -> None:
    """Else the new name's packages could overtake."""
    broker = Scripted()
    broker.quiet = True
    numbered = producer(broker, renew_after_s=0.0)
    sends = [asyncio.ensure_future(numbered.send(b"x", {})) for _ in range(2)]
    await broker.until_sent(2)
    assert [msg_id for msg_id, _ in broker.sent] == ["a.1", "a.2"]
    for number, future in enumerate(broker.silent):
        future.set_result(PubAck("BP_talk_0", number + 1))
    await asyncio.gather(*sends)


async def test_no_more_is_under_way_than_the_controller_holds() -> None:
    """Else it would give the oldest number up at once, and drop it when it is repeated."""
    assert SPAN_MAX < HELD_MAX
    broker = Scripted()
    broker.quiet = True
    numbered = producer(broker)
    sends = [asyncio.ensure_future(numbered.send(b"x", {})) for _ in range(SPAN_MAX + 50)]
    await broker.until_sent(SPAN_MAX)
    for future in broker.silent[1:]:
        future.set_result(PubAck("BP_talk_0", 1))
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(broker.sent) == SPAN_MAX
    broker.quiet = False
    broker.silent[0].set_result(PubAck("BP_talk_0", 1))
    await asyncio.gather(*sends)
    assert [msg_id for msg_id, _ in broker.sent] == [f"a.{n}" for n in range(1, SPAN_MAX + 51)]


async def test_concurrent_sends_are_numbered_in_the_order_of_the_calls(
    broker: MemoryBroker, log: Any
) -> None:
    """And stored so."""
    numbered = producer(broker)
    await asyncio.gather(*(numbered.send(b"%d" % n, {}) for n in range(100)))
    arrivals = await log.arrivals()
    assert [m.data for m in arrivals] == [b"%d" % n for n in range(100)]
    assert [m.headers[HEADER_MSG_ID] for m in arrivals] == [f"a.{n}" for n in range(1, 101)]


async def test_a_repeat_that_meets_its_own_first_attempt_is_repeated() -> None:
    """On three replicas the first may still be on its way: 'in process' is no refusal."""
    broker = Scripted(
        PublishTimeoutError("no answer"), PublishRefusedError("in process", err_code=10158)
    )
    ack = await producer(broker).send(b"x", {})
    assert ack.stream_seq == 3
    assert [msg_id for msg_id, _ in broker.sent] == ["a.1"] * 3


async def test_a_refusal_after_an_attempt_without_an_answer_leaves_the_outcome_unknown() -> None:
    """Saying 'not stored' would be a guess: the first attempt may have been."""
    refusals = [PublishRefusedError("no leader", err_code=503)] * 20
    broker = Scripted(PublishTimeoutError("no answer"), *refusals)
    with pytest.raises(PublishTimeoutError, match="is not known"):
        await producer(broker, timeout_s=0.3).send(b"x", {})
