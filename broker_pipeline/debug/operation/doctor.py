"""`doctor`: everything that can be seen of a pipeline and its broker, and what is wrong with it.

`gather` asks, `examine` decides; the second is pure.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from dataclasses import replace

import msgspec

from broker_pipeline.broker.introspection import Presence, StreamSurvey
from broker_pipeline.broker.monitoring import server_settings
from broker_pipeline.broker.port import Broker, Message, StreamSpec
from broker_pipeline.client.deploy import SHARD, deployed_plan
from broker_pipeline.client.provisions import SHARED, provisions
from broker_pipeline.core.names import (
    attempts_bucket,
    consumer_name,
    log_subjects,
    presence_subject,
    readable_instance,
    status_subject,
    stream_name,
)
from broker_pipeline.core.plan import Plan, compile_plan
from broker_pipeline.debug.operation.broker_checks import check_broker
from broker_pipeline.debug.operation.findings import (
    Attempted,
    Clock,
    Facts,
    Finding,
    Leftover,
    Severity,
)
from broker_pipeline.debug.operation.provision_checks import check_provisions
from broker_pipeline.debug.operation.reading import Reading, lease_of, read
from broker_pipeline.debug.operation.running_checks import check_running
from broker_pipeline.errors import (
    MalformedPackageError,
    NewerVersionError,
    NotFoundError,
    PlanError,
    UnknownPhaseError,
)
from broker_pipeline.journey import NS
from broker_pipeline.package import parse_envelope
from broker_pipeline.pipeline import Pipeline
from broker_pipeline.runtime.suspects import TRUSTED_DELIVERIES, Record

BETWEEN_LOOKS_S = 1.5
"""Long enough for a queue to grow visibly, and for a dead leader's lease to be doubted."""
PRESENCE_S = 1.0
CLOCK_LOOKS = 5
"""The closest of so many readings of the broker's clock counts."""
ATTEMPTS_MAX = 20
"""Records of attempts that are looked at."""
ALIVE_S = 0.3
UNKNOWN = (NotFoundError, UnknownPhaseError, MalformedPackageError, ValueError, RecursionError)
"""A record of a package that is gone, or of none: anybody may write one."""
RECORD_KEY = re.compile(rf"{SHARD}\.([\w-]+)\.([\w-]+)\.([0-9]{{1,19}})")
REPLAY = "-replay-"
"""Between a pipeline's name and what makes a replay of it unlike others."""


def examine(facts: Facts) -> list[Finding]:
    """All that is wrong, the worst first."""
    found = [*check_broker(facts), *check_provisions(facts), *check_running(facts)]
    order = list(Severity)
    return sorted(found, key=lambda each: order.index(each.severity))


async def gather(
    broker: Broker,
    pipeline: Pipeline,
    *,
    target: str,
    monitor: str | None = None,
    between_s: float = BETWEEN_LOOKS_S,
) -> Facts:
    """Look at a pipeline, twice, and at its broker. Changes nothing.

    Args:
        monitor: the address of nats-server's monitoring port; None: it is not asked.
        between_s: between the two looks.

    Raises:
        MonitoringError: nothing answers there.
        BrokerUnavailableError, ConnectionLostError: the broker does not answer.
    """
    plan = compile_plan(pipeline)
    settings = None if monitor is None else await server_settings(monitor)
    about = await broker.facts()
    deployed, unreadable = await _deployed(broker, plan)
    in_force = deployed if deployed is not None else plan
    facts = Facts(
        target=target, plan=plan, deployed=deployed, unreadable=unreadable, broker=about,
        settings=settings, clock=None, surveys=(), log=None, looks=None, holder=None,
        attempted=(), leftovers=await _leftovers(broker, plan.pipeline),
    )  # fmt: skip
    if deployed is None:
        return facts
    beside = (*SHARED, *provisions(in_force).beside)
    surveys = [(spec, await broker.survey(spec)) for spec in beside]
    log = await _log(broker, provisions(in_force).log, plan.pipeline)
    facts = replace(facts, surveys=[*surveys, log], log=log[1])
    with contextlib.suppress(NotFoundError):
        clock = await _clock(broker, log[0].name)
        first = await read(broker, in_force)
        await asyncio.sleep(between_s)
        second = await read(broker, in_force)
        facts = replace(
            facts,
            clock=clock,
            looks=(first, second),
            holder=await _holder(broker, plan, second),
            attempted=await _attempted(broker, in_force, second),
        )
    return facts


async def _deployed(broker: Broker, plan: Plan) -> tuple[Plan | None, str]:
    try:
        return await deployed_plan(broker, plan.pipeline), ""
    except (PlanError, NewerVersionError) as error:
        return None, str(error)


async def _log(
    broker: Broker, spec: StreamSpec, pipeline: str
) -> tuple[StreamSpec, StreamSurvey | None]:
    """The log against its specification; while it is closed, the leader has changed both its
    subjects and its size (ADR 12)."""
    found = await broker.survey(spec)
    if found is None or set(spec.subjects) <= set(found.subjects):
        return spec, found
    closed = log_subjects(pipeline, SHARD, ingress=False)
    spec = replace(spec, subjects=closed, max_bytes=found.max_bytes)
    return spec, await broker.survey(spec)


async def _clock(broker: Broker, stream: str) -> Clock:
    found = []
    for _ in range(CLOCK_LOOKS):
        before = time.time_ns()
        theirs = await broker.time_ns(stream)
        after = time.time_ns()
        found.append(Clock((theirs - (before + after) / 2) / NS, (after - before) / 2 / NS))
    return min(found, key=lambda each: each.bound_s)


async def _holder(broker: Broker, plan: Plan, reading: Reading) -> Presence | None:
    if reading.lease is None:
        return None
    subject = presence_subject(plan.pipeline, SHARD, reading.lease.holder)
    found = await broker.presence(subject, timeout_s=PRESENCE_S)
    if found is Presence.GONE and await lease_of(broker, plan.pipeline, SHARD) != reading.lease:
        return None  # it gave the lead up just now
    return found


async def _attempted(broker: Broker, plan: Plan, reading: Reading) -> list[Attempted]:
    """Packages with a record of attempts that their queue still has."""
    bucket, log = attempts_bucket(plan.pipeline), stream_name(plan.pipeline, SHARD)
    try:
        keys = await broker.kv_keys(bucket, f"{SHARD}.")
    except NotFoundError:
        return []
    places = []
    for key in keys:
        match = RECORD_KEY.fullmatch(key)  # what others write there is no record
        if match is not None and int(match[3]) <= reading.log.state.last_seq:
            places.append((int(match[3]), match[1], match[2], key))
    found = []
    for stream_seq, controller, phase, key in sorted(places, reverse=True)[:ATTEMPTS_MAX]:
        with contextlib.suppress(*UNKNOWN):
            deliver_max = plan.phase(controller, phase).max_deliver
            entry = await broker.kv_get(bucket, key)
            message = await broker.get_message(log, stream_seq)
            if entry is None or _is_done(reading, consumer_name(controller, phase), message):
                continue
            record = msgspec.msgpack.decode(entry.value, type=Record)
            trusted = min(TRUSTED_DELIVERIES, deliver_max)
            found.append(
                Attempted(
                    f"{controller}.{phase}",
                    readable_instance(message.subject.rpartition(".")[2]),
                    f"{plan.pipeline}/{SHARD}/{parse_envelope(message.data).id}",
                    trusted - record.spared + record.begun,
                    deliver_max,
                )
            )
    return found


def _is_done(reading: Reading, queue: str, message: Message) -> bool:
    """Whether the consumer of a queued message, of its lane where there are some, has passed it."""
    return any(
        (name == queue or name.startswith(f"{queue}="))
        and message.subject.startswith(each.filter.removesuffix(">"))
        and message.stream_seq < each.needs
        for name, each in reading.consumers.items()
    )


async def _leftovers(broker: Broker, pipeline: str) -> list[Leftover]:
    owned = re.compile(
        rf"(?:BPS?_|KV_bp_[a-z]+_|OBJ_bp_[a-z]+_)({re.escape(pipeline + REPLAY)}[\w-]+?)(?:_\d+)?\Z"
    )
    made: dict[str, list[str]] = {}
    for name in await broker.stream_names():
        if (match := owned.match(name)) is not None:
            made.setdefault(match[1], []).append(name)
    found = []
    for name, streams in made.items():
        led = await lease_of(broker, name, SHARD)
        answers = await broker.ask_all(status_subject(name), b"", wait_s=ALIVE_S)
        found.append(Leftover(name, tuple(streams), bool(led or answers)))
    return found
