"""Payloads that fit no message, through module servers: real brokers, bridges, workers, servers."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker_pipeline import Client, Pipeline, connect, serve
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.large_payloads import LargePayloads
from broker_pipeline.core.names import ingress_subject, payload_bucket
from broker_pipeline.package import CONTENT_TYPE
from tests.integration.pipelines import Turn, between, distant
from tests.integration.processes import Role

SIZE = 20_000_000
BOUND_S = 60.0
_INSTANCES = itertools.count()


def payload(kind: bytes, seed: int) -> bytes:
    """One of 20 MB."""
    return kind + random.Random(seed).randbytes(SIZE - len(kind))


def turned(data: bytes) -> bytes:
    """What `Turn` makes of it."""
    return data[:0:-1] if data.startswith(b"C") else data


def peak_bytes(role: Role) -> int:
    """The most memory that a process has ever had."""
    for line in Path(f"/proc/{role.process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmHWM")


@asynccontextmanager
async def running(
    pipeline: Pipeline, kind: str, server: str, url: str
) -> AsyncIterator[tuple[Client, Role]]:
    """A deployed pipeline with its roles as processes, on a server of modules."""
    target = f"tests.integration.pipelines:{pipeline.name}"
    async with connect(url) as client:
        await client.deploy(pipeline)
        roles: list[Role] = []
        try:
            for role in ("controller", kind):
                roles.append(await Role.start(role, target, "--url", url, MODULE_SERVER=server))
            await roles[0].said("leads")
            await roles[1].said("is ready")
            yield client, roles[1]
        finally:
            for each in roles:
                await each.end()


async def through(client: Client, pipeline: Pipeline, sent: list[Any]) -> list[Any]:
    """What comes out of payloads and references to some, in order, errors included."""
    instance = f"i{next(_INSTANCES)}"
    found: list[Any] = []
    async with asyncio.timeout(BOUND_S), client.instance(pipeline, instance) as room:
        for each in sent:
            if isinstance(each, bytes):
                await room.send(each)
            else:
                message = pb.DataPackage(reference=each).SerializeToString()
                subject = ingress_subject(pipeline.name, instance)
                headers = {"Content-Type": CONTENT_TYPE}
                await client.broker.publish(subject, message, headers=headers)
        async for package in room.results():
            found.append(package)
            if len(found) == len(sent):
                break
    return sorted(found, key=lambda package: int(package.sequence))


async def objects(client: Client, pipeline: Pipeline) -> int:
    """How many there are."""
    stream = f"OBJ_{payload_bucket(pipeline.name)}"
    prefix = f"$O.{payload_bucket(pipeline.name)}.M.>"
    return len(await client.broker.read_range(stream, prefix, start_seq=1))


async def test_what_is_large_goes_around_the_bridge() -> None:
    """To a server process that fetches, and back: the bridge never has it in memory. What was
    changed comes back by reference; what was not is stored once."""
    kinds = (b"C", b"U", b"C", b"U", b"U")
    sent = [payload(kind, number) for number, kind in enumerate(kinds)]
    async with EmbeddedServer() as nats:
        async with connect(nats.url) as client:
            await client.deploy(distant)
        serving = await Role.start(
            "serve", "tests.integration.pipelines:Turn", "--port", "0", "--announce", nats.url
        )
        try:
            await serving.said("is ready")
            address = serving.lines[-1].rpartition(" ")[2]
            async with running(distant, "bridge", address, nats.url) as (client, bridge):
                (small,) = await through(client, distant, [b"Csmall"])
                assert small.data == b"llams"
                before = peak_bytes(bridge)
                found = await through(client, distant, sent)
                assert [package.data for package in found] == [turned(data) for data in sent]
                assert {str(package.outcome) for package in found} == {"SUCCESS"}
                assert peak_bytes(bridge) - before < SIZE / 2
                assert await objects(client, distant) == len(sent) + kinds.count(b"C")
        finally:
            await serving.end()


async def test_a_server_without_a_broker_gets_what_is_large_in_messages() -> None:
    """Up to its own limit, and answers so; what it left as it was is stored once."""
    sent = [payload(b"C", 1), payload(b"U", 2)]
    async with (
        EmbeddedServer() as nats,
        serve(Turn()) as server,
        running(distant, "bridge", server.address, nats.url) as (client, _),
    ):
        found = await through(client, distant, sent)
        assert [package.data for package in found] == [turned(data) for data in sent]
        assert await objects(client, distant) == 3


async def test_what_a_server_can_neither_fetch_nor_take_is_an_error_of_that_package() -> None:
    """It says what to do; the payload stays with it, and others go on."""
    large = payload(b"C", 1)
    async with (
        EmbeddedServer() as nats,
        serve(Turn(), message_bytes_max=4 << 20) as server,
        running(distant, "bridge", server.address, nats.url) as (client, _),
    ):
        found = await through(client, distant, [b"Cone", large, b"Ctwo"])
        assert [package.data for package in found] == [b"eno", large, b"owt"]
        assert found[1].outcome == "ERROR" and "--announce" in found[1].reason


@pytest.mark.parametrize(
    ("fetches", "limit", "stored"), [(True, 64 << 20, 3), (True, 4 << 20, 4), (False, 64 << 20, 2)]
)
async def test_modules_behind_an_external_one_have_the_payload_in_its_place(
    fetches: bool, limit: int, stored: int
) -> None:
    """Whether the server answers by reference or in a message; and gets it by reference where its
    messages have no room for it."""
    data = b"CC" + payload(b"", 1)[4:] + b"CC"
    async with (
        EmbeddedServer() as nats,
        serve(Turn(), announce=nats.url if fetches else None, message_bytes_max=limit) as server,
        running(between, "worker", server.address, nats.url) as (client, _),
    ):
        if fetches:
            assert server._host.payloads is not None
            await server._host.payloads._there.wait()
        (found,) = await through(client, between, [data])
        assert found.outcome == "SUCCESS", found.reason
        assert found.data == turned(turned(turned(data)))
        names = [module.name for module in found.controllers[0].phases[0].modules]
        assert names == ["before", "Turn", "behind"]
        assert await objects(client, between) == stored


@pytest.mark.parametrize("fetches", [True, False])
async def test_a_payload_that_is_gone_is_an_error_of_its_package(fetches: bool) -> None:
    """At a server that fetches, and at a bridge that has to load it; the others go on."""
    async with (
        EmbeddedServer() as nats,
        serve(Turn(), announce=nats.url if fetches else None) as server,
        running(distant, "bridge", server.address, nats.url) as (client, _),
    ):
        gone = await LargePayloads(client.broker, "distant").put(bytes(2_000_000))
        await client.broker.object_delete(gone.bucket, gone.object)
        elsewhere = pb.PayloadReference(bucket="bp_payloads_other", object="o", size=2_000_000)
        found = await through(client, distant, [gone, b"Cone", elsewhere, b"Ctwo"])
        assert [package.outcome for package in found] == ["ERROR", "SUCCESS"] * 2
        assert "BP403" in found[0].reason and "BP401" in found[2].reason
        assert [package.envelope.data for package in found[1::2]] == [b"eno", b"owt"]
        assert found[0].envelope.reference == gone
