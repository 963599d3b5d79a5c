"""What a broker tells of itself, on both brokers."""

from __future__ import annotations

import pytest

from broker_pipeline.broker.introspection import BucketSpec, ConsumerState
from broker_pipeline.broker.port import Broker, ConsumerSpec, Message, StreamSpec
from broker_pipeline.errors import NotFoundError
from tests.contract.waiting import Connect, until

IN = "log.in.*"
LOG = StreamSpec("LOG", ("log.work.>", "log.ctl.>", IN), (IN, "log.ctl.{{wildcard(1)}}"))
WORK = ConsumerSpec("work", "log.work.>", ack_wait_s=30, max_ack_pending=7)
DAY_S = 86_400.0


async def _work(broker: Broker) -> ConsumerState:
    return (await broker.consumer_states("LOG"))["work"]


async def test_a_consumer_tells_its_configuration(broker: Broker) -> None:
    """The filter and the bounds that it was made with; no bound on deliveries is None."""
    await broker.ensure_stream(LOG)
    await broker.ensure_consumer("LOG", WORK)
    state = await _work(broker)
    assert (state.name, state.durable, state.filter) == ("work", True, "log.work.>")
    assert (state.ack_wait_s, state.max_ack_pending, state.max_deliver) == (30.0, 7, None)


async def test_a_consumer_tells_what_waits_and_what_is_out(broker: Broker) -> None:
    """Not delivered, delivered and not acked, delivered again; and how far everything is acked."""
    await broker.ensure_stream(LOG)
    await broker.ensure_consumer("LOG", WORK)
    for n in range(3):
        await broker.publish("log.ctl.a", b"not its own")
        await broker.publish("log.work.a", b"%d" % n)
    state = await _work(broker)
    assert (state.pending, state.ack_pending, state.redelivered, state.waiting) == (3, 0, 0, 0)
    got: list[Message] = []
    subscription = await broker.consume("LOG", "work", got.append, credit=10)
    await until(lambda: len(got) == 3)
    state = await _work(broker)
    assert (state.pending, state.ack_pending, state.delivered_seq) == (0, 3, 6)
    assert state.waiting > 0
    await broker.nak(got[0])
    await until(lambda: len(got) == 4)
    state = await _work(broker)
    assert (state.ack_pending, state.redelivered) == (3, 1)
    assert state.floor_seq < 2 and state.needs <= 2
    await broker.ack(got[3])

    async def acked() -> bool:
        state = await _work(broker)
        return (state.ack_pending, state.redelivered) == (2, 0) and 2 <= state.floor_seq < 4

    await until(acked)
    await subscription.stop()


async def test_nobody_waits_at_a_queue_that_nobody_pulls(
    broker: Broker, open_connection: Connect
) -> None:
    """A puller that has stopped, and one whose connection has ended, wait no more."""
    await broker.ensure_stream(LOG)
    await broker.ensure_consumer("LOG", WORK)
    other = await open_connection()
    stopping = await broker.consume("LOG", "work", lambda message: None, credit=10)
    await other.consume("LOG", "work", lambda message: None, credit=10)

    async def waiting() -> bool:
        return (await _work(broker)).waiting >= 2

    await until(waiting)
    await stopping.stop()
    await other.close()

    async def nobody() -> bool:
        return (await _work(broker)).waiting == 0

    await until(nobody)


async def test_all_consumers_are_told_however_many_there_are(broker: Broker) -> None:
    """Durable ones and, by another mark, a reader that keeps nothing."""
    await broker.ensure_stream(LOG)
    names = [f"work{n}" for n in range(300)]
    for name in names:
        await broker.ensure_consumer("LOG", ConsumerSpec(name, f"log.work.{name}", ack_wait_s=30))
    reading = await broker.read("LOG", "log.ctl.>", lambda message: None)
    states = await broker.consumer_states("LOG")
    assert {name: each.needs for name, each in states.items() if each.durable} == dict.fromkeys(
        names, 1
    )
    readers = [each for each in states.values() if not each.durable]
    assert [each.filter for each in readers] == ["log.ctl.>"]
    await reading.stop()

    async def gone() -> bool:
        return len(await broker.consumer_states("LOG")) == len(names)

    await until(gone)


async def test_the_consumers_of_no_stream_are_an_error(broker: Broker) -> None:
    """NotFoundError: nothing may be taken for needless because its reader is not found."""
    with pytest.raises(NotFoundError):
        await broker.consumer_states("LOG")


async def test_the_next_message_of_a_filter(broker: Broker) -> None:
    """The first from a sequence on that it matches; None behind the last, and after a purge that
    took it."""
    await broker.ensure_stream(LOG)
    assert await broker.next_message("LOG", "log.work.>", start_seq=1) is None
    await broker.publish("log.ctl.a", b"1")
    await broker.publish("log.work.a", b"2", headers={"Name": "value"})
    await broker.publish("log.work.b", b"3")
    found = await broker.next_message("LOG", "log.work.>", start_seq=0)
    assert found is not None
    assert (found.stream_seq, found.subject, found.data) == (2, "log.work.a", b"2")
    assert found.headers["Name"] == "value" and found.time > 0
    found = await broker.next_message("LOG", "log.work.*", start_seq=3)
    assert found is not None and found.stream_seq == 3
    assert await broker.next_message("LOG", "log.work.a", start_seq=3) is None
    assert await broker.next_message("LOG", ">", start_seq=9) is None
    await broker.purge("LOG", below=3)
    found = await broker.next_message("LOG", ">", start_seq=1)
    assert found is not None and found.stream_seq == 3
    with pytest.raises(NotFoundError):
        await broker.next_message("NONE", ">", start_seq=1)


async def test_a_survey_says_what_ensuring_would_change(broker: Broker) -> None:
    """And changes nothing itself; what is not there is None."""
    assert await broker.survey(LOG) is None
    await broker.ensure_stream(LOG)
    found = await broker.survey(LOG)
    assert found is not None
    assert (found.differs, found.replicas, found.current) == ((), 1, 1)
    assert (set(found.subjects), found.max_bytes) == (set(LOG.subjects), None)
    assert found.duplicate_window_s == LOG.duplicate_window_s
    assert found.state == await broker.stream_state("LOG")
    other = StreamSpec("LOG", ("log.work.>",), max_bytes=4000, duplicate_window_s=60)
    found = await broker.survey(other)
    assert found is not None
    assert len(found.differs) == 4  # the subjects, the transform, the size and the window
    assert {"max_bytes"} < {each.setting for each in found.differs}
    assert [each.expected for each in found.differs if each.setting == "max_bytes"] == [4000]
    assert (await broker.survey(LOG)).differs == ()  # type: ignore[union-attr]


async def test_a_survey_of_buckets(broker: Broker) -> None:
    """Of keys and of objects: whether they are there, and how long their values last."""
    keys, objects = BucketSpec("some", ttl_s=2.0), BucketSpec("some", ttl_s=DAY_S, objects=True)
    assert await broker.survey(keys) is None and await broker.survey(objects) is None
    await broker.ensure_bucket("some", ttl_s=2.0)
    await broker.ensure_object_bucket("some", ttl_s=DAY_S)
    for spec in (keys, objects):
        found = await broker.survey(spec)
        assert found is not None and found.differs == ()
    for spec in (BucketSpec("some"), BucketSpec("some", objects=True)):
        found = await broker.survey(spec)
        assert found is not None and found.differs


async def test_the_streams_of_an_account(broker: Broker) -> None:
    """All of them by name, however many there are."""
    names = sorted(f"S{n}" for n in range(30))
    for name in names:
        await broker.ensure_stream(StreamSpec(name, (f"s.{name}",)))
    assert await broker.stream_names() == names


async def test_a_server_tells_what_it_is(broker: Broker) -> None:
    """Its API level, what it takes, how far away it is, and what the account uses."""
    await broker.ensure_stream(LOG)
    await broker.publish("log.work.a", bytes(1000))
    facts = await broker.facts()
    assert facts.server and facts.api_level >= 4 and facts.max_payload == broker.max_payload
    assert 0 <= facts.round_trip_s < 5
    (room,) = facts.rooms
    assert (room.tier, room.streams, room.storage_bytes_max) == ("", 1, None)
    assert room.storage_bytes + room.memory_bytes >= 1000
