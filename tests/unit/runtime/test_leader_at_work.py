"""A leader at work: what it ignores, reads again, ends by a tick, and cannot store."""

from __future__ import annotations

import asyncio
import dataclasses
import random

import pytest

from broker_pipeline import Mode
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.core.names import (
    HEADER_CONTROL,
    HEADER_NUMBER,
    HEADER_PRODUCER,
    payload_bucket,
)
from broker_pipeline.journey import NS, STATUS_TO_PB, Outcome, Status
from broker_pipeline.runtime import leader as leading
from broker_pipeline.runtime.payloads import WaitingMessages
from tests.unit.runtime.shard import (
    NAME,
    STREAM,
    SUBJECTS,
    Hands,
    Shard,
    pipeline,
    turns,
    until,
)


async def test_what_nobody_of_ours_writes_is_ignored() -> None:
    """Garbage below ctl. stops no leader and changes nothing."""
    shard = await Shard.begin(pipeline(Mode.ORDER_BY_SEQUENCE))
    shard.lead()
    hands = await Hands(shard, random.Random(1)).begin()
    garbage = [
        f"{SUBJECTS.prefix}ctl.foo",
        f"{SUBJECTS.prefix}ctl.done.c0.a",
        f"{SUBJECTS.prefix}ctl.done.c0",
        f"{SUBJECTS.prefix}ctl.done.c0.a.b.c",
        f"{SUBJECTS.prefix}ctl.done.nobody.a",
        f"{SUBJECTS.prefix}ctl.plan.x",
        SUBJECTS.plan,
        SUBJECTS.tick,
    ]
    for subject in garbage:
        for data in (b"", b"\xff\xfe", b"{}", b"\x08\x01"):
            await shard.broker.publish(subject, data)
    await shard.send("a", b"x")
    await hands.until_all_left()
    shard.check(Mode.ORDER_BY_SEQUENCE)
    await hands.end()
    await shard.end()


@pytest.mark.parametrize("bytes_max", [0, 2_000])
async def test_messages_that_were_let_go_are_read_from_the_log_again(bytes_max: int) -> None:
    """More waits than the cache holds: the payloads are right all the same."""
    shard = await Shard.begin(pipeline(Mode.NOT_PARALLEL, Mode.ORDER_BY_SEQUENCE))
    running = shard.lead()
    cache = WaitingMessages(running.broker, STREAM, bytes_max=bytes_max)
    running.leader._waiting = cache
    hands = await Hands(shard, random.Random(5)).begin()
    for number in range(30):
        await shard.send("a", b"payload %d" % number)
    await until(lambda: running.leader.machine.applied >= 31)
    assert cache._bytes <= bytes_max
    await hands.until_all_left()
    shard.check(Mode.ORDER_BY_SEQUENCE)
    assert cache._bytes <= bytes_max
    await hands.end()
    await shard.end()


async def test_the_cache_is_bounded_for_empty_messages_too() -> None:
    """A message takes memory besides its data."""
    shard = await Shard.begin(pipeline(Mode.NOT_PARALLEL))
    cache = WaitingMessages(shard.broker, STREAM, bytes_max=100_000)
    message = shard.messages(SUBJECTS.plan)[0]
    for number in range(10_000):
        cache.put(dataclasses.replace(message, stream_seq=number, data=b""))
    assert len(cache._messages) < 1_000
    await shard.end()


async def test_an_idle_instance_ends_by_a_tick() -> None:
    """Nothing else arrives: the leader publishes the tick, and the next life begins at 1."""
    shard = await Shard.begin(pipeline(Mode.ORDER_BY_SEQUENCE, instance_idle_s=60))
    running = shard.lead()
    hands = await Hands(shard, random.Random(2)).begin()
    await shard.send("a", b"x")
    await hands.until_all_left()
    await until(lambda: "a" in running.leader.machine.instances)
    await running.kill()
    shard.clock.ns += 100 * NS
    again = shard.lead()
    await until(lambda: again.leader.machine.applied and not again.leader.machine.instances)
    assert shard.messages(SUBJECTS.tick)
    await shard.send("a", b"y")
    await hands.until_all_left()
    assert [package.sequence for package in shard.left()] == [1, 1]
    assert len({package.epoch for package in shard.left()}) == 2
    await hands.end()
    await shard.end()


async def test_a_producers_gap_is_given_up_by_a_tick() -> None:
    """Number 1 never comes, and nothing else: 2 leaves after `producer_gap_s`."""
    shard = await Shard.begin(pipeline(Mode.ORDER_BY_SEQUENCE, producer_gap_s=2))
    shard.lead()
    hands = await Hands(shard, random.Random(2)).begin()
    await shard.send("a", b"x", **{HEADER_PRODUCER: "p", HEADER_NUMBER: "2"})
    await turns(100)
    assert not hands.waiting
    shard.clock.ns += 3 * NS
    await shard.broker.publish(
        f"{SUBJECTS.prefix}ctl.foo", b""
    )  # wakes the leader, not the machine
    await hands.until_all_left()
    shard.check(Mode.ORDER_BY_SEQUENCE)
    await hands.end()
    await shard.end()


async def test_an_open_instance_without_packages_is_no_package() -> None:
    """Opening and closing leave nothing in the outputs."""
    shard = await Shard.begin(pipeline(Mode.ORDER_BY_SEQUENCE))
    running = shard.lead()
    for control in ("open", "close"):
        subject = SUBJECTS.arrival("a")
        await shard.broker.publish(subject, b"", headers={HEADER_CONTROL: control})
    await until(lambda: running.leader.machine.applied >= 3)
    assert not shard.left()
    assert not running.leader.machine.instances
    await shard.end()


async def test_reading_pauses_while_publishing_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    """INBOX_MAX holds although the leader waits for the broker in the middle of a message."""
    monkeypatch.setattr(leading, "INBOX_MAX", 50)
    shard = await Shard.begin(pipeline(Mode.ORDER_BY_SEQUENCE))
    for number in range(500):
        await shard.send("a", b"%d" % number)
    broker = shard.server.connect()
    gate = asyncio.Event()
    make = broker.ordered_publisher

    def stalling(stream: str) -> object:
        publisher = make(stream)
        publish = publisher.publish

        async def later(*args: object, **options: object) -> None:
            await gate.wait()
            await publish(*args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(publisher, "publish", later)
        return publisher

    monkeypatch.setattr(broker, "ordered_publisher", stalling)
    running = shard.lead(broker)
    await until(lambda: running.leader._inbox)
    await turns(300)
    assert len(running.leader._inbox) <= 51
    gate.set()
    hands = await Hands(shard, random.Random(2)).begin()
    await hands.until_all_left()
    shard.check(Mode.ORDER_BY_SEQUENCE)
    await hands.end()
    await shard.end()


@pytest.mark.parametrize("room", [0, 20, 60])
async def test_a_raw_package_that_fills_the_limit_leaves_as_error(room: int) -> None:
    """With its journey it does not fit any more, and an older program has deployed no place for its
    payload: ERROR that says so, and the next ones go on, in order; nobody crashes over it again
    and again."""
    shard = await Shard.begin(pipeline(Mode.ORDER_BY_SEQUENCE), max_payload=10_000)
    await shard.broker.delete_object_bucket(payload_bucket(NAME))
    running = shard.lead()
    hands = await Hands(shard, random.Random(8)).begin()
    await shard.send("a", b"before")
    await shard.send("a", b"x" * (10_000 - room))
    await shard.send("a", b"after")
    await hands.until_all_left()
    assert not running.task.done()
    left = {package.sequence: package for package in shard.left()}
    assert sorted(left) == [1, 2, 3]
    assert left[2].outcome == STATUS_TO_PB[Outcome.ERROR]
    assert left[2].errors[0].type == "PayloadTooLargeError"
    assert f"message {left[2].id} of stream {STREAM}" in left[2].errors[0].message
    await hands.end()
    await shard.end()


async def test_a_result_that_fills_the_limit_leaves_as_error() -> None:
    """What was added when it left does not fit, and there is no place for its payload: ERROR in the
    same place, once."""
    shard = await Shard.begin(pipeline(Mode.ORDER_BY_SEQUENCE), max_payload=10_000)
    await shard.broker.delete_object_bucket(payload_bucket(NAME))
    running = shard.lead()
    hands = await Hands(shard, random.Random(8)).begin()
    await shard.send("a", b"x" * 5_000)
    await until(lambda: hands.waiting)
    message = hands.waiting.pop()
    package = pb.DataPackage.FromString(message.data)
    package.controllers[-1].phases.add(name="p", status=4, worker="hands")
    package.data = b""
    package.data = b"x" * (10_000 - 45 - package.ByteSize())
    package.controllers[-1].phases.pop()
    await hands.complete(
        dataclasses.replace(message, data=package.SerializeToString()), Status.SUCCESS
    )
    await shard.until_all_left()
    assert not running.task.done()
    assert [p.outcome for p in shard.left()] == [STATUS_TO_PB[Outcome.ERROR]]
    await hands.end()
    await shard.end()
