"""The roles as they run in a process: connect, do the role's work, begin anew when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence

from broker_pipeline.broker import jetstream
from broker_pipeline.broker.lease import Lease
from broker_pipeline.broker.port import Broker
from broker_pipeline.client.deploy import require_deployed, require_its_queues
from broker_pipeline.core.names import status_subject
from broker_pipeline.errors import (
    BrokerPipelineError,
    LeadershipLostError,
    NewerVersionError,
    SnapshotError,
)
from broker_pipeline.external.port import RelayFactory
from broker_pipeline.observe.meter import Meter
from broker_pipeline.observe.status import Role
from broker_pipeline.observe.tracing import Traces
from broker_pipeline.pipeline import Pipeline
from broker_pipeline.runtime.leader import Leader
from broker_pipeline.runtime.leader_meter import LeaderMeter
from broker_pipeline.runtime.lifecycle import unless_stopped
from broker_pipeline.runtime.reporting import process_name, reporter
from broker_pipeline.runtime.standby import Standby
from broker_pipeline.runtime.worker import (
    BRIDGE_SLOTS,
    Chosen,
    Worker,
    WorkerEnd,
    choose,
    choose_external,
    default_slots,
    targets_of,
)

log = logging.getLogger(__name__)

Announce = Callable[[str], None]
"""Takes a line for the person who started the role."""

READY = "is ready"
STANDS_BY = "stands by"
"""What a worker and a controller announce first; a supervisor waits for it."""
TRUST_AGAIN_S = 30.0
"""A controller that has lost its lease alive relies on the TTL alone for so long: should it and its
successor not see each other, they must not depose each other in turns."""
RETRY_MIN_S = 0.05
RETRY_MAX_S = 2.0
"""Between two attempts to lead or to connect again, doubling from the first to the last."""
NEWER_S = 30.0
"""How long a controller stands aside that met what only a newer version can follow: newer ones
lead meanwhile, and it looks again in case somebody went back."""
STEADY_S = 5.0
"""What has gone well for so long is no failed attempt when it ends."""
RELEASE_S = 1.0
"""How long giving a lease up may take: a broker that does not answer lets it run out."""


async def run_controller(
    url: str,
    pipeline: str,
    stop: asyncio.Event,
    *,
    announce: Announce,
    shard: int = 0,
    traces: Traces | None = None,
    meter: Meter | None = None,
    instances: int = 0,
) -> None:
    """Compete for the lead of a shard, and lead it; until `stop` is set.

    Args:
        traces: see `Leader`.
        meter: what it counts, for whoever asks; None: nothing.
        instances: for how many instances it counts each apart.

    Raises:
        BrokerUnavailableError: no broker answers when the role starts. Later it is waited for.
        PlanError: the pipeline is not deployed.
    """
    holder = f"{process_name()}-{secrets.token_hex(3)}"
    status = reporter(Role.CONTROLLER, meter=meter, pipeline=pipeline, holder=holder)
    name = f"bp controller {pipeline}"
    broker: Broker | None = await jetstream.connect(url, reconnect=False, name=name)
    counts = None if meter is None else LeaderMeter(meter, pipeline, shard, instances=instances)
    loop = asyncio.get_running_loop()
    retry_s = RETRY_MIN_S
    trusts_from = loop.time()
    try:
        assert broker is not None
        await require_deployed(broker, pipeline)
        announce(f"controller of {pipeline!r} {STANDS_BY}")
        while not stop.is_set():
            begun = loop.time()
            try:
                if broker is None:
                    broker = await _connect_or_stop(url, name, stop)
                if broker is not None:
                    await broker.answer(status_subject(pipeline), status.answer)
                    standby = Standby(
                        broker, pipeline, shard, holder, trusts_from=trusts_from, announce=announce
                    )
                    await _lead_or_stand_by(
                        broker, standby, pipeline, shard, stop, announce, counts, traces
                    )
            except BrokerPipelineError as error:
                # Crash-only: whatever happened, begin anew with nothing but what is stored.
                how = f"stands aside for {NEWER_S:g} s" if _is_newer(error) else "begins anew"
                what = {"pipeline": pipeline}
                log.warning("controller of %r %s: %s", pipeline, how, error, extra=what)
                announce(f"controller of {pipeline!r} {how}: {error}")
                if isinstance(error, LeadershipLostError):
                    trusts_from = loop.time() + TRUST_AGAIN_S
                lasted = loop.time() - begun > STEADY_S
                retry_s = RETRY_MIN_S if lasted else min(RETRY_MAX_S, retry_s * 2)
                await _sleep_or_stop(NEWER_S if _is_newer(error) else retry_s, stop)
            if broker is not None:
                ending, broker = broker, None
                await _close(ending)
    finally:
        if counts is not None:
            counts.close()
        if broker is not None:
            await _close(broker)


def _is_newer(error: BrokerPipelineError) -> bool:
    """Whether only a newer version of this program can go on."""
    snapshot = isinstance(error, SnapshotError) and "version" in error.values
    return snapshot or isinstance(error, NewerVersionError)


async def _connect_or_stop(url: str, name: str, stop: asyncio.Event) -> Broker | None:
    """A connection; None where `stop` is set first."""
    connected: list[Broker] = []

    async def connect() -> None:
        connected.append(await jetstream.connect(url, reconnect=False, name=name))

    await unless_stopped(stop, connect())
    return connected[0] if connected else None


async def _lead_or_stand_by(
    broker: Broker,
    standby: Standby,
    pipeline: str,
    shard: int,
    stop: asyncio.Event,
    announce: Announce,
    counts: LeaderMeter | None,
    traces: Traces | None,
) -> None:
    """One connection's life: stand by until the shard is free, then lead it until the end."""
    lease = standby.lease
    if not await unless_stopped(stop, standby.until_leading()):
        await _release(lease)
        return
    leader = Leader(
        broker,
        pipeline,
        shard,
        now_ns=time.time_ns,
        ready=lambda leader: announce(f"leads {pipeline!r} from {leader.machine.applied} on"),
        is_held=lambda: lease.held,
        traces=traces,
        meter=counts,
    )
    try:
        await _while_held(lease, leader.run(stop))
    finally:
        await _release(lease)


async def _release(lease: Lease) -> None:
    """Give the shard up at once, if the broker can be told; else the lease runs out."""
    with contextlib.suppress(BrokerPipelineError, TimeoutError):
        async with asyncio.timeout(RELEASE_S):
            await lease.release()


async def _while_held(lease: Lease, work: Awaitable[None]) -> None:
    """Do `work` for as long as the lease is held; losing it ends the work at once."""
    holding = asyncio.create_task(lease.hold(), name="hold lease")
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait((holding, working), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        else:
            holding.result()
            raise LeadershipLostError("the lease is not held any more; begin anew")
    finally:
        for task in (holding, working):
            task.cancel()
        await asyncio.gather(holding, working, return_exceptions=True)


async def run_worker(
    url: str,
    pipeline: Pipeline,
    stop: asyncio.Event,
    *,
    phases: Sequence[str] | None,
    slots: int | None,
    target: str | None,
    announce: Announce,
    meter: Meter | None = None,
) -> WorkerEnd:
    """Run phases of a pipeline until `stop` is set, then drain.

    Args:
        phases: CONTROLLER.PHASE each; None: all but external ones, which bridges run.
        slots: packages that run at the same time in each phase; None: one a processor.
        target: TARGET, for modules that are isolated in processes.
        meter: what it counts, for whoever asks; None: nothing.

    Raises:
        BrokerUnavailableError: no broker answers when the role starts. Later it is waited for.
        UnknownPhaseError, SetupError, PlanError: it cannot begin.
    """
    chosen = choose(pipeline, phases)
    bridged = len(chosen) < sum(len(each.phases) for each in pipeline.controllers)
    ready = ", ".join(phases) if phases else "all phases" + " but external ones" * bridged
    return await _run_phases(
        Role.WORKER, url, pipeline, stop, chosen=chosen, slots=slots or default_slots(),
        target=target, ready=ready, announce=announce, meter=meter,
    )  # fmt: skip


async def run_bridge(
    url: str,
    pipeline: Pipeline,
    stop: asyncio.Event,
    *,
    phases: Sequence[str] | None,
    slots: int | None,
    announce: Announce,
    meter: Meter | None = None,
) -> WorkerEnd:
    """Relay packages of external phases to module servers until `stop` is set, then drain.

    Args:
        phases: CONTROLLER.PHASE each; None: all external ones.
        slots: packages with servers at most, in each phase; None: BRIDGE_SLOTS.
        meter: what it counts, for whoever asks; None: nothing.

    Raises:
        BrokerUnavailableError: no broker answers when the role starts. Later it is waited for.
        UnknownPhaseError, PlanError: it cannot begin.
    """
    chosen = choose_external(pipeline, phases)
    ready = ", ".join(
        f"{controller.name}.{phase.name} to {target}"
        for controller, phase in chosen
        for target in dict.fromkeys(targets_of(phase))
    )
    return await _run_phases(
        Role.BRIDGE, url, pipeline, stop, chosen=chosen, slots=slots or BRIDGE_SLOTS,
        target=None, ready=ready, announce=announce, meter=meter,
    )  # fmt: skip


async def _run_phases(
    role: Role,
    url: str,
    pipeline: Pipeline,
    stop: asyncio.Event,
    *,
    chosen: Chosen,
    slots: int,
    target: str | None,
    ready: str,
    announce: Announce,
    meter: Meter | None,
) -> WorkerEnd:
    connected = False

    def tell(event: str) -> None:
        if connected:  # what goes wrong before is in the error that `connect` raises
            what = {"pipeline": pipeline.name}
            log.warning("%s of %r: %s", role, pipeline.name, event, extra=what)

    broker = await jetstream.connect(
        url, reconnect=True, name=f"bp {role} {pipeline.name}", on_event=tell
    )
    connected = True
    try:
        await require_deployed(broker, pipeline.name)
        await require_its_queues(broker, pipeline)
        worker = Worker(
            broker, pipeline, chosen, slots=slots, target=target, relays=_relays(broker, chosen),
            meter=meter,
        )  # fmt: skip
        names = [f"{controller.name}.{phase.name}" for controller, phase in chosen]
        status = reporter(role, meter=meter, pipeline=pipeline.name, phases=names)
        await broker.answer(status_subject(pipeline.name), status.answer)
        return await worker.run(
            stop, ready=lambda: announce(f"{role} of {pipeline.name!r} {READY}: {ready}")
        )
    finally:
        await _close(broker)


def _relays(broker: Broker, chosen: Chosen) -> RelayFactory | None:
    """What calls module servers, where any phase needs it: gRPC is loaded for that only."""
    if not any(True for _, phase in chosen for _ in targets_of(phase)):
        return None
    from broker_pipeline.external.caller import relay_factory

    return relay_factory(broker, caller=process_name())


async def _close(broker: Broker) -> None:
    """Close a connection at the end of a role, whatever state it is in."""
    # nats-py's last flush to a broker that is gone raises this under uvloop while it reconnects.
    with contextlib.suppress(RuntimeError):
        await broker.close()


async def _sleep_or_stop(seconds: float, stop: asyncio.Event) -> None:
    """Wait so long, or until `stop` is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
