"""A `PhaseExecutor` in virtual time: a phase takes as long as chance says, then runs at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from broker_pipeline.journey import NS
from broker_pipeline.pipeline import Controller, Phase
from broker_pipeline.runtime.execution.flow import Finished, Job
from broker_pipeline.runtime.execution.inline import run_inline
from broker_pipeline.runtime.execution.program import compile_phase
from tests.fault.loop import PROCESS
from tests.fault.modules import POISON, orders

PREFETCH = 2
"""So many packages for each slot, running or waiting."""
RUN_S = (0.0005, 0.002, 0.01, 0.05, 0.3)
SLOW_S = 6.0
"""Longer than all deliveries of a package take that is not reported as alive."""


class SimExecutor:
    """The interface of `PhaseExecutor`."""

    lost_slots = 0
    exhausted = False

    def __init__(
        self,
        controller: Controller,
        phase: Phase,
        *,
        slots: int,
        worker: str,
        host: str,
        deliver: Callable[[list[Finished]], None],
        now_ns: Callable[[], int],
        slow: float = 0.0,
        **_: Any,
    ) -> None:
        self._program = compile_phase(controller, phase)
        self._place = f"{controller.name}.{phase.name}"
        self._slots = slots
        self._names = {"worker": worker, "host": host}
        self._deliver = deliver
        self._now_ns = now_ns
        self._waiting: deque[Job] = deque()
        self._running: dict[int, asyncio.TimerHandle] = {}
        self._process = PROCESS.get()
        self._slow = slow

    async def start(self) -> None:
        """Nothing to set up."""

    async def close(self) -> None:
        """What runs is not delivered."""
        for handle in self._running.values():
            handle.cancel()
        self._running.clear()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue packages."""
        self._waiting.extend(jobs)
        self._fill()

    def withdraw(self) -> list[Job]:
        """Take back what has not begun."""
        jobs = list(self._waiting)
        self._waiting.clear()
        return jobs

    def wanted(self) -> int:
        """How many more it would like now."""
        return max(0, self._slots * PREFETCH - len(self._waiting) - len(self._running))

    @property
    def idle(self) -> bool:
        """Whether everything that was submitted has been delivered."""
        return not self._waiting and not self._running

    def _fill(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting and len(self._running) < self._slots:
            job = self._waiting.popleft()
            chance = self._process.chance
            takes_s = chance.choice(RUN_S) * (0.5 + chance.random())
            if self._slow and chance.random() < self._slow:
                takes_s = SLOW_S
            self._running[id(job)] = loop.call_later(takes_s, self._run, job)

    def _run(self, job: Job) -> None:
        if orders(job.package.envelope.data).get(self._place) == POISON:
            self._process.kill()
            return
        del self._running[id(job)]
        loop = asyncio.get_running_loop()
        envelope, status, states = run_inline(
            self._program,
            job.package,
            job.states,
            **self._names,
            now_ns=self._now_ns,
            monotonic_ns=lambda: int(loop.time() * NS),
        )
        self._fill()
        self._deliver([Finished(job, envelope, status, states)])
