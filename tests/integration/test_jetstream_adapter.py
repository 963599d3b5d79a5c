"""What only a real nats-server can show: kills, restarts, silence, and its own odd answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest
from nats.aio.msg import Msg

from broker_pipeline.broker.connection import Connection
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.jetstream import JetStreamBroker, connect
from broker_pipeline.broker.port import ConsumerSpec, Message, PubAck, StreamSpec
from broker_pipeline.broker.publish import PipelinedPublisher
from broker_pipeline.errors import (
    BrokerUnavailableError,
    ConnectionLostError,
    PublishRefusedError,
    PublishTimeoutError,
)
from tests.contract.waiting import until
from tests.integration.plain_server import port_file, spawn_plain

LOG = StreamSpec("LOG", ("log.>",))

WORK = ConsumerSpec("worker", "log.>", ack_wait_s=1.0)


@pytest.fixture
async def server() -> AsyncIterator[EmbeddedServer]:
    """A fresh nats-server."""
    async with EmbeddedServer() as embedded:
        yield embedded


@pytest.fixture
async def broker(server: EmbeddedServer) -> AsyncIterator[JetStreamBroker]:
    """A connection that reconnects, to a broker with stream LOG and its consumer `worker`."""
    connection = await connect(server.url, reconnect=True, name="test")
    await connection.ensure_stream(LOG)
    await connection.ensure_consumer("LOG", WORK)
    yield connection
    await connection.close()


# -- connecting -----------------------------------------------------------------------------------
@pytest.mark.parametrize("reconnect", [True, False])
async def test_no_broker_is_said_quickly(reconnect: bool) -> None:
    """BrokerUnavailableError with the address, within seconds."""
    async with asyncio.timeout(4):
        with pytest.raises(BrokerUnavailableError, match=r"nats://127\.0\.0\.1:9.*Refused"):
            await connect("nats://127.0.0.1:9", reconnect=reconnect, name="test")


# -- losing the broker ----------------------------------------------------------------------------
async def test_a_leaders_connection_ends_with_its_first_disconnect(server: EmbeddedServer) -> None:
    """`lost`, readings and the ordered publisher end; calls raise; nothing reconnects."""
    leader = await connect(server.url, reconnect=False, name="leader")
    await leader.ensure_stream(LOG)
    await leader.ensure_consumer("LOG", WORK)
    reading = await leader.read("LOG", "log.>", lambda _: None)
    consuming = await leader.consume("LOG", "worker", lambda _: None, credit=10)
    ordered = leader.ordered_publisher("LOG")
    await ordered.publish("log.a", b"", msg_id="1")
    await server.kill()
    await server.start()
    await until(leader.lost.done)
    for future in (leader.lost, reading.failed, consuming.failed, ordered.failed):
        await until(future.done)
        assert isinstance(future.exception(), ConnectionLostError)
    for call in (
        leader.publish("log.a", b""),
        ordered.publish("log.a", b"", msg_id="2"),
        ordered.seal(),
        leader.stream_state("LOG"),
        leader.kv_get("B", "k"),
    ):
        with pytest.raises(ConnectionLostError):
            await call
    await leader.close()


@pytest.mark.parametrize("reconnect", [True, False])
async def test_every_publish_ends_when_the_broker_is_killed(
    server: EmbeddedServer, reconnect: bool
) -> None:
    """Under load, each future ends with an ack or ConnectionLostError, and none is left waiting."""
    broker = await connect(server.url, reconnect=reconnect, name="test")
    await broker.ensure_stream(LOG)
    futures: list[asyncio.Future[PubAck]] = []

    async def publish() -> None:
        try:
            while True:
                futures.append(await broker.start_publish("log.a", bytes(500), timeout_s=5))
        except ConnectionLostError:
            return

    tasks = [asyncio.create_task(publish()) for _ in range(3)]
    await until(lambda: len(futures) > 20_000)
    await server.kill()
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    results = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 10)
    assert {type(each) for each in results} == {PubAck, ConnectionLostError}
    if reconnect:
        await server.start()
        again = [await broker.start_publish("log.a", b"") for _ in range(6_000)]
        await asyncio.wait_for(asyncio.gather(*again), 20)
    await broker.close()


async def test_consuming_goes_on_after_a_restart(
    server: EmbeddedServer, broker: JetStreamBroker
) -> None:
    """Nothing that was acknowledged is missing, whatever is delivered twice."""
    got: dict[int, int] = {}
    acks: set[asyncio.Task[None]] = set()

    def take(message: Message) -> None:
        got[message.stream_seq] = got.get(message.stream_seq, 0) + 1
        acks.add(asyncio.ensure_future(broker.ack(message)))

    reading = await broker.consume("LOG", "worker", take, credit=50)
    for n in range(500):
        await broker.publish("log.a", b"%d" % n)
    await server.kill()
    await server.start()
    for n in range(500, 1000):
        await broker.publish("log.a", b"%d" % n)
    await until(lambda: len(got) == 1000)
    assert sorted(got) == list(range(1, 1001))
    await reading.stop()
    await asyncio.gather(*acks, return_exceptions=True)


async def test_reading_goes_on_after_a_restart(
    server: EmbeddedServer, broker: JetStreamBroker
) -> None:
    """Every message once and in order, although the reader's consumer is gone with the server."""
    got: list[int] = []
    reading = await broker.read("LOG", "log.>", lambda each: got.append(each.stream_seq), credit=64)
    for _ in range(3):
        for _ in range(300):
            await broker.publish("log.a", b"x")
        await server.kill()
        await server.start()
    await broker.publish("log.a", b"last")
    await until(lambda: len(got) >= 901)
    assert got == list(range(1, 902))
    await reading.stop()


async def test_an_ordered_publisher_does_not_outlive_a_disconnect(
    server: EmbeddedServer, broker: JetStreamBroker
) -> None:
    """It fails although the connection comes back; a new one works."""
    ordered = broker.ordered_publisher("LOG")
    await ordered.publish("log.a", b"", msg_id="1")
    await server.kill()
    await server.start()
    await until(ordered.failed.done)
    with pytest.raises(ConnectionLostError):
        await ordered.seal()
    await broker.publish("log.a", b"", msg_id="1")
    fresh = broker.ordered_publisher("LOG")
    await fresh.publish("log.a", b"", msg_id="2")
    await fresh.close()
    await ordered.close()
    assert (await broker.stream_state("LOG")).messages == 2


# -- reading --------------------------------------------------------------------------------------
async def test_a_reader_survives_the_loss_of_its_consumer(
    server: EmbeddedServer, broker: JetStreamBroker
) -> None:
    """Its consumer is deleted under it: no gap, no repeat; and it leaves none behind."""
    client = await nats.connect(server.url)
    manager = client.jsm()
    got: list[int] = []

    async def readers() -> set[str]:
        return {each.name or "" for each in await manager.consumers_info("LOG")} - {"worker"}

    reading = await broker.read("LOG", "log.>", lambda each: got.append(each.stream_seq))
    for _ in range(3):
        for _ in range(50):
            await broker.publish("log.a", b"x")
        await until(readers)
        await manager.delete_consumer("LOG", (await readers()).pop())
    await broker.publish("log.a", b"last")
    await until(lambda: len(got) >= 151)
    assert got == list(range(1, 152))
    await reading.stop()
    assert await readers() == set()
    await client.close()


async def test_half_of_the_credit_used_up_is_asked_for_again(
    server: EmbeddedServer, broker: JetStreamBroker
) -> None:
    """However few messages come at a time, what is asked for is credit less what is open."""
    client = await nats.connect(server.url)
    asked: list[int] = []

    async def keep(request: Msg) -> None:
        asked.append(json.loads(request.data)["batch"])

    await client.subscribe("$JS.API.CONSUMER.MSG.NEXT.LOG.worker", cb=keep)
    await client.flush()
    got: list[Message] = []
    reading = await broker.consume("LOG", "worker", got.append, credit=10)
    for n in range(14):
        await broker.publish("log.a", b"%d" % n)
    # 14 used up in bursts of whatever size: more than half of 10 is open again, never more than 10.
    await until(lambda: len(got) == 14 and sum(asked) > 14 + 5)
    assert asked[0] == 10
    assert all(count >= 5 for count in asked)
    assert sum(asked) <= 14 + 10
    await reading.stop()
    await client.close()


async def test_ack_subjects_of_version_2_are_understood(tmp_path: Path) -> None:
    """A server may be configured to send them."""
    config = tmp_path / "v2.conf"
    config.write_text("feature_flags { js_ack_fc_v2: true }")
    process = spawn_plain(tmp_path, "-js", "-sd", str(tmp_path), "-c", str(config))
    try:
        await until(lambda: port_file(tmp_path))
        url = json.loads(port_file(tmp_path))["nats"][0]
        broker = await connect(url, reconnect=False, name="test")
        await broker.ensure_stream(LOG)
        await broker.ensure_consumer("LOG", WORK)
        got: list[Message] = []
        read: list[int] = []
        for n in range(200):
            await broker.publish("log.a", b"%d" % n)
        consuming = await broker.consume("LOG", "worker", got.append, credit=20)
        reading = await broker.read("LOG", "log.>", lambda each: read.append(each.stream_seq))
        await until(lambda: len(got) == len(read) == 200)
        assert len(got[0].reply.split(".")) >= 11
        assert [(each.stream_seq, each.pending) for each in got] == [
            (n, 200 - n) for n in range(1, 201)
        ]
        assert read == list(range(1, 201))
        await consuming.stop()
        await reading.stop()
        await broker.close()
    finally:
        process.kill()
        process.wait()


# -- publishing -----------------------------------------------------------------------------------
async def no_answer() -> bool:
    """As from a broker that hangs."""
    return False


async def test_a_publish_without_an_answer_times_out(
    server: EmbeddedServer, broker: JetStreamBroker
) -> None:
    """PublishTimeoutError, and its room in the window is given back."""
    client = await nats.connect(server.url)
    await client.subscribe("mute")
    await client.flush()
    connection = Connection(server.url, reconnect=True, on_event=None)
    await connection.open("test")
    publisher = PipelinedPublisher(connection, no_answer, window_messages=2)
    await publisher.start()
    futures = [await publisher.start_publish("mute", b"", None, None, 0.1) for _ in range(6)]
    for future in futures:
        with pytest.raises(PublishTimeoutError, match="'mute'"):
            await future
    waiting = [
        asyncio.create_task(publisher.start_publish("mute", b"", None, None, 9)) for _ in range(4)
    ]
    await until(lambda: sum(each.done() for each in waiting) == 2)
    waiting[2].cancel()
    await connection.close()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[2], asyncio.CancelledError)
    assert isinstance(results[3], ConnectionLostError)
    for each in results[:2]:
        assert isinstance(each, asyncio.Future)
        assert isinstance(each.exception(), ConnectionLostError)
    await client.close()


async def test_an_ordered_publisher_needs_a_stream(broker: JetStreamBroker) -> None:
    """No stream on the subject: PublishRefusedError with code 503, now and from then on."""
    ordered = broker.ordered_publisher("NONE")
    for _ in range(2):
        with pytest.raises(PublishRefusedError, match="no stream listens") as caught:
            await ordered.publish("none.a", b"", msg_id="1")
        assert caught.value.err_code == 503
    await ordered.close()
