"""Slot threads, for phases whose modules are all synchronous.

A hop between threads costs more than a fast package. So a slot grabs as many jobs as fit a short
time; an idle slot takes from the others what they have grabbed and not begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

from broker_pipeline.journey import Status
from broker_pipeline.runtime.execution.flow import Flow, Job, Slot, removed
from broker_pipeline.runtime.execution.interpreter import Walk
from broker_pipeline.runtime.execution.mutex import Mutex
from broker_pipeline.runtime.execution.pool import DaemonPool

# What a slot grabs at once lasts so long: the hop is below 5 % of it, and results stay fresh.
BATCH_NS = 2_000_000
# At least half of the slots lost: the worker had better be replaced.
EXHAUSTED_SHARE = 0.5
# How long `close` waits for packages that are running.
CLOSE_S = 5.0


def is_exhausted(lost: int, slots: int) -> bool:
    """Whether so many slots are lost that no more are replaced."""
    return lost > 0 and lost >= slots * EXHAUSTED_SHARE


async def coroutine_of(result: Awaitable[Any]) -> Any:
    """What a synchronous function returned may be any awaitable; loops take coroutines."""
    return await result


def drive(walk: Walk) -> Status:
    """Run a walk that never suspends to its end, in this thread."""
    coroutine = walk.run()
    try:
        coroutine.send(None)
    except StopIteration as end:
        status: Status = end.value
        return status
    coroutine.close()
    raise RuntimeError("a walk without a loop has suspended; expected a place that blocks instead")


class InThread:
    """The interpreter's place in a slot thread: all blocks, so that a walk never suspends."""

    blocking = True

    async def call(self, walk: Walk, function: Callable[..., Any], *args: Any) -> Any:
        """Just call it."""
        return function(*args)

    async def settle(self, walk: Walk, result: Awaitable[Any]) -> Any:
        """A plain function has returned an awaitable: a loop for this once."""
        return asyncio.run(coroutine_of(result))

    async def wait(self, walk: Walk, mutex: Mutex, place: Future[None]) -> None:
        """Block until the mutex is ours, or the walk is called off."""
        try:
            walk.interruptible(place.cancel)
            place.result()
            walk.interruptible(None)
        except BaseException:
            if not place.cancel():
                mutex.release()
            raise


class ThreadSlots:
    """Daemon threads that serve a flow; see `flow.Slots`."""

    def __init__(self, flow: Flow, slots: int, name: str) -> None:
        self._flow = flow
        self._wanted = slots
        self._name = name
        self._change = threading.Condition()
        self._slots: set[Slot] = set()  # those that are not lost
        self._idle = 0
        self._made = 0
        self._closing = False

    @property
    def live(self) -> int:
        """How many threads can run a package, or do."""
        return len(self._slots)

    def start(self) -> None:
        """Start the threads."""
        with self._change:
            while len(self._slots) < self._wanted:
                self._spawn()

    def notify(self, *, all_of_them: bool = False) -> None:
        """Wake as many slots as the waiting jobs keep busy for one batch."""
        with self._change:
            if self._idle:
                waiting = len(self._flow.waiting)
                held = sum(len(slot.held) for slot in self._slots) if all_of_them else 0
                size = 1 if all_of_them else self._batch()
                self._change.notify(min(self._idle, -(-(waiting + held) // size)))

    def expire(self, walk: Walk, slot: Slot, now_ns: int) -> bool:
        """End a walk whose time is over. Its slot keeps nothing: others run what it has grabbed."""
        with self._change:
            if not walk.expire(now_ns):
                return False
            self._flow.waiting.extendleft(reversed(slot.held))
            slot.held.clear()
            self._change.notify_all()
            return True

    def take_back(self, job: Job) -> bool:
        """Have a job not begin, also where a slot has grabbed it and hangs in the one before."""
        with self._change:
            queues = (self._flow.waiting, *(slot.held for slot in self._slots))
            return any(removed(job, queue) for queue in queues)

    def lose(self, walk: Walk, slot: Slot) -> bool:
        """Count the slot as lost, and replace it unless too many are; False if it has come back."""
        with self._change:
            if walk not in self._flow.running:
                return False
            slot.lost = True
            self._slots.discard(slot)
            self._flow.lost += 1
            if not self._closing and not is_exhausted(self._flow.lost, self._wanted):
                self._spawn()
            return True

    async def close(self) -> None:
        """Wait for what runs, up to CLOSE_S; what was not begun stays in the flow."""
        with self._change:
            self._closing = True
            for slot in self._slots:
                self._flow.waiting.extendleft(reversed(slot.held))
                slot.held.clear()
            self._change.notify_all()
        watcher = DaemonPool(f"{self._name}-close")
        await asyncio.wrap_future(watcher.submit(self._ended))
        watcher.close()

    def _ended(self) -> bool:
        with self._change:
            return self._change.wait_for(lambda: not self._slots, CLOSE_S)

    # -- in the slot threads --------------------------------------------------------------------
    def _spawn(self) -> None:
        slot = Slot()
        self._slots.add(slot)
        self._made += 1
        name = f"{self._name}-{self._made}"
        threading.Thread(target=self._serve, args=(slot,), name=name, daemon=True).start()

    def _serve(self, slot: Slot) -> None:
        while self._take(slot):
            if not self._run(slot) and not self._returned(slot):
                return
        with self._change:
            self._slots.discard(slot)
            self._change.notify_all()

    def _take(self, slot: Slot) -> bool:
        """Grab jobs, waiting for some; False at the end."""
        waiting, held = self._flow.waiting, slot.held
        with self._change:
            while not self._closing:
                if waiting:
                    share = -(-len(waiting) // (self._idle + 1))
                    with contextlib.suppress(IndexError):  # the worker may be taking them back
                        for _ in range(min(share, self._batch())):
                            held.append(waiting.popleft())
                if held or self._steal(held):
                    return True
                self._idle += 1
                self._change.wait()
                self._idle -= 1
            return False

    def _steal(self, held: Any) -> bool:
        """Half of what the fullest other slot has not begun. Its owner may be quicker."""
        fullest = max((slot.held for slot in self._slots), key=len)
        for _ in range(-(-len(fullest) // 2)):
            try:
                held.appendleft(fullest.pop())
            except IndexError:
                break
        return bool(held)

    def _batch(self) -> int:
        run_ns = self._flow.run_ns
        return max(1, int(BATCH_NS / run_ns)) if run_ns else 1

    def _run(self, slot: Slot) -> bool:
        """Run what the slot holds; False when the slot has been lost meanwhile."""
        flow, held = self._flow, slot.held
        clock = time.monotonic_ns
        signalled_ns = started_ns = clock()
        count = 0
        while True:
            try:
                job = held.popleft()
            except IndexError:
                break
            if not self._one(job, slot):
                return False
            count += 1
            now_ns = clock()
            if now_ns - signalled_ns > BATCH_NS:
                flow.measured((now_ns - started_ns) / count)
                flow.signal()
                signalled_ns = started_ns = now_ns
                count = 0
        if count:
            flow.measured((clock() - started_ns) / count)
        flow.signal()
        return True

    def _one(self, job: Job, slot: Slot) -> bool:
        flow = self._flow
        try:
            if job.gate is not None and not flow.ask(job.gate).result():
                flow.turn_away(job)
                return True
            walk = flow.begin(job, slot)
        except Exception as error:
            flow.refuse(job, error)
            return True
        walk.thread = threading.get_ident()
        try:
            drive(walk)
        except BaseException as error:  # of a dead walk, or a fault of ours: never of the slot
            return flow.end(walk, error)
        return flow.end(walk, None)

    def _returned(self, slot: Slot) -> bool:
        """Back from a module that was too late; whether the slot is still needed."""
        with self._change:
            if slot.lost:
                slot.lost = False
                self._flow.lost -= 1
                if self._closing or len(self._slots) >= self._wanted:
                    return False
                self._slots.add(slot)
            self._flow.signal()
            return True
