"""Reading stretches of a log, on both brokers."""

from __future__ import annotations

import pytest

from broker_pipeline.broker.port import Broker, Message, StreamSpec
from broker_pipeline.debug.recordings.log_reading import WAITING_MAX, first_since, read_log
from broker_pipeline.errors import NotFoundError

COUNT = 3 * WAITING_MAX


@pytest.fixture
async def log(broker: Broker) -> Broker:
    """A connection to a broker with stream LOG: COUNT messages, a and b in turn."""
    await broker.ensure_stream(StreamSpec("LOG", ("log.>",)))
    ordered = broker.ordered_publisher("LOG")
    for n in range(1, COUNT + 1):
        await ordered.publish(f"log.{'ab'[n % 2]}", b"%d" % n, msg_id=f"{n}")
    await ordered.close()
    return broker


async def read(broker: Broker, filter: str, start: int, end: int, **how: bool) -> list[Message]:
    """A stretch, at once."""
    stretch = read_log(broker, "LOG", filter, start_seq=start, end_seq=end, **how)
    return [message async for batch in stretch for message in batch]


@pytest.mark.parametrize(
    ("filter", "start", "end", "first", "last", "count"),
    [
        ("log.*", 1, COUNT, 1, COUNT, COUNT),
        ("log.*", 10, 20, 10, 20, 11),
        ("log.b", 10, 20, 11, 19, 5),
        ("log.a", 19, 19, 0, 0, 0),
        ("log.a", 18, 18, 18, 18, 1),
        ("log.*", COUNT, COUNT + 100, COUNT, COUNT, 1),
        ("log.*", COUNT + 1, COUNT + 100, 0, 0, 0),
        ("log.*", 20, 10, 0, 0, 0),
        ("log.none", 1, COUNT, 0, 0, 0),
    ],
)
async def test_a_stretch_is_read_from_end_to_end(
    log: Broker, filter: str, start: int, end: int, first: int, last: int, count: int
) -> None:
    """Both ends included, in order, however far the log goes on."""
    found = await read(log, filter, start, end)
    assert len(found) == count
    assert [int(each.data) for each in found] == [each.stream_seq for each in found]
    if found:
        assert (found[0].stream_seq, found[-1].stream_seq) == (first, last)


async def test_headers_alone_come_without_the_data(log: Broker) -> None:
    """And with the message ids."""
    found = await read(log, "log.a", 1, 6, headers_only=True)
    assert [each.headers["Nats-Msg-Id"] for each in found] == ["2", "4", "6"]
    assert {each.data for each in found} == {b""}


async def test_what_was_purged_is_passed_over(log: Broker) -> None:
    """Before the reading, and while it waits for its reader: also all that is left."""
    await log.purge("LOG", below=100)
    assert (await read(log, "log.*", 1, 120))[0].stream_seq == 100
    stretch = read_log(log, "LOG", "log.*", start_seq=1, end_seq=COUNT)
    begun = await anext(stretch)
    await log.purge("LOG", below=COUNT + 1)
    rest = [message.stream_seq async for batch in stretch for message in batch]
    assert rest == sorted(rest)
    assert begun[0].stream_seq == 100


async def test_a_log_that_is_not_there_is_told(broker: Broker) -> None:
    """At once."""
    with pytest.raises(NotFoundError):
        await read(broker, "log.*", 1, 10)


async def test_the_first_message_since_a_time_is_found(log: Broker) -> None:
    """By the times that the broker gave them; behind the last where there is none."""
    await log.purge("LOG", below=50)
    state = await log.stream_state("LOG")
    for seq in (50, 51, 700, COUNT):
        time = (await log.get_message("LOG", seq)).time
        found = await first_since(log, "LOG", time, state)
        assert found <= seq
        assert (await log.get_message("LOG", found)).time == time
    assert await first_since(log, "LOG", 0, state) == 50
    assert await first_since(log, "LOG", time + 1, state) == COUNT + 1
