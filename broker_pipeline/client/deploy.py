"""Deploying: what a pipeline needs of the broker, and the plan as an event of the log."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

from broker_pipeline.broker.introspection import BucketSpec
from broker_pipeline.broker.port import Broker, Change, StreamSpec, StreamState
from broker_pipeline.client.provisions import SHARED, called, provisions
from broker_pipeline.core.names import (
    STATE_BUCKET,
    Subjects,
    attempts_bucket,
    log_subjects,
    module_bucket,
    object_bucket,
    payload_bucket,
    payload_mark_key,
    plan_key,
    snapshot_key,
    snapshot_stream,
    stream_name,
)
from broker_pipeline.core.plan import (
    Plan,
    compile_plan,
    differences,
    moved_queues,
    unfollowable,
)
from broker_pipeline.core.retention import MESSAGES_MIN, should_be_open
from broker_pipeline.errors import NotFoundError, PlanError
from broker_pipeline.pipeline import Pipeline

SHARD = 0
"""The only shard, so far."""


@dataclass(frozen=True)
class DeployResult:
    """What `deploy` did.

    Attributes:
        pipeline: the pipeline's name.
        changes: a line for each thing that was made or changed; none where all was there already.
        plan: the plan that is deployed now.
    """

    pipeline: str
    changes: tuple[str, ...]
    plan: Plan

    def __str__(self) -> str:
        if not self.changes:
            return f"pipeline {self.pipeline!r} was deployed already; nothing changed"
        lines = "".join(f"\n  {change}" for change in self.changes)
        return f"pipeline {self.pipeline!r} is deployed:{lines}"


async def deploy(broker: Broker, pipeline: Pipeline, replicas: int | None = None) -> DeployResult:
    """Provision what the pipeline needs and put its plan into force; idempotent.

    Args:
        replicas: on how many servers everything is kept: 1, 3 or 5. None: as it is, 1 for what is
            new. What all pipelines share is never brought down to 1.

    Raises:
        PlanError: packages that run under the deployed plan could not go on under the new one;
            nothing was changed.
    """
    plan = compile_plan(pipeline)
    _require_size(broker, plan)
    changes = _Changes()
    shared = None if replicas == 1 else replicas
    for spec in SHARED:
        changes.note(called(spec), await _ensure(broker, spec, shared))
    deployed = await deployed_plan(broker, pipeline.name)
    if deployed is None:
        await _forget_older_log(broker, pipeline.name)
    else:
        _require_followable(deployed, plan)
    await _provision(broker, plan, replicas, changes)
    if deployed != plan:
        # In this order: a crash in between repeats the event, which changes nothing.
        await broker.publish(Subjects(plan.pipeline, SHARD).plan, plan.to_bytes())
        await broker.kv_put(STATE_BUCKET, plan_key(plan.pipeline), plan.to_bytes())
        changes.lines += ["plan created"] if deployed is None else differences(deployed, plan)
    return DeployResult(pipeline.name, tuple(changes.lines), plan)


async def deployed_plan(broker: Broker, pipeline: str) -> Plan | None:
    """The plan that is deployed, read from the leader; None where none is.

    Raises:
        PlanError: it cannot be read.
        NewerVersionError: it is of a version that this program does not know.
    """
    try:
        await broker.stream_state(stream_name(pipeline, SHARD))
        entry = await broker.kv_get(STATE_BUCKET, plan_key(pipeline))
    except NotFoundError:
        return None
    return None if entry is None else Plan.from_bytes(entry.value)


async def deploy_if_absent(broker: Broker, pipeline: Pipeline, target: str) -> str:
    """Deploy a pipeline of which nothing is deployed yet; what is deployed stays as it is.

    Returns:
        A line for whoever started it; '' where the plan is deployed already.
    """
    deployed = await deployed_plan(broker, pipeline.name)
    if deployed is None:
        await deploy(broker, pipeline)
        return f"pipeline {pipeline.name!r} is deployed: nothing of it was there"
    if deployed == compile_plan(pipeline):
        return ""
    return (
        f"pipeline {pipeline.name!r} is deployed with another plan, which stays in force; "
        f"to change it run: broker-pipeline deploy {target}"
    )


async def require_deployed(broker: Broker, pipeline: str) -> StreamState:
    """The extent of the pipeline's log. Raises PlanError where it is not deployed."""
    try:
        return await broker.stream_state(stream_name(pipeline, SHARD))
    except NotFoundError as error:
        raise PlanError(
            f"pipeline {pipeline!r} is not deployed on this broker; expected its stream to be "
            "there; run `broker-pipeline deploy TARGET`, or await client.deploy(pipeline)",
            pipeline=pipeline,
        ) from error


async def require_its_queues(broker: Broker, pipeline: Pipeline) -> None:
    """Raises PlanError where the deployed plan has other queues than a worker of the pipeline would
    publish to and pull from: nobody would find the packages."""
    deployed = await deployed_plan(broker, pipeline.name)
    faults = moved_queues(deployed, compile_plan(pipeline)) if deployed is not None else []
    if faults:
        raise PlanError(
            f"pipeline {pipeline.name!r} is deployed with other queues than those of this program: "
            f"{'; '.join(faults)}; start the program that was deployed, or deploy this one under "
            f"another name",
            pipeline=pipeline.name,
            faults=faults,
        )


class _Changes:
    """What was done, as lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, what: str, change: Change) -> None:
        if change is not Change.UNCHANGED:
            self.lines.append(f"{what} {change.value}")


def _require_followable(deployed: Plan, plan: Plan) -> None:
    faults = unfollowable(deployed, plan)
    if faults:
        name = plan.pipeline
        raise PlanError(
            f"pipeline {name!r} is deployed with a plan that the new one cannot follow, and there "
            f"may be packages on their way: {'; '.join(faults)}; give the new pipeline another "
            f"name, or drain this one: stop its producers, wait for the last result, stop its "
            f"controllers, delete the stream {stream_name(name, SHARD)!r}, and deploy again",
            pipeline=name,
            faults=faults,
        )


async def _forget_older_log(broker: Broker, pipeline: str) -> None:
    """Remove what speaks of the stream sequences of a log that was deleted."""
    try:
        await broker.stream_state(stream_name(pipeline, SHARD))
        return  # the log is there: an earlier deploy did not come to its end
    except NotFoundError:
        pass
    await broker.kv_delete(STATE_BUCKET, plan_key(pipeline))
    await broker.kv_delete(STATE_BUCKET, snapshot_key(pipeline, SHARD))
    await broker.delete_stream(snapshot_stream(pipeline, SHARD))
    await broker.kv_delete(STATE_BUCKET, payload_mark_key(pipeline, SHARD))
    await broker.delete_object_bucket(object_bucket(pipeline))
    await broker.delete_object_bucket(payload_bucket(pipeline))
    for bucket in (module_bucket(pipeline), attempts_bucket(pipeline)):
        with contextlib.suppress(NotFoundError):
            for key in await broker.kv_keys(bucket):
                await broker.kv_delete(bucket, key)


async def _limits(broker: Broker, plan: Plan) -> tuple[tuple[str, ...], int | None]:
    """What the log is to take, and how many bytes: while it is closed for producers as it is, for
    that is the leader's to change (ADR 12). Nor does a bound come before the plan with it where the
    log is larger already: it would refuse that very plan, and everybody's work."""
    wanted = log_subjects(plan.pipeline, SHARD)
    try:
        status = await broker.stream_status(stream_name(plan.pipeline, SHARD))
    except NotFoundError:
        return wanted, plan.log_bytes_max
    if set(wanted) <= set(status.subjects):
        fits = should_be_open(plan.log_bytes_max, status.state.bytes, is_open=True)
        return wanted, plan.log_bytes_max if fits else status.max_bytes
    return log_subjects(plan.pipeline, SHARD, ingress=False), status.max_bytes


def _require_size(broker: Broker, plan: Plan) -> None:
    least = MESSAGES_MIN * broker.max_payload
    if plan.log_bytes_max is not None and plan.log_bytes_max < least:
        raise PlanError(
            f"log_bytes_max of pipeline {plan.pipeline!r} is {plan.log_bytes_max}; expected at "
            f"least {least}: {MESSAGES_MIN} of the largest messages that the broker takes "
            f"(max_payload, {broker.max_payload} bytes)",
            pipeline=plan.pipeline,
            log_bytes_max=plan.log_bytes_max,
        )


async def _provision(broker: Broker, plan: Plan, replicas: int | None, changes: _Changes) -> None:
    wanted = provisions(plan, shard=SHARD, replicas=replicas)
    for spec in wanted.beside:
        changes.note(called(spec), await _ensure(broker, spec, replicas))
    taken, size = await _limits(broker, plan)
    log = replace(wanted.log, subjects=taken, max_bytes=size)
    changes.note(called(log), await broker.ensure_stream(log))
    for queue in wanted.queues:
        done = {await broker.ensure_consumer(log.name, each) for each in queue}
        what = f"consumer {queue[0].name}"
        if len(queue) > 1:
            what = f"consumers {queue[0].name} to {len(queue) - 1}"
        for change in (Change.CREATED, Change.UPDATED):
            if change in done:
                changes.note(f"{what} of stream {log.name}", change)


async def _ensure(broker: Broker, spec: StreamSpec | BucketSpec, replicas: int | None) -> Change:
    if isinstance(spec, StreamSpec):
        return await broker.ensure_stream(spec)
    ensure = broker.ensure_object_bucket if spec.objects else broker.ensure_bucket
    return await ensure(spec.name, ttl_s=spec.ttl_s, replicas=replicas)
