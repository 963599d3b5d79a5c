"""What moves between the event loop of a worker and the slots that run modules."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.external.port import WithdrawnError
from broker_pipeline.journey import STATUS_TO_PB, Status
from broker_pipeline.observe.about import about
from broker_pipeline.observe.context import TraceContext
from broker_pipeline.package import DataPackage
from broker_pipeline.runtime.execution.failure import describe
from broker_pipeline.runtime.execution.interpreter import States, Walk
from broker_pipeline.runtime.execution.program import Program
from broker_pipeline.runtime.execution.setting import Setting

# The weight of a batch's run time in the moving average: it follows a change within ~20 batches.
_EWMA_WEIGHT = 0.1

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Job:
    """One package to run. The modules get `package` itself; read the result from `Finished`.

    Args:
        token: the caller's own; comes back with the result.
        states: the states of the instance by module path; missing ones are made.
        gate: awaited on the worker's loop when the job has its slot, before it begins; False: it
            comes back with the status WAITING, and has not begun.
        span: what the spans of its modules hang below; None: it is not traced.

    Attributes:
        walk: its way through the phase; None: it has not begun.
    """

    package: DataPackage[Any]
    token: object = None
    states: Mapping[str, object] | None = None
    gate: Callable[[], Coroutine[Any, Any, bool]] | None = None
    span: TraceContext | None = None
    walk: Walk | None = None


@dataclass(slots=True, eq=False)
class Finished:
    """What became of a job. `states` is None after an ERROR: they are unknown, load them again.

    `begun`: of one that is WAITING, whether a module has run.
    """

    job: Job
    envelope: pb.DataPackage
    status: Status
    states: States | None
    begun: bool = False


@dataclass(slots=True, eq=False)
class Slot:
    """One place where a package runs. `held`: what it has grabbed and not begun."""

    held: deque[Job] = field(default_factory=deque)
    lost: bool = False


class Slots(Protocol):
    """The places where packages run: threads, or tasks on the module loop."""

    @property
    def live(self) -> int:
        """How many can run a package, or do."""

    def start(self) -> None:
        """Begin to serve the flow."""

    def notify(self, *, all_of_them: bool = False) -> None:
        """There are jobs waiting; with `all_of_them` somebody has waited for long."""

    def expire(self, walk: Walk, slot: Slot, now_ns: int) -> bool:
        """End a walk whose time is over; whether this call did."""

    def take_back(self, job: Job) -> bool:
        """Have a job not begin; False: it has begun, or is about to."""

    def lose(self, walk: Walk, slot: Slot) -> bool:
        """Its module does not come back; False if it has."""

    async def close(self) -> None:
        """End what can be ended, within a bounded time."""


def removed(job: Job, queue: deque[Job]) -> bool:
    """Take a job out of a queue; whether it was in there."""
    try:
        queue.remove(job)
    except ValueError:
        return False
    return True


class Flow:
    """Jobs in, results out, and what is running now. The deques and the dict need no lock: each
    touch is one atomic operation.

    Attributes:
        waiting: not grabbed by a slot. Bounded by `wanted`, which the caller follows.
        running: the walks that have not come back, late ones included.
        run_ns: the moving average of a package's run time; 0 before the first.
        lost: how many slots are lost.
    """

    def __init__(self, program: Program, setting: Setting, wake: Callable[[], None]) -> None:
        """`wake` is called on the running loop; where the walks run there too, without a hop."""
        self.program = program
        self.setting = setting
        self.waiting: deque[Job] = deque()
        self.running: dict[Walk, tuple[Job, Slot]] = {}
        self.run_ns = 0.0
        self.lost = 0
        self._done: deque[Finished] = deque()
        self._wake = wake
        self._signalled = False
        self._loop = asyncio.get_running_loop()
        self._soon = self._loop.call_soon if program.external else self._loop.call_soon_threadsafe

    def begin(self, job: Job, slot: Slot) -> Walk:
        """A walk for a job, listed as running."""
        walk = job.walk = Walk(self.program, job.package, job.states, self.setting, job.span)
        self.running[walk] = (job, slot)
        return walk

    def ask(self, gate: Callable[[], Coroutine[Any, Any, bool]]) -> Future[bool]:
        """Whether a job may begin, for the slot that it has."""
        return asyncio.run_coroutine_threadsafe(gate(), self._loop)

    def turn_away(self, job: Job, *, begun: bool = False) -> None:
        """It may not begin, or not here: it has been taken back."""
        self._done.append(Finished(job, job.package.envelope, Status.WAITING, None, begun))

    def end(self, walk: Walk, error: BaseException | None) -> bool:
        """It has come back; whether in time. `error` is what came out of the interpreter itself."""
        job, _ = self.running.pop(walk)
        if isinstance(error, WithdrawnError):
            self.turn_away(job, begun=walk.begun)
            return False
        if walk.dead:
            return False
        if error is not None:
            self._say("the interpreter failed (package %s)", job, error)
            self._break(walk, error)
        self._done.append(Finished(job, walk.envelope, walk.status, walk.states))
        return True

    def abandon(self) -> None:
        """What still runs gives no result any more."""
        for walk in list(self.running):
            walk.abandon()

    def expired(self, walk: Walk, job: Job) -> None:
        """It has been ended by a timeout: hand over what is known."""
        self._done.append(Finished(job, walk.envelope, walk.status, walk.states))

    def refuse(self, job: Job, error: BaseException) -> None:
        """A job that could not even be begun is an ERROR too."""
        self._say("a walk cannot begin (package %s)", job, error)
        envelope = pb.DataPackage()
        envelope.CopyFrom(job.package.envelope)
        envelope.errors.append(self._described(error))
        self._done.append(Finished(job, envelope, Status.ERROR, None))

    def measured(self, run_ns: float) -> None:
        """A package of the last batch took so long."""
        last = self.run_ns
        self.run_ns = last + _EWMA_WEIGHT * (run_ns - last) if last else run_ns

    def signal(self) -> None:
        """Wake the event loop for what has finished, once until it has looked."""
        if not self._signalled and self._done:
            self._signalled = True
            try:
                self._soon(self._wake)
            except RuntimeError:  # the loop is closed: nobody wants results any more
                _log.debug("a result came after the end of the event loop")

    def collect(self) -> list[Finished]:
        """What has finished since the last call; on the event loop."""
        self._signalled = False
        finished: list[Finished] = []
        done = self._done
        while done:
            finished.append(done.popleft())
        return finished

    def _say(self, text: str, job: Job, error: BaseException) -> None:
        what = about(job.package.envelope, self.program.name)
        _log.error(text, job.package.id, exc_info=error, extra=what)

    def _break(self, walk: Walk, error: BaseException) -> None:
        walk.status, walk.states = Status.ERROR, None
        walk.envelope.errors.append(self._described(error))
        if walk.envelope.controllers and walk.envelope.controllers[-1].phases:
            walk.envelope.controllers[-1].phases[-1].status = STATUS_TO_PB[Status.ERROR]

    def _described(self, error: BaseException) -> pb.Error:
        path = f"{self.program.controller}/{self.program.phase}"
        return describe(error, host=self.setting.host, worker=self.setting.worker, path=path)
