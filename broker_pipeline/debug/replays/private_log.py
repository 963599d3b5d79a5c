"""A log for a replay alone: in an embedded server, or in a pipeline of its own on a broker.

On a broker the replay of pipeline `talk` is pipeline `talk-replay-<six digits>`: the same but for
its name, so it has a stream, consumers, buckets and a lease of its own, and touches nobody else's.
All of it is removed at the end. What a replay left that was killed is known by its mark: a key that
is there before anything else is, and whose owner answers while it is connected. The next replay
removes what nobody answers for.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from broker_pipeline.broker import jetstream
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.introspection import Presence
from broker_pipeline.broker.port import Broker
from broker_pipeline.broker.provision import bucket_stream
from broker_pipeline.client.deploy import SHARD, deploy
from broker_pipeline.core.names import (
    LEASE_BUCKET,
    STATE_BUCKET,
    attempts_bucket,
    lease_key,
    module_bucket,
    object_bucket,
    payload_bucket,
    payload_mark_key,
    plan_key,
    presence_subject,
    snapshot_key,
    snapshot_stream,
    stream_name,
)
from broker_pipeline.core.retention import MESSAGES_MIN
from broker_pipeline.errors import NotFoundError
from broker_pipeline.modules import CombinationModule, ConditionModule, ExternalModule, Module, walk
from broker_pipeline.pipeline import REPLAY_WINDOW_S_MIN, Controller, Pipeline
from broker_pipeline.runtime.local import LocalRoles
from broker_pipeline.runtime.supervisor import Supervisor, plan_children

log = logging.getLogger(__name__)

INFIX = "-replay-"
"""Between the name of a pipeline and the token of its replay; doctor looks for it too."""
TOKEN_BYTES = 3
NAME_CHARS_MAX = 48
LOG_BYTES = 256 << 20
"""Of a replay's log: several times what it may have inside. History goes from half of it on, and
packages wait for room from 70 % on."""
EMBEDDED_PAYLOAD_BYTES = 8 << 20
"""The largest message of an embedded server: what fitted into another broker's fits here too."""
IDLE_S = 1e6
"""No replay takes so long."""
MARK = ".replay"
"""Behind a replay's pipeline name, the key of its mark (STATE_BUCKET)."""
PRESENCE_WAIT_S = 1.0
"""How long the owner of a mark may take to answer; a silent one is left alone."""
ASKS = 2
"""How often nobody must be there before a replay is taken for dead: another server of a cluster may
not know of a connection that has just begun."""


def private_name(pipeline: str, token: str) -> str:
    """The name of the pipeline in which another is replayed; a long one is cut."""
    return f"{pipeline[: NAME_CHARS_MAX - len(INFIX) - len(token)]}{INFIX}{token}"


def private(pipeline: Pipeline, name: str, max_payload: int) -> Pipeline:
    """The same pipeline, of another name, with a log that holds no more than a replay needs.

    Its instances do not end by being idle: at another pace they would end elsewhere than they did.
    """
    other = copy.copy(pipeline)
    other.name = name
    other.instance_idle_s = max(pipeline.instance_idle_s, IDLE_S)
    other.replay_window_s = REPLAY_WINDOW_S_MIN
    other.log_bytes_max = max(LOG_BYTES, MESSAGES_MIN * max_payload)
    return other


def with_stand_ins(pipeline: Pipeline, stand_ins: Mapping[str, Module[Any]]) -> Pipeline:
    """The same pipeline with other modules in the place of external ones, by name.

    What stands in is inside a module of the external one's name, so that journeys look alike.
    """
    if not stand_ins:
        return pipeline
    other = copy.copy(pipeline)
    other.controllers = tuple(_controller(each, stand_ins) for each in pipeline.controllers)
    return other


def _controller(controller: Controller, stand_ins: Mapping[str, Module[Any]]) -> Controller:
    phases = [
        replace(phase, modules=[_module(module, stand_ins) for module in phase.modules])
        for phase in controller.phases
    ]
    return replace(controller, phases=phases)


def _module(module: Module[Any], stand_ins: Mapping[str, Module[Any]]) -> Module[Any]:
    if isinstance(module, ExternalModule):
        stand_in = stand_ins.get(module.name)
        return module if stand_in is None else CombinationModule([stand_in], name=module.name)
    if not any(isinstance(inner, ExternalModule) for _, inner in walk(module.children)):
        return module
    other = copy.copy(module)
    if isinstance(other, CombinationModule):
        other.modules = tuple(_module(inner, stand_ins) for inner in other.modules)
    elif isinstance(other, ConditionModule):
        other.true = other.true and _module(other.true, stand_ins)
        other.false = other.false and _module(other.false, stand_ins)
    return other


@dataclass
class PrivateLog:
    """A deployed pipeline that nobody else uses.

    Attributes:
        broker: a connection to it.
        url: its address.
        pipeline: what is deployed there: the one to publish to and to read from.
        failed: ends with an error when a role has ended by itself.
    """

    broker: Broker
    url: str
    pipeline: Pipeline
    failed: asyncio.Future[None]


@contextlib.asynccontextmanager
async def embedded_log(
    pipeline: Pipeline, *, target: str | None, workers: int = 0
) -> AsyncIterator[PrivateLog]:
    """In an embedded server with a temporary store; the pipeline has its own name there.

    Args:
        target: its TARGET, for modules that are isolated in processes and for worker processes.
        workers: so many worker processes, and a controller; 0: all roles run in this process.

    Raises:
        ServerStartError, SetupError, ChildFailedError: it cannot begin.
    """
    async with EmbeddedServer(max_payload=EMBEDDED_PAYLOAD_BYTES) as server:
        broker = await jetstream.connect(server.url, reconnect=True, name="bp replay")
        try:
            other = private(pipeline, pipeline.name, broker.max_payload)
            await deploy(broker, other)
            async with _roles(server.url, other, target, workers) as failed:
                yield PrivateLog(broker, server.url, other, failed)
        finally:
            await broker.close()


@contextlib.asynccontextmanager
async def broker_log(
    url: str, pipeline: Pipeline, *, target: str | None
) -> AsyncIterator[PrivateLog]:
    """On a broker, in a pipeline of its own name, which is removed at the end with all it has made.

    Removes what replays left there that are gone. All roles run in this process, so that they end
    with it.

    Raises:
        BrokerUnavailableError, SetupError: it cannot begin.
    """
    broker = await jetstream.connect(url, reconnect=True, name="bp replay")
    try:
        await sweep(broker)
        name = private_name(pipeline.name, secrets.token_hex(TOKEN_BYTES))
        other = private(pipeline, name, broker.max_payload)
        await _mark(broker, other.name)
        try:
            await deploy(broker, other)
            async with _roles(url, other, target, 0) as failed:
                yield PrivateLog(broker, url, other, failed)
        finally:
            await remove(broker, other.name)
    finally:
        await broker.close()


@contextlib.asynccontextmanager
async def _roles(
    url: str, pipeline: Pipeline, target: str | None, workers: int
) -> AsyncIterator[asyncio.Future[None]]:
    """The roles, running; the future ends when one of them does."""
    if not workers:
        async with LocalRoles(url, pipeline, target=target) as roles:
            watching = asyncio.create_task(roles.ended(), name="watch the roles")
            try:
                yield watching
            finally:
                await _cancelled(watching)
        return
    assert target is not None  # processes import it
    stop, ready = asyncio.Event(), asyncio.Event()

    def announce(line: str) -> None:
        log.info("%s", line)
        if line == "ready":
            ready.set()

    children = plan_children([(target, pipeline)], workers=workers, slots=None)
    running = asyncio.create_task(Supervisor(children, url, announce).run(stop), name="roles")
    starting = asyncio.create_task(ready.wait(), name="until they are ready")
    try:
        await asyncio.wait((running, starting), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        yield running
    finally:
        starting.cancel()
        stop.set()
        await asyncio.wait((running,))


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()  # whoever used it has seen it


# -- what is left behind ---------------------------------------------------------------------------
async def sweep(broker: Broker) -> list[str]:
    """Remove what replays have left that are gone; their pipelines' names."""
    try:
        keys = await broker.kv_keys(STATE_BUCKET)
    except NotFoundError:
        return []
    gone = []
    for key in keys:
        name = key.removesuffix(MARK)
        if name != key and INFIX in name and await _is_gone(broker, name):
            log.warning("removing what replay %r has left, which is gone", name)
            await remove(broker, name)
            gone.append(name)
    return gone


async def _is_gone(broker: Broker, name: str) -> bool:
    for _ in range(ASKS):
        subject = presence_subject(name, SHARD, MARK)
        if await broker.presence(subject, timeout_s=PRESENCE_WAIT_S) is not Presence.GONE:
            return False
    return True


async def _mark(broker: Broker, name: str) -> None:
    """Say that the pipeline is a replay's; whoever finds the mark can ask whether it is there."""
    await broker.ensure_bucket(STATE_BUCKET)
    await broker.be_present(presence_subject(name, SHARD, MARK))
    owner = {"host": socket.gethostname(), "pid": os.getpid()}
    await broker.kv_put(STATE_BUCKET, f"{name}{MARK}", json.dumps(owner).encode())


async def remove(broker: Broker, name: str) -> None:
    """Remove everything that `deploy` and the roles have made for a replay's pipeline."""
    assert INFIX in name  # nobody else's
    for stream in (
        stream_name(name, SHARD),
        snapshot_stream(name, SHARD),
        bucket_stream(module_bucket(name)),
        bucket_stream(attempts_bucket(name)),
    ):
        await broker.delete_stream(stream)
    await broker.delete_object_bucket(object_bucket(name))
    await broker.delete_object_bucket(payload_bucket(name))
    with contextlib.suppress(NotFoundError):
        for key in await broker.kv_keys(LEASE_BUCKET, lease_key(name, SHARD)):
            await broker.kv_delete(LEASE_BUCKET, key)
    for key in (
        plan_key(name),
        snapshot_key(name, SHARD),
        payload_mark_key(name, SHARD),
        f"{name}{MARK}",  # the last: what is not removed by then is found by it
    ):
        await broker.kv_erase(STATE_BUCKET, key)
