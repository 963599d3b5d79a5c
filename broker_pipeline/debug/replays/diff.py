"""What differs between a package as it was recorded and the same package replayed. Pure.

Compared is what the pipeline made of the package: how it left, with what, and by which way. Not
compared is where and when: hosts, workers, servers, clocks, tracebacks (their line numbers move
with every edit), and the numbers of epochs and sequences, which follow from what else was replayed.
Durations are compared as distributions over all packages (`durations.Times`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from broker_pipeline import codecs
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.debug.replays.payload_diff import payload_difference, shown
from broker_pipeline.journey import MODE_TO_PB, Status, status_of
from broker_pipeline.package import DataPackage


class Kind(StrEnum):
    """What can differ; the names that `--ignore` takes."""

    OUTCOME = "outcome"
    REASON = "reason"
    PAYLOAD = "payload"
    ATTRIBUTES = "attributes"
    ERRORS = "errors"
    JOURNEY = "journey"
    MESSAGES = "messages"
    MISSING = "missing"
    NEW = "new"
    TIME = "time"


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs.

    Attributes:
        where: what it is of: a field, or controller/phase/module.
        recorded: as it was; '' where `lines` say it.
        replayed: as it is now.
        lines: the difference of a payload.
    """

    kind: Kind
    where: str
    recorded: str = ""
    replayed: str = ""
    lines: tuple[str, ...] = ()

    def told(self) -> list[str]:
        """As a person reads it, a line each."""
        if self.lines:
            return [self.kind.value, *(f"  {line}" for line in self.lines)]
        where = f" of {self.where}" if self.where else ""
        return [f"{self.kind.value}{where}: {self.recorded} -> {self.replayed}"]

    def to_json(self) -> dict[str, Any]:
        """As a program reads it."""
        return {
            "kind": self.kind.value,
            "where": self.where,
            "recorded": self.recorded,
            "replayed": self.replayed,
            "lines": list(self.lines),
        }


_MODES = {number: mode for mode, number in MODE_TO_PB.items()}
_ADDRESS = re.compile(r"\b0x[0-9a-f]{4,16}\b")
"""Where an object lay in memory, as `repr` writes it: another place each time."""
NO_TYPES: codecs.Types = {}
"""No payload class is known by name."""
_Steps = dict[tuple[str, int], tuple[str, str]]
"""By path and how often it was seen before: the status, and what the module said."""


def compare(
    recorded: DataPackage[Any],
    replayed: DataPackage[Any],
    *,
    types: codecs.Types = NO_TYPES,
    ignore: Collection[Kind] = (),
) -> list[Difference]:
    """What differs; a package is the same as itself.

    Args:
        recorded: with its payload in place; where it is gone, payloads are not compared.
        replayed: likewise.
        types: payload types by name, for protobuf messages.
        ignore: kinds that do not count.
    """
    return [each for each in _differences(recorded, replayed, types) if each.kind not in ignore]


def _differences(
    old: DataPackage[Any], new: DataPackage[Any], types: codecs.Types
) -> Iterator[Difference]:
    if old.outcome is not new.outcome:
        yield Difference(Kind.OUTCOME, "", _outcome(old), _outcome(new))
    yield from _payloads(old, new, types)
    before, after = dict(old.attributes), dict(new.attributes)
    for key in sorted({*before, *after}):
        if before.get(key) != after.get(key):
            yield Difference(
                Kind.ATTRIBUTES, repr(key), _present(before.get(key)), _present(after.get(key))
            )
    yield from _errors(old, new)
    yield from _journeys(old, new)


def _outcome(package: DataPackage[Any]) -> str:
    outcome = package.outcome.value if package.outcome else "inside"
    return f"{outcome} ({shown(package.reason)})" if package.reason else outcome


def _present(value: str | None) -> str:
    return "absent" if value is None else shown(value)


def _texts(kind: Kind, where: str, old: str, new: str) -> Iterator[Difference]:
    if _ADDRESS.sub("0x", old) != _ADDRESS.sub("0x", new):
        yield Difference(kind, where, shown(old), shown(new))


def _payloads(
    old: DataPackage[Any], new: DataPackage[Any], types: codecs.Types
) -> Iterator[Difference]:
    old.encode()
    new.encode()
    a, b = old.envelope, new.envelope
    if a.HasField("reference") or b.HasField("reference"):
        return
    lines = payload_difference(a.data, a.content_type, b.data, b.content_type, types)
    if lines:
        yield Difference(Kind.PAYLOAD, "", lines=lines)


def _errors(old: DataPackage[Any], new: DataPackage[Any]) -> Iterator[Difference]:
    before, after = old.errors, new.errors
    for index in range(max(len(before), len(after))):
        told = [
            f"{each[index].type}: {each[index].message} in {each[index].path}"
            if index < len(each)
            else ""
            for each in (before, after)
        ]
        if _ADDRESS.sub("0x", told[0]) != _ADDRESS.sub("0x", told[1]):
            where = "" if len(before) == len(after) == 1 else f"number {index + 1}"
            yield Difference(Kind.ERRORS, where, told[0] or "none", told[1] or "none")


def _journeys(old: DataPackage[Any], new: DataPackage[Any]) -> Iterator[Difference]:
    """Where the ways part: which steps there are, how they ended, what they said."""
    before, after = _steps(old), _steps(new)
    for key in dict.fromkeys((*before, *after)):
        path = key[0]
        a, b = before.get(key), after.get(key)
        if a is None or b is None:
            yield Difference(Kind.JOURNEY, path, a[0] if a else "absent", b[0] if b else "absent")
            continue
        if a[0] != b[0]:
            yield Difference(Kind.JOURNEY, path, a[0], b[0])
        is_reason = a[0] == b[0] == Status.EXIT
        yield from _texts(Kind.REASON if is_reason else Kind.MESSAGES, path, a[1], b[1])
    order = [[key for key in each if key in before and key in after] for each in (before, after)]
    if order[0] != order[1]:
        was, now = (" ".join(path for path, _ in each) for each in order)
        yield Difference(Kind.JOURNEY, "the order of steps", shown(was), shown(now))


def _steps(package: DataPackage[Any]) -> _Steps:
    steps: _Steps = {}

    def add(path: str, status: str, message: str = "") -> None:
        count = 0
        while (path, count) in steps:
            count += 1
        steps[path, count] = (status, message)

    def module(path: str, records: Iterable[pb.ModuleRecord]) -> None:
        for record in records:
            here = f"{path}/{record.name}"
            add(here, status_of(record.status).value, record.message)
            module(here, record.sub_modules)

    # The envelope's own records, not those of `package.controllers`: a third of the time.
    for controller in package.envelope.controllers:
        mode = _MODES.get(controller.mode, controller.mode)
        add(controller.name, f"{status_of(controller.status)} in {mode}")
        for phase in controller.phases:
            here = f"{controller.name}/{phase.name}"
            add(here, status_of(phase.status).value)
            module(here, phase.modules)
    return steps
