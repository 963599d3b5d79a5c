"""Odd answers of a broker, written by hand: a server that is none of ours says what it likes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from broker_pipeline.broker.api import JetStreamApi
from broker_pipeline.broker.connection import Connection
from broker_pipeline.broker.jetstream import connect
from broker_pipeline.broker.port import Message
from broker_pipeline.broker.pull import Puller
from broker_pipeline.errors import (
    BrokerTooOldError,
    BrokerUnavailableError,
    NotFoundError,
)
from tests.contract.waiting import until
from tests.integration.plain_server import port_file, spawn_plain


@pytest.fixture
async def plain(tmp_path: Path) -> AsyncIterator[Client]:
    """A client of a nats-server without JetStream, to play JetStream's part itself."""
    process = spawn_plain(tmp_path)
    try:
        await until(lambda: port_file(tmp_path))
        client = await nats.connect(json.loads(port_file(tmp_path))["nats"][0])
        yield client
        await client.close()
    finally:
        process.kill()
        process.wait()


def url_of(client: Client) -> str:
    """Where a client is connected to."""
    assert client.connected_url is not None
    return client.connected_url.geturl()


async def test_a_peer_that_says_nothing_is_no_broker() -> None:
    """Something accepts the connection and never greets: BrokerUnavailableError too."""
    peers: list[asyncio.StreamWriter] = []
    mute = await asyncio.start_server(lambda _, peer: peers.append(peer), "127.0.0.1", 0)
    port = mute.sockets[0].getsockname()[1]
    async with asyncio.timeout(4):
        with pytest.raises(BrokerUnavailableError):
            await connect(f"nats://127.0.0.1:{port}", reconnect=False, name="test")
    for peer in peers:
        peer.close()
    mute.close()
    await mute.wait_closed()


async def test_a_broker_without_jetstream_is_refused(plain: Client) -> None:
    """BrokerTooOldError says what to enable."""
    with pytest.raises(BrokerTooOldError, match="does not offer JetStream"):
        await connect(url_of(plain), reconnect=True, name="test")


async def test_a_broker_of_an_older_api_level_is_refused(plain: Client) -> None:
    """BrokerTooOldError names both levels."""

    async def answer(request: Msg) -> None:
        await request.respond(b'{"api":{"level":3}}')

    await plain.subscribe("$JS.API.INFO", cb=answer)
    await plain.flush()
    with pytest.raises(BrokerTooOldError, match="API level 3; expected 4"):
        await connect(url_of(plain), reconnect=True, name="test")


class Script:
    """Plays a consumer on a nats-server without JetStream: answers as it is told."""

    def __init__(self, client: Client, info: bytes = b"{}") -> None:
        self.client = client
        self.info = info
        self.pulls: list[Msg] = []

    async def start(self) -> None:
        await self.client.subscribe("$JS.API.CONSUMER.INFO.S.c", cb=self._answer_info)
        await self.client.subscribe("$JS.API.CONSUMER.MSG.NEXT.S.c", cb=self._keep)
        await self.client.flush()

    async def _answer_info(self, request: Msg) -> None:
        await request.respond(self.info)

    async def _keep(self, request: Msg) -> None:
        self.pulls.append(request)

    def batches(self) -> list[int]:
        return [json.loads(each.data)["batch"] for each in self.pulls]

    async def status(self, line: bytes) -> None:
        """Send a status to the inbox. nats-py cannot send one, so it is written as it is."""
        block = b"NATS/1.0 " + line + b"\r\n\r\n"
        size = len(block)
        head = f"HPUB {self.pulls[0].reply} {size} {size}\r\n".encode()
        await self.client._send_command(head + block + b"\r\n")
        await self.client.flush()


@pytest.fixture
async def script(plain: Client) -> Script:
    """A scripted consumer `c` of stream `S`."""
    scripted = Script(plain)
    await scripted.start()
    return scripted


@pytest.fixture
async def scripted(script: Script) -> AsyncIterator[Connection]:
    """A connection to the scripted broker."""
    connection = Connection(url_of(script.client), reconnect=True, on_event=None)
    await connection.open("test")
    yield connection
    await connection.close()


def puller(connection: Connection, got: list[Message], silence_s: float = 60) -> Puller:
    """Pulls from the scripted consumer, 100 at a time."""
    return Puller(
        connection,
        JetStreamApi(connection),
        "S",
        "c",
        got.append,
        credit=100,
        bytes_max=2_000,
        silence_s=silence_s,
    )


async def test_a_request_that_ends_is_made_good_exactly(
    script: Script, scripted: Connection
) -> None:
    """408 and 409 say how much of it was not delivered; a heartbeat changes nothing."""
    pulling = puller(scripted, [])
    await pulling.start()
    await until(lambda: len(script.pulls) == 1)
    await script.status(b"100 Idle Heartbeat\r\nNats-Last-Consumer: 1")
    await script.status(
        b"408 Request Timeout\r\nNats-Pending-Messages: 70\r\nNats-Pending-Bytes: 0"
    )
    await until(lambda: len(script.pulls) == 2)
    assert script.batches() == [100, 70]
    too_large = b"409 Message Size Exceeds MaxBytes\r\nNats-Pending-Messages: 100\r\n"
    await script.status(too_large + b"Nats-Pending-Bytes: 1000")
    await until(lambda: len(script.pulls) == 3)
    assert [json.loads(each.data)["max_bytes"] for each in script.pulls] == [1000, 1000, 2000]
    await pulling.stop()


async def test_silence_is_answered_by_asking_again(script: Script, scripted: Connection) -> None:
    """Neither a message nor a heartbeat: the request is taken for lost."""
    pulling = puller(scripted, [], silence_s=0.1)
    await pulling.start()
    await until(lambda: len(script.pulls) >= 3)
    assert set(script.batches()) == {100}
    assert not pulling.failed.done()
    await pulling.stop()


async def test_a_consumer_that_is_gone_ends_the_reading(
    script: Script, scripted: Connection
) -> None:
    """Once the broker says that it does not exist, and not before."""
    pulling = puller(scripted, [])
    await pulling.start()
    await until(lambda: len(script.pulls) == 1)
    await script.status(b"409 Leadership Change")
    await until(lambda: len(script.pulls) == 2)
    assert not pulling.failed.done()
    script.info = b'{"error":{"code":404,"err_code":10014,"description":"consumer not found"}}'
    await script.status(b"409 Consumer Deleted")
    await until(pulling.failed.done)
    assert isinstance(pulling.failed.exception(), NotFoundError)
