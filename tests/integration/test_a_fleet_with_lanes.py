"""Real workers of a stateful phase: each keeps its instances, and few inputs are run again when one
comes or goes."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.jetstream import JetStreamBroker, connect
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.lanes import LANES, lane_of, lanes_of
from broker_pipeline.core.names import LEASE_BUCKET, Subjects, ingress_subject
from broker_pipeline.runtime.lanes import LOOK_S
from tests.integration import pipelines
from tests.integration.processes import BOUND_S, Outputs, Role

NAMES = [f"i{n}" for n in range(30)]
ROUNDS = 10


class Fleet:
    """Workers as processes, and what they have executed."""

    def __init__(self, url: str, broker: JetStreamBroker, seen: Path) -> None:
        self.url = url
        self.broker = broker
        self.seen = seen
        self.roles: list[Role] = []
        self.sent = 0
        self.outputs: Outputs

    async def start(self, kind: str) -> Role:
        """One more role."""
        target = "tests.integration.pipelines:seen"
        role = await Role.start(kind, target, "--url", self.url, SEEN_IN=str(self.seen))
        self.roles.append(role)
        await role.said("leads" if kind == "controller" else "is ready")
        return role

    async def round(self) -> None:
        """One package for each instance, and all have left."""
        acks = []
        for name in NAMES:
            subject = ingress_subject("seen", name)
            acks.append(await self.broker.start_publish(subject, b"%d" % self.sent))
        await asyncio.gather(*acks)
        self.sent += 1
        await self.outputs.until(self.sent * len(NAMES))

    def executed(self, since: int) -> Counter[tuple[str, str, int]]:
        """How often each worker has executed each package of each instance, after so many lines."""
        found: Counter[tuple[str, str, int]] = Counter()
        for line in self.seen.read_text().splitlines()[since:]:
            pid, name, number = line.split()
            found[pid, name, int(number)] += 1
        return found

    def lines(self) -> int:
        """How many executions there were."""
        return len(self.seen.read_text().splitlines())

    async def owners(self) -> dict[str, str]:
        """The worker of each instance, by what the members have announced."""
        prefix = Subjects("seen").members("c", "p")
        keys = await self.broker.kv_listed(LEASE_BUCKET, prefix)
        members = [key[len(prefix) :] for key in keys]
        pid_of = {
            lane: member.split("-")[-2]
            for member in members
            for lane in lanes_of(member, members, LANES)
        }
        return {name: pid_of[lane_of(name, LANES)] for name in NAMES} if members else {}

    async def settled(self, workers: int) -> dict[str, str]:
        """Send until so many workers have had what is theirs for longer than they look."""
        loop = asyncio.get_running_loop()
        since = None
        async with asyncio.timeout(BOUND_S):
            while since is None or loop.time() - since < 3 * LOOK_S:
                before, owners = self.lines(), await self.owners()
                number = self.sent
                await self.round()
                once = Counter((owners.get(name), name, number) for name in NAMES)
                good = len(set(owners.values())) == workers and self.executed(before) == once
                since = (since or loop.time()) if good else None
        return owners


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    """A deployed pipeline with its controller, and no worker yet."""
    (tmp_path / "seen").touch()
    async with EmbeddedServer() as server:
        broker = await connect(server.url, reconnect=True, name="test")
        await deploy(broker, pipelines.seen)
        found = Fleet(server.url, broker, tmp_path / "seen")
        await found.start("controller")
        found.outputs = await Outputs.watch(broker, "seen")
        yield found
        for role in found.roles:
            await role.end()
        await broker.close()


async def test_a_stable_fleet_runs_nothing_again_and_a_change_little(fleet: Fleet) -> None:
    """Three workers: each package is executed once, by the owner of its lane. One is killed, then
    one joins: only instances that change their worker have inputs run again, and the states of all
    are right throughout."""
    workers = [await fleet.start("worker") for _ in range(3)]
    owners = await fleet.settled(3)
    for _ in range(ROUNDS):
        before, number = fleet.lines(), fleet.sent
        await fleet.round()
        assert fleet.executed(before) == Counter((owners[name], name, number) for name in NAMES)

    workers[0].send(signal.SIGKILL)
    owners = await _moved(fleet, owners, 2)
    assert str(workers[0].process.pid) not in owners.values()
    await fleet.start("worker")
    await _moved(fleet, owners, 3)
    for name, left in fleet.outputs.by_instance.items():
        expected = [(n + 1, b"%d is number %d" % (n, n + 1), "SUCCESS") for n in range(fleet.sent)]
        assert left == expected, f"{name} differs"


async def _moved(fleet: Fleet, before: dict[str, str], workers: int) -> dict[str, str]:
    """The owners after a change; what has not changed its worker was executed once each."""
    begun, first = fleet.lines(), fleet.sent
    after = await fleet.settled(workers)
    executed = fleet.executed(begun)
    stayed = [name for name in NAMES if before[name] == after[name]]
    assert stayed, "all have moved: the test shows nothing"
    for name in stayed:
        again = {k: n for k, n in executed.items() if k[1] == name and k[0] == after[name]}
        assert again == {(after[name], name, number): 1 for number in range(first, fleet.sent)}
    again = sum(executed.values()) - (fleet.sent - first) * len(NAMES)
    moved = len(NAMES) - len(stayed)
    print(f"{moved} of {len(NAMES)} instances moved, {again} inputs were run again")
    return after
