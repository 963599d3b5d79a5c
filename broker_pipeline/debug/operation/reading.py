"""A look at a deployed pipeline: what the broker holds of it, and what its roles say, right now.

`top` and `doctor` are made of readings. Taking one changes nothing and stores nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite

import msgspec

from broker_pipeline.broker.introspection import ConsumerState
from broker_pipeline.broker.lease import LeaseRecord
from broker_pipeline.broker.port import Broker, StreamStatus
from broker_pipeline.core.names import (
    LEASE_BUCKET,
    Subjects,
    lease_key,
    log_subjects,
    server_status_subject,
    status_subject,
)
from broker_pipeline.core.plan import ModulePlan, PhasePlan, Plan
from broker_pipeline.core.snapshot import Head
from broker_pipeline.errors import NotFoundError, SnapshotError
from broker_pipeline.external.registry import Announcement, listed
from broker_pipeline.observe import catalogue
from broker_pipeline.observe.status import Role, Status, read_status
from broker_pipeline.runtime.snapshots import SnapshotStore

ANSWER_S = 0.3
"""So long roles are waited for: a leader looks at questions at least every 10 ms or so."""
OLDEST_ASKED_MAX = 64
"""Of so many queues at most, lanes counted, the oldest package is looked up."""
REGISTRY = "registry:///"


@dataclass(frozen=True, slots=True)
class Queue:
    """The queue of a phase, its lanes together.

    Attributes:
        targets: of an external phase, and of any with external modules, where their servers are.
        pending: packages that nobody has been given.
        delivered: packages that workers have and that are not acked.
        redelivered: those of them that were delivered more than once.
        waiting: open requests of workers for more.
        oldest_ns: when the oldest that is not acked was queued, by the broker's clock; None where
            none is, or it was not looked up.
        members: workers that share the lanes; None where there are none.
        missing: consumers of it that are not there.
    """

    controller: str
    phase: str
    external: bool
    targets: tuple[str, ...]
    pending: int
    delivered: int
    redelivered: int
    waiting: int
    oldest_ns: int | None
    members: int | None
    missing: tuple[str, ...]

    @property
    def name(self) -> str:
        """CONTROLLER.PHASE."""
        return f"{self.controller}.{self.phase}"


@dataclass(frozen=True, slots=True)
class Reading:
    """A pipeline at one moment.

    Attributes:
        at_ns: the broker's clock, at its end.
        took_s: how long it took.
        log: the stream's extent, and what it takes.
        consumers: those of the log, by name.
        lease: who holds the shard's lease; None: nobody.
        lag: messages of the log that the leader has not applied, or where it does not say so that
            the reader of events has not got yet; None: nobody reads.
        snapshot: what the newest claims; None where there is none.
        snapshot_error: why it cannot be read.
        uncovered_ns: when the first event was stored that it does not hold; None: it holds all.
        statuses: what roles answered, by role and name.
        servers: the module servers that are announced for it.
    """

    plan: Plan
    shard: int
    at_ns: int
    took_s: float
    log: StreamStatus
    consumers: Mapping[str, ConsumerState]
    queues: tuple[Queue, ...]
    lease: LeaseRecord | None
    lag: int | None
    snapshot: Head | None
    snapshot_error: str
    uncovered_ns: int | None
    statuses: tuple[Status, ...]
    servers: tuple[Announcement, ...]

    @property
    def leader(self) -> Status | None:
        """What the holder of the lease says; None where there is none, or it does not answer."""
        if self.lease is None:
            return None
        holders = (each for each in self.statuses if each.role is Role.CONTROLLER)
        return next((each for each in holders if each.holder == self.lease.holder), None)

    @property
    def is_open(self) -> bool:
        """Whether producers are let in."""
        return set(log_subjects(self.plan.pipeline, self.shard)) <= set(self.log.subjects)

    def running(self, phase: str) -> list[Status]:
        """The roles that say that they run a phase, CONTROLLER.PHASE."""
        roles = (Role.WORKER, Role.BRIDGE)
        return [each for each in self.statuses if each.role in roles and phase in each.phases]


async def read(broker: Broker, plan: Plan, *, shard: int = 0, wait_s: float = ANSWER_S) -> Reading:
    """Look at a deployed pipeline.

    Args:
        plan: the deployed one.
        wait_s: how long roles have to answer; so long it takes, where any is there.

    Raises:
        NotFoundError: its log is not there.
        ConnectionLostError, BrokerUnavailableError: the broker does not answer.
    """
    subjects = Subjects(plan.pipeline, shard)
    begun = asyncio.get_running_loop().time()
    held = asyncio.gather(
        broker.stream_status(subjects.stream),
        broker.consumer_states(subjects.stream),
        _members(broker, plan, subjects),
        _snapshot(broker, subjects),
    )
    said = asyncio.gather(
        lease_of(broker, plan.pipeline, shard),
        _servers(broker, plan),
        _statuses(broker, plan, wait_s),
    )
    (log, states, members, snapshot), (lease, servers, statuses) = await asyncio.gather(held, said)
    head, error, uncovered_ns = snapshot
    at_ns = await broker.time_ns(subjects.stream)
    return Reading(
        plan=plan,
        shard=shard,
        at_ns=at_ns,
        took_s=asyncio.get_running_loop().time() - begun,
        log=log,
        consumers=states,
        queues=tuple(await _queues(broker, plan, subjects, states, members)),
        lease=lease,
        lag=_lag(subjects, states, lease, statuses),
        snapshot=head,
        snapshot_error=error,
        uncovered_ns=uncovered_ns,
        statuses=statuses,
        servers=servers,
    )


async def lease_of(broker: Broker, pipeline: str, shard: int) -> LeaseRecord | None:
    """Who holds a shard's lease; None where nobody does."""
    try:
        entry = await broker.kv_get(LEASE_BUCKET, lease_key(pipeline, shard))
        return None if entry is None else msgspec.json.decode(entry.value, type=LeaseRecord)
    except (NotFoundError, ValueError, RecursionError):
        return None


def modules_of(phase: PhasePlan) -> Iterator[ModulePlan]:
    """All modules of a phase, at any depth."""
    pending = list(phase.modules)
    while pending:
        module = pending.pop()
        yield module
        pending += module.modules


def targets_of(phase: PhasePlan) -> tuple[str, ...]:
    """Where the module servers are that a phase needs."""
    return tuple(dict.fromkeys(each.target for each in modules_of(phase) if each.target))


def registered(plan: Plan) -> tuple[str, ...]:
    """The modules whose servers announce themselves in the broker."""
    targets = (
        target
        for controller in plan.controllers
        for phase in controller.phases
        for target in targets_of(phase)
    )
    names = (each.removeprefix(REGISTRY) for each in targets if each.startswith(REGISTRY))
    return tuple(dict.fromkeys(names))


def _lag(
    subjects: Subjects,
    states: Mapping[str, ConsumerState],
    lease: LeaseRecord | None,
    statuses: Iterable[Status],
) -> int | None:
    labels = (subjects.pipeline, str(subjects.shard))
    for status in statuses:
        if lease is not None and status.holder == lease.holder:
            for sample in status.samples:
                if (sample.name, sample.labels) == (catalogue.LEADER_LAG.name, labels):
                    return max(0, int(sample.value)) if isfinite(sample.value) else None
    readers = (s for s in states.values() if not s.durable and s.filter == subjects.ctl)
    return min((each.pending for each in readers), default=None)


async def _members(broker: Broker, plan: Plan, subjects: Subjects) -> dict[tuple[str, str], int]:
    found = {}
    for controller in plan.controllers:
        for phase in controller.phases:
            if not phase.lanes:
                continue
            try:
                keys = await broker.kv_listed(
                    LEASE_BUCKET, subjects.members(controller.name, phase.name)
                )
            except NotFoundError:
                keys = []
            found[controller.name, phase.name] = len(keys)
    return found


async def _snapshot(broker: Broker, subjects: Subjects) -> tuple[Head | None, str, int | None]:
    store = SnapshotStore(broker, subjects.pipeline, subjects.shard)
    try:
        head, error = await store.head(), ""
    except NotFoundError:
        head, error = None, ""
    except SnapshotError as found:
        return None, str(found), None
    applied = 0 if head is None else head.applied
    after = await broker.next_message(subjects.stream, subjects.ctl, start_seq=applied + 1)
    return head, error, None if after is None else after.time


async def _servers(broker: Broker, plan: Plan) -> tuple[Announcement, ...]:
    wanted = registered(plan)
    found = await listed(broker) if wanted else []
    return tuple(each for each in found if each.name in wanted)


async def _statuses(broker: Broker, plan: Plan, wait_s: float) -> tuple[Status, ...]:
    subjects = [status_subject(plan.pipeline), *map(server_status_subject, registered(plan))]
    answers = await asyncio.gather(*(broker.ask_all(s, b"", wait_s=wait_s) for s in subjects))
    found = (read_status(answer) for each in answers for answer in each)
    known = [each for each in found if each is not None]
    order = list(Role)
    return tuple(
        sorted(known, key=lambda s: (order.index(s.role), s.name, s.address, s.since, s.holder))
    )


async def _queues(
    broker: Broker,
    plan: Plan,
    subjects: Subjects,
    states: Mapping[str, ConsumerState],
    members: Mapping[tuple[str, str], int],
) -> list[Queue]:
    found = []
    left = OLDEST_ASKED_MAX
    for controller in plan.controllers:
        for phase in controller.phases:
            names = [
                name for name, _ in subjects.consumers(controller.name, phase.name, phase.lanes)
            ]
            there = [states[name] for name in names if name in states]
            busy = [each for each in there if each.pending or each.ack_pending][:left]
            left -= len(busy)
            found.append(
                Queue(
                    controller.name,
                    phase.name,
                    phase.external,
                    targets_of(phase),
                    pending=sum(each.pending for each in there),
                    delivered=sum(each.ack_pending for each in there),
                    redelivered=sum(each.redelivered for each in there),
                    waiting=sum(each.waiting for each in there),
                    oldest_ns=await _oldest(broker, subjects.stream, busy),
                    members=members.get((controller.name, phase.name)),
                    missing=tuple(name for name in names if name not in states),
                )
            )
    return found


async def _oldest(broker: Broker, stream: str, busy: Iterable[ConsumerState]) -> int | None:
    """When the first message was stored that any of these consumers still needs."""
    firsts = await asyncio.gather(
        *(broker.next_message(stream, each.filter, start_seq=each.floor_seq + 1) for each in busy)
    )
    return min((each.time for each in firsts if each is not None), default=None)
