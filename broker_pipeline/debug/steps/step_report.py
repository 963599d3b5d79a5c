"""What a step found, for a person and for a program. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from broker_pipeline import codecs
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.debug.inspection.payloads import describe, pretty
from broker_pipeline.debug.replays.diff import Difference, compare
from broker_pipeline.debug.steps.step import Stepped
from broker_pipeline.debug.steps.step_source import Before, Given
from broker_pipeline.journey import NS, ModuleRecord
from broker_pipeline.modules import walk
from broker_pipeline.package import DataPackage

CHARS_MAX = 160
"""Of the attributes that have changed."""
_HEAD = 10
_WIDTH = 66
"""Of 80 columns: besides the head, an indent and the mark of a line that has changed."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a step found.

    Attributes:
        differences: between what was recorded and now; None: nothing was recorded, the package is
            still in the phase.
    """

    given: Given
    stepped: Stepped
    differences: tuple[Difference, ...] | None

    @property
    def same(self) -> bool:
        """Whether it came out as it was recorded."""
        return self.differences == ()

    def lines(self) -> Iterator[str]:
        """For a person; what moves a terminal's cursor or colours it is left out."""
        for line in self._lines():
            yield "".join(each if each.isprintable() else " " for each in line)

    def _lines(self) -> Iterator[str]:
        given, stepped = self.given, self.stepped
        types = given.pipeline.payload_types
        package = DataPackage.wrap(given.envelope, types)
        phase = f"{given.controller.name}.{given.phase.name}"
        when = datetime.fromtimestamp(given.time / NS).isoformat(" ", "milliseconds")
        yield _row("package", f"{package.id}  {package.instance} #{package.sequence}")
        yield _row("phase", f"{phase}, message {given.stream_seq:,} of the log, {when}")
        yield from _rows("input", _payload_lines(given.envelope, types))
        if given.before is not None:
            yield _row("state", _whence(given.before))
        yield ""
        if given.recorded is None:
            yield _row("recorded", "nothing: the package has not come out of the phase")
        else:
            yield from _rows("recorded", _came_out(given.recorded, given))
        yield from _rows("now", _came_out(stepped.envelope, given, given.recorded))
        if stepped.after:
            yield from _rows("state", _state_lines(given, stepped))
        yield ""
        if self.differences is None:
            yield "there is nothing recorded to compare it with"
        elif self.same:
            gone = given.recorded is not None and given.recorded.HasField("reference")
            yield "the same as recorded" + ", but for the payload, which is gone" * gone
        else:
            yield "not the same as recorded:"
            for each in self.differences:
                yield from (f"  {line}" for line in each.told())

    def to_json(self) -> dict[str, Any]:
        """For a program."""
        given, stepped = self.given, self.stepped
        before, recorded = given.before, given.recorded
        found = self.differences
        return {
            "phase": f"{given.controller.name}.{given.phase.name}",
            "stream_seq": given.stream_seq,
            "input": _json_of(given.envelope),
            "recorded": None if recorded is None else _json_of(recorded),
            "now": _json_of(stepped.envelope),
            "status": stepped.status.value,
            "same": None if found is None else self.same,
            "differences": [each.to_json() for each in found or ()],
            "state": None
            if before is None
            else {
                "stored_after": before.sequence,
                "run_again": len(before.inputs),
                "before": _plain(stepped.before),
                "after": None if stepped.after is None else _plain(stepped.after),
            },
        }


def report(given: Given, stepped: Stepped) -> Report:
    """Compare what came of it with what was recorded. Times, hosts and workers do not count."""
    found: tuple[Difference, ...] | None = None
    if given.recorded is not None:
        types = given.pipeline.payload_types
        recorded = DataPackage.wrap(given.recorded, types)
        now = DataPackage.wrap(stepped.envelope, types)
        found = tuple(compare(recorded, now, types=types))
    return Report(given, stepped, found)


def _row(head: str, text: str) -> str:
    return f"{head:<{_HEAD}}{text}".rstrip()


def _rows(head: str, lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield _row(head, line)
        head = ""


def _whence(before: Before) -> str:
    """Where the states come from."""
    count = len(before.inputs)
    again = f"{count:,} inputs run again" if count != 1 else "1 input run again"
    if not before.states:
        return f"the initial one, {again}" if count else "the initial one"
    stored = f"stored after input {before.sequence:,}"
    return f"{stored}, {again}" if count else stored


# -- a package ----------------------------------------------------------------------------------
def _came_out(
    envelope: pb.DataPackage, given: Given, shown: pb.DataPackage | None = None
) -> Iterator[str]:
    """How it came out of the phase; a traceback that is in what was `shown` is not shown again."""
    types = given.pipeline.payload_types
    package = DataPackage.wrap(envelope, types)
    phases = package.controllers[-1].phases if package.controllers else ()
    position = len(given.envelope.controllers[-1].phases)
    if position >= len(phases):
        yield "no record of the phase"
        return
    phase = phases[position]
    yield f"{phase.status.value}, {_milliseconds(phase.total_time_ns)}, by {phase.worker}"
    yield from _modules(phase.modules, "  ")
    for error in package.errors[len(given.envelope.errors) :]:
        yield f"  {error.type}: {error.message} in {error.path}"
        if shown is None or error.traceback not in [each.traceback for each in shown.errors]:
            yield from (f"    {line}" for line in error.traceback.splitlines())
    old, new = given.envelope, envelope
    if (new.data, new.content_type) != (old.data, old.content_type):
        yield from (f"  {line}" for line in _payload_lines(envelope, types))
    changed = {k: v for k, v in new.attributes.items() if old.attributes.get(k) != v}
    if changed:
        yield f"  {_cut(', '.join(f'{key}={value}' for key, value in sorted(changed.items())))}"


def _modules(modules: tuple[ModuleRecord, ...], indent: str) -> Iterator[str]:
    for module in modules:
        took = _milliseconds(module.total_time_ns)
        yield f"{indent}{module.name}  {module.status.value}, {took}  {module.message}".rstrip()
        yield from _modules(module.sub_modules, f"{indent}  ")


def _milliseconds(ns: int) -> str:
    return f"{ns / 1e6:.1f} ms"


def _payload_lines(envelope: pb.DataPackage, types: codecs.Types) -> list[str]:
    """What the payload is, and its beginning."""
    if envelope.HasField("reference"):
        return [f"{envelope.reference.size:,} bytes, which are not there any more"]
    return describe(envelope.data, envelope.content_type, types, width=_WIDTH)


# -- states -------------------------------------------------------------------------------------
def _state_lines(given: Given, stepped: Stepped) -> Iterator[str]:
    """The states before and after, with what has changed marked."""
    names = dict(walk(given.phase.modules))
    for path, after in sorted((stepped.after or {}).items()):
        before = [] if path not in stepped.before else list(pretty(stepped.before[path], _WIDTH))
        now = list(pretty(after, _WIDTH))
        yield f"of {names[path].name if path in names else path}" + ", unchanged" * (before == now)
        length = len(before) + len(now)
        compared = list(difflib.unified_diff(before, now, lineterm="", n=length))
        yield from (f"  {line}" for line in compared[3:] or [f" {line}" for line in now])


def _cut(text: str) -> str:
    line = text.replace("\n", "\\n")
    return line if len(line) <= CHARS_MAX else f"{line[:CHARS_MAX]}..."


# -- for programs -------------------------------------------------------------------------------
def _json_of(envelope: pb.DataPackage) -> dict[str, Any]:
    return DataPackage.wrap(envelope).to_json()


def _plain(states: Mapping[str, object]) -> dict[str, Any]:
    """States as JSON can have them."""
    plain: dict[str, Any] = {}
    for path, state in states.items():
        try:
            plain[path] = msgspec.json.decode(msgspec.json.encode(state))
        except Exception:  # the user's own type
            plain[path] = f"<{type(state).__name__}>"
    return plain
