"""What a worker counts of one phase: its packages and those of its modules, in and out and inside.

All is counted on the worker's event loop, when a package is given to the slots and when it comes
back. What runs in between is looked at when somebody reads, each walk once and under its lock. So
at any reading as many came as have left and are inside, and no count ever goes back.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.errors import ModuleTimeoutError
from broker_pipeline.journey import STATUS_TO_PB, Status
from broker_pipeline.observe import catalogue
from broker_pipeline.observe.meter import Histogram, Meter, Sample, Source
from broker_pipeline.runtime.execution.flow import Finished, Job
from broker_pipeline.runtime.execution.program import Kind, Program, Step

if TYPE_CHECKING:
    from broker_pipeline.runtime.results import Here

_SUCCESS, _EXIT, _ERROR, _GIVEN_BACK = range(4)
_OUT = (*catalogue.ENDS, catalogue.GIVEN_BACK)
_END = {Status.SUCCESS: _SUCCESS, Status.EXIT: _EXIT, Status.WAITING: _GIVEN_BACK}
_END_OF: dict[Any, int] = {
    STATUS_TO_PB[Status.SUCCESS]: _SUCCESS,
    STATUS_TO_PB[Status.EXIT]: _EXIT,
}
_RUNNING = STATUS_TO_PB[Status.RUNNING]
_TIMEOUT = ModuleTimeoutError.__name__
Records = Iterable[pb.ModuleRecord]


class _Module:
    """What is counted of one module at one place of the tree."""

    def __init__(self, meter: Meter, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.left = [0] * len(_OUT)
        self.times = [meter.histogram(catalogue.MODULE_TIME, *labels, end) for end in _OUT[:3]]
        self.waited: Histogram | None = None  # of those that ever wait
        self.timeouts = meter.counter(catalogue.MODULE_TIMEOUTS, *labels)
        self.waits = False  # for a mutex or a batch, and its record says when that is over
        self.within: dict[str, _Module] = {}
        self.seen = _Seen()


class _Seen:
    """A module in the walks that are on their way, at one reading."""

    __slots__ = ("left", "running", "waiting")

    def __init__(self) -> None:
        self.left = [0] * len(_OUT)
        self.running = self.waiting = 0


class PhaseMeter:
    """Counts for one phase in one process.

    Args:
        labels: the pipeline, the controller and the phase.
        others: gives what others know of the phase when somebody reads.

    Attributes:
        passed_over: packages that were not run, for they were too old.
        close: ends it.
    """

    def __init__(
        self, meter: Meter, labels: tuple[str, str, str], program: Program, others: Source
    ) -> None:
        self._meter, self._labels, self._others = meter, labels, others
        self._jobs: dict[Job, None] = {}  # given to the slots and not come back
        self._came = 0
        self._left = [0] * len(_OUT)
        self._times = [meter.histogram(catalogue.PHASE_TIME, *labels, end) for end in _OUT[:3]]
        self._published = meter.histogram(catalogue.PHASE_PUBLISH, *labels)
        self._acked = meter.histogram(catalogue.PHASE_ACK, *labels)
        self._redelivered = meter.counter(catalogue.PHASE_REDELIVERED, *labels)
        self.passed_over = meter.counter(catalogue.PHASE_PASSED_OVER, *labels)
        self._modules: dict[str, _Module] = {}
        self._top: dict[str, _Module] = {}
        self._sizes: dict[int, Histogram] = {}
        for step in program.steps:
            self._add(step, "", self._top)
        self.close = meter.add_source(self.read)

    def _add(self, step: Step, within: str, siblings: dict[str, _Module]) -> None:
        name = f"{within}{step.name}"
        labels = (*self._labels, name)
        module = self._modules.get(step.label)
        if module is None:  # else two of one name at one place: they are one series
            module = self._modules[step.label] = siblings[step.name] = _Module(self._meter, labels)
        module.waits = module.waits or step.mutex is not None or step.batches
        if module.waits or step.kind is Kind.EXTERNAL:
            module.waited = self._meter.histogram(catalogue.MODULE_WAITED, *labels)
        if step.batches and id(step.module) not in self._sizes:
            sizes = self._meter.histogram(catalogue.BATCH_SIZE, *labels)
            self._sizes[id(step.module)] = sizes
        for child in step.children:
            if child is not None:
                self._add(child, f"{name}/", module.within)

    def sizes_of(self, step: Step) -> Histogram:
        """Takes how many packages a batch of a module has; of the module's object, which may stand
        at several places."""
        return self._sizes[id(step.module)]

    # -- packages, on the event loop ------------------------------------------------------------
    def came(self, here: Here) -> None:
        """The broker has delivered a package. Takes 0.1 us."""
        here.came_ns = time.monotonic_ns()
        if here.message.delivered > 1:
            self._redelivered.value += 1

    def submitted(self, job: Job) -> None:
        """A package is given to the slots. Takes 0.1 us."""
        self._came += 1
        self._jobs[job] = None

    def given_back(self, job: Job) -> None:
        """It has been taken back before it began."""
        if job in self._jobs:
            del self._jobs[job]
            self._left[_GIVEN_BACK] += 1

    def finished(self, finished: Finished) -> None:
        """It has come back. Takes 1 us, and 1 us for each module that it was in."""
        job = finished.job
        if job not in self._jobs:
            return  # a recorded input, which was counted when it came
        del self._jobs[job]
        status = finished.status
        end = _SUCCESS if status is Status.SUCCESS else _END.get(status, _ERROR)
        self._left[end] += 1
        walk, job.walk = job.walk, None
        if walk is None:  # it could not even be begun
            if end != _GIVEN_BACK:
                self._times[end].observe(0)
            return
        if end != _GIVEN_BACK:
            self._times[end].observe(walk.record.total_time_ns)
        self._count(walk.record.modules, self._top, _GIVEN_BACK if end == _GIVEN_BACK else _ERROR)
        if end == _ERROR:
            for error in finished.envelope.errors[-1:]:
                if error.type == _TIMEOUT and error.path in self._modules:
                    self._modules[error.path].timeouts.value += 1

    def _count(self, records: Records, modules: dict[str, _Module], broken_off: int) -> None:
        for record in records:
            module = modules.get(record.name)
            if module is None:
                continue  # a module server's own
            status = record.status
            end = broken_off if status == _RUNNING else _END_OF.get(status, _ERROR)
            module.left[end] += 1
            if end != _GIVEN_BACK:
                module.times[end].observe(record.total_time_ns)
                if module.waited is not None:
                    module.waited.observe(record.waiting_time_ns)
            if module.within:
                self._count(record.sub_modules, module.within, broken_off)

    def sent(self, here: Here) -> None:
        """Its result is sent."""
        here.sent_ns = time.monotonic_ns()

    def published(self, here: Here) -> None:
        """The broker has confirmed it."""
        self._published.observe(time.monotonic_ns() - here.sent_ns)

    def acked(self, here: Here) -> None:
        """The package is acknowledged."""
        self._acked.observe(time.monotonic_ns() - here.came_ns)

    # -- a reading ------------------------------------------------------------------------------
    def read(self) -> Iterator[Sample]:
        """What came, what left, and what is inside now."""
        labels = self._labels
        yield catalogue.PHASE_IN.sample(*labels, value=self._came)
        for end, count in zip(_OUT, self._left, strict=True):
            yield catalogue.PHASE_OUT.sample(*labels, end, value=count)
        yield catalogue.PHASE_PROCESSING.sample(*labels, value=len(self._jobs))
        yield from self._others()
        for module in self._modules.values():
            module.seen = _Seen()
        for job in self._jobs:
            if (walk := job.walk) is not None:
                walk.look(self._see_all)
        for module in self._modules.values():
            yield from _samples(module)

    def _see_all(self, records: Records) -> None:
        _see(records, self._top)


def _see(records: Records, modules: dict[str, _Module]) -> None:
    for record in records:
        module = modules.get(record.name)
        if module is None:
            continue
        seen = module.seen
        if record.status != _RUNNING:
            seen.left[_END_OF.get(record.status, _ERROR)] += 1
        elif module.waits and not record.waiting_time_ns:
            seen.waiting += 1
        else:
            seen.running += 1
        if module.within:
            _see(record.sub_modules, module.within)


def _samples(module: _Module) -> Iterator[Sample]:
    labels, seen = module.labels, module.seen
    left = [ended + now for ended, now in zip(module.left, seen.left, strict=True)]
    came = sum(left) + seen.running + seen.waiting
    yield catalogue.MODULE_IN.sample(*labels, value=came)
    for end, count in zip(_OUT, left, strict=True):
        yield catalogue.MODULE_OUT.sample(*labels, end, value=count)
    yield catalogue.MODULE_PROCESSING.sample(*labels, value=seen.running)
    if module.waits:
        yield catalogue.MODULE_WAITING.sample(*labels, value=seen.waiting)
