"""`PhaseExecutor`: runs a phase on many packages at once; the worker feeds it from the broker."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from broker_pipeline import codecs
from broker_pipeline.errors import BrokerPipelineError
from broker_pipeline.external.port import RelayFactory
from broker_pipeline.journey import NS
from broker_pipeline.observe.about import about, in_phase
from broker_pipeline.observe.meter import Histogram
from broker_pipeline.pipeline import Controller, Phase
from broker_pipeline.runtime.execution.batching import Batches
from broker_pipeline.runtime.execution.flow import Finished, Flow, Job, Slot, Slots
from broker_pipeline.runtime.execution.interpreter import Walk
from broker_pipeline.runtime.execution.lifecycle import Lifecycle
from broker_pipeline.runtime.execution.module_loop import (
    HomeLoop,
    LoopSlots,
    ModuleLoop,
    OnLoop,
)
from broker_pipeline.runtime.execution.pool import DaemonPool
from broker_pipeline.runtime.execution.process import Processes
from broker_pipeline.runtime.execution.program import Program, Step, compile_phase
from broker_pipeline.runtime.execution.relays import Load, Relays
from broker_pipeline.runtime.execution.setting import Setting
from broker_pipeline.runtime.execution.threads import InThread, ThreadSlots, is_exhausted

__all__ = ["Finished", "Job", "PhaseExecutor"]

# So much work is queued for each slot: it outlasts a round trip to the broker, and an idle worker
# elsewhere does not miss it.
PREFETCH_NS = 50_000_000
# Packages queued for each slot, however fast they are: bounds memory and redelivery.
PREFETCH_COUNT_MAX = 512
# How often a busy executor looks for results and jobs that a blocked slot holds: while modules are
# fast (a slot grabs lists), and while they are slow (it grabs one package at a time).
TICK_FAST_S = 0.005
TICK_SLOW_S = 0.05
_FAST_NS = 2_000_000
# A cancelled task or a killed process has so long to come back before its slot counts as lost.
LOST_GRACE_S = 1.0

_log = logging.getLogger(__name__)


class PhaseExecutor:
    """Runs the modules of one phase on packages, `slots` at a time.

    All methods are called on the event loop that called `start`.

    Args:
        controller: the controller of the phase.
        phase: what to run.
        types: payload types by name, as `Pipeline.payload_types` gives them; for child processes
            only, as packages come with theirs.
        slots: how many packages run at the same time; at least 1. Modules that get batches raise
            it.
        worker: this worker's name in journeys and errors.
        host: this machine's name in errors.
        target: TARGET of the pipeline (``package.module:attribute``), for modules in processes.
        deliver: gets what has finished, in lists, in no order.
        relays: makes what calls the servers of external modules; None: the phase has none.
        room: called when servers have room for more.
        load: puts the payload of a package with a reference into its place, for modules behind
            external ones; None: none comes by reference.
        now_ns: the clock of `start_time_ns`, ns since the Unix epoch.
        monotonic_ns: the clock of durations and timeouts; that of the process, or one like it.
    """

    def __init__(
        self,
        controller: Controller,
        phase: Phase,
        *,
        types: codecs.Types,
        slots: int,
        worker: str,
        host: str,
        target: str | None,
        deliver: Callable[[list[Finished]], None],
        relays: RelayFactory | None = None,
        room: Callable[[], None] = lambda: None,
        load: Load | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots is {slots!r}; expected at least 1")
        self._deliver = deliver
        self._clock = monotonic_ns
        self._program = compile_phase(controller, phase)
        self._name = f"{controller.name}/{phase.name}"
        self._module_loop = ModuleLoop(f"{self._name}-loop")
        self._pool = DaemonPool(f"{self._name}-sync")
        self._batches = Batches(self._program, self._pool)
        self._slot_count = self._batches.slots(slots)
        place = OnLoop(self._pool) if self._program.on_loop else InThread()
        self._setting = Setting(worker, host, now_ns, monotonic_ns, place)
        self._lifecycle = Lifecycle(self._program, self._module_loop)
        self._processes = Processes(self._program, target, slots)
        self._relays = Relays(self._program, relays, room, load)
        self._sizes_of: Callable[[Step], Histogram] | None = None
        self._outstanding = 0
        self._kick_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._late: set[asyncio.TimerHandle] = set()
        self._flow: Flow | None = None
        self._slots: Slots | None = None

    async def start(self) -> None:
        """Run every `setup`, start the slots. Raises SetupError with the module and its cause."""
        self._processes.check()
        self._relays.check()
        try:
            await self._lifecycle.set_up()
            try:
                await self._processes.start()
                await self._relays.start()
            except BrokerPipelineError:
                await self._lifecycle.tear_down()
                raise
        except BaseException:
            await self._relays.close()
            await self._processes.close()
            await self._module_loop.close()
            raise
        self._flow = flow = Flow(self._program, self._setting, self._collect)
        if self._program.on_loop:
            loop = HomeLoop() if self._program.external else self._module_loop
            self._slots = LoopSlots(flow, self._slot_count, loop)
        else:
            self._slots = ThreadSlots(flow, self._slot_count, self._name)
        self._slots.start()
        slots = self._slots
        self._batches.start(lambda: slots.live)
        if self._sizes_of is not None:
            self._batches.count(self._sizes_of)

    async def close(self) -> None:
        """Let running packages finish within a bound, run every `teardown`, end all threads.

        What has not begun, or not ended by then, is not delivered: `withdraw` it before.
        """
        if self._slots is None:
            return
        flow, _ = self._running()
        self._relays.withdraw()
        await self._slots.close()
        flow.abandon()
        self._collect()
        if self._timer is not None:
            self._timer.cancel()
        for handle in self._late:
            handle.cancel()
        self._slots = self._flow = None
        await self._relays.close()
        await self._processes.close()
        await self._lifecycle.tear_down()
        self._pool.close()
        await self._module_loop.close()

    def count_batches(self, sizes_of: Callable[[Step], Histogram]) -> None:
        """Count how large batches are, each module's in what this gives for it; before `start`."""
        self._sizes_of = sizes_of

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue packages; each comes back through `deliver`, whatever happens to it."""
        flow, _ = self._running()
        self._outstanding += len(jobs)
        flow.waiting.extend(jobs)
        if not self._kick_due:  # packages come one by one; slots are woken for all of them at once
            self._kick_due = True
            asyncio.get_running_loop().call_soon(self._kick)

    def withdraw(self) -> list[Job]:
        """Take back what has not begun; it is not delivered."""
        flow, _ = self._running()
        jobs: list[Job] = []
        while flow.waiting:
            try:
                jobs.append(flow.waiting.popleft())
            except IndexError:
                break  # a slot was quicker
        self._outstanding -= len(jobs)
        return jobs

    def take_back(self, job: Job) -> bool:
        """Have a package not begin, and not be delivered; False: it has begun, or is about to."""
        _, slots = self._running()
        taken = slots.take_back(job)
        self._outstanding -= taken
        return taken

    def recall(self) -> None:
        """Have no package wait for a module server any more: each comes back with the status
        WAITING, and may be given to another worker. What a server has goes on."""
        self._relays.withdraw()

    def look(self) -> None:
        """Say which module servers have gone or come; to be called now and then."""
        self._relays.look()

    def wanted(self) -> int:
        """How many more packages it would like now; in an external phase, what servers have room
        for."""
        if self._program.external:
            return self._relays.wanted(self._running()[1].live, self._outstanding)
        return max(0, self.target() - self._outstanding)

    def target(self) -> int:
        """How many packages it would like to have: about PREFETCH_NS of work for each slot."""
        flow, slots = self._running()
        run_ns = flow.run_ns
        if not run_ns:
            return slots.live
        # A slot that is busy for longer than usual will not take its share soon.
        now_ns = self._clock()
        target = 0
        free = slots.live
        for walk in list(flow.running):
            if not walk.dead and free:
                free -= 1
                target += _share(max(run_ns, now_ns - walk.start_ns))
        target += free * _share(run_ns)
        return self._batches.bounded(target, slots.live, PREFETCH_NS)

    @property
    def running(self) -> bool:
        """Whether it is started and not closed."""
        return self._slots is not None

    @property
    def program(self) -> Program:
        """The phase, laid out."""
        return self._program

    @property
    def relays(self) -> Relays:
        """What calls the servers of external modules."""
        return self._relays

    @property
    def run_ns(self) -> float:
        """The moving average of how long a package takes; 0 before the first."""
        return self._flow.run_ns if self._flow is not None else 0.0

    @property
    def slots(self) -> int:
        """How many packages run at the same time, when none is lost."""
        return self._slot_count

    @property
    def idle(self) -> bool:
        """Whether everything that was submitted has been delivered."""
        return self._outstanding == 0

    @property
    def lost_slots(self) -> int:
        """How many slots are in modules that have not come back after their timeout."""
        return self._flow.lost if self._flow is not None else 0

    @property
    def exhausted(self) -> bool:
        """Whether at least half of the slots are lost, or the batches: replace the worker."""
        return is_exhausted(self.lost_slots, self._slot_count) or self._batches.stuck

    # -- on the event loop ----------------------------------------------------------------------
    def _running(self) -> tuple[Flow, Slots]:
        if self._flow is None or self._slots is None:
            raise RuntimeError(f"the executor of {self._name!r} is not running; call start() first")
        return self._flow, self._slots

    def _kick(self) -> None:
        self._kick_due = False
        if self._slots is not None:
            self._slots.notify()
            self._arm()

    def _collect(self) -> None:
        if self._flow is None:
            return
        finished = self._flow.collect()
        if finished:
            self._outstanding -= len(finished)
            self._deliver(finished)

    def _arm(self) -> None:
        """Look again soon, as long as there is something to look after.

        A timer that is set already is early enough: it was set by the shortest timeout of all.
        """
        if self._timer is not None or self._outstanding == 0 or self._flow is None:
            return
        if self._program.external and self._program.timeout_min_ns is None:
            return  # nothing here blocks, and nothing has a deadline
        run_ns = self._flow.run_ns
        delay = TICK_FAST_S if 0 < run_ns < _FAST_NS else TICK_SLOW_S
        if self._program.timeout_min_ns is not None:
            until_s = self._until_deadline_s(self._program.timeout_min_ns)
            delay = max(TICK_FAST_S, until_s) if self._program.external else min(delay, until_s)
        self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _until_deadline_s(self, timeout_min_ns: int) -> float:
        """What begins after now has its deadline after now + the shortest timeout of all."""
        assert self._flow is not None
        now_ns = self._clock()
        due_ns = now_ns + timeout_min_ns
        for walk in list(self._flow.running):
            deadline_ns = walk.deadline_ns
            if deadline_ns is not None:
                due_ns = min(due_ns, deadline_ns)
        return max(0, due_ns - now_ns) / NS

    def _tick(self) -> None:
        self._timer = None
        flow, slots = self._running()
        try:
            if self._program.timeout_min_ns is not None:
                self._expire(flow, slots)
            self._collect()
        finally:
            slots.notify(all_of_them=True)
            self._arm()

    def _expire(self, flow: Flow, slots: Slots) -> None:
        now_ns = self._clock()
        for walk, (job, slot) in list(flow.running.items()):
            if walk.deadline_ns is None or not slots.expire(walk, slot, now_ns):
                continue
            flow.expired(walk, job)
            _log.warning(
                "%s (package %s)",
                walk.envelope.errors[-1].message,
                job.package.id,
                extra=about(job.package.envelope, self._program.name),
            )
            if walk.interrupt is None:
                self._lose(walk, slot)
            else:
                walk.interrupt()
                loop = asyncio.get_running_loop()
                self._late.add(loop.call_later(LOST_GRACE_S, self._lose, walk, slot))

    def _lose(self, walk: Walk, slot: Slot) -> None:
        loop = asyncio.get_running_loop()
        self._late = {handle for handle in self._late if handle.when() > loop.time()}
        if self._slots is not None and self._slots.lose(walk, slot):
            _log.warning(
                "%d of %d slots of %s are lost in modules that do not come back",
                self.lost_slots,
                self._slot_count,
                self._name,
                extra=in_phase(self._program.name),
            )


def _share(run_ns: float) -> int:
    """How many packages one slot has queued or running."""
    return max(1, min(PREFETCH_COUNT_MAX, int(PREFETCH_NS / run_ns)))
