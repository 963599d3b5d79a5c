"""What `top` shows: two readings of a pipeline as rates, gauges and quantiles. Pure.

A value is None where nobody told it. Everything here is a plain value: `top --once --json` prints a
`View` as it is, and docs/operating.md names its keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from broker_pipeline.debug.operation.changes import Change, summed
from broker_pipeline.debug.operation.reading import REGISTRY, Queue, Reading
from broker_pipeline.external.registry import Announcement
from broker_pipeline.journey import NS
from broker_pipeline.observe import catalogue
from broker_pipeline.observe.meter import Metric, quantile
from broker_pipeline.observe.status import Role, Status

RELAY_LABELS = len(catalogue.RELAY_SERVERS.labels)

Rates = dict[str, float]
"""Packages a second by outcome."""


class Shard(msgspec.Struct, frozen=True):
    """A shard of the log, and who leads it.

    Attributes:
        leader: the holder of the lease; None: nobody leads.
        answers: whether the leader says how it is doing.
        standbys: controllers that stand by.
        lag_messages: messages of the log that the leader has not read.
        snapshot_age_s: how long the newest snapshot has not said all; 0: it does.
        messages_s: messages stored a second, of any kind.
        open: whether producers are let in.
    """

    shard: int
    leader: str | None
    answers: bool
    standbys: int
    lag_messages: int | None
    snapshot_age_s: float
    messages_s: float
    log_messages: int
    log_bytes: int
    log_bytes_max: int | None
    open: bool


class Flow(msgspec.Struct, frozen=True):
    """Packages through a pipeline, a controller or a phase.

    Attributes:
        in_s, out_s: packages a second; those that left by outcome.
        p50_s, p99_s: how long packages took that left meanwhile; None where none did.
    """

    in_s: float | None
    out_s: Rates | None
    p50_s: float | None
    p99_s: float | None


class Total(msgspec.Struct, frozen=True):
    """The pipeline. `inside`: packages that have come and not left."""

    flow: Flow
    inside: int | None


class ControllerRow(msgspec.Struct, frozen=True):
    """A controller.

    Attributes:
        processing: packages that are with the workers.
        waiting_in: those that wait for a free place.
        waiting_out: those that are done and wait for their turn.
        oldest_s: how long ago the oldest inside arrived at the pipeline.
    """

    name: str
    mode: str
    flow: Flow
    processing: int | None
    waiting_in: int | None
    waiting_out: int | None
    oldest_s: float | None


class PhaseRow(msgspec.Struct, frozen=True):
    """A phase.

    Attributes:
        role: who runs it: worker or bridge.
        running: how many say so.
        processing: packages that run, or wait for a slot there.
        pending: packages in its queue that nobody has been given.
        delivered: packages that workers have and have not acknowledged.
        redelivered: those of them that were delivered more than once.
        oldest_s: how long ago the oldest of either was queued.
    """

    controller: str
    name: str
    role: str
    running: int
    flow: Flow
    processing: int | None
    pending: int
    delivered: int
    redelivered: int
    oldest_s: float | None


class RoleRow(msgspec.Struct, frozen=True):
    """A process that answers.

    Attributes:
        leads: of a controller, whether it does.
        slots: packages that run at the same time; of a bridge what servers take at once.
        load: `processing` by `slots`.
        lost_slots: slots in modules that do not come back.
        held_results: results for which the broker has no room.
    """

    role: str
    name: str
    phases: tuple[str, ...]
    version: str
    up_s: float
    leads: bool
    in_s: float | None
    processing: int | None
    slots: int | None
    load: float | None
    lost_slots: int
    held_results: int


class ServerRow(msgspec.Struct, frozen=True):
    """A module server that is announced; or all behind a target that is not in the registry, as
    bridges and workers see them. `capacity` 0 and `run_time_s` 0: not known.

    Attributes:
        name: of the process; '' where it is not known.
        state: what callers say of them, such as `2 good, 1 ejected`; '' where it is announced.
    """

    module: str
    address: str
    name: str
    state: str
    in_s: float | None
    running: int
    waiting: int
    capacity: int
    load: float | None
    run_time_s: float


class View(msgspec.Struct, frozen=True):
    """Everything that `top` shows. `over_s`: the rates are over so long."""

    pipeline: str
    at: float
    over_s: float
    shards: tuple[Shard, ...]
    total: Total
    controllers: tuple[ControllerRow, ...]
    phases: tuple[PhaseRow, ...]
    roles: tuple[RoleRow, ...]
    servers: tuple[ServerRow, ...]


def view(before: Reading, after: Reading) -> View:
    """What changed between two readings of one pipeline, and how things are at the second."""
    name, shard = after.plan.pipeline, str(after.shard)
    over_s = max((after.at_ns - before.at_ns) / NS, 1e-9)
    leader = _leader_change(before, after, over_s)
    return View(
        pipeline=name,
        at=after.at_ns / NS,
        over_s=over_s,
        shards=(_shard(before, after, over_s),),
        total=Total(
            _flow(
                [leader] if leader else [], (name, shard), catalogue.OUTCOMES,
                catalogue.PACKAGES_IN, catalogue.PACKAGES_OUT, catalogue.PACKAGE_TIME,
            ),
            _gauge(leader, catalogue.PACKAGES_INSIDE, name, shard),
        ),
        controllers=tuple(_controllers(after, leader)),
        phases=tuple(_phase(before, after, queue, over_s) for queue in after.queues),
        roles=tuple(_roles(before, after, over_s)),
        servers=(
            *(_server(before, after, each, over_s) for each in after.servers),
            *_servers_as_seen(
                [Change.of(_same(before, each), each, over_s) for each in after.statuses]
            ),
        ),
    )  # fmt: skip


def _leader_change(before: Reading, after: Reading, over_s: float) -> Change | None:
    """What was counted by whoever leads, and led."""
    if after.leader is None:
        return None
    return Change.of_leader(_same(before, after.leader), before.leader, after.leader, over_s)


def _shard(before: Reading, after: Reading, over_s: float) -> Shard:
    controllers = [each for each in after.statuses if each.role is Role.CONTROLLER]
    uncovered = after.uncovered_ns
    return Shard(
        shard=after.shard,
        leader=None if after.lease is None else after.lease.holder,
        answers=after.leader is not None,
        standbys=len(controllers) - (after.leader is not None),
        lag_messages=after.lag,
        snapshot_age_s=0.0 if uncovered is None else max(0, after.at_ns - uncovered) / NS,
        messages_s=max(0, after.log.state.last_seq - before.log.state.last_seq) / over_s,
        log_messages=after.log.state.messages,
        log_bytes=after.log.state.bytes,
        log_bytes_max=after.plan.log_bytes_max,
        open=after.is_open,
    )


def _flow(
    changes: Iterable[Change],
    labels: tuple[str, ...],
    outcomes: tuple[str, ...],
    came: Metric,
    left: Metric,
    took: Metric,
) -> Flow:
    changes = list(changes)
    out = {each: summed(c.rate(left, *labels, each) for c in changes) for each in outcomes}
    told = {outcome: rate for outcome, rate in out.items() if rate is not None}
    counts = [c.counts(took, *labels, outcome) for c in changes for outcome in outcomes]
    merged = [sum(column) for column in zip(*filter(None, counts), strict=True)]
    p50, p99 = (quantile(took.bounds, merged, share) for share in (0.5, 0.99))
    return Flow(
        summed(c.rate(came, *labels) for c in changes),
        {outcome: told.get(outcome, 0.0) for outcome in outcomes} if told else None,
        None if p50 is None else p50 / NS,
        None if p99 is None else p99 / NS,
    )


def _gauge(change: Change | None, metric: Metric, *labels: str) -> int | None:
    value = None if change is None else change.value(metric, *labels)
    return None if value is None else int(value)


def _controllers(after: Reading, leader: Change | None) -> Iterator[ControllerRow]:
    for controller in after.plan.controllers:
        labels = (after.plan.pipeline, str(after.shard), controller.name)
        since = None if leader is None else leader.value(catalogue.CONTROLLER_OLDEST, *labels)
        yield ControllerRow(
            name=controller.name,
            mode=controller.mode.value,
            flow=_flow(
                [leader] if leader else [], labels, catalogue.OUTCOMES,
                catalogue.CONTROLLER_IN, catalogue.CONTROLLER_OUT, catalogue.CONTROLLER_TIME,
            ),
            processing=_gauge(leader, catalogue.CONTROLLER_PROCESSING, *labels),
            waiting_in=_gauge(leader, catalogue.CONTROLLER_WAITING_IN, *labels),
            waiting_out=_gauge(leader, catalogue.CONTROLLER_WAITING_OUT, *labels),
            oldest_s=None if since is None else max(0.0, after.at_ns / NS - since),
        )  # fmt: skip


def _phase(before: Reading, after: Reading, queue: Queue, over_s: float) -> PhaseRow:
    running = after.running(queue.name)
    changes = [Change.of(_same(before, each), each, over_s) for each in running]
    labels = (after.plan.pipeline, queue.controller, queue.phase)
    processing = summed(each.value(catalogue.PHASE_PROCESSING, *labels) for each in changes)
    oldest = queue.oldest_ns
    return PhaseRow(
        controller=queue.controller,
        name=queue.phase,
        role=(Role.BRIDGE if queue.external else Role.WORKER).value,
        running=len(running),
        flow=_flow(
            changes, labels, catalogue.ENDS,
            catalogue.PHASE_IN, catalogue.PHASE_OUT, catalogue.PHASE_TIME,
        ),
        processing=None if processing is None else int(processing),
        pending=queue.pending,
        delivered=queue.delivered,
        redelivered=queue.redelivered,
        oldest_s=None if oldest is None else max(0, after.at_ns - oldest) / NS,
    )  # fmt: skip


def _roles(before: Reading, after: Reading, over_s: float) -> Iterator[RoleRow]:
    for status in after.statuses:
        if status.role is Role.SERVER:
            continue
        change = Change.of(_same(before, status), status, over_s)
        slots = change.total(catalogue.PHASE_SLOTS)
        credit = change.total(catalogue.RELAY_CREDIT)
        if status.role is Role.BRIDGE and slots and credit is not None:
            slots = min(slots, credit)  # what servers take bounds it long before its own slots
        processing = change.total(catalogue.PHASE_PROCESSING)
        yield RoleRow(
            role=status.role.value,
            name=status.name,
            phases=status.phases,
            version=status.version,
            up_s=max(0, status.at - status.since) / NS,
            leads=status is after.leader,
            in_s=change.total_rate(catalogue.PHASE_IN),
            processing=None if processing is None else int(processing),
            slots=None if slots is None else int(slots),
            load=processing / slots if slots and processing is not None else None,
            lost_slots=int(change.total(catalogue.PHASE_LOST_SLOTS) or 0),
            held_results=int(change.total(catalogue.PHASE_HELD) or 0),
        )


def _server(before: Reading, after: Reading, said: Announcement, over_s: float) -> ServerRow:
    mine = (s for s in after.statuses if s.role is Role.SERVER and s.address == said.address)
    status = next(mine, None)
    change = None if status is None else Change.of(_same(before, status), status, over_s)
    return ServerRow(
        module=said.name,
        address=said.address,
        name=said.server if status is None else status.name,
        state="",
        in_s=None if change is None else change.total_rate(catalogue.SERVER_IN),
        running=said.running,
        waiting=said.waiting,
        capacity=said.capacity,
        load=said.running / said.capacity if said.capacity else None,
        run_time_s=said.run_time_ns / NS,
    )


def _servers_as_seen(changes: Sequence[Change]) -> Iterator[ServerRow]:
    """The servers that announce themselves nowhere, by module and target."""
    of = {
        (labels[-3], labels[-2], labels[:-1])
        for change in changes
        for name, labels in change.after
        if name == catalogue.RELAY_SERVERS.name and len(labels) == RELAY_LABELS
    }
    for module, target, labels in sorted(of):
        if target.startswith(REGISTRY):
            continue
        sent, calls, credit = (
            int(summed(each.value(metric, *labels) for each in changes) or 0)
            for metric in (catalogue.RELAY_SENT, catalogue.RELAY_CALLS, catalogue.RELAY_CREDIT)
        )
        ended = summed(each.observed(catalogue.RELAY_TIME, *labels) for each in changes)
        states: Counter[str] = Counter()
        for change in changes:
            for (name, found), sample in change.after.items():
                if name == catalogue.RELAY_SERVERS.name and found[:-1] == labels:
                    states[found[-1]] += int(sample.value)
        yield ServerRow(
            module=module,
            address=target,
            name="",
            state=", ".join(f"{n} {state}" for state, n in states.items() if n) or "none",
            in_s=ended,
            running=sent,
            waiting=max(0, calls - sent),
            capacity=credit,
            load=sent / credit if credit else None,
            run_time_s=0.0,
        )


def _same(before: Reading, status: Status) -> Status | None:
    """What the same process said before."""
    return next((each for each in before.statuses if _who(each) == _who(status)), None)


def _who(status: Status) -> tuple[object, ...]:
    return status.role, status.name, status.holder, status.address, status.since
