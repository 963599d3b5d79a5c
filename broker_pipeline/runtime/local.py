"""Controller, worker and bridge as tasks of this process: for scripts and small services."""

from __future__ import annotations

import asyncio
from functools import partial
from types import TracebackType
from typing import Any

from broker_pipeline.pipeline import Pipeline
from broker_pipeline.runtime.roles import Announce, run_bridge, run_controller, run_worker
from broker_pipeline.runtime.worker import WorkerEnd


def _quiet(line: str) -> None:
    """Nobody stands at a terminal of this role."""


class LocalRoles:
    """Runs a deployed pipeline in this process, for as long as the context lasts.

    A module that is isolated in a process needs `target`, which that process imports.
    """

    def __init__(self, url: str, pipeline: Pipeline, *, target: str | None = None) -> None:
        self._url = url
        self._pipeline = pipeline
        self._target = target
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> LocalRoles:
        """Start, and return when the worker's modules are set up. Raises SetupError."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        phases = [phase for each in self._pipeline.controllers for phase in each.phases]
        roles = {"worker": not all(phase.external for phase in phases),
                 "bridge": any(phase.external for phase in phases)}  # fmt: skip
        starting = {role for role, is_needed in roles.items() if is_needed}

        def announce(role: str) -> None:
            starting.discard(role)
            if not starting and not ready.done():
                ready.set_result(None)

        controller = run_controller(self._url, self._pipeline.name, self._stop, announce=_quiet)
        self._tasks = [
            asyncio.create_task(self._work(role, announce), name=f"{role} {self._pipeline.name}")
            for role in sorted(starting)
        ]
        self._tasks.append(
            asyncio.create_task(controller, name=f"controller {self._pipeline.name}")
        )
        try:
            await asyncio.wait((ready, *self._tasks), return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            self._stop.set()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            raise
        if not ready.done():
            ready.cancel()
            await self._end()
        return self

    async def ended(self) -> None:
        """Return when a role has ended before it was asked to; raises what ended it."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def _work(self, role: str, announce: Announce) -> None:
        """Run a worker or bridge, and a new one with slots of its own when too many are lost."""
        run = run_bridge if role == "bridge" else partial(run_worker, target=self._target)
        end = WorkerEnd.RESTART
        while end is WorkerEnd.RESTART:
            end = await run(
                self._url,
                self._pipeline,
                self._stop,
                phases=None,
                slots=None,
                announce=lambda line: announce(role),
            )

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drain and stop. Raises what ended a role before its time."""
        await self._end()

    async def _end(self) -> None:
        self._stop.set()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
