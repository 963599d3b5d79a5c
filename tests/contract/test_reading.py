"""Consuming and reading, on both brokers."""

from __future__ import annotations

import pytest

from broker_pipeline.broker.port import Broker, ConsumerSpec, Message, StreamSpec
from broker_pipeline.errors import NotFoundError
from tests.contract.waiting import Connect, until

WORK = ConsumerSpec("worker", "log.work.>", ack_wait_s=0.4)


@pytest.fixture
async def stream(broker: Broker) -> Broker:
    """A connection to a broker with stream LOG and its consumer `worker`."""
    await broker.ensure_stream(StreamSpec("LOG", ("log.>",)))
    await broker.ensure_consumer("LOG", WORK)
    return broker


async def fill(broker: Broker, count: int, subject: str = "log.work.a", start: int = 0) -> None:
    """Publish the numbers from `start` on."""
    ordered = broker.ordered_publisher("LOG")
    for n in range(start, start + count):
        await ordered.publish(subject, b"%d" % n, msg_id=f"{subject} {n}")
    await ordered.close()


def numbers(messages: list[Message]) -> list[int]:
    """What `fill` has published."""
    return [int(each.data) for each in messages]


async def test_what_is_acked_is_delivered_once(stream: Broker) -> None:
    """Every message, in order, with its place in the stream; none again after its ack."""
    await fill(stream, 1500)
    got: list[Message] = []
    reading = await stream.consume("LOG", "worker", got.append, credit=100)
    await until(lambda: len(got) == 1500)
    for message in got:
        await stream.ack(message)
    await stream.publish("log.work.a", b"1500")
    await until(lambda: len(got) > 1500)
    assert numbers(got) == list(range(1501))
    assert [each.stream_seq for each in got] == list(range(1, 1502))
    assert {each.delivered for each in got} == {1}
    assert [each.pending for each in got[:1500]] == list(range(1499, -1, -1))
    await reading.stop()


async def test_a_nak_redelivers_at_once(stream: Broker) -> None:
    """And the count of deliveries goes up."""
    await fill(stream, 1)
    got: list[Message] = []
    reading = await stream.consume("LOG", "worker", got.append, credit=10)
    await until(lambda: len(got) == 1)
    await stream.nak(got[0])
    await until(lambda: len(got) == 2)
    assert [each.delivered for each in got] == [1, 2]
    assert got[0].stream_seq == got[1].stream_seq
    await stream.ack(got[1])
    await reading.stop()


async def test_what_is_extended_is_not_redelivered(stream: Broker) -> None:
    """Without an ack a message comes again after `ack_wait_s`; `in_progress` starts that anew."""
    await fill(stream, 2)
    got: list[Message] = []
    reading = await stream.consume("LOG", "worker", got.append, credit=10)
    await until(lambda: len(got) == 2)
    extended = got[0]

    async def extends_until_the_other_came_thrice() -> bool:
        await stream.in_progress(extended)
        return len(got) == 4

    await until(extends_until_the_other_came_thrice)
    assert [(int(each.data), each.delivered) for each in got[1:]] == [(1, 1), (1, 2), (1, 3)]
    await until(lambda: numbers(got).count(0) == 2)
    await reading.stop()


async def test_max_ack_pending_bounds_what_is_out(stream: Broker) -> None:
    """No more is delivered than so many without an ack; an ack lets the next one out."""
    await stream.ensure_consumer("LOG", ConsumerSpec("few", "log.work.>", 30, max_ack_pending=3))
    await fill(stream, 5)
    got: list[Message] = []
    seen: list[Message] = []
    reading = await stream.consume("LOG", "few", got.append, credit=100)
    await until(lambda: len(got) == 3)
    await stream.ack(got[0])
    await until(lambda: len(got) == 4)
    # A second reader that has seen everything shows that the first had its chance to.
    other = await stream.read("LOG", "log.>", seen.append)
    await until(lambda: len(seen) == 5)
    assert numbers(got) == [0, 1, 2, 3]
    await reading.stop()
    await other.stop()


async def test_pullers_share_a_consumer(stream: Broker, open_connection: Connect) -> None:
    """Each message goes to one of them, and each of them gets some."""
    got: tuple[list[Message], list[Message]] = ([], [])
    second = await open_connection()
    one = await stream.consume("LOG", "worker", got[0].append, credit=50)
    two = await second.consume("LOG", "worker", got[1].append, credit=50)
    await fill(stream, 400)
    await until(lambda: len(got[0]) + len(got[1]) >= 400)
    assert sorted(numbers(got[0] + got[1])) == list(range(400))
    assert got[0] and got[1]
    await one.stop()
    await two.stop()


async def test_without_credit_nothing_is_pulled(stream: Broker) -> None:
    """A subscription with credit 0 waits until it gets some."""
    await fill(stream, 3)
    got: list[Message] = []
    other: list[Message] = []
    reading = await stream.consume("LOG", "worker", got.append, credit=0)
    control = await stream.read("LOG", "log.>", other.append)
    await until(lambda: len(other) == 3)
    assert got == []
    reading.set_credit(5)
    await until(lambda: len(got) == 3)
    await reading.stop()
    await control.stop()


async def test_a_handler_that_raises_ends_its_reading_only(stream: Broker) -> None:
    """`failed` carries what it raised; other subscriptions of the connection go on."""
    got: list[Message] = []

    def refuse(_: Message) -> None:
        raise ValueError("not this one")

    failing = await stream.read("LOG", "log.>", refuse)
    reading = await stream.read("LOG", "log.>", got.append)
    await fill(stream, 3)
    await until(lambda: len(got) == 3)
    await until(failing.failed.done)
    assert isinstance(failing.failed.exception(), ValueError)
    await failing.stop()
    await reading.stop()


async def test_stop_gives_back_what_was_not_handed_over(
    stream: Broker, open_connection: Connect
) -> None:
    """After `stop` the handler is not called again, and another puller gets the rest."""
    await stream.ensure_consumer("LOG", ConsumerSpec("patient", "log.work.>", ack_wait_s=60))
    await fill(stream, 500)
    got: list[Message] = []
    rest: list[Message] = []
    stopping = await stream.consume("LOG", "patient", got.append, credit=100)
    await until(lambda: got)
    await stopping.stop()
    count = len(got)
    second = await open_connection()
    reading = await second.consume("LOG", "patient", rest.append, credit=100)
    await until(lambda: count + len(rest) >= 500)
    assert len(got) == count
    assert sorted(numbers(got + rest)) == list(range(500))
    await reading.stop()


@pytest.mark.parametrize("kind", ["consume", "read"])
async def test_reading_ends_with_its_stream(stream: Broker, kind: str) -> None:
    """When the stream is deleted, `failed` says so."""
    got: list[Message] = []
    if kind == "read":
        reading = await stream.read("LOG", "log.>", got.append)
    else:
        reading = await stream.consume("LOG", "worker", got.append, credit=10)
    await fill(stream, 1)
    await until(lambda: got)
    await stream.delete_stream("LOG")
    await until(reading.failed.done)
    assert isinstance(reading.failed.exception(), NotFoundError)
    await reading.stop()


async def test_a_reader_follows_the_stream(stream: Broker) -> None:
    """From its start on, in order, only what the filter matches, and on as it grows."""
    await fill(stream, 100)
    await fill(stream, 5, "log.other")
    got: list[Message] = []
    reading = await stream.read("LOG", "log.work.*", got.append, start_seq=41, credit=20)
    await until(lambda: len(got) == 60)
    await fill(stream, 50, start=100)
    await until(lambda: len(got) == 110)
    assert numbers(got) == list(range(40, 150))
    assert got[0].stream_seq == 41
    assert {each.reply for each in got} == {""}
    await stream.ack(got[0])
    await reading.stop()


async def test_a_reader_may_ask_for_headers_only(stream: Broker) -> None:
    """Ids without payloads."""
    await fill(stream, 3)
    got: list[Message] = []
    reading = await stream.read("LOG", "log.>", got.append, headers_only=True)
    await until(lambda: len(got) == 3)
    assert [each.headers["Nats-Msg-Id"] for each in got] == [f"log.work.a {n}" for n in range(3)]
    assert [each.headers["Nats-Msg-Size"] for each in got] == ["1"] * 3
    assert [each.data for each in got] == [b""] * 3
    await reading.stop()


async def test_a_reader_gets_messages_larger_than_its_bound(stream: Broker) -> None:
    """`bytes_max` slows it down and never stops it."""
    for n in range(4):
        await stream.publish("log.big", b"%d" % n + bytes(200_000))
    got: list[Message] = []
    reading = await stream.read("LOG", "log.big", got.append, bytes_max=10_000)
    await until(lambda: len(got) == 4)
    assert [each.data[:1] for each in got] == [b"0", b"1", b"2", b"3"]
    await reading.stop()


async def test_a_range_ends_where_the_stream_ended(stream: Broker) -> None:
    """All that matches, from the start on; nothing where nothing matches."""
    assert await stream.read_range("LOG", "log.>", start_seq=1) == []
    await fill(stream, 2500)
    await fill(stream, 10, "log.other")
    found = await stream.read_range("LOG", "log.work.>", start_seq=1001)
    assert numbers(found) == list(range(1000, 2500))
    assert await stream.read_range("LOG", "log.none", start_seq=1) == []
    assert await stream.read_range("LOG", "log.>", start_seq=9999) == []
    only = await stream.read_range("LOG", "log.other", start_seq=1, headers_only=True)
    assert [each.data for each in only] == [b""] * 10
    await stream.purge("LOG", below=2505)
    assert numbers(await stream.read_range("LOG", "log.>", start_seq=1)) == [4, 5, 6, 7, 8, 9]


async def test_the_time_is_that_of_the_clock_which_stamps_messages(stream: Broker) -> None:
    """Read between two messages, it lies between their times; and there must be such a stream."""
    before = await stream.get_message("LOG", (await stream.publish("log.a", b"")).stream_seq)
    told = await stream.time_ns("LOG")
    after = await stream.get_message("LOG", (await stream.publish("log.a", b"")).stream_seq)
    assert before.time <= told <= after.time
    with pytest.raises(NotFoundError):
        await stream.time_ns("NONE")


async def test_the_newest_message_that_a_filter_matches(stream: Broker) -> None:
    """With wildcards and without; None where there is none."""
    await fill(stream, 3, "log.work.a")
    await fill(stream, 2, "log.other.b")
    for filter, seq in (("log.work.a", 3), ("log.work.*", 3), ("log.>", 5), ("log.*.b", 5)):
        newest = await stream.last_message("LOG", filter)
        assert newest is not None and newest.stream_seq == seq
    assert await stream.last_message("LOG", "log.none.*") is None
