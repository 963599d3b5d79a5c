"""A full disk, and JetStream's own limits: what is said, what is kept, and how it goes on."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from broker_pipeline.broker import embedded
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.jetstream import JetStreamBroker, connect
from broker_pipeline.broker.port import StreamSpec
from broker_pipeline.client.deploy import deploy
from broker_pipeline.client.producer import Producer
from broker_pipeline.core.names import ingress_subject
from broker_pipeline.errors import BrokerError, NotStoringError, StorageFullError
from tests.integration import pipelines
from tests.integration.processes import Outputs, Role, expected_ordered, send

DISK_BYTES = 24 << 20
PACKAGES = 300
TARGET = "tests.integration.pipelines:ordered"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, small enough to fill."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"no small file system to fill: {error}")
    if mounted.returncode:
        pytest.skip(f"no small file system to fill: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> Path:
    """Take all the room, as another program might."""
    filler = place / "filler"
    descriptor = os.open(filler, os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            os.write(descriptor, bytes(1 << 12))
    except OSError:
        return filler
    finally:
        os.close(descriptor)


async def error_of(producer: Producer) -> tuple[int, BrokerError]:
    """Send until it fails: how many were stored before, and the error."""
    stored = 0
    try:
        while True:
            await producer.send(b"more %d0" % stored, {})
            stored += 1
    except BrokerError as error:
        return stored, error


async def test_a_full_disk_loses_nothing_and_is_said(disk: Path) -> None:
    """In the middle of a run another program fills the disk. Producers and roles say what is wrong;
    with room again, and nats-server started again, everything acknowledged leaves once and in
    order, though no role was restarted, and nothing was called poison."""
    async with EmbeddedServer(store_dir=disk) as server:
        broker = await connect(server.url, reconnect=True, name="test")
        await deploy(broker, pipelines.ordered)
        controller = await Role.start("controller", TARGET, "--url", server.url)
        worker = await Role.start(
            "worker", TARGET, "--url", server.url, "--slots", "2", errors=asyncio.subprocess.STDOUT
        )
        try:
            await controller.said("leads")
            await worker.said("is ready")
            outputs = await Outputs.watch(broker, "ordered")
            await send(broker, "ordered", 1, PACKAGES)
            await outputs.until(PACKAGES // 10)
            filler = fill(disk)
            producer = Producer(broker, ingress_subject("ordered", "late"), timeout_s=8.0)
            stored, error = await error_of(producer)
            assert isinstance(error, NotStoringError)
            assert "restart nats-server" in str(error)
            await controller.said("stores nothing")
            await worker.said("holds its results")
            filler.unlink()
            await server.kill()
            await server.start()
            await worker.said("goes on")
            await producer.send(b"at last", {})
            await outputs.until(PACKAGES + stored + 1)
            late = outputs.by_instance.pop("late")
            assert sorted(outputs.by_instance.pop("i0")) == expected_ordered(PACKAGES)
            assert [data for _, data, _ in late][-1] == b"AT LAST"
            assert len(outputs.ids) == len(set(outputs.ids))
            assert controller.process.returncode is worker.process.returncode is None
        finally:
            await controller.end()
            await worker.end()
            await broker.close()


@pytest.fixture
async def limited(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[JetStreamBroker]:
    """A connection to a server that may store 2 MB."""
    config = embedded._CONFIG.replace("limits {{", "max_file_store: 2MB\n  limits {{")
    monkeypatch.setattr(embedded, "_CONFIG", config)
    async with EmbeddedServer() as server:
        broker = await connect(server.url, reconnect=True, name="test")
        yield broker
        await broker.close()


async def test_the_servers_limit_is_said_and_opens_again(limited: JetStreamBroker) -> None:
    """StorageFullError for every kind of write, with what to do; a purge makes room, and the same
    connection goes on."""
    await limited.ensure_stream(StreamSpec("S", ("s.>",)))
    await limited.ensure_bucket("B")
    acks = [await limited.start_publish("s.x", bytes(1 << 10)) for _ in range(2_500)]
    ended = await asyncio.gather(*acks, return_exceptions=True)
    refused = [each for each in ended if isinstance(each, BaseException)]
    assert refused and len(refused) < len(acks)
    assert all(isinstance(each, StorageFullError) and each.retriable for each in refused)
    assert "max_file_store" in str(refused[0])
    with pytest.raises(StorageFullError):
        await limited.kv_put("B", "k", b"v")
    publisher = limited.ordered_publisher("S")
    with pytest.raises(StorageFullError):
        await publisher.publish("s.x", bytes(1 << 10), msg_id="one")
    await limited.purge("S", below=1_000)
    await limited.kv_put("B", "k", b"v")
    assert (await limited.publish("s.x", b"")).stream_seq == len(acks) - len(refused) + 1
