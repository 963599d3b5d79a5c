"""Fleets of two versions on one real server, and deploys that cannot be followed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator

import pytest

from broker_pipeline import Controller, Mode, Phase, Pipeline
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.jetstream import JetStreamBroker, connect
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.names import Subjects, ingress_subject, stream_name
from broker_pipeline.core.plan import compile_plan, unfollowable
from broker_pipeline.errors import PlanError
from tests.integration import pipelines
from tests.integration.next_version import TOLD
from tests.integration.processes import ROOT, Outputs, Role, expected_ordered, send, until
from tests.unit.runtime.stranger import Stranger

INSTANCES = 5
PART = 100
TARGET = "tests.integration.pipelines:ordered"
NAME = "ordered"


class Fleet:
    """Roles of this version and of the next."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.roles: list[Role] = []

    async def start(self, *arguments: str, next: bool = False, **environment: str) -> Role:
        """Start a command of the version that is asked for."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.integration.next_version" if next else "broker_pipeline",
            *arguments,
            "--url",
            self.url,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self.roles.append(Role(process))
        return self.roles[-1]

    async def controller(self, *, next: bool = False) -> Role:
        """One that stands by, or leads."""
        role = await self.start("controller", TARGET, next=next)
        await role.said("stands by")
        return role

    async def worker(self, *, next: bool = False) -> Role:
        """One that is ready."""
        role = await self.start("worker", TARGET, "--slots", "2", next=next)
        await role.said("is ready")
        return role


@pytest.fixture
async def site() -> AsyncIterator[tuple[JetStreamBroker, Fleet]]:
    """A server with the pipeline, and no roles yet."""
    async with EmbeddedServer() as server:
        broker = await connect(server.url, reconnect=True, name="test")
        await deploy(broker, pipelines.ordered)
        fleet = Fleet(server.url)
        yield broker, fleet
        for role in fleet.roles:
            await role.end()
        await broker.close()


class Rolling:
    """A stream of numbered packages, a part of it for each role that is replaced."""

    def __init__(self, broker: JetStreamBroker, outputs: Outputs) -> None:
        self.broker = broker
        self.outputs = outputs
        self.sent = 0

    async def send(self) -> None:
        """One part more."""
        acks = []
        for number in range(self.sent, self.sent + PART):
            for instance in range(INSTANCES):
                subject = ingress_subject(NAME, f"i{instance}")
                acks.append(await self.broker.start_publish(subject, b"payload %d" % number))
        self.sent += PART
        await asyncio.gather(*acks)

    async def replace(self, old: Role, new: Role, said: str) -> None:
        """Drain the old one in the middle of a part; the new one is there already."""
        before = len(self.outputs.ids)
        sending = asyncio.create_task(self.send())
        await self.outputs.until(before + PART)
        assert len(self.outputs.ids) < before + PART * INSTANCES, "nothing is under way"
        old.send(signal.SIGTERM)
        assert await old.ended() == 0
        await new.said(said)
        await sending
        await self.outputs.until(self.sent * INSTANCES)


async def test_a_rolling_upgrade_and_the_way_back_change_nothing(
    site: tuple[JetStreamBroker, Fleet],
) -> None:
    """Workers and controllers of the next version take over under load, and hand back: nothing
    lost, doubled or out of order, and what only the next version understands has survived this
    one's roles at every level of a package."""
    broker, fleet = site
    leader, worker = await fleet.controller(), await fleet.worker()
    rolling = Rolling(broker, await Outputs.watch(broker, NAME))
    next_worker = await fleet.worker(next=True)
    await rolling.replace(worker, next_worker, "is ready")
    next_leader = await fleet.controller(next=True)
    await rolling.replace(leader, next_leader, "leads")
    leader, worker = await fleet.controller(), await fleet.worker()
    await rolling.replace(next_leader, leader, "leads")
    await rolling.replace(next_worker, worker, "is ready")
    rolling.outputs.check(INSTANCES, rolling.sent, expected_ordered)
    left = await broker.read_range(stream_name(NAME), f"{Subjects(NAME).out}>", start_seq=1)
    told = {message.data.count(TOLD) for message in left}
    assert {0, 4} <= told, f"not all levels, or only one version: {told}"


async def test_a_plan_of_the_next_version_makes_older_controllers_stand_aside(
    site: tuple[JetStreamBroker, Fleet],
) -> None:
    """They say so and leave the lead to those that can follow it; older workers go on; an older
    program that would deploy or start a controller is refused."""
    broker, fleet = site
    packages = 200
    total = INSTANCES * packages
    leader = await fleet.controller()
    await leader.said("leads")
    next_leader = await fleet.controller(next=True)
    await fleet.worker()
    await fleet.worker(next=True)
    outputs = await Outputs.watch(broker, NAME)
    sending = asyncio.create_task(send(broker, NAME, INSTANCES, packages))
    await outputs.until(total // 4)
    deploying = await fleet.start("deploy", TARGET, next=True, NEXT_PLAN="1")
    assert await deploying.ended() == 0
    await leader.said("stands aside for 30 s: BP205")
    await next_leader.said("leads")
    await sending
    await outputs.until(total)
    outputs.check(INSTANCES, packages, expected_ordered)
    assert leader.process.returncode is None, "it ended"
    for command in ("deploy", "controller"):
        refused = await fleet.start(command, TARGET)
        assert await refused.ended() == 2
        assert any("BP205" in line and "version 3" in line for line in refused.lines)


async def test_a_newer_plan_that_nobody_deployed_can_be_deleted(
    site: tuple[JetStreamBroker, Fleet],
) -> None:
    """The way out that the error names works: the log goes on as if it had never been there."""
    broker, fleet = site
    leader = await fleet.controller()
    await fleet.worker()
    forged = b'{"pipeline": "ordered", "version": 7}'
    ack = await broker.publish(Subjects(NAME).plan, forged)
    await leader.said(f"message {ack.stream_seq} of the log of 'ordered' is a plan of version 7")
    await send(broker, NAME, INSTANCES, 2)
    await broker._connection.nc.request(
        f"$JS.API.STREAM.MSG.DELETE.{stream_name(NAME)}", b'{"seq": %d}' % ack.stream_seq
    )
    leader.send(signal.SIGTERM)
    assert await leader.ended() == 0
    outputs = await Outputs.watch(broker, NAME)
    await fleet.controller()
    await outputs.until(INSTANCES * 2)
    outputs.check(INSTANCES, 2, expected_ordered)


async def test_strangers_change_nothing_on_a_real_server(
    site: tuple[JetStreamBroker, Fleet],
) -> None:
    """Garbage on every subject of the log, subjects that are no UTF-8 among them, with a leader
    that is killed and one that follows: roles live, and good packages leave as they should."""
    broker, fleet = site
    packages = 60
    leader, worker = await fleet.controller(), await fleet.worker()
    outputs = await Outputs.watch(broker, NAME)
    stranger = Stranger(broker, pipelines.ordered, random.Random(5))
    for part in range(packages):
        for instance in range(INSTANCES):
            subject = ingress_subject(NAME, f"i{instance}")
            await broker.publish(subject, b"payload %d" % part, headers={"X-Next": "é"})
            await stranger.write()
        if part == packages // 2:
            leader.send(signal.SIGKILL)
            leader = await fleet.controller()
    good = {f"i{n}" for n in range(INSTANCES)}
    await until(
        lambda: all(len(outputs.by_instance.get(name, ())) >= packages for name in good),
        "all good packages",
    )
    outputs.by_instance = {name: outputs.by_instance[name] for name in good}
    assert len(outputs.ids) == len(set(outputs.ids))
    for left in outputs.by_instance.values():
        success = [sequence for sequence, _, outcome in left if outcome == "SUCCESS"]
        assert success == sorted(success)
        assert sorted(left) == expected_ordered(packages)
    assert leader.process.returncode is None
    assert worker.process.returncode is None


def changed() -> Pipeline:
    """`pipelines.ordered` with another mode: its running packages cannot follow."""
    (was,) = pipelines.ordered.controllers
    return Pipeline(NAME, [Controller("tidy", mode=Mode.NO_ORDER, phases=was.phases)])


unfollowed = changed()


async def test_a_plan_that_cannot_be_followed_is_refused_and_both_ways_out_work(
    site: tuple[JetStreamBroker, Fleet],
) -> None:
    """The command exits with 2, the reason and the way out; draining as it says, or another name,
    lets the new pipeline run."""
    broker, fleet = site
    leader = await fleet.controller()
    await fleet.worker()
    outputs = await Outputs.watch(broker, NAME)
    await send(broker, NAME, INSTANCES, 2)
    await outputs.until(INSTANCES * 2)
    refused = await fleet.start("deploy", "tests.integration.test_upgrades:unfollowed")
    assert await refused.ended() == 2
    (line,) = refused.lines
    assert "BP201" in line and "the mode of 'tidy' was ORDER_BY_SEQUENCE" in line
    assert "another name" in line and "drain this one" in line
    # One way out: another name.
    renamed = Pipeline("other", unfollowed.controllers)
    assert "plan created" in (await deploy(broker, renamed)).changes
    # The other: stop the producers, wait, stop the controllers, delete the stream, deploy again.
    leader.send(signal.SIGTERM)
    assert await leader.ended() == 0
    await broker.delete_stream(stream_name(NAME))
    again = await fleet.start("deploy", "tests.integration.test_upgrades:unfollowed")
    assert await again.ended() == 0
    await fleet.worker()
    outputs = await Outputs.watch(broker, NAME)
    await fleet.controller()
    await send(broker, NAME, INSTANCES, 10)
    await outputs.until(INSTANCES * 10)
    assert len(set(outputs.ids)) == INSTANCES * 10
    with pytest.raises(PlanError, match="BP201"):
        await deploy(broker, pipelines.ordered)


def test_what_may_change_is_followed() -> None:
    """Bounds, timeouts and modules; a pipeline of another name shares nothing."""
    (was,) = pipelines.ordered.controllers
    (phase,) = was.phases
    other = Phase("upper", [pipelines.Pass()], ack_wait_s=9.0, max_deliver=2)
    new = Controller("tidy", mode=was.mode, max_workers=2, queue_size=0, phases=[other])
    before = compile_plan(pipelines.ordered)
    after = compile_plan(Pipeline(NAME, [new], instance_idle_s=1.0, producer_gap_s=0.5))
    assert phase.ack_wait_s != other.ack_wait_s
    assert unfollowable(before, after) == []
