"""What goes wrong and when: drawn from the seed before a run begins, and done while it runs."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass

from broker_pipeline.broker.api import Answer
from broker_pipeline.broker.jetstream import JetStreamBroker
from broker_pipeline.core.names import LEASE_BUCKET, stream_name
from broker_pipeline.errors import BrokerError
from tests.fault.real.fleet import Role
from tests.fault.real.pipeline import CONSUMERS
from tests.fault.real.proxy import Door
from tests.fault.real.servers import Servers
from tests.fault.scenario import NAME

PAUSE_MIN_S, PAUSE_MAX_S = 1.0, 30.0
SERVER_PAUSE_MAX_S = 12.0
DOWN_S = 1.0
FIRST_S = 4.0
SETTLE_S = 0.5
STEP_DOWN_TRIES = 20

KINDS = {
    "kill leader": 6,
    "kill standby": 1,
    "kill worker": 5,
    "end leader": 2,
    "end worker": 2,
    "pause leader": 3,
    "pause worker": 3,
    "server restarts": 2,
    "server killed": 3,
    "server paused": 1,
} | {
    f"{what} {who}": 1
    for what in ("cut", "half-open", "stall", "slow", "refuse")
    for who in ("leader", "worker", "client")
}
STEPPING_DOWN = {"log steps down": 4, "consumer steps down": 2, "leases step down": 1}
"""With three replicas only: one has nobody to hand over to."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong at a time."""

    at: float
    kind: str
    victim: int
    lasts_s: float

    def __str__(self) -> str:
        return f"{self.at:7.1f} s  {self.kind} (victim {self.victim}, {self.lasts_s:.1f} s)"


def draw_faults(seed: int, length_s: float, replicas: int, every_s: float) -> list[Fault]:
    """Every kind once, as far as there is time for, and others by their weights."""
    chance = random.Random(f"chaos {seed} {replicas}")
    kinds = KINDS | (STEPPING_DOWN if replicas > 1 else {})
    count = max(4, int((length_s - FIRST_S) / every_s))
    chosen = list(kinds)
    chance.shuffle(chosen)
    chosen = chosen[:count]
    chosen += chance.choices(list(kinds), list(kinds.values()), k=count - len(chosen))
    chance.shuffle(chosen)
    times = sorted(chance.uniform(FIRST_S, length_s) for _ in chosen)
    longest = min(PAUSE_MAX_S, length_s / 3)
    return [
        Fault(at, kind, chance.randrange(1000), longest ** chance.random())
        for at, kind in zip(times, chosen, strict=True)
    ]


class Chaos:
    """Does the faults.

    Attributes:
        done: how often each kind was done.
        log: `(wall clock, kind, victim's name)` of each.
        quiet_at: when the last of them is over, wall clock.
    """

    def __init__(
        self,
        servers: Servers,
        controllers: list[Role],
        workers: list[Role],
        doors: dict[str, Door],
        admin: JetStreamBroker,
    ) -> None:
        self.done: Counter[str] = Counter()
        self.log: list[tuple[float, str, str]] = []
        self.skipped: Counter[str] = Counter()
        self.quiet_at = 0.0
        self._servers = servers
        self._controllers = controllers
        self._workers = workers
        self._doors = doors
        self._admin = admin
        self._server_turn = asyncio.Lock()

    async def run(self, faults: list[Fault]) -> None:
        """Do all of them; returns when the last is over."""
        begun = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(max(0.0, begun + fault.at - asyncio.get_running_loop().time()))
                group.create_task(self._do(fault), name=fault.kind)
        self.quiet_at = time.time()

    async def _do(self, fault: Fault) -> None:
        what, _, who = fault.kind.rpartition(" ")
        if fault.kind.startswith("server"):
            await self._server(fault, who)
            return
        if who == "down":
            await self._step_down(fault)
            return
        role = self._role(who, fault.victim)
        door = self._doors[role.name if role is not None else "client"]
        if what in ("kill", "end", "pause") and (role is None or not role.pid):
            self.skipped[fault.kind] += 1
            return
        self._note(fault, door.name)
        if what == "kill":
            assert role is not None
            role.send(signal.SIGKILL)
        elif what == "end":
            assert role is not None
            role.send(signal.SIGTERM)
        elif what == "pause":
            assert role is not None
            await role.pause(fault.lasts_s)
        elif what == "cut":
            door.cut()
        elif what == "half-open":
            door.half_open()
        elif what == "stall":
            await door.stall(fault.lasts_s)
        elif what == "slow":
            await door.slow_down(fault.lasts_s)
        elif what == "refuse":
            await door.refuse(fault.lasts_s)

    def _role(self, who: str, victim: int) -> Role | None:
        if who == "worker":
            return self._workers[victim % len(self._workers)]
        if who == "client":
            return None
        leading = [role for role in self._controllers if role.leads and role.pid]
        others = [role for role in self._controllers if role not in leading]
        chosen = leading if who == "leader" else others
        chosen = chosen or self._controllers
        return chosen[victim % len(chosen)]

    async def _server(self, fault: Fault, what: str) -> None:
        # One at a time: three replicas promise nothing when two of them are away.
        async with self._server_turn:
            server = self._servers.all[fault.victim % len(self._servers.all)]
            self._note(fault, server.name)
            if what == "paused":
                server.send(signal.SIGSTOP)
                await asyncio.sleep(min(fault.lasts_s, SERVER_PAUSE_MAX_S))
                server.send(signal.SIGCONT)
            else:
                await server.end(signal.SIGKILL if what == "killed" else signal.SIGTERM)
                await asyncio.sleep(min(DOWN_S, fault.lasts_s))
                await server.start()
            if self._servers.replicas > 1:
                while not await server.answers("/healthz"):  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.1)
            await asyncio.sleep(SETTLE_S)

    async def _step_down(self, fault: Fault) -> None:
        log = stream_name(NAME)
        path = f"STREAM.LEADER.STEPDOWN.{log}"
        if fault.kind.startswith("consumer"):
            consumer = CONSUMERS[fault.victim % len(CONSUMERS)]
            path = f"CONSUMER.LEADER.STEPDOWN.{log}.{consumer}"
        elif fault.kind.startswith("leases"):
            path = f"STREAM.LEADER.STEPDOWN.KV_{LEASE_BUCKET}"
        # Without a leader, or with a replica away, there may be nobody to hand over to just now.
        for _ in range(STEP_DOWN_TRIES):
            try:
                await self._admin._api.request(path, None, Answer)
                break
            except BrokerError:
                await asyncio.sleep(SETTLE_S)
        else:
            self.skipped[fault.kind] += 1
            return
        self._note(fault, path.rpartition(".")[2])

    def _note(self, fault: Fault, victim: str) -> None:
        self.done[fault.kind] += 1
        self.log.append((time.time(), fault.kind, victim))
