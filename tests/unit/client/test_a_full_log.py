"""What producers and readers see of a log that is full, or was purged."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from broker_pipeline.broker.memory import MemoryBroker
from broker_pipeline.broker.port import PubAck
from broker_pipeline.client.deploy import deploy
from broker_pipeline.client.instance import Instance
from broker_pipeline.core.names import (
    HEADER_NUMBER,
    Subjects,
    ingress_subject,
    log_subjects,
    stream_name,
)
from broker_pipeline.errors import (
    HistoryPurgedError,
    LogFullError,
    PlanError,
    PublishRefusedError,
    PublishTimeoutError,
)
from broker_pipeline.pipeline import Pipeline
from tests.unit.client.conftest import MakePipeline

STREAM = stream_name("talk")
OPEN = log_subjects("talk")
CLOSED = log_subjects("talk", ingress=False)
BOUND_S = 10.0


@pytest.fixture(params=["closed", "full"])
async def shut(request: pytest.FixtureRequest, broker: MemoryBroker, pipeline: Pipeline) -> None:
    """A log that takes no more: closed by its leader, or full with no leader about."""
    await deploy(broker, pipeline)
    if request.param == "closed":
        await broker.limit_stream(STREAM, subjects=CLOSED, max_bytes=None)
    else:
        await broker.limit_stream(STREAM, subjects=OPEN, max_bytes=1)


async def open_again(broker: MemoryBroker) -> None:
    """As the leader does."""
    await broker.limit_stream(STREAM, subjects=OPEN, max_bytes=None)


async def numbers(broker: MemoryBroker) -> list[str]:
    """What the stored packages are numbered with."""
    found = await broker.read_range(STREAM, f"{Subjects('talk').ctl_in}>", start_seq=1)
    return [message.headers[HEADER_NUMBER] for message in found]


@pytest.mark.usefixtures("shut")
async def test_a_send_says_at_once_that_the_log_is_full(
    broker: MemoryBroker, pipeline: Pipeline
) -> None:
    """And what to do; its number is given to the next, so that nothing waits for it."""
    room = Instance(broker, pipeline, "a")
    with pytest.raises(LogFullError, match=r"BP310.*is full.*wait_full_s.*log_bytes_max"):
        await room.send(b"1")
    await open_again(broker)
    await room.send(b"2")
    assert await numbers(broker) == ["1"]


async def test_several_that_are_refused_give_all_their_numbers_back(
    broker: MemoryBroker, pipeline: Pipeline
) -> None:
    """In whatever order their refusals come."""
    await deploy(broker, pipeline)
    await broker.limit_stream(STREAM, subjects=OPEN, max_bytes=1)
    room = Instance(broker, pipeline, "a")
    sent = await asyncio.gather(*(room.send(b"x") for _ in range(5)), return_exceptions=True)
    assert all(isinstance(each, LogFullError) for each in sent)
    await open_again(broker)
    await room.send(b"2")
    assert await numbers(broker) == ["1"]


@pytest.mark.usefixtures("shut")
async def test_a_send_that_waits_is_stored_when_there_is_room_and_in_order(
    broker: MemoryBroker, pipeline: Pipeline
) -> None:
    """It tells that it waits; later ones stay behind it."""
    waiting = asyncio.Event()
    room = Instance(broker, pipeline, "a", wait_full_s=math.inf, on_full=lambda full: waiting.set())
    sends = [asyncio.create_task(room.send(b"%d" % n)) for n in range(3)]
    async with asyncio.timeout(BOUND_S):
        await waiting.wait()
        await open_again(broker)
        await asyncio.gather(*sends)
    assert await numbers(broker) == ["1", "2", "3"]


@pytest.mark.usefixtures("shut")
async def test_waiting_for_room_has_its_time(broker: MemoryBroker, pipeline: Pipeline) -> None:
    """`wait_full_s`, then LogFullError."""
    room = Instance(broker, pipeline, "a", wait_full_s=0.1)
    async with asyncio.timeout(BOUND_S):
        with pytest.raises(LogFullError):
            await room.send(b"1")


@pytest.mark.usefixtures("shut")
async def test_one_that_waited_for_room_is_not_repeated_for_ever(
    broker: MemoryBroker, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ack is lost: it may be stored, and its id is not remembered for longer than is said."""
    monkeypatch.setattr("broker_pipeline.client.producer.ATTEMPT_TIMEOUT_S", 0.01)
    publish = broker.start_publish

    async def deaf(*args: Any, **options: Any) -> asyncio.Future[PubAck]:
        await publish(*args, **options)
        late: asyncio.Future[PubAck] = asyncio.get_running_loop().create_future()
        late.set_exception(PublishTimeoutError("no answer"))
        return late

    waiting = asyncio.Event()
    room = Instance(
        broker, pipeline, "a", timeout_s=0.2, wait_full_s=math.inf,
        on_full=lambda full: waiting.set(),
    )  # fmt: skip
    sending = asyncio.create_task(room.send(b"1"))
    async with asyncio.timeout(BOUND_S):
        await waiting.wait()
        monkeypatch.setattr(broker, "start_publish", deaf)
        await open_again(broker)
        with pytest.raises(PublishTimeoutError, match="is not known"):
            await sending
    assert await numbers(broker) == ["1"]


@pytest.mark.usefixtures("shut")
async def test_a_raw_producer_is_refused(broker: MemoryBroker) -> None:
    """With the broker's own answer: a full stream, or nobody who listens."""
    with pytest.raises(PublishRefusedError):
        await broker.publish(ingress_subject("talk", "a"), b"1")


async def test_a_deploy_leaves_a_closed_log_closed(
    broker: MemoryBroker, pipeline: Pipeline
) -> None:
    """Its gate is the leader's to open."""
    await deploy(broker, pipeline)
    await broker.limit_stream(STREAM, subjects=CLOSED, max_bytes=5000)
    await deploy(broker, pipeline)
    status = await broker.stream_status(STREAM)
    assert (set(status.subjects), status.max_bytes) == (set(CLOSED), 5000)


async def test_a_bound_below_what_the_log_holds_comes_with_the_plan(
    broker: MemoryBroker, make_pipeline: MakePipeline
) -> None:
    """Set before it, it would refuse the plan itself; the leader that reads the plan sets it."""
    broker.server().max_payload = 1 << 20
    await deploy(broker, make_pipeline())
    for _ in range(50):
        await broker.publish(ingress_subject("talk", "a"), bytes(100_000))
    bounded = make_pipeline()
    bounded.log_bytes_max = 4 << 20
    await deploy(broker, bounded)
    assert (await broker.stream_status(STREAM)).max_bytes is None
    assert (await deploy(broker, bounded)).changes == ()


async def test_a_log_too_small_for_the_brokers_messages_is_refused(
    broker: MemoryBroker, make_pipeline: MakePipeline
) -> None:
    """Nothing is made then."""
    broker.server().max_payload = 1 << 20
    small = make_pipeline()
    small.log_bytes_max = 1 << 20
    with pytest.raises(PlanError, match="at least 4194304"):
        await deploy(broker, small)


async def test_results_from_a_place_that_was_purged_say_so(
    broker: MemoryBroker, pipeline: Pipeline
) -> None:
    """BP603, and not the beginning of what is left as if it were all."""
    await deploy(broker, pipeline)
    async with Instance(broker, pipeline, "a") as room:
        await room.send(b"1")
        await room.send(b"2")
        last = (await broker.stream_state(STREAM)).last_seq
        await broker.purge(STREAM, below=last)
        with pytest.raises(HistoryPurgedError, match="BP603"):
            await anext(aiter(room.results()))
