"""Daemon threads for synchronous code that is called from a loop."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

_Call = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...]]


class DaemonPool:
    """Runs calls in threads that never keep the process alive.

    The standard library's pool is joined when the interpreter ends: one stuck module would hold it
    for ever. A thread is made where none is free; who calls bounds how many there are.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: deque[_Call] = deque()
        self._ready = threading.Condition()
        self._free = 0
        self._made = 0
        self._closed = False

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Call it in a thread. What it raises, of any kind, is in the future."""
        future: Future[Any] = Future()
        with self._ready:
            self._calls.append((future, function, args))
            if self._free >= len(self._calls):
                self._ready.notify()
            else:
                self._made += 1
                name = f"{self._name}-{self._made}"
                threading.Thread(target=self._serve, name=name, daemon=True).start()
        return future

    def close(self) -> None:
        """Let the threads end when they have done what was submitted."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()

    def _serve(self) -> None:
        while True:
            with self._ready:
                while not self._calls:
                    if self._closed:
                        return
                    self._free += 1
                    self._ready.wait()
                    self._free -= 1
                future, function, args = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function(*args))
            except StopIteration as error:  # asyncio's futures refuse it, and would never resolve
                future.set_exception(RuntimeError(f"the call raised StopIteration: {error}"))
            except BaseException as error:  # user code: the caller gets it, the thread goes on
                future.set_exception(error)
            del future, function, args  # or the last package lives as long as the thread waits
