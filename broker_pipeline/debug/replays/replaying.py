"""What all replays share: what they give, how fast they go, and how one watches and stops them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from broker_pipeline.journey import NS
from broker_pipeline.package import DataPackage

WORKER = "replay"
"""The worker in the journeys of packages that were replayed in memory."""


class On(StrEnum):
    """What a replay runs in."""

    MEMORY = "memory"
    EMBEDDED = "embedded"
    BROKER = "broker"


@dataclass(frozen=True, slots=True)
class Replayed:
    """A package that left a replay.

    Attributes:
        package_id: of the recorded package: the stream sequence of its arrival.
        token: its instance's.
        package: as it left now.
    """

    package_id: int
    token: str
    package: DataPackage[Any]


class Watch:
    """A replay seen from outside: another thread may read it, and stop the replay.

    Args:
        speed: how many times as fast as it was recorded; None: flat out.
        now: a monotonic clock, in seconds.

    Attributes:
        total: arrivals in the recording.
        arrived: arrivals that were replayed so far.
        left: packages that have left so far.
        first_ns, time_ns: the log time of the first and the last event replayed.
        running: which package is in which phase, and since when by `now`; None where none is, or
            where several may be.
    """

    def __init__(
        self, speed: float | None = None, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.speed = speed
        self.total = self.arrived = self.left = 0
        self.first_ns = self.time_ns = 0
        self.running: tuple[str, float] | None = None
        self.now = now
        self._begun: float | None = None
        self._stopping = threading.Event()

    @property
    def stopped(self) -> bool:
        """Whether somebody has stopped it."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Have it end after what runs now."""
        self._stopping.set()

    @contextmanager
    def stopped_by(self, stop: asyncio.Event, tell: Callable[[str], None]) -> Iterator[None]:
        """Have the event stop it; `tell` then gets what it still waits for."""

        async def follow() -> None:
            await stop.wait()
            self.stop()
            if (running := self.running) is not None:
                tell(f"{running[0]} has been running for {self.now() - running[1]:.1f} s")

        following = asyncio.create_task(follow(), name="stop the replay")
        try:
            yield
        finally:
            following.cancel()

    def seen(self, time_ns: int, *, arrival: bool) -> float:
        """An event is next; returns for how many seconds it is too early at this speed."""
        if self._begun is None:
            if not arrival:  # of before what was selected: nobody waits for it
                return 0.0
            self._begun, self.first_ns = self.now(), time_ns
        self.time_ns = max(self.time_ns, time_ns)
        self.arrived += arrival
        if self.speed is None:
            return 0.0
        due = self._begun + (time_ns - self.first_ns) / NS / self.speed
        return max(0.0, due - self.now())

    def wait(self, seconds: float) -> None:
        """Wait so long, or until it is stopped."""
        if seconds > 0:
            self._stopping.wait(seconds)

    @property
    def took_s(self) -> float:
        """Since the first event, seconds."""
        return 0.0 if self._begun is None else self.now() - self._begun

    @property
    def times_real(self) -> float:
        """How many times as fast as it was recorded it has been so far; 0: not known yet."""
        took_s = self.took_s
        return (self.time_ns - self.first_ns) / NS / took_s if took_s > 0 else 0.0
