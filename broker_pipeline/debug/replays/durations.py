"""How long things took, as distributions that do not grow with how often they happened. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.package import DataPackage

STEP = 1.05
"""Between two bounds of a distribution: what is read from it is exact to half of that."""
NOISE_NS = 100_000
"""A difference that is smaller says nothing: what runs for microseconds depends on the machine."""
TOTAL = "total"
"""The label of the whole journey."""

_LOG_STEP = math.log(STEP)


class Durations:
    """A distribution of durations, in ns."""

    __slots__ = ("_counts", "count", "largest")

    def __init__(self) -> None:
        self.count = 0
        self.largest = 0
        self._counts: dict[int, int] = {}

    def add(self, duration_ns: int) -> None:
        """One more."""
        bucket = math.ceil(math.log(duration_ns) / _LOG_STEP) if duration_ns > 1 else 0
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self.count += 1
        self.largest = max(self.largest, duration_ns)

    def quantile(self, share: float) -> int:
        """What that share of them took at most, ns, to half a STEP; 0 where there are none."""
        wanted, seen = max(1, math.ceil(share * self.count)), 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= wanted:
                middle = STEP ** (bucket - 0.5) if bucket else 1.0
                return min(self.largest, round(middle))
        return 0


class Times:
    """The durations of modules and of whole journeys, recorded and replayed, by label."""

    def __init__(self) -> None:
        self.by_label: dict[str, tuple[Durations, Durations]] = {}

    def add(self, package: DataPackage[object], *, replayed: bool, total: bool = True) -> None:
        """The times of a package. `total`: the whole journey's is worth comparing too."""
        for label, duration_ns in module_durations(package):
            self._of(label)[replayed].add(duration_ns)
        if total and package.end_time_ns:
            self._of(TOTAL)[replayed].add(max(0, package.end_time_ns - package.start_time_ns))

    def slower(self, factor: float) -> list[str]:
        """The labels whose median or 99th percentile is `factor` times the recorded one or more."""
        return [
            label
            for label, (old, new) in self.by_label.items()
            if old.count and new.count and any(_is_slower(old, new, q, factor) for q in (0.5, 0.99))
        ]

    def _of(self, label: str) -> tuple[Durations, Durations]:
        found = self.by_label.get(label)
        if found is None:
            found = self.by_label[label] = (Durations(), Durations())
        return found


def _is_slower(old: Durations, new: Durations, share: float, factor: float) -> bool:
    before, after = old.quantile(share), new.quantile(share)
    return after >= factor * before and after - before > NOISE_NS


def module_durations(package: DataPackage[object]) -> Iterator[tuple[str, int]]:
    """`(controller/phase/module/..., ns)` of every module, without its wait for a mutex."""
    for controller in package.envelope.controllers:
        for phase in controller.phases:
            for module in phase.modules:
                yield from _durations(f"{controller.name}/{phase.name}", module)


def _durations(path: str, module: pb.ModuleRecord) -> Iterator[tuple[str, int]]:
    here = f"{path}/{module.name}"
    yield here, max(0, module.total_time_ns - module.waiting_time_ns)
    for inner in module.sub_modules:
        yield from _durations(here, inner)
