"""What a role counts: counters, histograms, and values that are asked for when somebody reads.

A meter is an object that is passed on; there is no global one. All of it happens on one event loop,
without locks: counting is an addition, and a reading is consistent because nothing else runs
meanwhile. What may be counted stands in one table, `catalogue`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum

import msgspec

from broker_pipeline.journey import NS


class Kind(StrEnum):
    """What a metric is, as Prometheus calls it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Sample(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One series at one moment, as plain values: for the exposition, and to be sent.

    Attributes:
        name: of the metric, in the catalogue.
        labels: the values of its labels, in the order of the catalogue.
        value: in base units (seconds, bytes); of a histogram the sum of what was observed.
        counts: of a histogram how many fell into each bucket, not those below it; the last is what
            lies above all bounds.
    """

    name: str
    labels: tuple[str, ...]
    value: float
    counts: tuple[int, ...] = ()


class Metric(msgspec.Struct, frozen=True):
    """A line of the catalogue.

    Attributes:
        labels: their names.
        bounds: of a histogram the upper bounds of its buckets, the bound included, ascending: ns
            where it is of seconds.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    bounds: tuple[int, ...] = ()

    @property
    def scale(self) -> int:
        """How many of what is observed make a base unit: seconds are counted in ns."""
        return NS if self.name.endswith("_seconds") else 1

    def sample(self, *labels: str, value: float) -> Sample:
        """A series of it. The values of its labels are all given, in order."""
        return Sample(self.name, labels, float(value))  # a bool is none where it is decoded


class Counter:
    """Something that happens: `counter.value += 1`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Histogram:
    """How something is spread: how many fell between each two bounds, and their sum.

    `observe` takes 0.3 us.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0

    def observe(self, value: int) -> None:
        """Count a value, in the unit of the bounds."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


Source = Callable[[], Iterable[Sample]]
"""Gives series as they are now, on the event loop, quickly and from memory."""


class Meter:
    """Everything that one process counts.

    A metric with the same values of its labels is one series, whoever asks for it: what a term of
    leadership has counted is gone on with in the next.
    """

    def __init__(self) -> None:
        self._counters: dict[tuple[Metric, tuple[str, ...]], Counter] = {}
        self._histograms: dict[tuple[Metric, tuple[str, ...]], Histogram] = {}
        self._sources: dict[object, Source] = {}

    def counter(self, metric: Metric, *labels: str) -> Counter:
        """The counter of this series, which begins at 0."""
        self._check(metric, Kind.COUNTER, labels)
        return self._counters.setdefault((metric, labels), Counter())

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        """The histogram of this series, which begins empty."""
        self._check(metric, Kind.HISTOGRAM, labels)
        return self._histograms.setdefault((metric, labels), Histogram(metric.bounds))

    def add_source(self, source: Source) -> Callable[[], None]:
        """Ask `source` at each reading, until what this returns is called."""
        key = object()
        self._sources[key] = source
        return lambda: self._sources.pop(key, None) and None

    def read(self) -> list[Sample]:
        """Every series as it is now; on the event loop. A histogram is one from its first value on:
        most of those by outcome never get one."""
        samples = [
            Sample(metric.name, labels, counter.value)
            for (metric, labels), counter in self._counters.items()
        ]
        samples += [
            Sample(metric.name, labels, each.total / metric.scale, tuple(each.counts))
            for (metric, labels), each in self._histograms.items()
            if any(each.counts)
        ]
        for source in list(self._sources.values()):
            samples += source()
        return samples

    def _check(self, metric: Metric, kind: Kind, labels: tuple[str, ...]) -> None:
        if metric.kind is not kind or len(labels) != len(metric.labels):
            raise ValueError(
                f"{metric.name} is a {metric.kind} with the labels {metric.labels!r}; it was asked "
                f"for as a {kind} with the values {labels!r}"
            )


def quantile(bounds: Sequence[int], counts: Sequence[int], share: float) -> float | None:
    """The value below which this share of the observations lies, in the unit of the bounds.

    Between two bounds it is taken to grow evenly, as Prometheus does; above the last bound it is
    that bound. None where nothing was observed.

    Args:
        counts: by bucket, as in `Sample.counts`, or the difference of two readings.
        share: from 0 to 1.
    """
    observed = sum(counts)
    if not observed:
        return None
    rank, below, lower = share * observed, 0, 0
    for bound, count in zip(bounds, counts, strict=False):
        if count and below + count >= rank:
            return lower + (bound - lower) * (rank - below) / count
        below, lower = below + count, bound
    return float(bounds[-1])
