"""Memory, file descriptors and processor time of every process of a run, over its time."""

from __future__ import annotations

import asyncio
import csv
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fault.real.fleet import Cost, cost_of

Pids = Callable[[], dict[str, int]]


@dataclass(frozen=True)
class Sample:
    """One process at one time; `age_s` since this process began to be seen."""

    at_s: float
    name: str
    pid: int
    age_s: float
    cost: Cost


class Watch:
    """Samples all processes every so often."""

    def __init__(self, pids: Pids, every_s: float) -> None:
        self.samples: list[Sample] = []
        self._pids = pids
        self._every_s = every_s
        self._begun = time.monotonic()
        self._seen: dict[int, float] = {}

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            self.look()
            await asyncio.sleep(self._every_s)

    def look(self) -> None:
        """Once."""
        at = time.monotonic() - self._begun
        for name, pid in self._pids().items():
            cost = cost_of(pid) if pid else None
            if cost is not None:
                age = at - self._seen.setdefault(pid, at)
                self.samples.append(Sample(at, name, pid, age, cost))

    async def cpu_shares(self, seconds: float) -> dict[str, float]:
        """Processor time of each process per second, over the next so many seconds."""
        before = {name: (pid, cost_of(pid)) for name, pid in self._pids().items() if pid}
        begun = time.monotonic()
        await asyncio.sleep(seconds)
        took = time.monotonic() - begun
        shares = {}
        for name, pid in self._pids().items():
            old_pid, old = before.get(name, (0, None))
            new = cost_of(pid) if pid else None
            if old is not None and new is not None and old_pid == pid:
                shares[name] = (new.cpu_s - old.cpu_s) / took
        return shares

    def write(self, path: Path) -> None:
        """The curves, as CSV."""
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("seconds", "process", "pid", "age_s", "rss_mb", "fds", "cpu_s"))
            for each in self.samples:
                rows.writerow(
                    (
                        f"{each.at_s:.1f}",
                        each.name,
                        each.pid,
                        f"{each.age_s:.1f}",
                        f"{each.cost.rss_mb:.1f}",
                        each.cost.fds,
                        f"{each.cost.cpu_s:.2f}",
                    )
                )

    def by_name(self) -> dict[str, list[Sample]]:
        """The samples of each process's name, in order."""
        found: dict[str, list[Sample]] = defaultdict(list)
        for each in self.samples:
            found[each.name].append(each)
        return dict(found)


def growth_per_minute(samples: list[Sample], value: Callable[[Cost], float]) -> float:
    """From the middle third of the time to the last, on average over whatever processes had the
    role: they are killed and started again, so no one of them lives for long."""
    if not samples:
        return 0.0
    third = samples[-1].at_s / 3
    middle = [value(each.cost) for each in samples if third <= each.at_s < 2 * third]
    last = [value(each.cost) for each in samples if each.at_s >= 2 * third]
    if not middle or not last:
        return 0.0
    return 60.0 * (sum(last) / len(last) - sum(middle) / len(middle)) / third
