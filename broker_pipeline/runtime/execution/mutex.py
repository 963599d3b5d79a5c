"""The lock behind `use_mutex`: one for threads and the module loop, first come first served."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from broker_pipeline.modules import Module

_ATTRIBUTE = "_broker_pipeline_mutex"


class Mutex:
    """Held by one package at a time; who waits can be called off from any thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held = False
        # Bounded by the slots of the executors that share the module: a slot waits for one lock.
        self._waiters: deque[Future[None]] = deque()

    def enter(self) -> Future[None] | None:
        """Take it (None), or the place in the queue: it resolves when the mutex is ours."""
        with self._guard:
            if not self._held:
                self._held = True
                return None
            place: Future[None] = Future()
            self._waiters.append(place)
            return place

    def release(self) -> None:
        """Hand it to the next that still waits."""
        with self._guard:
            while self._waiters:
                place = self._waiters.popleft()
                if place.set_running_or_notify_cancel():
                    place.set_result(None)
                    return
            self._held = False

    async def wait(self, place: Future[None]) -> None:
        """Wait on an event loop. What was granted to a cancelled waiter goes to the next."""
        try:
            await asyncio.wrap_future(place)
        except BaseException:
            if not place.cancel():
                self.release()
            raise


def mutex_of(module: Module[Any]) -> Mutex:
    """The mutex of a module object: the same one wherever the object stands in a pipeline."""
    mutex: Mutex = vars(module).setdefault(_ATTRIBUTE, Mutex())
    return mutex


Interrupt = Callable[[], object]
"""Calls off what a package waits for; may be called from any thread, and too late."""
