"""The way of a package as spans of time: what it waited for, and what ran. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from broker_pipeline.debug.inspection.history import PackageHistory
from broker_pipeline.journey import (
    ControllerRecord,
    Mode,
    ModuleRecord,
    PhaseRecord,
    Status,
)

_ORDERED = (Mode.NOT_PARALLEL, Mode.ORDER_BY_SEQUENCE)
_INSIDE = (Status.RUNNING, Status.WAITING, Status.WAITING_OUTPUT)


class Kind(Enum):
    """What a span is."""

    MARK = "mark"
    CONTROLLER = "controller"
    WAIT = "wait"
    PHASE = "phase"
    MODULE = "module"


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the way.

    Attributes:
        depth: of the nesting: 1 within a controller, 2 within a phase, and so on.
        name: of what ran, or what was waited for.
        note: who ran it, the controller's rules, when it was.
        start_ns: since the epoch; by the broker's clock, or by the worker's where one ran it.
        status: how it ended; None where that says nothing.
        message: what a module said, or what was wrong.
    """

    kind: Kind
    depth: int
    name: str
    start_ns: int
    duration_ns: int
    note: str = ""
    status: Status | None = None
    message: str = ""

    @property
    def end_ns(self) -> int:
        """When it ended."""
        return self.start_ns + self.duration_ns


def spans(history: PackageHistory, now_ns: int) -> list[Span]:
    """The way of a package, in the order in which things happened.

    Args:
        now_ns: until when a package that is inside has been there, ns since the epoch.
    """
    package = history.package()
    arrived = package.start_time_ns
    found = [Span(Kind.MARK, 0, "arrived", arrived, 0)]
    for controller in package.controllers:
        found += _controller(history, controller, now_ns)
    outcome = package.outcome
    if outcome is not None:
        status = Status(outcome.value)
        found.append(Span(Kind.MARK, 0, "left", package.end_time_ns, 0, status=status))
        return found
    where, since = history.standing()
    inside = max(0, now_ns - since)
    return [*found, Span(Kind.WAIT, 0, "inside", since, inside, note=where)]


def _controller(
    history: PackageHistory, controller: ControllerRecord, now_ns: int
) -> Iterator[Span]:
    inside = controller.status in _INSIDE
    start, phases = controller.start_time_ns, controller.phases
    duration = max(0, now_ns - start) if inside else controller.total_time_ns
    note = f"{controller.mode.value} #{controller.sequence}"
    yield Span(Kind.CONTROLLER, 0, controller.name, start, duration, note, _told(controller.status))
    yield from _waited_in(history, controller, inside)
    end = 0
    for phase in phases:
        if end:
            wait = phase.start_time_ns - end
            yield from _wait(f"waited for {phase.name}", end, wait)
        yield from _phase(phase)
        end = phase.start_time_ns + phase.total_time_ns
    if end and not inside:
        name = "waited for its turn" if controller.mode in _ORDERED else "waited to leave"
        yield from _wait(name, end, controller.output_waiting_time_ns)


def _waited_in(
    history: PackageHistory, controller: ControllerRecord, inside: bool
) -> Iterator[Span]:
    """The wait before the first phase: to be given to the workers, and for one of them. Which is
    which the log says, where it has the message between."""
    start, waited = controller.start_time_ns, controller.input_waiting_time_ns
    inputs = [each for each in history.inputs if each.controller == controller.name]
    given = inputs[0].message.time if inputs else None
    name = f"waited for {controller.phases[0].name}" if controller.phases else ""
    if given is not None:
        yield from _wait("waited to be admitted", start, given - start)
        if name:
            yield from _wait(name, given, start + waited - given)
    elif not inside:
        yield from _wait(name or "waited to be admitted", start, waited)


def _wait(name: str, start: int, duration: int) -> Iterator[Span]:
    if duration > 0:
        yield Span(Kind.WAIT, 1, name, start, duration)


def _phase(phase: PhaseRecord) -> Iterator[Span]:
    note = f"by {phase.worker}" if phase.worker else ""
    start = phase.start_time_ns
    yield Span(Kind.PHASE, 1, phase.name, start, phase.total_time_ns, note, _told(phase.status))
    yield from _modules(phase.modules, start, 2)


def _modules(modules: Sequence[ModuleRecord], begin: int, depth: int) -> Iterator[Span]:
    for module in modules:
        start = begin + module.start_offset_ns
        note = f"on {module.server}" if module.server else ""
        message = module.message
        if module.error is not None:
            message = f"{module.error.type}: {module.error.message}"
        yield Span(
            Kind.MODULE, depth, module.name, start, module.total_time_ns, note,
            _told(module.status), message,
        )  # fmt: skip
        if module.waiting_time_ns:
            name = "waited for a server" if module.server else "waited for its turn"
            yield Span(Kind.WAIT, depth + 1, name, start, module.waiting_time_ns)
        yield from _modules(module.sub_modules, begin, depth + 1)


def _told(status: Status) -> Status | None:
    """Only what is no SUCCESS is worth a word."""
    return None if status is Status.SUCCESS else status
