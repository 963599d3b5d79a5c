"""Bridges as processes, between a real nats-server and module servers that speak gRPC."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker_pipeline import Controller, ExecutionModule, ExternalModule, Mode, Phase, Pipeline
from broker_pipeline import connect as client_of
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.jetstream import JetStreamBroker, connect
from broker_pipeline.client.deploy import deploy
from broker_pipeline.package import DataPackage
from broker_pipeline.runtime.local import LocalRoles
from tests.integration import pipelines
from tests.integration.delaying_server import DelayingServer
from tests.integration.processes import Outputs, Role, expected_ordered, send, until

INSTANCES, PACKAGES = 4, 150
TOTAL = INSTANCES * PACKAGES


class Site:
    """A broker, a deployed pipeline, a module server and the roles that a test starts."""

    def __init__(self, url: str, broker: JetStreamBroker, server: DelayingServer) -> None:
        self.url = url
        self.broker = broker
        self.server = server
        self.roles: list[Role] = []

    async def start(self, kind: str, *options: str, server: str | None = None) -> Role:
        """Start a role; it is told where the module servers are."""
        target = server or self.server.address
        role = await Role.start(
            kind, "tests.integration.pipelines:bridged", "--url", self.url, *options,
            MODULE_SERVER=target,
        )  # fmt: skip
        self.roles.append(role)
        return role

    async def start_all(self, *kinds: str) -> list[Role]:
        """Start roles, wait until they are ready, the leader first."""
        leader = await self.start("controller")
        roles = [await self.start(kind) for kind in kinds]
        await leader.said("leads")
        for role in roles:
            await role.said("is ready")
        return roles


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """Everything but the roles."""
    async with EmbeddedServer() as nats, DelayingServer("upper", seed=1) as server:
        broker = await connect(nats.url, reconnect=True, name="test")
        await deploy(broker, pipelines.bridged)
        site = Site(nats.url, broker, server)
        yield site
        for role in site.roles:
            await role.end()
        await broker.close()


async def both_have_some(site: Site) -> None:
    """Wait until the server holds packages of both."""
    await until(lambda: len(site.server.held) >= 2, "packages of both bridges are in the server")


async def test_killed_bridges_change_nothing(site: Site) -> None:
    """SIGKILL for one of two while the server has packages of both, and later for the other:
    nothing lost, none twice, in order, EXIT and ERROR as they were."""
    first, second = await site.start_all("bridge", "bridge")
    outputs = await Outputs.watch(site.broker, "bridged")
    site.server.opened.clear()
    await send(site.broker, "bridged", INSTANCES, PACKAGES)
    await both_have_some(site)
    first.send(signal.SIGKILL)
    site.server.opened.set()
    await (await site.start("bridge")).said("is ready")
    await outputs.until(TOTAL)
    site.server.opened.clear()
    await send(site.broker, "bridged", INSTANCES, PACKAGES, begin=PACKAGES)
    await both_have_some(site)
    second.send(signal.SIGKILL)
    site.server.opened.set()
    await outputs.until(2 * TOTAL)
    outputs.check(INSTANCES, 2 * PACKAGES, expected_ordered)
    assert max(site.server.runs.values()) > 1, "no kill has found a package"


async def test_a_bridge_that_drains_runs_nothing_twice(site: Site) -> None:
    """SIGTERM while the server has packages of two: it is finished, the rest goes to the other;
    exit code 0."""
    first, _ = await site.start_all("bridge", "bridge")
    outputs = await Outputs.watch(site.broker, "bridged")
    site.server.opened.clear()
    await send(site.broker, "bridged", INSTANCES, PACKAGES)
    await both_have_some(site)
    first.send(signal.SIGTERM)
    site.server.opened.set()
    assert await first.ended() == 0
    await outputs.until(TOTAL)
    outputs.check(INSTANCES, PACKAGES, expected_ordered)
    assert set(site.server.runs.values()) == {1}


async def test_a_bridge_without_servers_waits_says_so_and_drains(site: Site) -> None:
    """Its packages stay in the broker, and a bridge that reaches a server has them at once."""
    leader = await site.start("controller")
    errors = asyncio.subprocess.PIPE
    lost = await Role.start(
        "bridge", "tests.integration.pipelines:bridged", "--url", site.url, errors=errors,
        MODULE_SERVER="127.0.0.1:9",
    )  # fmt: skip
    site.roles.append(lost)
    await lost.said("bridge of 'bridged' is ready: tidy.upper to 127.0.0.1:9")
    await leader.said("leads")
    outputs = await Outputs.watch(site.broker, "bridged")
    await send(site.broker, "bridged", 1, 10)
    assert lost.process.stderr is not None
    async with asyncio.timeout(20):
        said = b""
        while b"no server of 127.0.0.1:9 is there; packages wait" not in said:
            said = await lost.process.stderr.readline()
            assert said, "it ended"
    assert outputs.ids == []
    lost.send(signal.SIGTERM)
    assert await lost.ended() == 0
    await (await site.start("bridge")).said("is ready")
    await outputs.until(10)
    outputs.check(1, 10, expected_ordered)


async def test_a_worker_that_is_told_runs_an_external_phase_the_same_way(site: Site) -> None:
    """On its main loop too; its journey holds what ran in the server."""
    leader = await site.start("controller")
    await leader.said("leads")
    refused = await site.start("worker")
    assert await refused.ended() == 2
    worker = await site.start("worker", "--phase", "tidy.upper")
    await worker.said("is ready: tidy.upper")
    outputs = await Outputs.watch(site.broker, "bridged")
    await send(site.broker, "bridged", 1, 20)
    await outputs.until(20)
    outputs.check(1, 20, expected_ordered)
    last = await site.broker.last_message("BP_bridged_0", "bp.bridged.0.out.error.i0")
    assert last is not None
    package = DataPackage.from_bytes(last.data)
    record = package.controllers[0].phases[0].modules[0]
    assert [inner.name for inner in record.sub_modules] == ["Upper"]
    assert record.sub_modules[0].error == package.errors[0]
    assert (package.errors[0].worker, package.errors[0].path) == ("delaying-1", "tidy/upper/upper")


class Mark(ExecutionModule[bytes]):
    """Runs in the worker."""

    def execute(self, package: Any, run: Any) -> None:
        """One package."""
        package.data = b"<" + package.data


async def test_roles_in_one_process_relay_from_bridge_and_worker() -> None:
    """A phase of the bridge, then one where the worker calls a server between its own modules."""
    async with EmbeddedServer() as nats, DelayingServer("upper", seed=2) as server:
        asr = ExternalModule("upper", target=server.address)
        phases = [Phase("there", [asr]), Phase("both", [Mark(), asr, Mark()])]
        pipeline = Pipeline("local", [Controller("c", phases, mode=Mode.ORDER_BY_SEQUENCE)])
        async with client_of(nats.url) as client:
            await client.deploy(pipeline)
            async with LocalRoles(nats.url, pipeline), client.instance(pipeline, "room") as room:
                for number in range(5):
                    await room.send(b"chunk %d" % number)
                await room.close()
                left = [package async for package in room.results()]
        assert [package.data for package in left] == [b"<<CHUNK %d" % n for n in range(5)]
        assert set(server.runs.values()) == {2}
