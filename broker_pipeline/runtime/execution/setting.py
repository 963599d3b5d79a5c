"""What the walks of an executor share, and what differs between threads and the module loop."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from broker_pipeline.runtime.execution.mutex import Mutex

if TYPE_CHECKING:
    from broker_pipeline.runtime.execution.interpreter import Walk


class Place(Protocol):
    """Where a walk runs: how it calls synchronous code and waits for a mutex there.

    Attributes:
        blocking: whether synchronous code is just called.
    """

    blocking: bool

    async def call(self, walk: Walk, function: Callable[..., Any], *args: Any) -> Any:
        """Run synchronous module code."""

    async def settle(self, walk: Walk, result: Awaitable[Any]) -> Any:
        """Await what a module returned."""

    async def wait(self, walk: Walk, mutex: Mutex, place: Any) -> None:
        """Wait for a mutex that another package holds."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all walks of an executor share. `place` None: plain calls, and no mutex."""

    worker: str
    host: str
    now_ns: Callable[[], int] = time.time_ns
    monotonic_ns: Callable[[], int] = time.monotonic_ns
    place: Place | None = None
