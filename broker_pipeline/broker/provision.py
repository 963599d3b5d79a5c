"""Streams, consumers and buckets: what they should be, and bringing them there.

Only the settings named here are compared and changed; whatever else an operator has set stays.
"""

from __future__ import annotations

from typing import Any

from broker_pipeline.broker.api import (
    CONSUMER_EXISTS,
    STREAM_NAME_IN_USE,
    ConsumerInfo,
    JetStreamApi,
    StreamInfo,
)
from broker_pipeline.broker.port import Change, ConsumerSpec, StreamSpec
from broker_pipeline.errors import BrokerError, NotFoundError
from broker_pipeline.journey import NS

# What nats-py and the other clients give a bucket: the shorter of its TTL and two minutes.
BUCKET_DUPLICATE_WINDOW_S = 120.0
# Two processes may provision at once; the one that comes second looks again.
ATTEMPTS = 3

Config = dict[str, Any]


def stream_config(spec: StreamSpec) -> Config:
    """A log: kept until purged, refusing when full, open to fast ingest (docs/design.md)."""
    transform = spec.transform and {"src": spec.transform[0], "dest": spec.transform[1]}
    return {
        "name": spec.name,
        "subjects": list(spec.subjects),
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "allow_direct": True,
        "allow_batched": True,
        "allow_atomic": False,
        "duplicate_window": int(spec.duplicate_window_s * NS),
        "max_bytes": -1 if spec.max_bytes is None else spec.max_bytes,
        "subject_transform": transform,
    } | _replication(spec.replicas)


def consumer_config(spec: ConsumerSpec) -> Config:
    """A durable pull consumer with explicit acks."""
    return {
        "name": spec.name,
        "durable_name": spec.name,
        "filter_subject": spec.filter,
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": int(spec.ack_wait_s * NS),
        "max_ack_pending": spec.max_ack_pending,
        "max_deliver": -1,
    }


def bucket_config(name: str, ttl_s: float | None, replicas: int | None) -> Config:
    """The stream behind a key-value bucket, as the NATS clients lay it out, with a history of 1."""
    return {
        "name": bucket_stream(name),
        "subjects": [f"$KV.{name}.>"],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_msgs_per_subject": 1,
        "max_age": int((ttl_s or 0) * NS),
        "duplicate_window": _bucket_window(ttl_s),
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_direct": True,
    } | _replication(replicas)


def _replication(replicas: int | None) -> Config:
    return {} if replicas is None else {"num_replicas": replicas}


def _bucket_window(ttl_s: float | None) -> int:
    return int(min(BUCKET_DUPLICATE_WINDOW_S, ttl_s or BUCKET_DUPLICATE_WINDOW_S) * NS)


def object_bucket_config(name: str, ttl_s: float | None, replicas: int | None) -> Config:
    """The stream behind a bucket of objects, as the NATS clients lay it out."""
    return {
        "name": object_stream(name),
        "subjects": [f"$O.{name}.C.>", f"$O.{name}.M.>"],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_age": int((ttl_s or 0) * NS),
        "duplicate_window": _bucket_window(ttl_s),
        "allow_rollup_hdrs": True,
        "allow_direct": True,
    } | _replication(replicas)


def object_stream(name: str) -> str:
    """The stream of a bucket of objects."""
    return f"OBJ_{name}"


def bucket_stream(name: str) -> str:
    """The stream of a bucket."""
    return f"KV_{name}"


def differences(wanted: Config, found: Config) -> list[str]:
    """The settings that differ. The server leaves out those that are false, empty or zero."""
    return [key for key, value in wanted.items() if (found.get(key) or None) != (value or None)]


async def ensure_stream(api: JetStreamApi, wanted: Config) -> Change:
    """Create the stream or bring it to `wanted`."""
    name = wanted["name"]
    for _ in range(ATTEMPTS):
        try:
            found = (await api.request(f"STREAM.INFO.{name}", None, StreamInfo)).config
        except NotFoundError:
            try:
                await api.request(f"STREAM.CREATE.{name}", wanted, StreamInfo)
            except BrokerError as error:
                if error.values.get("err_code") != STREAM_NAME_IN_USE:
                    raise
                continue
            return Change.CREATED
        if not differences(wanted, found):
            return Change.UNCHANGED
        await api.request(f"STREAM.UPDATE.{name}", found | wanted, StreamInfo)
        return Change.UPDATED
    raise _contended("stream", name)


async def limit_stream(
    api: JetStreamApi, stream: str, subjects: tuple[str, ...], max_bytes: int | None
) -> None:
    """Change what a stream takes."""
    found = (await api.stream_info(stream)).config
    wanted = {"subjects": list(subjects), "max_bytes": -1 if max_bytes is None else max_bytes}
    await api.request(f"STREAM.UPDATE.{stream}", found | wanted, StreamInfo)


async def ensure_consumer(api: JetStreamApi, stream: str, wanted: Config) -> Change:
    """Create the consumer or bring it to `wanted`."""
    name = wanted["name"]
    create = f"CONSUMER.CREATE.{stream}.{name}"
    for _ in range(ATTEMPTS):
        try:
            found = await api.request(f"CONSUMER.INFO.{stream}.{name}", None, ConsumerInfo)
        except NotFoundError:
            body = {"stream_name": stream, "config": wanted, "action": "create"}
            try:
                await api.request(create, body, ConsumerInfo)
            except BrokerError as error:
                if error.values.get("err_code") != CONSUMER_EXISTS:
                    raise
                continue
            return Change.CREATED
        if not differences(wanted, found.config):
            return Change.UNCHANGED
        body = {"stream_name": stream, "config": found.config | wanted, "action": "update"}
        await api.request(create, body, ConsumerInfo)
        return Change.UPDATED
    raise _contended("consumer", name)


def _contended(kind: str, name: str) -> BrokerError:
    return BrokerError(
        f"{kind} {name!r} was created and removed by others {ATTEMPTS} times while it was being "
        "provisioned; expected it to stay; let one process provision",
        name=name,
    )
