"""Publishing, provisioning and looking things up, on both brokers."""

from __future__ import annotations

import asyncio

import pytest

from broker_pipeline.broker.port import Broker, Change, ConsumerSpec, StreamSpec, StreamState
from broker_pipeline.errors import (
    BrokerError,
    ConnectionLostError,
    NotFoundError,
    PayloadError,
    PayloadTooLargeError,
    PublishRefusedError,
)

LOG = StreamSpec("LOG", ("log.>",))
STREAM_FULL = 10077


async def test_messages_get_consecutive_sequences(broker: Broker) -> None:
    """Pipelined publishes are stored in the order of the calls."""
    await broker.ensure_stream(LOG)
    futures = [await broker.start_publish("log.a", b"%d" % n) for n in range(300)]
    acks = await asyncio.gather(*futures)
    assert [ack.stream_seq for ack in acks] == list(range(1, 301))
    assert {ack.stream for ack in acks} == {"LOG"}
    assert [each.data for each in await broker.read_range("LOG", "log.>", start_seq=1)] == [
        b"%d" % n for n in range(300)
    ]


async def test_a_message_id_is_stored_once(broker: Broker) -> None:
    """A repeat is acknowledged as a duplicate, with the sequence of the first."""
    await broker.ensure_stream(LOG)
    first = await broker.publish("log.a", b"1", msg_id="x")
    repeat = await broker.publish("log.b", b"2", msg_id="x")
    assert (first.duplicate, repeat.duplicate) == (False, True)
    assert repeat.stream_seq == first.stream_seq
    assert (await broker.stream_state("LOG")).messages == 1


async def test_a_subject_without_a_stream_is_refused(broker: Broker) -> None:
    """Nobody listens: PublishRefusedError with code 503, at once."""
    with pytest.raises(PublishRefusedError, match="no stream listens on 'nowhere'") as caught:
        await broker.publish("nowhere", b"")
    assert caught.value.err_code == 503


async def test_a_message_that_is_too_large_is_refused_before_it_is_sent(broker: Broker) -> None:
    """The payload and the headers count together; the connection lives on."""
    await broker.ensure_stream(LOG)
    with pytest.raises(PayloadTooLargeError):
        await broker.publish("log.a", bytes(broker.max_payload), msg_id="x")
    ordered = broker.ordered_publisher("LOG")
    with pytest.raises(PayloadTooLargeError):
        await ordered.publish("log.a", bytes(broker.max_payload), msg_id="x")
    await broker.publish("log.a", bytes(broker.max_payload))
    assert (await broker.stream_state("LOG")).messages == 1
    await ordered.close()


async def test_headers_and_bytes_come_back_as_they_were_sent(broker: Broker) -> None:
    """Values may be any text without line ends, and data any bytes."""
    await broker.ensure_stream(LOG)
    data = bytes(range(256)) * 2
    sent = {"Content-Type": "audio/pcm; rate=16000", "Speaker": "Zoë: «½»"}
    await broker.publish("log.a", data, msg_id="m 1", headers=sent)
    (read,) = await broker.read_range("LOG", "log.a", start_seq=1)
    got = await broker.get_message("LOG", 1)
    for message in (read, got):
        assert message.data == data
        assert dict(message.headers) == {"Nats-Msg-Id": "m 1", **sent}
        assert (message.subject, message.stream_seq) == ("log.a", 1)
    assert read.time == got.time > 0


@pytest.mark.parametrize("headers", [{"A": "b\r\nC: d"}, {"A b": "c"}, {"": "c"}, {"A:": "c"}])
async def test_a_header_that_would_change_others_is_refused(
    broker: Broker, headers: dict[str, str]
) -> None:
    """A line end or a colon in the wrong place is an error, not another header."""
    await broker.ensure_stream(LOG)
    with pytest.raises(PayloadError):
        await broker.publish("log.a", b"", headers=headers)


async def test_a_full_stream_refuses_and_drops_nothing(broker: Broker) -> None:
    """Code 10077; a refused id is not remembered; a purge makes room again."""
    await broker.ensure_stream(StreamSpec("LOG", ("log.>",), max_bytes=10_000))
    stored = 0

    async def fill_up() -> None:
        nonlocal stored
        for n in range(100):
            await broker.publish("log.a", bytes(1000), msg_id=str(n))
            stored += 1

    with pytest.raises(PublishRefusedError) as caught:
        await fill_up()
    assert caught.value.err_code == STREAM_FULL
    state = await broker.stream_state("LOG")
    assert (state.messages, state.first_seq) == (stored, 1)
    await broker.purge("LOG", below=stored)
    ack = await broker.publish("log.a", bytes(1000), msg_id=str(stored))
    assert (ack.duplicate, ack.stream_seq) == (False, stored + 1)


async def test_a_transform_files_messages_under_another_subject(broker: Broker) -> None:
    """What matches the source is stored, and read, under the destination; the rest as it is."""
    transform = ("bp.p.in.*", "bp.p.0.ctl.in.{{wildcard(1)}}")
    await broker.ensure_stream(StreamSpec("P", ("bp.p.in.*", "bp.p.0.>"), transform))
    await broker.publish("bp.p.in.m1", b"a")
    await broker.publish("bp.p.0.ctl.tick", b"b")
    stored = await broker.read_range("P", "bp.p.0.ctl.>", start_seq=1)
    assert [each.subject for each in stored] == ["bp.p.0.ctl.in.m1", "bp.p.0.ctl.tick"]


async def test_provisioning_twice_changes_nothing(broker: Broker) -> None:
    """`ensure_*` says what it did: created, unchanged, updated."""
    consumer = ConsumerSpec("c", "log.>")
    assert await broker.ensure_stream(LOG) is Change.CREATED
    assert await broker.ensure_stream(LOG) is Change.UNCHANGED
    larger = StreamSpec("LOG", ("log.>", "more.>"), ("more.*", "log.{{wildcard(1)}}"), 1 << 20, 60)
    assert await broker.ensure_stream(larger) is Change.UPDATED
    assert await broker.ensure_stream(larger) is Change.UNCHANGED
    assert await broker.ensure_stream(LOG) is Change.UPDATED
    assert await broker.ensure_consumer("LOG", consumer) is Change.CREATED
    assert await broker.ensure_consumer("LOG", consumer) is Change.UNCHANGED
    slower = ConsumerSpec("c", "log.>", ack_wait_s=9.5)
    assert await broker.ensure_consumer("LOG", slower) is Change.UPDATED
    assert await broker.ensure_bucket("B", ttl_s=5) is Change.CREATED
    assert await broker.ensure_bucket("B", ttl_s=5) is Change.UNCHANGED
    assert await broker.ensure_bucket("B", ttl_s=6) is Change.UPDATED


async def test_a_subject_belongs_to_one_stream(broker: Broker) -> None:
    """A stream whose subjects overlap another's is refused."""
    await broker.ensure_stream(LOG)
    with pytest.raises(BrokerError):
        await broker.ensure_stream(StreamSpec("OTHER", ("log.a.*",)))


async def test_what_does_not_exist_is_not_found(broker: Broker) -> None:
    """NotFoundError for streams, consumers and messages; None for a subject without messages."""
    with pytest.raises(NotFoundError):
        await broker.stream_state("LOG")
    with pytest.raises(NotFoundError):
        await broker.read("LOG", "log.>", print)
    with pytest.raises(NotFoundError):
        await broker.last_message("LOG", "log.a")
    await broker.ensure_stream(LOG)
    with pytest.raises(NotFoundError):
        await broker.consume("LOG", "c", print, credit=1)
    with pytest.raises(NotFoundError):
        await broker.get_message("LOG", 1)
    assert await broker.last_message("LOG", "log.a") is None
    await broker.delete_stream("LOG")
    await broker.delete_stream("LOG")


async def test_the_last_message_of_a_subject(broker: Broker) -> None:
    """Others do not hide it."""
    await broker.ensure_stream(LOG)
    for subject, data in (("log.a", b"1"), ("log.a", b"2"), ("log.b", b"3")):
        await broker.publish(subject, data)
    last = await broker.last_message("LOG", "log.a")
    assert last is not None and (last.data, last.stream_seq) == (b"2", 2)


async def test_a_purge_removes_what_lies_below(broker: Broker) -> None:
    """Up to the sequence, without it; sequences go on even when nothing is left."""
    await broker.ensure_stream(LOG)
    for _ in range(10):
        await broker.publish("log.a", b"x")
    before = await broker.stream_state("LOG")
    await broker.purge("LOG", below=0)
    assert await broker.stream_state("LOG") == before
    await broker.purge("LOG", below=8)
    state = await broker.stream_state("LOG")
    assert (state.first_seq, state.last_seq, state.messages) == (8, 10, 3)
    await broker.purge("LOG", below=1_000)
    assert await broker.stream_state("LOG") == StreamState(11, 10, 0, 0)
    assert (await broker.publish("log.a", b"x")).stream_seq == 11


async def test_an_ordered_publisher_stores_in_order(broker: Broker) -> None:
    """`seal` returns when all is stored, and publishing may go on after it."""
    await broker.ensure_stream(LOG)
    ordered = broker.ordered_publisher("LOG")
    await ordered.seal()
    for start in (0, 1000, 2000):
        for n in range(start, start + 1000):
            await ordered.publish("log.a", b"%d" % n, msg_id=f"m{n}", headers={"N": str(n)})
        await ordered.seal()
        assert (await broker.stream_state("LOG")).messages == start + 1000
    await ordered.close()
    stored = await broker.read_range("LOG", "log.>", start_seq=1)
    assert [each.data for each in stored] == [b"%d" % n for n in range(3000)]
    assert stored[7].headers["N"] == "7"


async def test_an_ordered_publisher_drops_repeats_silently(broker: Broker) -> None:
    """Ids that the stream remembers are not stored again, and the session goes on."""
    await broker.ensure_stream(LOG)
    await broker.publish("log.a", b"1", msg_id="m1")
    ordered = broker.ordered_publisher("LOG")
    for n in (0, 1, 2, 0):
        await ordered.publish("log.a", b"%d" % n, msg_id=f"m{n}")
    await ordered.seal()
    await ordered.publish("log.a", b"2", msg_id="m2")
    await ordered.close()
    stored = await broker.read_range("LOG", "log.>", start_seq=1)
    assert [each.data for each in stored] == [b"1", b"0", b"2"]


async def test_an_ordered_publisher_stores_a_prefix(broker: Broker) -> None:
    """After a refusal nothing more is stored, even where there is room, and every call says so."""
    await broker.ensure_stream(StreamSpec("LOG", ("log.>",), max_bytes=20_000))
    ordered = broker.ordered_publisher("LOG")

    async def overfill() -> None:
        # Number 13 does not fit; those behind it would.
        for n in range(1000):
            size = 20_000 if n == 13 else 1_000 if n < 13 else 1
            await ordered.publish("log.a", b"%04d" % n + bytes(size), msg_id=str(n))
        await ordered.seal()

    with pytest.raises(PublishRefusedError) as caught:
        await overfill()
    assert caught.value.err_code == STREAM_FULL
    stored = [int(each.data[:4]) for each in await broker.read_range("LOG", ">", start_seq=1)]
    assert stored == list(range(13))
    assert ordered.failed.exception() is not None
    for call in (ordered.publish("log.a", b"", msg_id="y"), ordered.seal()):
        with pytest.raises(PublishRefusedError):
            await call
    await ordered.close()
    assert (await broker.stream_state("LOG")).messages == len(stored)


async def test_a_closed_connection_refuses(broker: Broker) -> None:
    """`close` is idempotent, cancels `lost`, and calls raise ConnectionLostError from then on."""
    await broker.ensure_stream(LOG)
    ordered = broker.ordered_publisher("LOG")
    await ordered.publish("log.a", b"", msg_id="1")
    await broker.close()
    await broker.close()
    assert broker.lost.cancelled()
    with pytest.raises(ConnectionLostError):
        await broker.start_publish("log.a", b"")
    with pytest.raises(ConnectionLostError):
        await ordered.publish("log.a", b"", msg_id="2")
    with pytest.raises(ConnectionLostError):
        await broker.stream_state("LOG")
