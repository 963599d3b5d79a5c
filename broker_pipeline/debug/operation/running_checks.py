"""What `doctor` checks of a pipeline at work: who leads it, does it keep up, and who is missing."""

from __future__ import annotations

from collections.abc import Iterator

from broker_pipeline.broker.introspection import Presence
from broker_pipeline.core.names import LEASE_TTL_S
from broker_pipeline.debug.operation.findings import Facts, Finding, note, trouble, warning
from broker_pipeline.debug.operation.provision_checks import listed
from broker_pipeline.debug.operation.reading import REGISTRY, Queue, Reading
from broker_pipeline.debug.operation.units import duration
from broker_pipeline.journey import NS
from broker_pipeline.observe import catalogue
from broker_pipeline.observe.meter import Metric
from broker_pipeline.observe.status import Role

SNAPSHOT_OLD_S = 30.0
"""A leader stores one every two seconds; one that does not for so long will not any more."""
BEHIND_MESSAGES = 1_000
"""A leader applies some 5,000 a second: fewer than this are under way."""
GREW_MESSAGES = 100
"""A queue that has grown by so much between two looks, and by a tenth, grows."""
USABLE = ("good", "full", "probing")
"""States of a module server that may get packages."""
OLD_S = 60.0
"""A package that waits for a worker for so long is late for anything live."""


def check_running(facts: Facts) -> Iterator[Finding]:
    """All about the roles, and whether work goes on."""
    if facts.looks is None:
        return
    before, after = facts.looks
    yield from _lead(facts, before, after)
    yield from _snapshot(facts, after)
    for earlier, queue in zip(before.queues, after.queues, strict=True):
        yield from _workers(facts, after, earlier, queue)
        yield from _servers(after, queue)
        yield from _growth(earlier, queue)
        yield from _age(after, queue)
    yield from _poison(facts)
    yield from _roles(after)
    yield from _leftovers(facts)


def _lead(facts: Facts, before: Reading, after: Reading) -> Iterator[Finding]:
    start = f"start one or two: broker-pipeline controller {facts.target}"
    name = facts.plan.pipeline
    if after.lease is None:
        waits = _ago(after, after.uncovered_ns)
        yield trouble(
            "no-leader",
            f"nobody leads {name!r}" + (f"; events wait since {waits}" if waits else ""),
            start,
        )
        return
    holder = after.lease.holder
    if facts.holder is Presence.GONE:
        yield trouble(
            "leader-gone",
            f"{holder} leads {name!r} and is not connected any more; nobody took over",
            f"its lease ends in {LEASE_TTL_S:g} s; if nobody leads then, {start}",
        )
    elif facts.holder is Presence.SILENT:
        yield warning(
            "leader-silent",
            f"{holder} leads {name!r} and does not answer: it may hang",
            f"a standby takes over after {LEASE_TTL_S:g} s; see what it does if that lasts",
        )
    if before.lease is not None and before.lease != after.lease:
        yield warning(
            "lead-changed",
            f"the lead of {name!r} went from {before.lease.holder} to {holder} just now",
            "if it goes on changing, see the controllers' lines: each says why it begins anew",
        )
    controllers = [each for each in after.statuses if each.role is Role.CONTROLLER]
    if len(controllers) == 1:
        yield note("no-standby", f"no controller of {name!r} stands by", start)
    yield from _lag(before, after)


def _lag(before: Reading, after: Reading) -> Iterator[Finding]:
    lag, earlier = after.lag, before.lag
    if lag is None or earlier is None or lag < BEHIND_MESSAGES:
        return
    grade = trouble if lag > earlier else warning
    trend = "and it gets worse" if lag > earlier else "and catches up"
    yield grade(
        "leader-behind",
        f"the leader is {lag} messages behind the log, {trend}",
        "see whether its machine is busy; one leader applies some 5,000 messages a second",
    )


def _snapshot(facts: Facts, after: Reading) -> Iterator[Finding]:
    if after.snapshot_error:
        yield trouble(
            "snapshot-unreadable",
            f"the newest snapshot cannot be read: {after.snapshot_error}",
            "no new leader can begin; a version that is not known needs a newer program",
        )
    elif after.lease is not None and after.uncovered_ns is not None:
        age_s = (after.at_ns - after.uncovered_ns) / NS
        if age_s > SNAPSHOT_OLD_S:
            yield trouble(
                "snapshot-old",
                f"the newest snapshot lacks what came {duration(age_s)} ago; a new leader would "
                "read all of that again, and nothing is purged",
                "see the leader's lines: it says why it cannot store one",
            )


def _workers(facts: Facts, after: Reading, earlier: Queue, queue: Queue) -> Iterator[Finding]:
    asks = queue.waiting or earlier.waiting
    runs = after.running(queue.name)
    if runs and queue.pending and not (asks or queue.delivered or earlier.delivered):
        yield warning(
            "workers-idle",
            f"{runs[0].name} runs phase {queue.name}, and nobody asks for its packages; waiting: "
            f"{queue.pending}",
            "see their lines: they may wait for module servers, or for room in the broker",
        )
    if runs or asks or queue.members:
        return
    role = "bridge" if queue.external else "worker"
    # What was given to workers that are gone stays with them until somebody else asks.
    inside = queue.pending + queue.delivered
    yield (trouble if inside else warning)(
        "no-worker",
        f"no {role} runs phase {queue.name}" + (f"; packages waiting: {inside}" if inside else ""),
        f"start one: broker-pipeline {role} {facts.target} --phase {queue.name}",
    )


def _servers(after: Reading, queue: Queue) -> Iterator[Finding]:
    there = {each.name for each in after.servers}
    inside = queue.pending + queue.delivered
    waits = f"; packages waiting: {inside}" if inside else ""
    for target in queue.targets:
        name = target.removeprefix(REGISTRY)
        if target.startswith(REGISTRY) and name not in there:
            yield (trouble if inside else warning)(
                "no-server",
                f"no server of module {name!r} is announced, which phase {queue.name} needs{waits}",
                "start one that announces itself: broker-pipeline serve MODULE --announce URL "
                f"--name {name}",
            )
        elif not target.startswith(REGISTRY) and _usable(after, queue, target) == 0:
            yield (trouble if inside else warning)(
                "no-server",
                f"no server answers at {target!r}, which phase {queue.name} needs{waits}",
                "start one there, or correct the module's target",
            )


def _usable(reading: Reading, queue: Queue, target: str) -> int | None:
    """How many servers callers have behind a target; None where nobody says."""
    counts = [
        (sample.labels[-1], sample.value)
        for status in reading.statuses
        for sample in status.samples
        if sample.name == catalogue.RELAY_SERVERS.name
        and sample.labels[1:3] == (queue.controller, queue.phase)
        and sample.labels[-2:-1] == (target,)
    ]
    return sum(value > 0 for state, value in counts if state in USABLE) if counts else None


def _growth(earlier: Queue, queue: Queue) -> Iterator[Finding]:
    grew = queue.pending - earlier.pending
    if grew >= GREW_MESSAGES and grew * 10 >= queue.pending:
        yield warning(
            "queue-grows",
            f"the queue of {queue.name} grew from {earlier.pending} to {queue.pending} between two "
            "looks",
            "start more workers for it, unless it is a burst",
        )


def _age(after: Reading, queue: Queue) -> Iterator[Finding]:
    waits = _ago(after, queue.oldest_ns)
    if waits and (after.at_ns - (queue.oldest_ns or 0)) / NS > OLD_S:
        yield warning(
            "package-old",
            f"the oldest package of {queue.name} is in its queue since {waits} "
            f"({queue.pending} wait, {queue.delivered} with workers)",
            "start more workers for it; one that runs for so long may hang: give its module a "
            "timeout_s",
        )


def _ago(reading: Reading, at_ns: int | None) -> str:
    return "" if at_ns is None else duration(max(0, reading.at_ns - at_ns) / NS)


def _poison(facts: Facts) -> Iterator[Finding]:
    if not facts.attempted:
        return
    told = [
        f"{each.package} of {each.instance!r} in {each.phase} ({each.begun} of {each.begun_max})"
        for each in facts.attempted
    ]
    yield warning(
        "poison",
        f"packages came again and again without a result: {listed(told)}",
        "they may be killing their workers, and leave as ERROR in the end; look at one: "
        f"broker-pipeline inspect {facts.target} {facts.attempted[0].package}",
    )


def _roles(after: Reading) -> Iterator[Finding]:
    versions = sorted({each.version for each in after.statuses if each.version})
    if len(versions) > 1:
        yield note(
            "versions",
            f"roles of several versions run: {', '.join(versions)}",
            "that is meant to work while they are replaced; end the older ones then",
        )
    if held := _sum(after, catalogue.PHASE_HELD):
        yield trouble(
            "results-held",
            f"workers hold results, for the broker has no room for them: {held:g}",
            "make room, as account-full or server-full says; they go on by themselves",
        )
    if lost := _sum(after, catalogue.PHASE_LOST_SLOTS):
        yield warning(
            "slots-lost",
            f"slots are lost in modules that did not come back after their timeout_s: {lost:g}",
            "a worker begins anew when half of its slots are lost; see what the modules wait for",
        )
    ejected = _sum(after, catalogue.RELAY_SERVERS, "ejected")
    if ejected:
        yield warning(
            "servers-ejected",
            f"bridges leave out module servers that failed: {ejected:g}",
            "they are tried again by themselves; see what those servers say",
        )


def _sum(reading: Reading, metric: Metric, last: str | None = None) -> float:
    return sum(
        sample.value
        for status in reading.statuses
        for sample in status.samples
        if sample.name == metric.name and (last is None or sample.labels[-1:] == (last,))
    )


def _leftovers(facts: Facts) -> Iterator[Finding]:
    for each in facts.leftovers:
        if each.alive:
            yield note("replay", f"a replay is running as {each.pipeline!r}", "nothing to do")
        else:
            yield warning(
                "replay-left",
                f"a replay has left {listed(list(each.streams))} behind, and nobody runs it",
                "the next replay removes it, or: nats stream rm NAME",
            )
