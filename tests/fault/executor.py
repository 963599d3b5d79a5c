"""A `PhaseExecutor` in virtual time: a phase takes as long as chance says, then runs at once."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

from broker_pipeline.journey import NS, Status
from broker_pipeline.pipeline import Controller, Phase
from broker_pipeline.runtime.execution.flow import Finished, Job
from broker_pipeline.runtime.execution.inline import run_inline
from broker_pipeline.runtime.execution.program import compile_phase
from broker_pipeline.runtime.results import Here
from tests.fault.loop import PROCESS
from tests.fault.modules import POISON, orders

PREFETCH = 2
"""So many packages for each slot, running or waiting."""
RUN_S = (0.0005, 0.002, 0.01, 0.05, 0.3)
SLOW_S = 6.0
"""Longer than all deliveries of a package take that is not reported as alive."""


class Begun:
    """Which packages began, seen from the slots.

    Attributes:
        runs: how often each message of a queue began, by its stream sequence.
        asked: how often it had a slot and asked whether it may begin.
        wrong: what must not be: two suspects at a time in one process.
    """

    def __init__(self) -> None:
        self.runs: Counter[int] = Counter()
        self.asked: Counter[int] = Counter()
        self.wrong: list[str] = []
        self._suspects: dict[str, set[int]] = defaultdict(set)

    def asks(self, process: str, job: Job) -> None:
        """A suspect has a slot."""
        assert isinstance(job.token, Here)
        stream_seq = job.token.message.stream_seq
        self.asked[stream_seq] += 1
        if self._suspects[process]:
            self.wrong.append(f"two suspects run at a time in {process}")
        self._suspects[process].add(stream_seq)

    def begins(self, job: Job) -> None:
        """A package begins; not one that is only run again for its state."""
        if isinstance(job.token, Here):
            self.runs[job.token.message.stream_seq] += 1

    def ended(self, process: str, job: Job) -> None:
        """It is back."""
        if isinstance(job.token, Here):
            self._suspects[process].discard(job.token.message.stream_seq)


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
        begun: Begun,
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
        self._begun = begun
        self._asking: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Nothing to set up."""

    async def close(self) -> None:
        """What runs is not delivered."""
        for handle in self._running.values():
            handle.cancel()
        self._running.clear()
        for task in self._asking:
            task.cancel()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue packages."""
        self._waiting.extend(jobs)
        self._fill()

    def withdraw(self) -> list[Job]:
        """Take back what has not begun."""
        jobs = list(self._waiting)
        self._waiting.clear()
        return jobs

    def recall(self) -> None:
        """Nothing waits for a module server."""

    def look(self) -> None:
        """There are none."""

    def wanted(self) -> int:
        """How many more it would like now."""
        here = len(self._waiting) + len(self._running) + len(self._asking)
        return max(0, self._slots * PREFETCH - here)

    @property
    def idle(self) -> bool:
        """Whether everything that was submitted has been delivered."""
        return not self._waiting and not self._running and not self._asking

    def _fill(self) -> None:
        while self._waiting and len(self._running) + len(self._asking) < self._slots:
            job = self._waiting.popleft()
            if job.gate is None:
                self._begin(job)
            else:
                self._begun.asks(self._process.name, job)
                task = asyncio.get_running_loop().create_task(self._ask(job), name="gate")
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)

    async def _ask(self, job: Job) -> None:
        assert job.gate is not None
        if await job.gate():
            self._begin(job)
            return
        self._begun.ended(self._process.name, job)
        loop = asyncio.get_running_loop()
        loop.call_soon(self._fill)
        self._deliver([Finished(job, job.package.envelope, Status.WAITING, None)])

    def _begin(self, job: Job) -> None:
        self._begun.begins(job)
        chance = self._process.chance
        takes_s = chance.choice(RUN_S) * (0.5 + chance.random())
        if self._slow and chance.random() < self._slow:
            takes_s = SLOW_S
        loop = asyncio.get_running_loop()
        self._running[id(job)] = loop.call_later(takes_s, self._run, job)

    def _run(self, job: Job) -> None:
        if orders(job.package.envelope.data).get(self._place) == POISON:
            self._process.kill()
            return
        del self._running[id(job)]
        self._begun.ended(self._process.name, job)
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
