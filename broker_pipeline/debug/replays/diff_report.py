"""What a comparison of a recording with its replay came to: counts, the first differences, times.

Nothing in it grows with the number of packages, but for one bit each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from broker_pipeline import codecs
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.debug.replays.diff import NO_TYPES, Difference, Kind, compare
from broker_pipeline.debug.replays.durations import Durations, Times
from broker_pipeline.debug.replays.replaying import Replayed
from broker_pipeline.errors import RecordingError
from broker_pipeline.journey import NS, Outcome
from broker_pipeline.package import DataPackage

SHOW = 5
"""Packages whose differences are shown in full, unless somebody says otherwise."""
CHUNK_BITS = 10
"""Package ids are remembered in chunks of so many bits' numbers: 128 bytes for 1,024."""


@dataclass(frozen=True, slots=True)
class Changed:
    """A package that is not what it was."""

    package: str
    instance: str
    sequence: int
    differences: tuple[Difference, ...]

    def to_json(self) -> dict[str, Any]:
        """As a program reads it."""
        return {
            "package": self.package,
            "instance": self.instance,
            "sequence": self.sequence,
            "differences": [each.to_json() for each in self.differences],
        }


@dataclass
class Report:
    """The result.

    Args:
        ignore: kinds of differences that do not count.
        show: of so many packages the differences are kept.
        slower_than: with it a module that takes so many times as long, or longer, is a difference.
        totals: whether the times of whole journeys mean something: in memory they are the recorded
            ones.

    Attributes:
        same, changed: packages of both sides.
        kinds: how many packages differ in what; a package may count several times.
        missing: packages that left then, and not now.
        new: packages that left now, and of which the recording knows nothing.
        unfinished: packages that left now, and were inside when the recording ended.
        outcomes: how many left how, recorded and replayed.
        stopped: it was broken off; what had not come by then is not missing.
    """

    ignore: Collection[Kind] = ()
    show: int = SHOW
    slower_than: float | None = None
    totals: bool = True
    same: int = 0
    changed: int = 0
    missing: int = 0
    new: int = 0
    unfinished: int = 0
    stopped: bool = False
    kinds: Counter[Kind] = field(default_factory=Counter)
    first: list[Changed] = field(default_factory=list)
    outcomes: dict[Outcome, list[int]] = field(
        default_factory=lambda: {each: [0, 0] for each in Outcome}
    )
    times: Times = field(default_factory=Times)

    @property
    def left(self) -> int:
        """How many packages have left the replay."""
        return sum(new for _, new in self.outcomes.values())

    @property
    def slower(self) -> list[str]:
        """The modules that take longer than they may."""
        if self.slower_than is None or Kind.TIME in self.ignore:
            return []
        return self.times.slower(self.slower_than)

    @property
    def is_same(self) -> bool:
        """Whether nothing has changed."""
        return not (self.changed or self.missing or self.new or self.slower)

    @property
    def compared_nothing(self) -> bool:
        """Whether no package was on either side: nothing is known then."""
        return not (self.same or self.changed or self.missing or self.new)

    def note(self, package: DataPackage[Any], differences: list[Difference]) -> None:
        """A package that changed."""
        self.kinds.update({each.kind for each in differences})
        if len(self.first) < self.show:
            self.first.append(
                Changed(package.id, package.instance, package.sequence, tuple(differences))
            )

    def count(self, package: DataPackage[Any], *, replayed: bool) -> None:
        """A package that left, on one of the sides: its outcome and its times."""
        if package.outcome is not None:
            self.outcomes[package.outcome][replayed] += 1
        self.times.add(package, replayed=replayed, total=self.totals)

    def to_json(self) -> dict[str, Any]:
        """As a program reads it."""
        return {
            "same": self.same,
            "changed": self.changed,
            "missing": self.missing,
            "new": self.new,
            "unfinished": self.unfinished,
            "stopped": self.stopped,
            "kinds": {kind.value: self.kinds[kind] for kind in Kind if self.kinds[kind]},
            "slower": self.slower,
            "outcomes": {
                outcome.value: {"recorded": old, "replayed": new}
                for outcome, (old, new) in self.outcomes.items()
            },
            "times": {
                label: {"recorded": _times(old), "replayed": _times(new)}
                for label, (old, new) in self.times.by_label.items()
            },
            "first": [each.to_json() for each in self.first],
        }


def _times(durations: Durations) -> dict[str, float | int]:
    """Seconds."""
    return {
        "count": durations.count,
        "p50": durations.quantile(0.5) / NS,
        "p99": durations.quantile(0.99) / NS,
        "max": durations.largest / NS,
    }


class Comparison:
    """Compares packages with the recorded ones, as they come.

    Args:
        recording: what they were.
        report: what it is to come to.
        types: payload types by name, for protobuf messages.
    """

    def __init__(
        self, recording: Recording, report: Report, types: codecs.Types = NO_TYPES
    ) -> None:
        self.report = report
        self._recording = recording
        self._types = types
        self._seen: dict[int, int] = {}

    def take(self, replayed: Replayed) -> DataPackage[Any] | None:
        """A package that left now; gives it as it left then, None where that is not known."""
        report, package_id = self.report, replayed.package_id
        report.count(replayed.package, replayed=True)
        recorded = self._recording.outcome_of(package_id)
        if recorded is None:
            if self._recording.arrival_of(package_id) is not None:
                report.unfinished += 1
            elif Kind.NEW not in report.ignore:
                report.new += 1
                left = Difference(Kind.NEW, "", "not recorded", str(replayed.package.outcome))
                report.note(replayed.package, [left])
            return None
        self._remember(package_id)
        report.count(recorded, replayed=False)
        differences = compare(recorded, replayed.package, types=self._types, ignore=report.ignore)
        if differences:
            report.changed += 1
            report.note(recorded, differences)
        else:
            report.same += 1
        return recorded

    def end(self) -> Report:
        """All have come: what has not is missing."""
        for package_id in self._recording.ids_that_left():
            if self._knows(package_id):
                continue
            recorded = self._recording.outcome_of(package_id)
            if recorded is None:
                raise RecordingError(
                    f"the recording {str(self._recording.path)!r} is damaged: package {package_id} "
                    f"is said to have left, and how is not there; take another copy of it",
                    path=str(self._recording.path),
                )
            self.report.count(recorded, replayed=False)
            if Kind.MISSING not in self.report.ignore:
                self.report.missing += 1
                left = Difference(Kind.MISSING, "", str(recorded.outcome), "did not leave")
                self.report.note(recorded, [left])
        return self.report

    def _remember(self, package_id: int) -> None:
        chunk = package_id >> CHUNK_BITS
        bit = 1 << (package_id & ((1 << CHUNK_BITS) - 1))
        self._seen[chunk] = self._seen.get(chunk, 0) | bit

    def _knows(self, package_id: int) -> bool:
        bit = package_id & ((1 << CHUNK_BITS) - 1)
        return bool(self._seen.get(package_id >> CHUNK_BITS, 0) >> bit & 1)
