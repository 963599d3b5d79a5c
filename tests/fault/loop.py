"""A deterministic event loop in virtual time, shared by simulated processes.

Nothing ever waits: when no process has anything to do the clock jumps to the next timer. A process
is a context variable that everything it starts inherits; so the loop knows of each callback whose
it is, and a killed process simply runs no more, between any two of its callbacks: no `finally`, no
cancellation, as with SIGKILL. A paused one goes on later with all that became due meanwhile.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any

TURN_S = 5e-6
"""What a turn of a process takes: nothing happens in no time, not even in a simulation."""
THREAD_S = (0.0, 0.0002, 0.005)
SPIN_MAX = 200_000
"""Turns without a jump of the clock, 1 s of virtual time: somebody spins."""


class SpinError(AssertionError):
    """Somebody keeps the loop busy for ever."""


class Process:
    """A simulated operating system process.

    Attributes:
        fuse: callbacks that it may still run before `blow` is called; None: no end.
        chance: its own randomness.
        deaf_until: what the broker answers does not reach it before.
        clock_skew_ns: how far its wall clock is from the broker's.
    """

    def __init__(self, name: str, chance: random.Random) -> None:
        self.name = name
        self.chance = chance
        self.ready: deque[asyncio.Handle] = deque()
        self.tasks: list[SimTask] = []
        self.queued = False
        self.paused = False
        self.dead = False
        self.disposed = False
        self.fuse: int | None = None
        self.blow: Callable[[], None] = lambda: None
        self.clock_skew_ns = 0
        self.deaf_until = 0.0
        self.links: list[Any] = []
        self.kill: Callable[[], None] = lambda: None
        self.context = copy_context()
        self.context.run(PROCESS.set, self)

    def __repr__(self) -> str:
        return f"<{self.name}>"


class SimTask(asyncio.Task):  # type: ignore[type-arg]
    """A task whose hash does not depend on its address: sets of tasks have one order."""

    def __init__(self, coro: Any, number: int, process: Process, **options: Any) -> None:
        self.number = number
        self.process = process
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self.number


HARNESS = Process.__new__(Process)
PROCESS: ContextVar[Process] = ContextVar("process", default=HARNESS)
Process.__init__(HARNESS, "harness", random.Random(0))


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module.

    Args:
        chance: in which order processes get their turns.
    """

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance
        self._clock = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._count = 0
        self._runnable: list[Process] = []
        self._spun = 0
        self.turns = 0
        HARNESS.ready.clear()
        HARNESS.tasks.clear()
        HARNESS.queued = False

    # -- time -----------------------------------------------------------------------------------
    def time(self) -> float:
        """Virtual seconds since the beginning."""
        return self._clock

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See asyncio."""
        context = context or copy_context()
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle))
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See asyncio."""
        return self.call_at(self._clock + delay, callback, *args, context=context)

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """See asyncio."""
        if context is None:
            context = copy_context()
        handle = asyncio.Handle(callback, args, self, context)
        self._enqueue(context.get(PROCESS, HARNESS), handle)
        return handle

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> Any:
        """There are no threads here."""
        raise AssertionError(f"a thread calls {callback} in the simulation")

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        """What a thread does is done here, at one moment a little later."""
        future: asyncio.Future[Any] = self.create_future()
        takes_s = PROCESS.get().chance.choice(THREAD_S)
        self.call_later(takes_s, self._as_thread, future, func, args)
        return future

    def _as_thread(self, future: asyncio.Future[Any], func: Any, args: tuple[Any, ...]) -> None:
        try:
            result = func(*args)
        except Exception as error:
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(result)

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None, **_: Any) -> Any:
        """See asyncio."""
        context = context or copy_context()
        process = context.get(PROCESS, HARNESS)
        self._count += 1
        task = SimTask(
            coro, self._count, process, loop=self, name=name or f"t{self._count}", context=context
        )
        process.tasks.append(task)
        return task

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is skipped when its time comes."""

    def _write_to_self(self) -> None:
        """Nobody sleeps."""

    # -- processes ------------------------------------------------------------------------------
    def _enqueue(self, process: Process, handle: asyncio.Handle) -> None:
        process.ready.append(handle)
        if not process.queued and not process.paused and not process.dead:
            process.queued = True
            self._runnable.append(process)

    def spawn(self, process: Process, work: Coroutine[Any, Any, Any], name: str) -> SimTask:
        """Start something in a process."""
        task: SimTask = self.create_task(work, name=name, context=process.context.copy())
        return task

    def pause(self, process: Process) -> None:
        """As SIGSTOP."""
        process.paused = True
        self._leave(process)

    def resume(self, process: Process) -> None:
        """As SIGCONT."""
        process.paused = False
        if process.ready and not process.dead and not process.queued:
            process.queued = True
            self._runnable.append(process)

    def kill(self, process: Process) -> None:
        """As SIGKILL."""
        process.dead = True
        self._leave(process)

    def _leave(self, process: Process) -> None:
        if process.queued:
            process.queued = False
            self._runnable.remove(process)

    # -- the loop -------------------------------------------------------------------------------
    def _run_once(self) -> None:
        timers = self._timers
        if not self._runnable and timers:
            self._clock = max(self._clock, timers[0][0])
            self._spun = 0
        while timers and timers[0][0] <= self._clock:
            handle = heapq.heappop(timers)[2]
            if not handle._cancelled:
                self._enqueue(handle._context.get(PROCESS, HARNESS), handle)  # type: ignore[attr-defined]
        runnable = self._runnable
        if not runnable:
            if not timers:
                raise SpinError("nothing will ever happen again: everybody waits")
            return
        self._spun += 1
        if self._spun > SPIN_MAX:
            raise SpinError(f"{runnable} spin: {[p.ready[0] for p in runnable if p.ready]}")
        position = self._chance.randrange(len(runnable)) if len(runnable) > 1 else 0
        process = runnable.pop(position)
        process.queued = False
        self._turn(process)
        self._clock += TURN_S
        if process.ready and not (process.queued or process.paused or process.dead):
            process.queued = True
            runnable.append(process)

    def _turn(self, process: Process) -> None:
        """One turn of a process's own event loop."""
        self.turns += 1
        ready = process.ready
        for _ in range(len(ready)):
            if process.fuse is not None:
                process.fuse -= 1
                if process.fuse < 0:
                    process.fuse = None
                    process.blow()
            if process.dead or process.paused or not ready:
                return
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def dispose(self, processes: list[Process]) -> None:
        """Let go of what the dead have left behind: nothing of it reaches anybody."""
        for process in processes:
            process.dead = process.paused = False
            process.disposed = True
            process.fuse = None
            self.resume(process)
        for _ in range(5):
            tasks = [task for p in processes for task in p.tasks if not task.done()]
            if not tasks:
                return
            for task in tasks:
                task.cancel()
            self.run_until_complete(self._settle(tasks))

    async def _settle(self, tasks: list[SimTask]) -> None:
        await asyncio.wait(tasks, timeout=5.0)
