"""The worker role: several phases of a pipeline in one process, on one connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from enum import Enum

from broker_pipeline.broker.port import Broker
from broker_pipeline.core.plan import compile_plan, unknown_phase
from broker_pipeline.pipeline import Controller, Phase, Pipeline
from broker_pipeline.runtime.lifecycle import first_error
from broker_pipeline.runtime.phase_worker import PhaseWorker

log = logging.getLogger(__name__)

LOST_SLOTS_CHECK_S = 1.0
"""How often a worker looks whether too many of its slots are lost."""


class WorkerEnd(Enum):
    """Why a worker has ended."""

    DRAINED = "drained"
    RESTART = "restart"
    """Too many slots are lost in modules that do not come back: the process should begin anew."""


def default_slots() -> int:
    """Packages that run at the same time in each phase of a worker: one a processor."""
    return os.cpu_count() or 1


def choose(pipeline: Pipeline, phases: Sequence[str] | None) -> list[tuple[Controller, Phase]]:
    """The phases of these names (CONTROLLER.PHASE); all for None. Raises UnknownPhaseError."""
    known = {f"{c.name}.{p.name}": (c, p) for c in pipeline.controllers for p in c.phases}
    if not phases:
        return list(known.values())
    for name in phases:
        if name not in known:
            raise unknown_phase(compile_plan(pipeline), name)
    return [known[name] for name in dict.fromkeys(phases)]


class Worker:
    """Runs phases of a pipeline.

    Args:
        broker: a connection that reconnects.
        phases: CONTROLLER.PHASE each; None: all.
        slots: packages that run at the same time in each phase; None: one a processor.
        target: the pipeline's TARGET, for modules that are isolated in processes.
    """

    def __init__(
        self,
        broker: Broker,
        pipeline: Pipeline,
        *,
        phases: Sequence[str] | None = None,
        slots: int | None = None,
        target: str | None = None,
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
                slots=slots or default_slots(),
                worker=f"{host}-{os.getpid()}",
                host=host,
                target=target,
                suspects_turn=suspects_turn,
            )
            for controller, phase in choose(pipeline, phases)
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
                exhausted = any(phase.exhausted for phase in self._phases)
            stopping.cancel()
            ending.set()
        return WorkerEnd.RESTART if exhausted and not stop.is_set() else WorkerEnd.DRAINED
