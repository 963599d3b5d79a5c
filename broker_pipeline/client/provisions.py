"""What a plan needs of the broker, as values: `deploy` makes it, `doctor` compares with it."""

from __future__ import annotations

from dataclasses import dataclass

from broker_pipeline.broker.introspection import BucketSpec
from broker_pipeline.broker.port import ConsumerSpec, StreamSpec
from broker_pipeline.core.names import (
    ATTEMPTS_TTL_S,
    LEASE_BUCKET,
    LEASE_TTL_S,
    STATE_BUCKET,
    Subjects,
    attempts_bucket,
    ingress_subject,
    log_subjects,
    module_bucket,
    object_bucket,
    payload_bucket,
    snapshot_stream,
    snapshot_subject,
    stream_name,
)
from broker_pipeline.core.plan import Plan
from broker_pipeline.journey import NS

STATE_IDLE_FACTOR = 24
"""Module states are kept for so many times as long as their instance may be idle (4 hours by the
default): the log that they were computed from may be purged, while an instance goes on without
storing a state, because all its packages end before."""

DUPLICATE_WINDOW_S = 120.0
"""So long a log remembers message ids: well above the time in which a role that is paused or cut
off is noticed, and so may repeat itself."""

SHARED = (BucketSpec(STATE_BUCKET), BucketSpec(LEASE_BUCKET, ttl_s=LEASE_TTL_S))
"""What all pipelines of a broker share."""


@dataclass(frozen=True, slots=True)
class Provisions:
    """What one shard of a pipeline needs.

    Attributes:
        beside: what its log's readers need, in the order in which it is made: who finds the log
            finds the rest.
        log: its log, open for producers.
        queues: the consumers of each phase's queue, in the order of the plan; more than one where
            it is cut into lanes.
    """

    beside: tuple[StreamSpec | BucketSpec, ...]
    log: StreamSpec
    queues: tuple[tuple[ConsumerSpec, ...], ...]


def provisions(plan: Plan, *, shard: int = 0, replicas: int | None = None) -> Provisions:
    """What a plan needs.

    Args:
        replicas: see `StreamSpec`.
    """
    name = plan.pipeline
    subjects = Subjects(name, shard)
    kept_s = STATE_IDLE_FACTOR * plan.instance_idle_ns / NS
    snapshots = StreamSpec(
        snapshot_stream(name, shard),
        (snapshot_subject(name, shard),),
        duplicate_window_s=DUPLICATE_WINDOW_S,
        replicas=replicas,
    )
    beside: list[StreamSpec | BucketSpec] = [snapshots, BucketSpec(module_bucket(name), kept_s)]
    if any(phase.stateful for controller in plan.controllers for phase in controller.phases):
        beside.append(BucketSpec(object_bucket(name), kept_s, objects=True))
    beside.append(BucketSpec(payload_bucket(name), objects=True))
    beside.append(BucketSpec(attempts_bucket(name), ATTEMPTS_TTL_S))
    log = StreamSpec(
        stream_name(name, shard),
        log_subjects(name, shard),
        (ingress_subject(name, "*"), subjects.arrival("{{wildcard(1)}}")),
        max_bytes=plan.log_bytes_max,
        duplicate_window_s=DUPLICATE_WINDOW_S,
        replicas=replicas,
    )
    queues = tuple(
        tuple(
            ConsumerSpec(consumer, filter, phase.ack_wait_s)
            for consumer, filter in subjects.consumers(controller.name, phase.name, phase.lanes)
        )
        for controller in plan.controllers
        for phase in controller.phases
    )
    return Provisions(tuple(beside), log, queues)


def called(spec: StreamSpec | BucketSpec) -> str:
    """A stream or bucket by its kind and name."""
    if isinstance(spec, StreamSpec):
        return f"stream {spec.name}"
    return f"object bucket {spec.name}" if spec.objects else f"bucket {spec.name}"
