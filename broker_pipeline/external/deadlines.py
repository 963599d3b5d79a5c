"""Ends calls whose time is over, with one timer for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from broker_pipeline.external.hosting import Call
from broker_pipeline.journey import NS

LOOK_EVERY_S = 0.005
"""Calls that end one after the other are looked for together: a look goes through all there are."""


class Deadlines:
    """Looks after the deadlines of calls.

    Args:
        calls: all that are outstanding.
        expire: takes a call whose deadline has passed.
    """

    def __init__(self, calls: Callable[[], Iterable[Call]], expire: Callable[[Call], None]) -> None:
        self._calls = calls
        self._expire = expire
        self._timer: asyncio.TimerHandle | None = None
        self._due_ns = 0

    def watch(self, calls: Iterable[Call]) -> None:
        """Calls have come."""
        dues = [call.deadline_ns for call in calls if call.deadline_ns is not None]
        if dues:
            self._arm(min(dues))

    def close(self) -> None:
        """End no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, due_ns: int) -> None:
        if self._timer is not None:
            if due_ns >= self._due_ns:
                return
            self._timer.cancel()
        self._due_ns = due_ns
        delay = max(LOOK_EVERY_S, (due_ns - time.monotonic_ns()) / NS)
        self._timer = asyncio.get_running_loop().call_later(delay, self._look)

    def _look(self) -> None:
        self._timer = None
        now_ns = time.monotonic_ns()
        left: list[int] = []
        for call in list(self._calls()):
            if call.deadline_ns is None:
                continue
            if call.deadline_ns <= now_ns:
                self._expire(call)
            else:
                left.append(call.deadline_ns)
        if left:
            self._arm(min(left))
