"""What only the in-memory broker offers: connections broken on command, and an injected clock."""

from __future__ import annotations

import pytest

from broker_pipeline.broker.memory import MemoryServer
from broker_pipeline.broker.port import ConsumerSpec, Message, StreamSpec
from broker_pipeline.errors import ConnectionLostError
from tests.contract.waiting import until

LOG = StreamSpec("LOG", ("log.>",), duplicate_window_s=10)


async def test_a_broken_connection_ends_as_a_real_one_does() -> None:
    """`lost`, readings, pending acks and the ordered publisher end; what was sent is stored."""
    server = MemoryServer()
    broken, other = server.connect(), server.connect()
    await broken.ensure_stream(LOG)
    reading = await broken.read("LOG", "log.>", lambda _: None)
    ordered = broken.ordered_publisher("LOG")
    await ordered.publish("log.a", b"", msg_id="1")
    future = await broken.start_publish("log.a", b"", msg_id="2")
    server.disconnect(broken)
    for each in (broken.lost, reading.failed, ordered.failed, future):
        assert isinstance(each.exception(), ConnectionLostError)
    for call in (broken.publish("log.a", b""), ordered.seal(), broken.stream_state("LOG")):
        with pytest.raises(ConnectionLostError):
            await call
    assert (await other.stream_state("LOG")).messages == 2
    assert (await other.publish("log.a", b"", msg_id="2")).duplicate


async def test_a_reconnecting_connection_reads_on() -> None:
    """Only what awaited an ack, and the ordered publisher, learn of the break."""
    server = MemoryServer()
    broker = server.connect(reconnect=True)
    await broker.ensure_stream(LOG)
    got: list[int] = []
    reading = await broker.read("LOG", "log.>", lambda each: got.append(each.stream_seq))
    future = await broker.start_publish("log.a", b"")
    ordered = broker.ordered_publisher("LOG")
    server.disconnect(broker)
    assert isinstance(future.exception(), ConnectionLostError)
    assert isinstance(ordered.failed.exception(), ConnectionLostError)
    await broker.publish("log.a", b"")
    await until(lambda: len(got) == 2)
    assert not broker.lost.done()
    assert got == [1, 2]
    await reading.stop()


async def test_what_a_lost_consumer_held_goes_to_another() -> None:
    """After `ack_wait_s`, with its count of deliveries."""
    server = MemoryServer()
    broken, other = server.connect(), server.connect()
    await broken.ensure_stream(LOG)
    await broken.ensure_consumer("LOG", ConsumerSpec("c", "log.>", ack_wait_s=0.1))
    got: list[Message] = []
    again: list[Message] = []
    await broken.consume("LOG", "c", got.append, credit=10)
    await other.publish("log.a", b"")
    await until(lambda: got)
    server.disconnect(broken)
    reading = await other.consume("LOG", "c", again.append, credit=10)
    await until(lambda: again)
    assert (got[0].delivered, again[0].delivered) == (1, 2)
    await reading.stop()


async def test_times_and_windows_follow_the_injected_clock() -> None:
    """A stream's times never go back; an id is forgotten when its window has passed."""
    now = [1_000]
    broker = MemoryServer(now_ns=lambda: now[0]).connect()
    await broker.ensure_stream(LOG)
    await broker.publish("log.a", b"", msg_id="x")
    now[0] = 500
    await broker.publish("log.a", b"")
    assert [each.time for each in await broker.read_range("LOG", ">", start_seq=1)] == [1000] * 2
    now[0] = 1_000 + 10 * 10**9 - 1
    assert (await broker.publish("log.a", b"", msg_id="x")).duplicate
    now[0] += 1
    assert not (await broker.publish("log.a", b"", msg_id="x")).duplicate
