"""What the faults of a scenario do."""

from __future__ import annotations

import asyncio
from functools import partial

from broker_pipeline.broker.memory_store import Bucket
from broker_pipeline.core.names import LEASE_BUCKET, LEASE_TTL_S, lease_key, stream_name
from broker_pipeline.errors import BrokerError
from broker_pipeline.runtime import roles
from broker_pipeline.runtime.leader import Leader
from tests.fault.cluster import Cluster, Role
from tests.fault.link import PING_S, connect
from tests.fault.loop import Process
from tests.fault.scenario import NAME, Fault
from tests.fault.sources import SEND_TIMEOUT_S

LEADERLESS_S = 12.0
"""Longer than the shorter dedup window: what a leader published before is not remembered."""


class Saboteur:
    """Lets the faults happen, and counts them."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.network = cluster.network
        self.loop = cluster.loop
        self.chance = cluster.network.chance
        self.rogues: list[Process] = []
        self.quiet_at = 0.0

    def arm(self, faults: list[Fault]) -> None:
        """Set the timers."""
        context = self.network.process.context
        for fault in faults:
            self.loop.call_at(fault.at, self._happen, fault, context=context)

    def _happen(self, fault: Fault) -> None:
        what, _, whom = fault.kind.partition(" ")
        self.quiet_at = max(self.quiet_at, self.loop.time() + fault.lasts_s)
        if fault.kind in _AT_BROKER:
            self.network.injected[fault.kind] += 1
            _AT_BROKER[fault.kind](self, fault)
            return
        role = self._victim(whom, fault)
        process = self._client(fault) if whom == "client" else role and role.process
        if process is None or process.dead or process.paused:
            return
        act = partial(getattr(self, f"_{what}"), fault, role, process)
        if fault.fuse and process.fuse is None:
            process.fuse, process.blow = fault.fuse, act
        else:
            act()

    def _victim(self, whom: str, fault: Fault) -> Role | None:
        if whom == "leader":
            return self.cluster.leader()
        roles = self.cluster.workers if whom == "worker" else self.cluster.controllers
        return roles[fault.victim % len(roles)]

    def _client(self, fault: Fault) -> Process:
        return self.cluster.clients[fault.victim % len(self.cluster.clients)]

    # -- of processes -----------------------------------------------------------------------------
    def _kill(self, fault: Fault, role: Role, process: Process) -> None:
        if role.process is process:
            self.network.injected[f"{role.kind} killed"] += 1
            self.cluster.kill(role)

    def _stop(self, fault: Fault, role: Role, process: Process) -> None:
        if role.process is process:
            self.network.injected[f"{role.kind} drained"] += 1
            role.stop.set()

    def _pause(self, fault: Fault, role: Role | None, process: Process) -> None:
        """As SIGSTOP; the broker closes connections that are silent for too long."""
        if process.dead or process.paused:
            return
        self.network.injected[f"{role.kind if role else 'client'} paused"] += 1
        self.loop.pause(process)
        context = self.network.process.context
        self.loop.call_later(fault.lasts_s, self.loop.resume, process, context=context)
        if fault.flag or fault.lasts_s > PING_S:
            closed_s = min(fault.lasts_s, PING_S) * self.chance.random()
            self.loop.call_later(closed_s, self._cut_links, process, 0.0, context=context)

    def _cut(self, fault: Fault, role: Role | None, process: Process) -> None:
        """A reset, or a silence that both sides notice late."""
        self.network.injected[f"{role.kind if role else 'client'} cut off"] += 1
        self._cut_links(process, min(fault.lasts_s, PING_S) if fault.flag else 0.0)

    def _deafen(self, fault: Fault, role: Role | None, process: Process) -> None:
        """What it sends arrives; no answer comes back, for longer than a send waits."""
        self.network.injected["client made deaf"] += 1
        process.deaf_until = self.loop.time() + SEND_TIMEOUT_S + 1.0
        self.quiet_at = max(self.quiet_at, process.deaf_until)

    def _cut_links(self, process: Process, noticed_s: float) -> None:
        if not process.dead:
            for link in list(process.links):
                link.wire.cut(noticed_s=noticed_s)

    # -- of the broker ----------------------------------------------------------------------------
    def _restart(self, fault: Fault) -> None:
        self.network.take_down(self.loop.time() + min(3.0, fault.lasts_s))

    def _step_down(self, fault: Fault) -> None:
        self.network.away_until = self.loop.time() + min(2.0, fault.lasts_s)

    def _fill_ingress(self, fault: Fault) -> None:
        self.network.full_until[0] = self.loop.time() + fault.lasts_s

    def _fill_disk(self, fault: Fault) -> None:
        self.network.full_until[1] = self.loop.time() + fault.lasts_s

    def _redeliver(self, fault: Fault) -> None:
        """Some of what the workers have is delivered once more."""
        stream = self.network.server.stream(stream_name(NAME))
        for consumer in stream.consumers.values():
            for stream_seq in list(consumer.deadlines):
                if self.chance.random() < 0.5:
                    self.network.injected["delivered once more"] += 1
                    consumer.redeliver(stream_seq)
        self.network.server.pump.wake()

    def _forget_member(self, fault: Fault) -> None:
        """What one worker has announced is gone, until it does so again."""
        members = self._members()
        if members:
            self._bucket().erase(members[fault.victim % len(members)])

    def _false_member(self, fault: Fault) -> None:
        """Somebody is announced who pulls no lane, until the value vanishes."""
        members = self._members()
        if members:
            phase = members[fault.victim % len(members)].rpartition(".")[0]
            self._bucket().set(f"{phase}.nobody{fault.victim}", b"", self.loop.time())
            self.quiet_at = max(self.quiet_at, self.loop.time() + LEASE_TTL_S)

    def _bucket(self) -> Bucket:
        return self.network.server.bucket(LEASE_BUCKET)

    def _members(self) -> list[str]:
        prefix = f"{lease_key(NAME, 0)}."
        return [key for key in self._bucket().keys(self.loop.time()) if key.startswith(prefix)]

    def _leaderless(self, fault: Fault) -> None:
        """Nobody leads for longer than a message id is remembered."""
        until = self.loop.time() + LEADERLESS_S
        self.quiet_at = max(self.quiet_at, until)
        for role in self.cluster.controllers:
            role.held_back_until = until
            self.cluster.kill(role)

    def _rogue(self, fault: Fault) -> None:
        """A leader that does not ask whether it may: two at once, for a while."""
        process = self.cluster.new_process(f"rogue {len(self.rogues)}")
        self.rogues.append(process)
        task = self.loop.spawn(process, self._lead_anyway(process), process.name)
        context = self.network.process.context
        task.add_done_callback(lambda done: done.cancelled() or done.exception(), context=context)
        self.loop.call_later(fault.lasts_s, self._end_rogue, process, context=context)

    async def _lead_anyway(self, process: Process) -> None:
        try:
            link = await connect(self.network, reconnect=False)
            leader = Leader(link, NAME, 0, now_ns=roles.time.time_ns)
            await leader.run(asyncio.Event())
        except BrokerError:
            pass

    def _end_rogue(self, process: Process) -> None:
        self.loop.kill(process)
        for link in list(process.links):
            link.wire.cut(noticed_s=0.0)


_AT_BROKER = {
    "broker restarts": Saboteur._restart,
    "no stream leader": Saboteur._step_down,
    "log full for ingress": Saboteur._fill_ingress,
    "disk full": Saboteur._fill_disk,
    "redelivery": Saboteur._redeliver,
    "leaderless": Saboteur._leaderless,
    "leader without a lease": Saboteur._rogue,
    "member forgotten": Saboteur._forget_member,
    "member that is none": Saboteur._false_member,
}
