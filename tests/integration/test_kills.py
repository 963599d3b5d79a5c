"""Workers and leaders that are killed or paused in the middle of a run: the output is the same."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable

import pytest

from broker_pipeline import Pipeline
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.jetstream import JetStreamBroker, connect
from broker_pipeline.client.deploy import deploy
from tests.integration import pipelines
from tests.integration.processes import (
    Left,
    Outputs,
    Role,
    expected_chained,
    expected_ordered,
    send,
    until,
)

INSTANCES = 5
Case = tuple[Pipeline, int, Callable[[int], list[Left]]]
CASES: list[Case] = [
    (pipelines.ordered, 400, expected_ordered),
    (pipelines.chained, 100, expected_chained),
]


class Site:
    """A broker, a deployed pipeline, two controllers and two workers as processes."""

    def __init__(self, server: EmbeddedServer, broker: JetStreamBroker, pipeline: Pipeline) -> None:
        self.server = server
        self.broker = broker
        self.pipeline = pipeline
        self.roles: list[Role] = []

    async def start(self, kind: str) -> Role:
        """Start one more role."""
        target = f"tests.integration.pipelines:{self.pipeline.name}"
        options = ("--slots", "2") if kind == "worker" else ()
        role = await Role.start(kind, target, "--url", self.server.url, *options)
        self.roles.append(role)
        return role

    async def start_all(self) -> tuple[list[Role], list[Role]]:
        """Two controllers, the leader first, and two workers; all are ready."""
        leader = await self.start("controller")
        workers = [await self.start("worker") for _ in range(2)]
        await leader.said("leads")
        standby = await self.start("controller")
        await standby.said("stands by")
        for worker in workers:
            await worker.said("is ready")
        return [leader, standby], workers


@pytest.fixture(params=CASES, ids=lambda case: case[0].name)
async def case(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Site, Case]]:
    """A site for one of the cases."""
    async with EmbeddedServer() as server:
        broker = await connect(server.url, reconnect=True, name="test")
        await deploy(broker, request.param[0])
        site = Site(server, broker, request.param[0])
        yield site, request.param
        for role in site.roles:
            await role.end()
        await broker.close()


async def test_killed_workers_and_leaders_change_nothing(
    case: tuple[Site, Case], capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL for a worker, then for the leader, while packages are in both: nothing lost, doubled
    or out of order, and the standby takes over."""
    site, (pipeline, packages, expected) = case
    total = INSTANCES * packages
    (leader, standby), workers = await site.start_all()
    outputs = await Outputs.watch(site.broker, pipeline.name)
    sending = asyncio.create_task(send(site.broker, pipeline.name, INSTANCES, packages))
    await outputs.until(total // 5)
    workers[0].send(signal.SIGKILL)
    await site.start("worker")
    await outputs.until(total // 2)
    leader.send(signal.SIGKILL)
    killed = time.monotonic()
    await standby.said("leads")
    took = time.monotonic() - killed
    await sending
    assert len(outputs.ids) < total, "it was over before the takeover: the test shows nothing"
    await outputs.until(total)
    with capsys.disabled():
        print(f"\n{pipeline.name}: the standby led {took:.2f} s after the leader was killed")
    outputs.check(INSTANCES, packages, expected)


async def test_a_paused_leader_changes_nothing(case: tuple[Site, Case]) -> None:
    """SIGSTOP for longer than its lease, until another leads; then SIGCONT: it does no harm and
    stands by."""
    site, (pipeline, packages, expected) = case
    total = INSTANCES * packages
    (leader, standby), _ = await site.start_all()
    outputs = await Outputs.watch(site.broker, pipeline.name)
    sending = asyncio.create_task(send(site.broker, pipeline.name, INSTANCES, packages))
    await outputs.until(total // 4)
    leader.send(signal.SIGSTOP)
    await standby.said("leads")
    leader.send(signal.SIGCONT)
    await leader.said("begins anew")
    await sending
    await outputs.until(total)
    outputs.check(INSTANCES, packages, expected)
    assert leader.process.returncode is None


async def test_sigterm_drains(case: tuple[Site, Case]) -> None:
    """Exit code 0 for leader and worker in the middle of a run; the others finish it."""
    site, (pipeline, packages, expected) = case
    total = INSTANCES * packages
    (leader, standby), workers = await site.start_all()
    outputs = await Outputs.watch(site.broker, pipeline.name)
    sending = asyncio.create_task(send(site.broker, pipeline.name, INSTANCES, packages))
    await outputs.until(total // 4)
    workers[0].send(signal.SIGTERM)
    leader.send(signal.SIGTERM)
    assert await workers[0].ended() == 0
    assert await leader.ended() == 0
    await standby.said("leads")
    await sending
    await outputs.until(total)
    outputs.check(INSTANCES, packages, expected)


async def test_roles_end_soon_after_sigterm_when_the_broker_is_gone(
    case: tuple[Site, Case],
) -> None:
    """In the middle of a run the broker is killed: exit code 0 all the same, and no hanging."""
    site, (pipeline, packages, _) = case
    controllers, workers = await site.start_all()
    outputs = await Outputs.watch(site.broker, pipeline.name)
    sending = asyncio.create_task(send(site.broker, pipeline.name, INSTANCES, packages))
    await outputs.until(20)
    await site.server.kill()
    await asyncio.gather(sending, return_exceptions=True)
    await controllers[0].said("begins anew")
    begun = time.monotonic()
    for role in (*controllers, *workers):
        role.send(signal.SIGTERM)
    for role in (*controllers, *workers):
        assert await role.ended() == 0
    assert time.monotonic() - begun < 10, "it waits for the broker"


async def test_a_broker_that_restarts_is_waited_for(case: tuple[Site, Case]) -> None:
    """SIGKILL for the broker: what it had acknowledged comes out, once and in order."""
    site, (pipeline, packages, expected) = case
    await site.start_all()
    packages //= 4
    await send(site.broker, pipeline.name, INSTANCES, packages)
    await site.server.kill()
    await site.server.start()
    outputs = await Outputs.watch(site.broker, pipeline.name)
    await outputs.until(INSTANCES * packages)
    outputs.check(INSTANCES, packages, expected)
    await until(lambda: all(r.process.returncode is None for r in site.roles), "all roles live")
