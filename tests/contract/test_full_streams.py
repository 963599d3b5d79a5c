"""What retention asks of a broker, on both brokers: floors, limits, a full stream."""

from __future__ import annotations

import pytest

from broker_pipeline.broker.port import Broker, ConsumerSpec, Message, StreamSpec
from broker_pipeline.errors import LogFullError, PublishRefusedError
from tests.contract.waiting import until

IN = "log.in.*"
OPEN = ("log.work.>", "log.ctl.>", IN)
CLOSED = OPEN[:2]
LOG = StreamSpec("LOG", OPEN, (IN, "log.ctl.{{wildcard(1)}}"))
WORK = ConsumerSpec("work", "log.work.>", ack_wait_s=30)
STREAM_FULL = 10077
NO_RESPONDERS = 503


async def test_a_consumer_needs_what_is_not_acked_and_what_is_to_come(broker: Broker) -> None:
    """Its floor is the first message without an ack; with none, behind the end of the stream."""
    await broker.ensure_stream(LOG)
    await broker.ensure_consumer("LOG", WORK)
    assert await _floor(broker) == 1
    await broker.publish("log.ctl.a", b"not its own")
    assert await _floor(broker) == 2
    for n in range(3):
        await broker.publish("log.work.a", b"%d" % n)
        await broker.publish("log.ctl.a", b"not its own")
    assert await _floor(broker) <= 2  # nothing is delivered
    got: list[Message] = []
    subscription = await broker.consume("LOG", "work", got.append, credit=10)
    await until(lambda: len(got) == 3)
    await broker.ack(got[1])
    assert await _floor(broker) <= 2
    await broker.ack(got[0])
    await _until_floor(broker, range(4, 7))
    await broker.ack(got[2])
    await _until_floor(broker, range(8, 9))
    await subscription.stop()


async def _until_floor(broker: Broker, expected: range) -> None:
    for _ in range(1000):  # acks are not answered: the next requests come behind them
        if await _floor(broker) in expected:
            return
    assert await _floor(broker) in expected


async def _floor(broker: Broker) -> int:
    return (await broker.consumer_states("LOG"))["work"].needs


async def test_a_stream_tells_what_it_takes(broker: Broker) -> None:
    """Its subjects and its size, as they are now."""
    await broker.ensure_stream(LOG)
    status = await broker.stream_status("LOG")
    assert (set(status.subjects), status.max_bytes) == (set(OPEN), None)
    await broker.limit_stream("LOG", subjects=CLOSED, max_bytes=5000)
    status = await broker.stream_status("LOG")
    assert (set(status.subjects), status.max_bytes) == (set(CLOSED), 5000)
    assert status.state == await broker.stream_state("LOG")


async def test_a_stream_without_its_ingress_refuses_it_and_goes_on(broker: Broker) -> None:
    """Publishes to the removed subject end at once as 503; readers, consumers and ordered
    publishers that were there go on, and the transform is there again with the subject."""
    await broker.ensure_stream(LOG)
    await broker.ensure_consumer("LOG", WORK)
    worked: list[Message] = []
    read: list[Message] = []
    consuming = await broker.consume("LOG", "work", worked.append, credit=10)
    reading = await broker.read("LOG", "log.ctl.>", read.append)
    ordered = broker.ordered_publisher("LOG")
    await ordered.publish("log.work.a", b"1", msg_id="1")
    await broker.limit_stream("LOG", subjects=CLOSED, max_bytes=None)
    with pytest.raises(PublishRefusedError) as refused:
        await broker.publish("log.in.a", b"")
    assert refused.value.err_code == NO_RESPONDERS
    await ordered.publish("log.work.a", b"2", msg_id="2")
    await ordered.seal()
    await broker.limit_stream("LOG", subjects=OPEN, max_bytes=None)
    await broker.publish("log.in.a", b"3")
    await until(lambda: len(worked) == 2 and len(read) == 1)
    assert read[0].subject == "log.ctl.a"
    for each in (consuming, reading):
        assert not each.failed.done()
        await each.stop()
    await ordered.close()


async def test_a_full_stream_refuses_everything_until_there_is_room(broker: Broker) -> None:
    """10077 for all publishers, the ordered one too; a raised limit and a purge make room."""
    await broker.ensure_stream(LOG)
    await broker.publish("log.ctl.a", bytes(2000))
    await broker.limit_stream("LOG", subjects=OPEN, max_bytes=2500)
    with pytest.raises(LogFullError) as refused:
        await broker.publish("log.in.a", bytes(1000))
    assert refused.value.err_code == STREAM_FULL
    with pytest.raises(LogFullError) as refused:
        await _publish_in_order(broker)
    assert refused.value.err_code == STREAM_FULL
    await broker.limit_stream("LOG", subjects=OPEN, max_bytes=4000)
    assert (await broker.publish("log.in.a", bytes(1000))).stream_seq == 2
    await broker.limit_stream("LOG", subjects=OPEN, max_bytes=1000)  # less than it holds
    assert (await broker.stream_state("LOG")).messages == 2
    await broker.purge("LOG", below=3)
    await broker.publish("log.in.a", bytes(500))


async def _publish_in_order(broker: Broker) -> None:
    ordered = broker.ordered_publisher("LOG")
    await ordered.publish("log.work.a", bytes(1000), msg_id="1")
    await ordered.seal()
