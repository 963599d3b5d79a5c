"""Payloads that fit no message, on a real server with real processes."""

from __future__ import annotations

import asyncio
import random
import signal

import nats
import pytest

from broker_pipeline import connect
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker import jetstream
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.port import Broker
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.names import (
    Subjects,
    ingress_subject,
    payload_bucket,
    stream_name,
)
from broker_pipeline.core.snapshot import Head
from broker_pipeline.journey import NS
from broker_pipeline.package import CONTENT_TYPE
from broker_pipeline.runtime.leader import Leader
from tests.integration.pipelines import bulky
from tests.integration.processes import BOUND_S, POLL_S, Role, until

SIZE = 20_000_000
BUCKET = payload_bucket("bulky")


def payload(kind: bytes, seed: int) -> bytes:
    """One of 20 MB; kind C is changed."""
    return kind + random.Random(seed).randbytes(SIZE - 1)


async def test_payloads_of_20_mb_go_through_two_phases_in_order_though_a_worker_is_killed() -> None:
    """Changed ones and unchanged ones, sent by our producer and by a plain NATS client by hand;
    read by our reader, and by nats-py's own object store."""
    sent = [payload(kind, number) for number, kind in enumerate((b"C", b"U", b"U"))]
    expected = [data[:0:-1] if data.startswith(b"C") else data for data in sent]
    target = "tests.integration.pipelines:bulky"
    async with EmbeddedServer() as server, connect(server.url) as client:
        await client.deploy(bulky)
        plain = await nats.connect(server.url)
        store = await plain.jetstream().object_store(BUCKET)
        roles = [await Role.start("controller", target, "--url", server.url)]
        await roles[0].said("leads")
        doomed = await Role.start("worker", target, "--url", server.url, "--slots", "2")
        roles.append(doomed)
        await doomed.said("is ready")
        async with client.instance(bulky, "room") as room:
            await room.send_many(sent[:2])
            await store.put("by hand", sent[2])
            by_hand = pb.DataPackage(
                reference=pb.PayloadReference(bucket=BUCKET, object="by hand", size=SIZE)
            )
            headers = {"Content-Type": CONTENT_TYPE}
            subject = ingress_subject("bulky", "room")
            await plain.publish(subject, by_hand.SerializeToString(), headers=headers)
            async with asyncio.timeout(BOUND_S):
                while not await references(client.broker, "work.c.two"):  # noqa: ASYNC110 - theirs
                    await asyncio.sleep(POLL_S)
            doomed.send(signal.SIGKILL)
            roles.append(await Role.start("worker", target, "--url", server.url, "--slots", "2"))
            found = []
            async with asyncio.timeout(60):
                async for package in room.results():
                    assert package.outcome == "SUCCESS", package.reason
                    found.append(package.data)
                    if len(found) == 3:
                        break
        assert found == expected
        left = await references(client.broker)
        assert left[2] == ("by hand", SIZE) and left[1][1] == SIZE
        assert (await store.get(left[0][0])).data == expected[0]
        arrived = await references(client.broker, "ctl.in")
        assert left[1] == arrived[1] and left[0] != arrived[0], "an unchanged one is stored once"
        for role in roles:
            await role.end()
        await plain.close()


async def references(broker: Broker, kind: str = "out") -> list[tuple[str, int]]:
    """The objects that messages of the log refer to, with their sizes."""
    prefix = f"{Subjects('bulky').prefix}{kind}.>"
    messages = await broker.read_range(stream_name("bulky"), prefix, start_seq=1)
    packages = [pb.DataPackage.FromString(message.data) for message in messages]
    return [(package.reference.object, package.reference.size) for package in packages]


async def test_what_nothing_refers_to_is_removed_from_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole, with what a producer has left half stored; and what is young stays. The leader's
    clock of the log and its window are made short: what it asks of the server is real."""
    monkeypatch.setattr("broker_pipeline.runtime.sweeping.PUT_S", 0.0)
    async with EmbeddedServer() as server:
        broker = await jetstream.connect(server.url, reconnect=False, name="test")
        await deploy(broker, bulky)
        await broker.object_put(BUCKET, "old", bytes(1_000_000))
        await broker.publish(f"$O.{BUCKET}.C.half", bytes(100_000))
        stop = asyncio.Event()
        own = await jetstream.connect(server.url, reconnect=False, name="leader")
        leader = Leader(own, "bulky", 0, now_ns=lambda: 0)
        leading = asyncio.create_task(leader.run(stop))
        await broker.publish(Subjects("bulky").tick, b"")
        sweeper = leader._sweeper
        await until(lambda: leader._retention.head is not None, "a snapshot")
        leader._sweeper._head = lambda: later(leader)  # type: ignore[method-assign]
        await sweeper.look()  # all have left; the window begins
        young = b"young"
        await broker.object_put(BUCKET, "young", young)
        assert await broker.object_get(BUCKET, "old") is not None
        sweeper._head = lambda: later(leader, 2 * bulky.replay_window_s)  # type: ignore[method-assign]
        last = (await broker.stream_state(stream_name("bulky"))).last_seq
        await sweeper.look()
        assert await broker.object_get(BUCKET, "old") is not None, "the log has not been purged"
        await broker.purge(stream_name("bulky"), below=last + 1)
        await sweeper.look()
        assert await broker.object_get(BUCKET, "old") is None
        assert await broker.object_get(BUCKET, "young") == young
        assert (await broker.stream_state(f"OBJ_{BUCKET}")).messages == 2
        stop.set()
        await leading
        await own.close()
        await broker.close()


def later(leader: Leader, seconds: float = 0.0) -> Head | None:
    """The newest head, so many seconds later."""
    head = leader._retention.head
    if head is None:
        return None
    return Head(
        head.version,
        head.applied,
        head.time + int(seconds * NS),
        head.plan,
        head.oldest_source,
        head.slices,
        head.oldest_inside,
    )
