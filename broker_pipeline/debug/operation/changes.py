"""What a role has counted between two of its statuses. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite

from broker_pipeline.journey import NS
from broker_pipeline.observe.meter import Metric, Sample
from broker_pipeline.observe.status import Status

Series = tuple[str, tuple[str, ...]]
"""The name of a metric, and the values of its labels."""
NOTHING: Mapping[Series, Sample] = {}


@dataclass(frozen=True, slots=True)
class Change:
    """From what a process said before to what it says now.

    Attributes:
        counters: its counters before; None where they are not known.
        times: its histograms before; None where they are not known.
        after: all that it says now.
        over_s: the time in between.
    """

    counters: Mapping[Series, Sample] | None
    times: Mapping[Series, Sample] | None
    after: Mapping[Series, Sample]
    over_s: float

    @classmethod
    def of(cls, before: Status | None, after: Status, over_s: float) -> Change:
        """The change between two statuses of one process.

        Args:
            before: None where it was not heard: then what it counts is known if it began since.
            over_s: the time between the readings.
        """
        if before is None:
            began_since = 0 < (after.at - after.since) / NS <= over_s
            known = NOTHING if began_since else None
            return cls(known, known, _series(after), over_s)
        # By its own clock: it was not heard just when the readings were taken.
        own_s = (after.at - before.at) / NS
        if own_s <= 0:  # one reading, given twice
            return cls(None, None, _series(after), over_s)
        known = _series(before)
        return cls(known, known, _series(after), own_s)

    @classmethod
    def of_leader(
        cls, before: Status | None, leader: Status | None, after: Status, over_s: float
    ) -> Change:
        """The same of a leader: its counters follow from the log, so it goes on with those of
        `leader`, who led before; its histograms are its own."""
        own = cls.of(before, after, over_s)
        if leader is not None and leader is before:
            return own
        counters = None if leader is None else _series(leader)
        return cls(counters, own.times, own.after, over_s)

    def value(self, metric: Metric, *labels: str) -> float | None:
        """A gauge, now."""
        found = self.after.get((metric.name, labels))
        return None if found is None else found.value

    def rate(self, metric: Metric, *labels: str) -> float | None:
        """What a counter grew by a second."""
        return self._rate((metric.name, labels))

    def counts(self, metric: Metric, *labels: str) -> tuple[int, ...]:
        """What each bucket of a histogram grew by; empty where that is not known."""
        series = (metric.name, labels)
        now = self.after.get(series)
        if now is None or self.times is None or len(now.counts) != len(metric.bounds) + 1:
            return ()
        was = self.times.get(series)
        if was is None or len(was.counts) != len(now.counts):
            return now.counts
        grew = tuple(a - b for a, b in zip(now.counts, was.counts, strict=True))
        return grew if min(grew) >= 0 else ()

    def observed(self, metric: Metric, *labels: str) -> float | None:
        """How many a second a histogram counted, whatever its last label."""
        series = [key for key in self.after if key[0] == metric.name and key[1][:-1] == labels]
        counts = [self.counts(metric, *found) for _, found in series]
        return summed(sum(each) / self.over_s for each in counts if each)

    def total(self, metric: Metric) -> float | None:
        """A gauge, summed over all its labels."""
        return summed(each.value for (name, _), each in self.after.items() if name == metric.name)

    def total_rate(self, metric: Metric) -> float | None:
        """What a counter grew by a second, summed over all its labels."""
        return summed(self._rate(series) for series in self.after if series[0] == metric.name)

    def _rate(self, series: Series) -> float | None:
        now = self.after.get(series)
        if now is None or self.counters is None:
            return None
        was = self.counters.get(series)
        grew = now.value - (0.0 if was is None else was.value)
        return grew / self.over_s if grew >= 0 else None


def summed(values: Iterable[float | None]) -> float | None:
    """The sum of what is known; None where nothing is."""
    known = [each for each in values if each is not None]
    return sum(known) if known else None


def _series(status: Status) -> dict[Series, Sample]:
    """Anybody may answer: what is no number is left out."""
    return {(each.name, each.labels): each for each in status.samples if isfinite(each.value)}
