"""When large payloads go: never while anything can refer to them, and then within a bound."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker_pipeline import Mode
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.large_payloads import PUT_S, LargePayloads
from broker_pipeline.broker.port import Message
from broker_pipeline.core.names import (
    STATE_BUCKET,
    consumer_name,
    ingress_subject,
    payload_bucket,
    payload_mark_key,
)
from broker_pipeline.journey import NS, Status
from broker_pipeline.package import CONTENT_TYPE
from broker_pipeline.runtime import leader as leading
from broker_pipeline.runtime import retention, sweeping
from tests.unit.runtime.shard import NAME, STREAM, SUBJECTS, Hands, Shard, pipeline, until

WINDOW_S = 200.0
BUCKET = payload_bucket(NAME)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader looks all the time: it is log time that decides."""
    monkeypatch.setattr(leading, "SNAPSHOT_INTERVAL_S", 0.002)
    monkeypatch.setattr(retention, "PURGE_EVERY_S", 0.002)
    monkeypatch.setattr(retention, "LOOK_COST", 1)
    monkeypatch.setattr(sweeping, "LOOK_EVERY_S", 0.001)


class Site:
    """A shard whose packages a test lets through by hand."""

    def __init__(self, shard: Shard, hands: Hands) -> None:
        self.shard = shard
        self.hands = hands
        self.running = shard.lead()
        self.payloads = LargePayloads(shard.broker, NAME)

    @classmethod
    async def begin(cls, **options: Any) -> Site:
        """One NO_ORDER controller."""
        deployed = pipeline(Mode.NO_ORDER, replay_window_s=WINDOW_S, **options)
        shard = await Shard.begin(deployed)
        return cls(shard, await Hands(shard, None).begin())  # type: ignore[arg-type]

    async def send(self, data: bytes) -> tuple[str, Message]:
        """A package with a large payload; its object's name, and its message in the queue."""
        reference = await self.payloads.put(data)
        package = pb.DataPackage(reference=reference).SerializeToString()
        headers = {"Content-Type": CONTENT_TYPE}
        before = len(self.shard.messages(SUBJECTS.work))
        await self.shard.broker.publish(ingress_subject(NAME, "a"), package, headers=headers)
        await until(lambda: len(self.shard.messages(SUBJECTS.work)) > before)
        return reference.object, self.shard.messages(SUBJECTS.work)[-1]

    async def complete(self, message: Message) -> None:
        """A worker's result, and its ack."""
        before = len(self.shard.messages(SUBJECTS.out))
        await self.hands.complete(message, Status.SUCCESS)
        consumer = self.shard.server.stream(STREAM).consumers[consumer_name("c0", "p")]
        while (taken := consumer.take(0.0)) is not None:
            if taken[0] <= message.stream_seq:
                consumer.forget(taken[0])
        await until(lambda: len(self.shard.messages(SUBJECTS.out)) > before)

    async def wait(self, seconds: float) -> None:
        """Let time pass, and the leader look several times."""
        self.shard.clock.ns += int(seconds * NS)
        await self.looks()

    async def looks(self, count: int = 8) -> None:
        """Until the leader has looked so often, with what it stores in between."""
        looked = 0
        real = self.running.leader._sweeper.look

        async def counted() -> None:
            nonlocal looked
            await real()
            looked += 1

        self.running.leader._sweeper.look = counted  # type: ignore[method-assign]
        await until(lambda: looked >= count)
        self.running.leader._sweeper.look = real  # type: ignore[method-assign]

    @property
    def names(self) -> set[str]:
        """The objects that are there."""
        return set(self.shard.server.objects[BUCKET].keys(asyncio.get_running_loop().time()))

    async def lead_anew(self) -> None:
        """The leader dies, and another goes on."""
        await self.running.kill()
        self.running = self.shard.lead()

    async def end(self) -> None:
        """Stop."""
        assert not self.running.task.done()
        await self.hands.end()
        await self.shard.end()


async def test_a_payload_stays_for_the_window_after_its_package_has_left_and_then_goes() -> None:
    """Though nothing else happens in the log; and the mark is set only when it is of use."""
    site = await Site.begin()
    name, message = await site.send(b"x")
    await site.complete(message)
    await site.wait(WINDOW_S - 1)
    assert site.names == {name}
    await site.wait(PUT_S + 1)
    assert site.names == {name}, "the mark was set just now"
    await site.wait(WINDOW_S - 1)
    assert site.names == {name}
    await site.wait(2)
    await until(lambda: not site.names, "the payload is gone")
    ticks = len(site.shard.messages(SUBJECTS.tick))
    await site.wait(10 * WINDOW_S)
    assert len(site.shard.messages(SUBJECTS.tick)) <= ticks + 1, "nothing to sweep asks for time"
    await site.end()


async def test_a_payload_stays_for_as_long_as_its_package_is_inside() -> None:
    """For hours in a queue, with others that come and go, and under leaders that change."""
    site = await Site.begin()
    name, message = await site.send(b"x")
    for hour in range(4):
        _, other = await site.send(b"other")
        await site.complete(other)
        await site.wait(3600.0)
        if hour % 2:
            await site.lead_anew()
        await site.looks()
        assert name in site.names
    await site.complete(message)
    await site.wait(1.0)
    await site.wait(WINDOW_S - 2)
    assert name in site.names
    for _ in range(4):
        await site.wait(WINDOW_S + PUT_S + 1)
    await until(lambda: not site.names, "all are gone")
    await site.end()


async def test_an_object_that_no_package_came_for_goes() -> None:
    """As of a producer that died before it published; and one that is young stays."""
    site = await Site.begin()
    await site.payloads.put(b"orphan")
    await site.wait(PUT_S + 1)
    young = (await site.payloads.put(b"young")).object
    await site.wait(WINDOW_S + 1)
    await until(lambda: site.names == {young}, "the orphan is gone")
    await site.end()


async def test_a_new_leader_goes_on_with_the_mark_of_the_one_before() -> None:
    """Leaders that die more often than a window lasts do not keep payloads for ever."""
    site = await Site.begin()
    _, message = await site.send(b"x")
    await site.complete(message)
    await site.wait(PUT_S + 1)
    bucket = site.shard.server.buckets[STATE_BUCKET]
    key = payload_mark_key(NAME, 0)
    await until(lambda: bucket.value(key, 0.0))
    for _ in range(5):
        await site.lead_anew()
        await site.wait(WINDOW_S / 5 + 1)
    await until(lambda: not site.names, "the payload is gone")
    await site.end()


@pytest.mark.parametrize("junk", [b"", b"junk", b"\x94\x01\x01\xa1x\x01"])
async def test_a_mark_that_cannot_be_read_is_set_anew(junk: bytes) -> None:
    """It costs a window."""
    site = await Site.begin()
    await site.shard.broker.kv_put(STATE_BUCKET, payload_mark_key(NAME, 0), junk)
    _, message = await site.send(b"x")
    await site.complete(message)
    await site.wait(PUT_S + 1)
    await site.wait(WINDOW_S + 1)
    await until(lambda: not site.names, "the payload is gone")
    await site.end()


async def test_a_payload_stays_while_the_log_has_what_refers_to_it() -> None:
    """Where the log is kept for longer than its window, for somebody needs it: what is run again
    for a state needs its payload too."""
    site = await Site.begin()
    name, message = await site.send(b"x")
    consumer = site.shard.server.stream(STREAM).consumers[consumer_name("c0", "p")]
    await site.hands.complete(message, Status.SUCCESS)  # and never acked
    await until(lambda: site.shard.messages(SUBJECTS.out))
    for _ in range(3):
        await site.wait(WINDOW_S + PUT_S + 1)
    assert site.names == {name}
    consumer.take(0.0)
    consumer.forget(message.stream_seq)
    await site.wait(WINDOW_S)
    await until(lambda: not site.names, "the payload is gone")
    await site.end()


async def test_a_pipeline_that_an_older_program_deployed_is_led_as_before() -> None:
    """There is no bucket, and nothing to sweep."""
    site = await Site.begin()
    await site.shard.broker.delete_object_bucket(BUCKET)
    await site.wait(PUT_S)
    await site.end()
