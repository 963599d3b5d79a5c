"""What `doctor` checks of plans, streams, buckets and consumers: are they what they should be."""

from __future__ import annotations

from collections.abc import Iterator

from broker_pipeline.broker.introspection import BucketSpec, ConsumerState
from broker_pipeline.broker.port import ConsumerSpec, StreamSpec
from broker_pipeline.client.provisions import called, provisions
from broker_pipeline.core.names import stream_name
from broker_pipeline.core.plan import differences, unfollowable
from broker_pipeline.core.retention import CLOSE
from broker_pipeline.debug.operation.findings import Facts, Finding, note, trouble, warning
from broker_pipeline.debug.operation.units import size

NEAR = 0.9
"""From this share of the level at which producers are refused it is said."""
LISTED = 3
"""So many differences, names or packages are shown; the rest is counted."""


def check_provisions(facts: Facts) -> Iterator[Finding]:
    """All that `deploy` makes."""
    yield from _plan(facts)
    if facts.deployed is None:
        return
    for spec, found in facts.surveys:
        if found is None:
            yield trouble("missing", f"{called(spec)} is not there", _deploy(facts))
        elif found.differs:
            told = (
                f"{each.setting} is {each.found!r} and not {each.expected!r}"
                for each in found.differs
            )
            yield (trouble if is_log(spec, facts) else warning)(
                "differs", f"{called(spec)} is not as deployed: {'; '.join(told)}", _deploy(facts)
            )
    yield from _replicas(facts)
    yield from _level(facts)
    yield from _consumers(facts)


def is_log(spec: StreamSpec | BucketSpec, facts: Facts) -> bool:
    """Whether it is the pipeline's log."""
    return isinstance(spec, StreamSpec) and spec.name == stream_name(facts.plan.pipeline)


def listed(names: list[str]) -> str:
    """The first few names, and how many more."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def _deploy(facts: Facts) -> str:
    return f"deploy it again, which loses nothing: broker-pipeline deploy {facts.target}"


def _plan(facts: Facts) -> Iterator[Finding]:
    name = facts.plan.pipeline
    if facts.unreadable:
        yield trouble(
            "plan-unreadable",
            f"the deployed plan cannot be read: {facts.unreadable}",
            f"run the program that deployed it, or deploy: broker-pipeline deploy {facts.target}",
        )
    elif facts.deployed is None:
        yield trouble(
            "not-deployed",
            f"pipeline {name!r} is not deployed on this broker",
            f"deploy it: broker-pipeline deploy {facts.target}",
        )
    elif facts.deployed != facts.plan:
        faults = unfollowable(facts.deployed, facts.plan)
        if faults:
            yield trouble(
                "plan-unfollowable",
                f"the deployed plan is another one, and that of {facts.target} cannot follow it: "
                f"{listed(faults)}",
                "start what was deployed, or give the new pipeline another name; "
                "`broker-pipeline deploy` says how to replace it",
            )
        else:
            changes = differences(facts.deployed, facts.plan)
            yield warning(
                "plan-differs",
                f"the plan of {facts.target} is not the deployed one: {listed(changes)}",
                f"to put it into force: broker-pipeline deploy {facts.target}",
            )


def _replicas(facts: Facts) -> Iterator[Finding]:
    log = facts.log
    if log is None:
        return
    if log.current < log.replicas:
        grade = warning if log.current > log.replicas // 2 + 1 else trouble
        yield grade(
            "replicas-behind",
            f"{log.current} of the log's {log.replicas} replicas have all of it: with "
            f"{log.replicas // 2} it stores nothing",
            "see why the other servers are away or behind",
        )
    if facts.broker.cluster and log.replicas == 1:
        yield warning(
            "one-replica",
            f"the broker is a cluster ({facts.broker.cluster}), and the log is kept on one server "
            "of it: the pipeline stands while that one is away",
            f"keep it on 3: broker-pipeline deploy {facts.target} --replicas 3",
        )


def _level(facts: Facts) -> Iterator[Finding]:
    if facts.looks is None:
        return
    reading = facts.looks[1]
    bound, level = facts.in_force.log_bytes_max, reading.log.state.bytes
    shown = f"the log has {size(level)}" + ("" if bound is None else f" of {size(bound)}")
    more = "start more workers, or deploy with a larger log_bytes_max"
    if not reading.is_open:
        yield trouble(
            "ingress-closed",
            f"producers are refused: {shown}",
            f"it opens by itself when there is room; if that lasts, {more}",
        )
    elif bound is not None and level >= bound * CLOSE * NEAR:
        yield warning(
            "log-nearly-full",
            f"{shown}; producers are refused from {size(bound * CLOSE)} on",
            f"history is purged by itself; if it is needed packages that fill it, {more}",
        )


def _consumers(facts: Facts) -> Iterator[Finding]:
    if facts.looks is None:
        return
    states = facts.looks[1].consumers
    wanted = {spec.name: spec for queue in provisions(facts.in_force).queues for spec in queue}
    log = stream_name(facts.plan.pipeline)
    if missing := [name for name in wanted if name not in states]:
        yield trouble(
            "consumer-missing",
            f"{log} has no consumer {listed(missing)}: nobody gets the packages of that queue",
            _deploy(facts),
        )
    for name, spec in wanted.items():
        if name in states and (faults := list(_faults(spec, states[name]))):
            grade = trouble if states[name].filter != spec.filter else warning
            yield grade(
                "consumer-differs",
                f"consumer {name} of {log} is not as deployed: {'; '.join(faults)}",
                _deploy(facts),
            )
    stray = [name for name, each in states.items() if each.durable and name not in wanted]
    if stray:
        yield note(
            "consumer-stray",
            f"{log} has consumers that no phase reads: {listed(stray)}",
            f"if nobody else uses them, remove each: nats consumer rm {log} NAME",
        )


def _faults(spec: ConsumerSpec, found: ConsumerState) -> Iterator[str]:
    pairs = (
        ("filter", spec.filter, found.filter),
        ("ack_wait", f"{spec.ack_wait_s:g} s", f"{found.ack_wait_s:g} s"),
        ("max_ack_pending", spec.max_ack_pending, found.max_ack_pending),
        ("max_deliver", None, found.max_deliver),
    )
    for setting, wanted, is_now in pairs:
        if wanted != is_now:
            yield f"{setting} is {is_now} and not {'unlimited' if wanted is None else wanted}"
