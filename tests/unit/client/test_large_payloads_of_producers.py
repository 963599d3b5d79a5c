"""Producers and readers with payloads that fit no message."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker_pipeline import DataPackage, Outcome
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker import large_payloads
from broker_pipeline.broker.large_payloads import LargePayloads
from broker_pipeline.broker.memory import MemoryBroker, MemoryServer
from broker_pipeline.cli.lines import short_line
from broker_pipeline.client.instance import Instance
from broker_pipeline.core.names import HEADER_NUMBER, HEADER_PRODUCER, payload_bucket
from broker_pipeline.errors import (
    BrokerUnavailableError,
    PayloadGoneError,
    PublishRefusedError,
    PublishTimeoutError,
)
from broker_pipeline.journey import STATUS_TO_PB

LARGE = b"large " * 1_000
BUCKET = payload_bucket("talk")


@pytest.fixture
async def room(broker: MemoryBroker, pipeline: Any, log: Any) -> AsyncIterator[Instance]:
    """An instance, entered."""
    async with Instance(broker, pipeline, "room") as room:
        yield room


def objects(server: MemoryServer) -> int:
    """How many there are."""
    return len(server.objects[BUCKET].keys(asyncio.get_running_loop().time()))


async def sent(broker: MemoryBroker, log: Any) -> list[tuple[bytes, str, dict[str, str]]]:
    """What readers would get of the arrivals: payload, content type, attributes."""
    found = []
    for message in await log.arrivals():
        if "Content-Type" not in message.headers:
            found.append((message.data, "", {}))
            continue
        package = pb.DataPackage.FromString(message.data)
        if package.HasField("reference"):
            assert not package.data
            await LargePayloads(broker, "talk").load(package)
        found.append((package.data, package.content_type, dict(package.attributes)))
    return found


async def test_large_payloads_travel_by_reference_in_the_order_of_the_calls(
    room: Instance, broker: MemoryBroker, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbered like all others; a small one that is sent behind a large one comes behind it, and
    the large ones are stored at the same time."""
    real, under_way, most = broker.object_put, 0, 0

    async def put(bucket: str, name: str, data: bytes) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(20 - len(data) % 10):
            await asyncio.sleep(0)
        await real(bucket, name, data)
        under_way -= 1

    monkeypatch.setattr(broker, "object_put", put)
    package = DataPackage(LARGE + b"3", content_type="x/y", attributes={"a": "1"})
    await asyncio.gather(
        room.send(LARGE + b"1"), room.send(b"2"), room.send(package), room.send("4" * 5000)
    )
    assert await sent(broker, log) == [
        (LARGE + b"1", "", {}),
        (b"2", "", {}),
        (LARGE + b"3", "x/y", {"a": "1"}),
        (b"4" * 5000, "text/plain; charset=utf-8", {}),
    ]
    arrivals = await log.arrivals()
    assert [m.headers[HEADER_NUMBER] for m in arrivals] == ["1", "2", "3", "4"]
    assert len({m.headers[HEADER_PRODUCER] for m in arrivals}) == 1
    assert most == 3


async def test_the_threshold_is_the_pipelines(
    broker: MemoryBroker, server: MemoryServer, pipeline: Any, log: Any
) -> None:
    """What is not larger travels in the message."""
    pipeline.large_payload_bytes = 1024
    async with Instance(broker, pipeline, "room") as room:
        await room.send(bytes(1024))
        assert objects(server) == 0
        await room.send(bytes(1025))
        assert objects(server) == 1


async def test_a_package_that_is_sent_again_refers_to_the_same_object(
    room: Instance, broker: MemoryBroker, server: MemoryServer, log: Any, monkeypatch: Any
) -> None:
    """Until that was put so long ago that it may be taken for forgotten: then it is put again."""
    real, messages = broker.start_publish, []
    original = large_payloads.Upload.message

    async def message(self: Any) -> bytes:
        if len(messages) == 3:
            self._begun -= large_payloads.RENEW_S
        return await original(self)

    async def lossy(subject: str, data: bytes, **options: Any) -> Any:
        messages.append(data)
        if len(messages) < 5:
            raise PublishTimeoutError("no answer")
        return await real(subject, data, **options)

    monkeypatch.setattr(large_payloads.Upload, "message", message)
    monkeypatch.setattr(broker, "start_publish", lossy)
    monkeypatch.setattr("broker_pipeline.client.producer.RETRY_MIN_S", 0.001)
    await room.send(LARGE)
    assert messages[0] == messages[1] == messages[2] != messages[3] == messages[4]
    assert objects(server) == 2
    assert await sent(broker, log) == [(LARGE, "", {})]


async def test_a_payload_that_cannot_be_stored_uses_up_no_number(
    room: Instance, broker: MemoryBroker, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that does not answer is asked again; what it refuses is the error of `send`."""
    real, asked = broker.object_put, 0

    async def put(bucket: str, name: str, data: bytes) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise BrokerUnavailableError("no answer")
        if asked == 2:
            raise PublishRefusedError("no", err_code=1)
        await real(bucket, name, data)

    monkeypatch.setattr(broker, "object_put", put)
    sending = asyncio.create_task(room.send(LARGE))
    await asyncio.sleep(0)
    settled = asyncio.create_task(room._producer.settled())
    with pytest.raises(PublishRefusedError, match="no"):
        await sending
    async with asyncio.timeout(10):
        await settled
    await room.send(LARGE)
    (message,) = await log.arrivals()
    assert (message.headers[HEADER_NUMBER], asked) == ("1", 3)


async def test_a_send_that_is_cancelled_stores_nothing_behind_its_back(
    room: Instance, broker: MemoryBroker, server: MemoryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The putting ends with it, and the next one goes on."""
    begun = asyncio.Event()

    async def put(bucket: str, name: str, data: bytes) -> None:
        begun.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(broker, "object_put", put)
        sending = asyncio.create_task(room.send(LARGE))
        await begun.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
    assert await room.send(LARGE)
    assert objects(server) == 1


async def leave(broker: MemoryBroker, log: Any, number: int, reference: Any) -> None:
    """A package leaves whose payload is an object."""
    envelope = pb.DataPackage(
        id=number,
        pipeline="talk",
        instance="room",
        outcome=STATUS_TO_PB[Outcome.SUCCESS],
        reference=reference,
    )
    subject = log.subjects.outcome(Outcome.SUCCESS, "room")
    await broker.publish(subject, envelope.SerializeToString())


async def test_results_come_with_the_payload_in_its_place(
    room: Instance, broker: MemoryBroker, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that does not answer is waited for."""
    await leave(broker, log, 1, await LargePayloads(broker, "talk").put(LARGE))
    real, asked = broker.object_get, 0

    async def get(bucket: str, name: str) -> bytes | None:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise BrokerUnavailableError("no answer")
        return await real(bucket, name)

    monkeypatch.setattr(broker, "object_get", get)
    async for package in room.results():
        assert package.data == LARGE
        assert "reference" not in package.to_json()
        break
    assert asked == 2


async def test_a_result_whose_payload_is_gone_says_so_when_it_is_read(
    room: Instance, broker: MemoryBroker, log: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes all the same, and those behind it; nobody takes it for an empty one."""
    await broker.ensure_object_bucket("secrets")
    await broker.object_put("secrets", "key", b"secret")
    await leave(broker, log, 1, pb.PayloadReference(bucket=BUCKET, object="gone", size=5))
    await leave(broker, log, 2, pb.PayloadReference(bucket="secrets", object="key", size=6))
    await leave(broker, log, 3, await LargePayloads(broker, "talk").put(LARGE))
    packages = []
    with caplog.at_level(logging.WARNING):
        async for package in room.results():
            packages.append(package)
            if len(packages) == 3:
                break
    for package in packages[:2]:
        with pytest.raises(PayloadGoneError, match="BP403"):
            package.data  # noqa: B018 - reading it is what fails
        with pytest.raises(PayloadGoneError):
            package.content_type = "x/y"
        with pytest.raises(PayloadGoneError):
            await room.send(package)
        assert "BP403" in short_line(package)
    assert packages[0].to_json()["reference"] == {"bucket": BUCKET, "object": "gone", "size": 5}
    assert packages[2].data == LARGE
    assert "there is no such object" in caplog.text and "'secrets'" in caplog.text
    packages[0].data = b"another"
    assert not packages[0].envelope.HasField("reference") or packages[0].to_bytes()
    assert packages[0].to_json()["data"] and not packages[0].envelope.HasField("reference")
