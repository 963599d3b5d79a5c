"""The module loop: an event loop of its own for user code, so that it never blocks heartbeats."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from broker_pipeline.runtime.execution.flow import Flow, Job, Slot, removed
from broker_pipeline.runtime.execution.interpreter import Walk
from broker_pipeline.runtime.execution.mutex import Mutex
from broker_pipeline.runtime.execution.pool import DaemonPool
from broker_pipeline.runtime.execution.threads import CLOSE_S, is_exhausted

_log = logging.getLogger(__name__)


class HomeLoop:
    """The worker's own loop, for phases that run no code here: they need no hop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    def soon(self, callback: Callable[[], None]) -> None:
        """Call it there; from there."""
        self.loop.call_soon(callback)


class ModuleLoop:
    """An event loop in a daemon thread, started when it is first needed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closing = False

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, running."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._serve, args=(self._loop,), name=self._name, daemon=True
            )
            self._thread.start()
        return self._loop

    def soon(self, callback: Callable[[], None]) -> None:
        """Call it there; from any thread."""
        self.loop.call_soon_threadsafe(callback)

    async def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine there and wait for it here."""
        future = asyncio.run_coroutine_threadsafe(_contained(coroutine), self.loop)
        error, result = await asyncio.wrap_future(future)
        if error is not None:
            raise error
        return result

    async def close(self) -> None:
        """Stop it. A loop that user code blocks is left behind, until the process ends."""
        if self._loop is None or self._thread is None:
            return
        self._closing = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        watcher = DaemonPool(f"{self._name}-close")
        await asyncio.wrap_future(watcher.submit(self._thread.join, CLOSE_S))
        watcher.close()
        if self._thread.is_alive():
            _log.warning(
                "module code still blocks the module loop after %g s; left behind", CLOSE_S
            )
        self._loop = self._thread = None

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            while not self._closing:
                try:
                    loop.run_forever()
                except BaseException:  # SystemExit in a task that user code has started
                    _log.exception("a task on the module loop tried to end it; it goes on")
        finally:
            try:
                _cancel_all(loop)
                loop.run_until_complete(loop.shutdown_asyncgens())
            finally:
                asyncio.set_event_loop(None)
                loop.close()


async def _contained(coroutine: Coroutine[Any, Any, Any]) -> tuple[BaseException | None, Any]:
    """A task that raises SystemExit would end its loop: errors go over as values."""
    try:
        return None, await coroutine
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # user code: whoever waits for it raises it
        return error, None


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what user code left running. What ignores that is left behind, within CLOSE_S."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=CLOSE_S))


class OnLoop:
    """The interpreter's place on the module loop: synchronous code goes to threads."""

    blocking = False

    def __init__(self, pool: DaemonPool) -> None:
        self._pool = pool

    async def call(self, walk: Walk, function: Callable[..., Any], *args: Any) -> Any:
        """Call it in a thread, and stay until it is back even when cancelled: it holds a slot."""
        future = asyncio.wrap_future(self._pool.submit(function, *args))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if future.done() and not walk.dead:
                raise  # the module's own
            await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # looked at: nobody else will
            raise

    async def settle(self, walk: Walk, result: Awaitable[Any]) -> Any:
        """Await it."""
        return await result

    async def wait(self, walk: Walk, mutex: Mutex, place: Future[None]) -> None:
        """Wait for the mutex. A cancellation calls it off."""
        await mutex.wait(place)


class LoopSlots:
    """Tasks on the module loop, or on the worker's own, that serve a flow; see `flow.Slots`."""

    def __init__(self, flow: Flow, slots: int, loop: ModuleLoop | HomeLoop) -> None:
        self._flow = flow
        self._wanted = slots
        self._module_loop = loop
        self._tasks: dict[Slot, asyncio.Task[None]] = {}  # touched on the module loop only
        self._lock = threading.Lock()  # around what both loops count
        self._limit = slots
        self._pump_due = False
        self._flush_due = False
        self._closing = False

    @property
    def live(self) -> int:
        """How many can run a package, or do."""
        return self._limit - self._flow.lost

    def start(self) -> None:
        """Start the loop."""
        _ = self._module_loop.loop

    def notify(self, *, all_of_them: bool = False) -> None:
        """Have the loop look for jobs, once until it has."""
        if not self._pump_due:
            self._pump_due = True
            self._module_loop.soon(self._pump)

    def expire(self, walk: Walk, slot: Slot, now_ns: int) -> bool:
        """End a walk whose time is over."""
        return walk.expire(now_ns)

    def take_back(self, job: Job) -> bool:
        """Have a job not begin."""
        return removed(job, self._flow.waiting)

    def lose(self, walk: Walk, slot: Slot) -> bool:
        """Count the slot as lost, and allow one more unless too many are."""
        with self._lock:
            if walk not in self._flow.running or slot.lost:
                return False
            slot.lost = True
            self._flow.lost += 1
            if not is_exhausted(self._flow.lost, self._wanted):
                self._limit += 1
        self.notify()
        return True

    async def close(self) -> None:
        """Wait for what runs, up to CLOSE_S, and cancel what is left."""
        self._closing = True
        ended = asyncio.run_coroutine_threadsafe(self._cancel(), self._module_loop.loop)
        try:
            await asyncio.wait_for(asyncio.wrap_future(ended), 3 * CLOSE_S)
        except TimeoutError:
            _log.warning("module code blocks the module loop; its packages are left behind")

    # -- on the module loop ---------------------------------------------------------------------
    def _pump(self) -> None:
        self._pump_due = False
        waiting = self._flow.waiting
        loop = asyncio.get_running_loop()
        while waiting and len(self._tasks) < self._limit and not self._closing:
            try:
                job = waiting.popleft()
            except IndexError:
                break  # it has just been taken back
            slot = Slot()
            self._tasks[slot] = loop.create_task(self._run(job, slot), name="package")

    async def _run(self, job: Job, slot: Slot) -> None:
        flow = self._flow
        walk: Walk | None = None
        started_ns = time.monotonic_ns()
        try:
            if job.gate is not None and not await asyncio.wrap_future(flow.ask(job.gate)):
                flow.turn_away(job)
                return
            walk = flow.begin(job, slot)
            loop, task = asyncio.get_running_loop(), self._tasks[slot]
            walk.interruptible(lambda: loop.call_soon_threadsafe(task.cancel))
            await walk.run()
        except BaseException as error:  # of a dead walk, or a fault of ours: never of the loop
            if walk is None:
                flow.refuse(job, error)
            else:
                flow.end(walk, error)
        else:
            if flow.end(walk, None):
                flow.measured(time.monotonic_ns() - started_ns)
        finally:
            self._returned(slot)

    def _returned(self, slot: Slot) -> None:
        with self._lock:
            del self._tasks[slot]
            if slot.lost:
                self._flow.lost -= 1
                self._limit = max(self._wanted, self._limit - 1)
        if not self._flush_due:  # results go over in lists: one hop for all that end together
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        self._flow.signal()
        self._pump()

    async def _cancel(self) -> None:
        tasks = set(self._tasks.values())
        if tasks:
            _, tasks = await asyncio.wait(tasks, timeout=CLOSE_S)
        self._flow.abandon()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)
