"""What came out of the demo: counted, checked, and told."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from broker_pipeline import DataPackage, Outcome
from examples.transcribe.audio import CHUNK_BYTES
from examples.transcribe.segmenter import RATE
from examples.transcribe.wer import WordErrors, word_errors

WER_MAX = 0.10
NS = 1_000_000_000
Tree = tuple[str, list["Tree"]]


class Left(NamedTuple):
    """What is kept of a package: an hour of them with their sound would fill the memory."""

    outcome: Outcome | None
    arrived_ns: int
    why: str


@dataclass
class Room:
    """One instance of one pipeline: what was sent, and everything that left, by sequence id."""

    name: str
    sent: int = 0
    packages: dict[int, Left] = field(default_factory=dict)
    texts: list[DataPackage[str]] = field(default_factory=list)
    doubled: list[int] = field(default_factory=list)

    def take(self, package: DataPackage[Any]) -> None:
        """A package left."""
        if package.sequence in self.packages:
            self.doubled.append(package.sequence)
            return
        self.packages[package.sequence] = Left(
            package.outcome, package.start_time_ns, _why(package)
        )
        if package.outcome is Outcome.SUCCESS:
            self.texts.append(package)

    def behind_s(self, text: DataPackage[Any]) -> float | None:
        """How long after the end of its speech a text left.

        From the arrival of the chunk that holds the last sample of the speech, to the moment when
        the text left the pipeline; both by the broker's clock. The silence that shows that the
        speech is over (0.4 s to 0.7 s in real time) is part of it.
        """
        last_sample = round(float(text.attributes["end_s"]) * RATE) - 1
        spoken = self.packages.get(last_sample * 2 // CHUNK_BYTES + 1)
        return None if spoken is None else (text.end_time_ns - spoken.arrived_ns) / NS

    def word_errors(self, reference: str) -> WordErrors:
        """All texts in the order in which they left, against what was said."""
        return word_errors(reference, " ".join(text.data for text in self.texts))

    def faults(self) -> list[str]:
        """What must never be: lost, doubled, out of order; and what went wrong."""
        found = []
        lost = sorted(set(range(1, self.sent + 1)) - set(self.packages))
        if lost:
            found.append(f"{self.name}: {len(lost)} of {self.sent} chunks were lost: {_few(lost)}")
        strange = sorted(set(self.packages) - set(range(1, self.sent + 1)))
        if strange:
            found.append(f"{self.name}: packages came out that nobody sent: {_few(strange)}")
        if self.doubled:
            found.append(f"{self.name}: packages came out twice: {_few(self.doubled)}")
        order = [text.sequence for text in self.texts]
        if order != sorted(order):
            found.append(f"{self.name}: texts are out of order: {_few(order)}")
        for sequence, package in self.packages.items():
            if package.outcome is Outcome.ERROR:
                found.append(f"{self.name}: chunk {sequence} is an ERROR: {package.why}")
        return found


def summary(rooms: Sequence[Room], captions: Room | None, reference: str | None) -> list[str]:
    """The figures, and one package's journey, as lines."""
    lines = [_outcomes("packages", rooms)]
    if captions is not None:
        lines.append(_outcomes("captions", [captions]))
    for room in rooms if reference else ():
        errors = room.word_errors(reference or "")
        wrong = errors.substitutions + errors.deletions + errors.insertions
        lines.append(
            f"words      {room.name}: {errors.rate:.1%} wrong, {wrong} of "
            f"{errors.reference_words}, in {len(room.texts)} texts"
        )
    behind = [room.behind_s(text) for room in rooms for text in room.texts]
    known = [seconds for seconds in behind if seconds is not None]
    if known:
        lines.append(
            f"latency    of a text behind the end of its speech: median "
            f"{statistics.median(known):.2f} s, max {max(known):.2f} s"
        )
    texts = [text for room in rooms for text in room.texts]
    if texts:
        lines += ["", "the journey of one package:", *journey(texts[len(texts) // 2])]
    return lines


def faults(rooms: Sequence[Room], captions: Room | None, reference: str | None) -> list[str]:
    """Why the demo failed; nothing if it did not."""
    found = [fault for room in rooms for fault in room.faults()]
    found += captions.faults() if captions is not None else []
    for room in rooms if reference else ():
        rate = room.word_errors(reference or "").rate
        if rate > WER_MAX:
            found.append(f"{room.name}: {rate:.1%} of the words are wrong, more than {WER_MAX:.0%}")
    return found


def journey(package: DataPackage[Any]) -> list[str]:
    """What a package went through, as a tree."""
    told = package.to_json()
    head = (
        f"{told['id']} in {told['instance']!r}, chunk {told['sequence']}: {told['outcome']} after "
        f"{_ms(told['total_time'])}"
    )
    controllers = []
    for controller in told["controllers"]:
        label = (
            f"{controller['name']} ({controller['mode']}, number {controller['sequence']}): "
            f"{controller['status']}, waited {_ms(controller['input_waiting_time'])} to begin and "
            f"{_ms(controller['output_waiting_time'])} to leave"
        )
        controllers.append((label, [_phase(phase) for phase in controller["phases"]]))
    return [head, *_draw(controllers)]


def _phase(phase: dict[str, Any]) -> Tree:
    label = f"{phase['name']} on {phase['worker']}: {_ms(phase['total_time'])}"
    return label, [_module(module) for module in phase["modules"]]


def _module(module: dict[str, Any]) -> Tree:
    said = f": {module['message']}" if module["message"] else ""
    place = f" on {module['server']}" if "server" in module else ""
    label = f"{module['name']}{place} {module['status']}, {_ms(module['total_time'])}{said}"
    return label, [_module(sub) for sub in module["sub_modules"]]


def _draw(branches: list[Tree]) -> list[str]:
    lines = []
    for number, (label, below) in enumerate(branches, start=1):
        last = number == len(branches)
        lines.append(f"{'└─' if last else '├─'} {label}")
        lines += [f"{'  ' if last else '│ '} {line}" for line in _draw(below)]
    return lines


def _outcomes(what: str, rooms: Sequence[Room]) -> str:
    packages = [package for room in rooms for package in room.packages.values()]
    counts = Counter(str(package.outcome) for package in packages)
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
    reasons = Counter(package.why for package in packages if package.outcome is Outcome.EXIT)
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    sent = sum(room.sent for room in rooms)
    return f"{what:10} {sent} sent, {len(packages)} left: {told}" + (
        f" (EXIT: {why})" if why else ""
    )


def _why(package: DataPackage[Any]) -> str:
    """The reason that a package's EXIT or ERROR gives."""
    if package.outcome is Outcome.ERROR:
        return "; ".join(f"{error.type}: {error.message}" for error in package.errors)
    if package.outcome is Outcome.EXIT:
        return package.reason
    return ""


def _few(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
