"""Batches: packages that wait for the same module are given to its `execute_batch` together.

The walk of each package waits here, on the module loop, as it would for a mutex. The batch runs in
a thread of the pool, or as a task if it is `async def`; what it says of a package goes to its walk.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from broker_pipeline.modules import Run
from broker_pipeline.observe import current
from broker_pipeline.observe.context import TraceContext
from broker_pipeline.observe.meter import Histogram
from broker_pipeline.package import DataPackage
from broker_pipeline.runtime.execution.interpreter import Abandoned
from broker_pipeline.runtime.execution.mutex import mutex_of
from broker_pipeline.runtime.execution.pool import DaemonPool
from broker_pipeline.runtime.execution.program import Program, Step

# One batch runs and the next gathers: so many packages of a phase must be able to be on their way.
BATCHES_IN_FLIGHT = 2
# A batch whose packages are all out of time has so long to come back before others run beside it.
BATCH_GRACE_S = 1.0
# So many batches of a module that do not come back, and the worker had better be replaced: one may
# be a package's fault, and they need not be full, so that lost slots alone would tell it late.
LOST_BATCHES_MAX = 2
# The weight of a batch in the moving average of what a package costs: as in `flow`.
_EWMA_WEIGHT = 0.1

_log = logging.getLogger(__name__)

Begin = Callable[[], None]
"""Notes in the journey that the wait is over. Raises Abandoned where it is too late."""
Again = Callable[[], tuple[DataPackage[Any], Run]]
"""The package as the module was given it, and a run for it."""


class _Member:
    """A package that waits for a batch, or is in one.

    Attributes:
        since_s: when it came, by the loop's clock.
        outcome: resolved when `error` stands, or cancelled with the walk.
        begun: whether the wait is over.
        attempt: the run of `execute_batch` that it is in.
        span: of the module, for this package; None: it is not traced.
    """

    __slots__ = (
        "again",
        "attempt",
        "begin",
        "begun",
        "error",
        "outcome",
        "package",
        "run",
        "since_s",
        "span",
    )

    def __init__(
        self,
        package: DataPackage[Any],
        run: Run,
        begin: Begin,
        again: Again,
        since_s: float,
        span: TraceContext | None,
    ) -> None:
        self.package, self.run = package, run
        self.begin, self.again = begin, again
        self.since_s, self.span = since_s, span
        self.outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: BaseException | None = None
        self.begun = False
        self.attempt: asyncio.Task[BaseException | None] | None = None

    def begins(self) -> bool:
        """Whether it takes part: its place is given up when its time is over."""
        if not self.begun and not self.outcome.done():
            try:
                self.begin()
            except Abandoned:
                return False  # its cancellation is on the way
            self.begun = True
        return not self.outcome.done()

    def end(self, error: BaseException | None) -> None:
        """This is what became of it, unless it was late."""
        if not self.outcome.done():
            self.error = error
            self.outcome.set_result(None)

    def renew(self) -> None:
        """Nothing of a failed attempt shall be seen in the next."""
        self.package, self.run = self.again()


class _Batch:
    """A batch that runs: the part that is in `execute_batch` now, and the parts that are to come.

    Attributes:
        members: all it began with.
        cancellable: whether a cancellation of `attempt` reaches the module.
        lost: others run beside it.
    """

    __slots__ = ("attempt", "cancellable", "lost", "members", "parts", "running", "started_ns")

    def __init__(self) -> None:
        self.members: list[_Member] = []
        self.started_ns = 0
        self.parts: list[list[_Member]] = []
        self.running: list[_Member] = []
        self.attempt: asyncio.Task[BaseException | None] | None = None
        self.cancellable = False
        self.lost = False


class Batcher:
    """Gathers the packages of one module object and runs one batch at a time. On the module loop.

    Args:
        live: how many packages can be on their way in the phase: where all of them wait here,
            nobody else can come.

    Attributes:
        package_ns: the moving average of what a package costs, its share of a batch; 0 before the
            first.
        lost: how many batches have not come back.
        sizes: takes how many packages a batch has.
    """

    def __init__(self, step: Step, pool: DaemonPool, live: Callable[[], int]) -> None:
        self._name = step.name
        self._call: Callable[..., Any] = step.module.execute_batch  # type: ignore[attr-defined]
        self._is_async = step.is_async
        self._size = step.module.options.max_batch
        self._delay_s = step.module.options.max_delay_ms / 1000
        # Of the object: it may stand in another phase too, whose batches are not ours.
        self._mutex = mutex_of(step.module)
        self._pool = pool
        self._live = live
        # In the order in which they came; bounded by the slots of the executor.
        self._gathering: dict[_Member, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._batch: _Batch | None = None
        self._task: asyncio.Task[None] | None = None
        self.package_ns = 0.0
        self.lost = 0
        self.sizes: Histogram | None = None

    async def gather(
        self,
        package: DataPackage[Any],
        run: Run,
        begin: Begin,
        again: Again,
        span: TraceContext | None = None,
    ) -> Run:
        """Have a package run in a batch; the run that counts. Raises what the module raised.

        When cancelled it stays until the batch is back, as the module still has the package.
        """
        _ = package.data  # what does not decode fails here, alone
        loop = asyncio.get_running_loop()
        member = _Member(package, run, begin, again, loop.time(), span)
        self._gathering[member] = None
        self._look()
        try:
            await member.outcome
        except asyncio.CancelledError:
            self._left(member)
            if member.attempt is not None:
                await asyncio.wait([member.attempt])
            raise
        if member.error is not None:
            raise member.error
        return member.run

    # -- gathering ------------------------------------------------------------------------------
    def _look(self) -> None:
        """Begin a batch where nothing is gained by waiting; else when the first has waited."""
        if self._batch is not None or not self._gathering:
            return
        count = len(self._gathering)
        if count >= min(self._size, self._live()):
            self._begin()
        elif self._timer is None:
            first = next(iter(self._gathering))
            loop = asyncio.get_running_loop()
            # Not at once, even without a delay: those that came in the same turn go together.
            self._timer = loop.call_at(first.since_s + self._delay_s, self._begin)

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._batch is None and self._gathering:
            self._batch = batch = _Batch()
            self._task = asyncio.get_running_loop().create_task(self._serve(batch), name="batch")

    def _left(self, member: _Member) -> None:
        """A package is out of time, wherever it was."""
        if member in self._gathering:
            del self._gathering[member]
            return
        batch = self._batch
        if batch is None or batch.attempt is None or not _all_left(batch):
            return
        if batch.cancellable:
            batch.attempt.cancel()
        loop = asyncio.get_running_loop()
        loop.call_later(BATCH_GRACE_S, self._lose, batch, batch.attempt)

    # -- one batch ------------------------------------------------------------------------------
    async def _serve(self, batch: _Batch) -> None:
        queued = self._mutex.enter()
        if queued is not None:
            await self._mutex.wait(queued)
        # Taken as late as can be: more may have come.
        batch.members = members = list(self._gathering)[: self._size]
        for member in members:
            del self._gathering[member]
        batch.parts.append(members)
        if self.sizes is not None and members:
            self.sizes.observe(len(members))
        batch.started_ns = time.monotonic_ns()
        try:
            while batch.parts:
                await self._run(batch, [each for each in batch.parts.pop() if each.begins()])
        except BaseException as error:  # a fault of ours, or the end of the loop
            for member in members:
                member.end(error)
            raise
        finally:
            self.lost -= batch.lost
            self._end(batch)

    async def _run(self, batch: _Batch, part: list[_Member]) -> None:
        """Run a part of a batch; where it raises, put both halves of it back to be run again."""
        if not part:
            return
        packages = tuple(member.package for member in part)
        runs = tuple(member.run for member in part)
        call = partial(self._call, packages, runs)
        # One call for several packages has one place in a trace: with the first that is traced.
        if spans := [each.span for each in part if each.span is not None and each.span.sampled]:
            call = partial(current.called, spans[0], call)
        called = None if self._is_async else self._pool.submit(call)
        attempt = asyncio.get_running_loop().create_task(
            self._execute(batch, called, call), name="execute_batch"
        )
        batch.running, batch.attempt, batch.cancellable = part, attempt, self._is_async
        for member in part:
            member.attempt = attempt
        await asyncio.wait([attempt])
        batch.attempt = None
        for member in part:
            member.attempt = None
        error = asyncio.CancelledError() if attempt.cancelled() else attempt.result()
        if error is None or len(part) == 1:
            if not batch.parts:
                self._measured(batch)
                self._end(batch)  # before its walks go on: a GPU does not wait for them
            for member in part:
                member.end(error)
            return
        again = [member for member in part if not member.outcome.done()]
        for member in again:
            member.renew()
        half = -(-len(again) // 2)
        batch.parts += [again[half:], again[:half]]

    async def _execute(
        self, batch: _Batch, called: Future[Any] | None, call: Callable[[], Any]
    ) -> BaseException | None:
        """What the module raised, as a value: SystemExit in a task would end the loop."""
        try:
            if called is None:
                result = call()
            else:
                result = await asyncio.wrap_future(called)
            if hasattr(type(result), "__await__"):
                batch.cancellable = True
                await result
        except BaseException as error:  # user code
            return error
        return None

    def _lose(self, batch: _Batch, attempt: asyncio.Task[Any]) -> None:
        """It does not come back: its packages have left, and those to come go with others."""
        if self._batch is not batch or batch.attempt is not attempt:
            return
        _log.warning("a batch of module %r does not come back; others run beside it", self._name)
        batch.lost = True
        self.lost += 1
        waiting = [member for part in reversed(batch.parts) for member in part]
        batch.parts.clear()
        self._gathering = {**dict.fromkeys(waiting), **self._gathering}
        self._end(batch)

    def _end(self, batch: _Batch) -> None:
        """The next may begin."""
        if self._batch is batch:
            self._batch = None
            self._mutex.release()
            self._look()

    def _measured(self, batch: _Batch) -> None:
        if self._batch is batch:
            package_ns = (time.monotonic_ns() - batch.started_ns) / len(batch.members)
            last = self.package_ns
            self.package_ns = last + _EWMA_WEIGHT * (package_ns - last) if last else package_ns


def _all_left(batch: _Batch) -> bool:
    return all(member.outcome.cancelled() for member in batch.running)


class Batches:
    """The batchers of a phase: one for each module object that gets batches."""

    def __init__(self, program: Program, pool: DaemonPool) -> None:
        self._steps = [step for step in program.walk() if step.batches]
        self._pool = pool
        self._batchers: dict[int, Batcher] = {}

    def slots(self, slots: int) -> int:
        """How many packages must be able to be on their way, for batches to fill."""
        sizes = {id(step.module): step.module.options.max_batch for step in self._steps}
        return max(slots, BATCHES_IN_FLIGHT * sum(sizes.values()))

    def start(self, live: Callable[[], int]) -> None:
        """Let them gather. `live`: how many packages can be on their way now."""
        for step in self._steps:
            key = id(step.module)
            if key not in self._batchers:
                self._batchers[key] = Batcher(step, self._pool, live)
            step.gather = self._batchers[key].gather

    def count(self, sizes_of: Callable[[Step], Histogram]) -> None:
        """Count how large batches are, each module's in what this gives for it."""
        for step in self._steps:
            self._batchers[id(step.module)].sizes = sizes_of(step)

    @property
    def stuck(self) -> bool:
        """Whether a module loses batch after batch."""
        return any(batcher.lost >= LOST_BATCHES_MAX for batcher in self._batchers.values())

    def bounded(self, wanted: int, live: int, ahead_ns: float) -> int:
        """At most what keeps the slowest module busy for so long, but one for each slot.

        That a package takes long does not say how many can be run, where they run together.
        """
        cost_ns = max((batcher.package_ns for batcher in self._batchers.values()), default=0.0)
        return min(wanted, max(live, int(ahead_ns / cost_ns))) if cost_ns else wanted
