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
        before, after: its samples; `before` is None where it had not been heard.
        over_s: the time in between; of what was not heard before since it began.
        goes_on: whether counters go on with those of another process.
    """

    before: Mapping[Series, Sample] | None
    after: Mapping[Series, Sample]
    over_s: float

    @classmethod
    def of(
        cls, before: Status | None, after: Status, over_s: float, *, goes_on: bool = False
    ) -> Change:
        """The change between two statuses.

        Args:
            over_s: the time between the readings.
            goes_on: whether `before` may be another process, whose counts this one goes on with.
        """
        if before is not None and before.name == after.name and before.since == after.since:
            # Its own clock: the two were not heard just when the readings were taken.
            own_s = (after.at - before.at) / NS
            if own_s > 0:
                return cls(_series(before), _series(after), own_s)
            return cls(None, _series(after), over_s)  # one reading, given twice
        if before is not None and goes_on:
            return cls(_series(before), _series(after), over_s)
        up_s = (after.at - after.since) / NS
        began_meanwhile = 0 < up_s <= over_s
        return cls(NOTHING if began_meanwhile else None, _series(after), over_s)

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
        if now is None or self.before is None or len(now.counts) != len(metric.bounds) + 1:
            return ()
        was = self.before.get(series)
        if was is None or len(was.counts) != len(now.counts):
            return now.counts
        grew = tuple(a - b for a, b in zip(now.counts, was.counts, strict=True))
        return now.counts if min(grew) < 0 else grew  # another process began from nothing

    def total(self, metric: Metric) -> float | None:
        """A gauge, summed over all its labels."""
        return summed(each.value for (name, _), each in self.after.items() if name == metric.name)

    def total_rate(self, metric: Metric) -> float | None:
        """What a counter grew by a second, summed over all its labels."""
        return summed(self._rate(series) for series in self.after if series[0] == metric.name)

    def _rate(self, series: Series) -> float | None:
        now = self.after.get(series)
        if now is None or self.before is None:
            return None
        was = self.before.get(series)
        grew = now.value - (0.0 if was is None else was.value)
        return (now.value if grew < 0 else grew) / self.over_s


def summed(values: Iterable[float | None]) -> float | None:
    """The sum of what is known; None where nothing is."""
    known = [each for each in values if each is not None]
    return sum(known) if known else None


def _series(status: Status) -> dict[Series, Sample]:
    """Anybody may answer: what is no number is left out."""
    return {(each.name, each.labels): each for each in status.samples if isfinite(each.value)}
