"""Instances and results over a broker in memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from broker_pipeline import DataPackage, Outcome
from broker_pipeline.broker.memory import MemoryBroker
from broker_pipeline.client.instance import Instance
from broker_pipeline.client.reader import WAITING_MAX
from broker_pipeline.client.results import ResultsReader
from broker_pipeline.client.sent import SentPackages
from broker_pipeline.core.names import HEADER_CONTENT_TYPE, HEADER_CONTROL, payload_bucket
from broker_pipeline.errors import ClientError, PayloadTooLargeError, PlanError
from broker_pipeline.package import CONTENT_TYPE


class Note(msgspec.Struct):
    """A payload."""

    text: str


@pytest.fixture
async def room(broker: MemoryBroker, pipeline: Any, log: Any) -> AsyncIterator[Instance]:
    """An instance, entered."""
    async with Instance(broker, pipeline, "room") as room:
        yield room


async def take(results: Any, count: int) -> list[Any]:
    """The first packages; reading ends with them."""
    taken = []
    async with asyncio.timeout(10):
        async for package in results:
            taken.append(package)
            if len(taken) == count:
                break
    await results.aclose()
    return taken


async def test_bytes_are_sent_as_they_are(room: Instance, log: Any) -> None:
    """Raw, with the content type in a header, and the id is the place in the log."""
    package_id = await room.send(b"pcm", content_type="audio/pcm")
    (message,) = await log.arrivals()
    assert message.data == b"pcm"
    assert message.headers[HEADER_CONTENT_TYPE] == "audio/pcm"
    assert package_id == f"talk/0/{message.stream_seq}"


@pytest.mark.parametrize(
    ("payload", "content_type"),
    [
        ("text", "text/plain; charset=utf-8"),
        (Note("x"), "application/msgpack; type=Note"),
        (DataPackage(b"x", content_type="image/png"), "image/png"),
    ],
)
async def test_payloads_say_what_they_are(
    room: Instance, log: Any, payload: Any, content_type: str
) -> None:
    """Without attributes there is no envelope."""
    await room.send(payload)
    (message,) = await log.arrivals()
    assert message.headers[HEADER_CONTENT_TYPE] == content_type


async def test_attributes_travel_in_an_envelope(room: Instance, log: Any) -> None:
    """As a DataPackage with the payload's own content type inside; arguments win."""
    await room.send(DataPackage("x", attributes={"a": "1", "b": "1"}), attributes={"b": "2"})
    (message,) = await log.arrivals()
    assert message.headers[HEADER_CONTENT_TYPE] == CONTENT_TYPE
    package = DataPackage.from_bytes(message.data)
    assert package.data == "x" and dict(package.attributes) == {"a": "1", "b": "2"}


async def test_a_package_over_the_limit_without_its_payload_is_refused(
    room: Instance, broker: MemoryBroker
) -> None:
    """With the limit; so is a large payload for which there is no place. The instance goes on."""
    with pytest.raises(PayloadTooLargeError, match="4096"):
        await room.send(b"x", attributes={"a": "a" * 5000})
    with pytest.raises(PayloadTooLargeError, match="4096"):
        await room.send(bytes(5000), attributes={"a": "a" * 5000})
    await broker.delete_object_bucket(payload_bucket("talk"))
    with pytest.raises(PayloadTooLargeError, match="deploy the pipeline again"):
        await room.send(bytes(5000))
    assert await room.send(b"x")


async def test_an_instance_of_an_undeployed_pipeline_says_so(
    broker: MemoryBroker, pipeline: Any
) -> None:
    """When it is entered, not after a timeout."""
    with pytest.raises(PlanError, match="not deployed"):
        async with Instance(broker, pipeline, "room"):
            pass


async def test_results_begin_where_the_room_was_opened(
    broker: MemoryBroker, pipeline: Any, log: Any
) -> None:
    """What left before is not read; what left between opening and reading is."""
    await log.let_leave("talk/0/90")
    async with Instance(broker, pipeline, "room") as room:
        await log.let_leave("talk/0/91")
        assert [p.id for p in await take(room.results(), 1)] == ["talk/0/91"]
        ids = [p.id for p in await take(room.results(start="beginning"), 2)]
        assert ids == ["talk/0/90", "talk/0/91"]


async def test_results_can_start_after_a_package_of_any_outcome(room: Instance, log: Any) -> None:
    """What left after it, in the order of leaving; the outcome filter is for the rest."""
    one, two, three = await room.send_many([b"1", b"2", b"3"])
    await log.let_leave(two)
    await log.let_leave(one, outcome=Outcome.EXIT)
    await log.let_leave(three)
    results = room.results(start=one, outcome=Outcome.SUCCESS)
    assert [p.id for p in await take(results, 1)] == [three]


@pytest.mark.parametrize(
    "start", ["yesterday", "talk/0/9999", "other/0/1", "talk/1/1", "talk/0/0", "talk/0/1"]
)
async def test_a_start_that_is_no_place_is_refused(room: Instance, start: str) -> None:
    """Instead of waiting for ever; the last one is the plan, not a package."""
    with pytest.raises(ClientError):
        await take(room.results(start=start), 1)


async def test_a_package_of_another_instance_is_no_start(
    room: Instance, broker: MemoryBroker, pipeline: Any
) -> None:
    """It will never be among this instance's results."""
    async with Instance(broker, pipeline, "other room") as other:
        theirs = await other.send(b"x")
    with pytest.raises(ClientError, match="of this instance"):
        await take(room.results(start=theirs), 1)


async def test_results_of_all_instances(broker: MemoryBroker, pipeline: Any, log: Any) -> None:
    """One filter over all, or one outcome of all."""
    await log.let_leave("talk/0/90", instance="a b")
    await log.let_leave("talk/0/91", instance="c", outcome=Outcome.ERROR)
    reader = ResultsReader(broker, pipeline)
    assert [p.instance for p in await take(reader.read("beginning", None), 2)] == ["a b", "c"]
    (error,) = await take(reader.read("beginning", Outcome.ERROR), 1)
    assert error.instance == "c"
    with pytest.raises(ClientError, match="cannot start at 'opened'"):
        await take(reader.read("opened", None), 1)


async def test_results_of_a_closed_instance_end_when_everything_has_left(
    room: Instance, log: Any
) -> None:
    """Also with an outcome filter that never sees the last package."""
    one, two = await room.send_many([b"1", b"2"])
    every, successes = room.results(), room.results(outcome=Outcome.SUCCESS)
    reading = asyncio.gather(collect(every), collect(successes))
    await log.let_leave(one)
    await room.close()
    await log.let_leave(two, outcome=Outcome.EXIT)
    async with asyncio.timeout(10):
        all_ids, success_ids = await reading
    assert (all_ids, success_ids) == ([one, two], [one])
    assert [m.headers.get(HEADER_CONTROL) for m in await log.arrivals()] == [None, None, "close"]


async def collect(results: Any) -> list[str]:
    return [package.id async for package in results]


async def test_a_closed_instance_takes_nothing_more(room: Instance) -> None:
    """From this object; closing twice is closing once."""
    await room.close()
    await room.close()
    with pytest.raises(ClientError, match="closed"):
        await room.send(b"x")
    async with asyncio.timeout(10):
        assert await collect(room.results()) == []


async def test_a_slow_reader_does_not_make_the_results_pile_up(
    room: Instance, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading pauses and goes on; everything comes, in order."""
    count = 3 * WAITING_MAX
    for number in range(1, count + 1):
        await log.let_leave(f"talk/0/{10_000 + number}")
    packages = await take(room.results(), count)
    assert [p.envelope.id - 10_000 for p in packages] == list(range(1, count + 1))


async def test_callbacks_get_the_packages_of_their_outcome(
    broker: MemoryBroker, pipeline: Any, log: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Sync and async; one that fails is logged, and the next package comes all the same."""
    seen: list[tuple[str, str]] = []

    async def on_error(package: DataPackage[Any]) -> None:
        seen.append(("error", package.id))

    def on_all(package: DataPackage[Any]) -> None:
        seen.append(("all", package.id))
        raise ValueError("a mistake")

    with caplog.at_level(logging.ERROR):
        async with Instance(broker, pipeline, "room") as room:
            room.on(Outcome.ERROR, on_error)
            room.on(None, on_all)
            one, two = await room.send_many([b"1", b"2"])
            await log.let_leave(one)
            await log.let_leave(two, outcome=Outcome.ERROR)
            await room.close()
    assert seen == [("all", one), ("error", two), ("all", two)]
    assert caplog.text.count("ValueError: a mistake") == 2


async def test_leaving_the_block_ends_readers(
    broker: MemoryBroker, pipeline: Any, log: Any
) -> None:
    """Whoever reads in another task gets an error, not silence."""
    async with Instance(broker, pipeline, "room") as room:
        reading = asyncio.ensure_future(collect(room.results()))
        await log.let_leave("talk/0/90")
        for _ in range(20):
            await asyncio.sleep(0)
    async with asyncio.timeout(10):
        with pytest.raises(ClientError, match="inside the block"):
            await reading


async def test_what_has_left_is_not_remembered_for_ever(
    broker: MemoryBroker, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object that only sends asks the log from time to time, and forgets."""
    monkeypatch.setattr("broker_pipeline.client.sent.LOOK_AT", 10)
    sent = SentPackages(broker, log.stream, f"{log.subjects.out}*.room")
    sent._look_at = 10
    for number in range(1, 10):
        await sent.add(number)
        await log.let_leave(f"talk/0/{number}")
    assert len(sent) == 9
    await sent.add(10_000)
    assert len(sent) == 1
