"""The worker role: several phases of a pipeline in one process, on one connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum

from broker_pipeline.broker.port import Broker
from broker_pipeline.core.plan import compile_plan, unknown_phase
from broker_pipeline.errors import UnknownPhaseError
from broker_pipeline.external.port import RelayFactory
from broker_pipeline.modules import ExternalModule, walk
from broker_pipeline.observe.meter import Meter
from broker_pipeline.pipeline import Controller, Phase, Pipeline
from broker_pipeline.runtime.lifecycle import first_error
from broker_pipeline.runtime.phase_worker import PhaseWorker

log = logging.getLogger(__name__)

LOST_SLOTS_CHECK_S = 1.0
"""How often a worker looks whether too many of its slots are lost, and its module servers gone."""
BRIDGE_SLOTS = 1000
"""Packages that a bridge has with module servers at most, in each phase: what servers grant bounds
it before that. Of a package's largest size, they are a gigabyte."""


class WorkerEnd(Enum):
    """Why a worker has ended."""

    DRAINED = "drained"
    RESTART = "restart"
    """Too many slots are lost in modules that do not come back: the process should begin anew."""


def default_slots() -> int:
    """Packages that run at the same time in each phase of a worker: one a processor."""
    return os.cpu_count() or 1


Chosen = list[tuple[Controller, Phase]]


def choose(pipeline: Pipeline, phases: Sequence[str] | None) -> Chosen:
    """The phases of these names (CONTROLLER.PHASE); for None all but those that bridges run.

    Raises:
        UnknownPhaseError: there is none of that name, or nothing is left for a worker.
    """
    known = _phases(pipeline)
    if phases:
        return _named(pipeline, phases)
    own = [(controller, phase) for controller, phase in known.values() if not phase.external]
    if not own:
        raise UnknownPhaseError(
            f"every phase of pipeline {pipeline.name!r} is external: {_listed(known)}; start "
            f"`broker-pipeline bridge`, or name the phases that this worker is to run"
        )
    return own


def choose_external(pipeline: Pipeline, phases: Sequence[str] | None) -> Chosen:
    """The external phases of these names (CONTROLLER.PHASE); all for None.

    Raises:
        UnknownPhaseError: there is none of that name, or it is not external, or none at all is.
    """
    known = {name: each for name, each in _phases(pipeline).items() if each[1].external}
    if not known:
        raise UnknownPhaseError(
            f"pipeline {pipeline.name!r} has no phase of nothing but ExternalModules, and a bridge "
            f"runs no other; start `broker-pipeline worker`"
        )
    if not phases:
        return list(known.values())
    chosen = _named(pipeline, phases)
    for (controller, phase), name in zip(chosen, dict.fromkeys(phases), strict=True):
        if not phase.external:
            raise UnknownPhaseError(
                f"phase {name!r} of pipeline {pipeline.name!r} has modules that run in a worker; a "
                f"bridge runs {_listed(known)}; start `broker-pipeline worker` for it",
                phase=f"{controller.name}.{phase.name}",
            )
    return chosen


def targets_of(phase: Phase) -> Iterator[str]:
    """Where the module servers are that a phase needs."""
    for _, module in walk(phase.modules):
        if isinstance(module, ExternalModule):
            yield module.target


def _phases(pipeline: Pipeline) -> dict[str, tuple[Controller, Phase]]:
    return {f"{c.name}.{p.name}": (c, p) for c in pipeline.controllers for p in c.phases}


def _named(pipeline: Pipeline, phases: Sequence[str]) -> Chosen:
    known = _phases(pipeline)
    for name in phases:
        if name not in known:
            raise unknown_phase(compile_plan(pipeline), name)
    return [known[name] for name in dict.fromkeys(phases)]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


class Worker:
    """Runs phases of a pipeline, as a worker or as a bridge.

    Args:
        broker: a connection that reconnects.
        phases: what it runs; see `choose`.
        slots: packages that run at the same time in each phase.
        target: the pipeline's TARGET, for modules that are isolated in processes.
        relays: makes what calls module servers; None: no module is external.
        meter: counts what it does; None: nothing does.
    """

    def __init__(
        self,
        broker: Broker,
        pipeline: Pipeline,
        phases: Chosen,
        *,
        slots: int,
        target: str | None = None,
        relays: RelayFactory | None = None,
        meter: Meter | None = None,
    ) -> None:
        host = socket.gethostname()
        suspects_turn = asyncio.Lock()
        self._broker = broker
        self._phases = [
            PhaseWorker(
                broker,
                pipeline,
                controller,
                phase,
                slots=slots,
                worker=f"{host}-{os.getpid()}",
                host=host,
                target=target,
                relays=relays,
                suspects_turn=suspects_turn,
                meter=meter,
            )
            for controller, phase in phases
        ]

    async def run(self, stop: asyncio.Event, *, ready: Callable[[], None]) -> WorkerEnd:
        """Set the modules up, call `ready`, work until `stop` is set, and drain.

        Raises:
            SetupError: a module's `setup` failed; no package was taken.
        """
        async with contextlib.AsyncExitStack() as started:
            for phase in self._phases:
                await phase.start()
                started.push_async_callback(phase.close)
            ready()
            with first_error():
                return await self._work(stop)

    async def _work(self, stop: asyncio.Event) -> WorkerEnd:
        ending = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for phase in self._phases:
                group.create_task(phase.run(ending), name=f"phase {phase.name}")
            stopping = group.create_task(stop.wait(), name="stop worker")
            exhausted = False
            while not stopping.done() and not exhausted:
                await asyncio.wait(
                    (stopping, self._broker.lost),
                    timeout=LOST_SLOTS_CHECK_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if self._broker.lost.done():
                    self._broker.lost.result()
                for phase in self._phases:
                    phase.look()
                exhausted = any(phase.exhausted for phase in self._phases)
            stopping.cancel()
            ending.set()
        return WorkerEnd.RESTART if exhausted and not stop.is_set() else WorkerEnd.DRAINED
