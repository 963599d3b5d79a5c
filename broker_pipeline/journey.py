"""What happened to a package on its way: read-only records, from the pipeline down to the module.

Times are integer nanoseconds here and seconds in JSON. `total_time` is `end - start` at every
level; differences between the clocks of two machines can show, and are never negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from broker_pipeline._proto.v1 import data_package_pb2 as pb

NS = 1_000_000_000


class Status(StrEnum):
    """Where a package, or one step of its journey, stands; the last five are final."""

    RUNNING = "RUNNING"
    WAITING = "WAITING"
    WAITING_OUTPUT = "WAITING_OUTPUT"
    SUCCESS = "SUCCESS"
    EXIT = "EXIT"
    ERROR = "ERROR"
    OVERFLOW = "OVERFLOW"
    OUTDATED = "OUTDATED"


class Outcome(StrEnum):
    """How a package left the pipeline. Every package has exactly one."""

    SUCCESS = "SUCCESS"
    EXIT = "EXIT"
    ERROR = "ERROR"
    OVERFLOW = "OVERFLOW"
    OUTDATED = "OUTDATED"


class Mode(StrEnum):
    """In which order a controller lets the packages of an instance leave.

    NOT_PARALLEL: one package at a time, in arrival order.
    NO_ORDER: in parallel; they leave as they finish.
    ORDER_BY_SEQUENCE: in parallel; they leave in arrival order, and one that left early (EXIT,
        ERROR, OVERFLOW) does not hold up those behind it.
    FIRST_WINS: in parallel; one leaves as soon as it finishes, unless one with a higher sequence
        id has left with SUCCESS already: then it leaves as OUTDATED.
    """

    NOT_PARALLEL = "NOT_PARALLEL"
    NO_ORDER = "NO_ORDER"
    ORDER_BY_SEQUENCE = "ORDER_BY_SEQUENCE"
    FIRST_WINS = "FIRST_WINS"


# Protobuf's stubs type enum values as a class of their own; at run time they are plain integers.
STATUS_TO_PB: dict[str, Any] = {name: pb.Status.Value(f"STATUS_{name}") for name in Status}
MODE_TO_PB: dict[str, Any] = {name: pb.Mode.Value(f"MODE_{name}") for name in Mode}
_STATUS: dict[int, Status] = {number: Status(name) for name, number in STATUS_TO_PB.items()}
_OUTCOME: dict[int, Outcome] = {STATUS_TO_PB[name]: name for name in Outcome}
_MODE: dict[int, Mode] = {number: Mode(name) for name, number in MODE_TO_PB.items()}


def status_of(number: int) -> Status:
    """The status with this protobuf number; one that is not set is RUNNING."""
    return _STATUS.get(number, Status.RUNNING)


def outcome_of(number: int) -> Outcome | None:
    """The outcome with this protobuf number; None while the package is inside."""
    return _OUTCOME.get(number)


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """What went wrong, where: `path` is controller/phase/module, `details` what `--error-detail`
    has recorded besides."""

    type: str
    message: str
    traceback: str
    host: str
    worker: str
    path: str
    details: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def read(cls, error: pb.Error) -> ErrorRecord:
        """From the envelope."""
        return cls(
            error.type, error.message, error.traceback, error.host, error.worker, error.path,
            dict(sorted(error.details.items())),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """As a person reads it."""
        return {
            "type": self.type,
            "message": self.message,
            "path": self.path,
            "host": self.host,
            "worker": self.worker,
            "traceback": self.traceback,
            **({"details": dict(self.details)} if self.details else {}),
        }


@dataclass(frozen=True, slots=True)
class ModuleRecord:
    """What one module did to the package; the modules inside it in `sub_modules`."""

    name: str
    status: Status
    start_offset_ns: int
    waiting_time_ns: int
    total_time_ns: int
    message: str
    error: ErrorRecord | None
    sub_modules: tuple[ModuleRecord, ...]
    server: str
    """The module server that ran it; '' where none did."""

    @classmethod
    def read(cls, module: pb.ModuleRecord, errors: tuple[ErrorRecord, ...]) -> ModuleRecord:
        """From the envelope."""
        number = module.error
        return cls(
            module.name,
            status_of(module.status),
            module.start_offset_ns,
            module.waiting_time_ns,
            module.total_time_ns,
            module.message,
            errors[number - 1] if 0 < number <= len(errors) else None,
            tuple(cls.read(sub, errors) for sub in module.sub_modules),
            module.server,
        )

    def to_json(self) -> dict[str, Any]:
        """As a person reads it."""
        return {
            "name": self.name,
            "status": self.status.value,
            "waiting_time": self.waiting_time_ns / NS,
            "total_time": self.total_time_ns / NS,
            "message": self.message,
            "error": self.error and self.error.to_json(),
            "sub_modules": [module.to_json() for module in self.sub_modules],
            **({"server": self.server} if self.server else {}),
        }


@dataclass(frozen=True, slots=True)
class PhaseRecord:
    """One phase of the journey, with the worker that ran it."""

    name: str
    status: Status
    worker: str
    start_time_ns: int
    total_time_ns: int
    modules: tuple[ModuleRecord, ...]

    @classmethod
    def read(cls, phase: pb.PhaseRecord, errors: tuple[ErrorRecord, ...]) -> PhaseRecord:
        """From the envelope."""
        return cls(
            phase.name,
            status_of(phase.status),
            phase.worker,
            phase.start_time_ns,
            phase.total_time_ns,
            tuple(ModuleRecord.read(module, errors) for module in phase.modules),
        )

    def to_json(self) -> dict[str, Any]:
        """As a person reads it."""
        return {
            "name": self.name,
            "status": self.status.value,
            "worker": self.worker,
            "total_time": self.total_time_ns / NS,
            "modules": [module.to_json() for module in self.modules],
        }


@dataclass(frozen=True, slots=True)
class ControllerRecord:
    """One controller of the journey: the package's sequence id there, and how long it waited."""

    name: str
    mode: Mode
    sequence: int
    status: Status
    start_time_ns: int
    input_waiting_time_ns: int
    output_waiting_time_ns: int
    total_time_ns: int
    phases: tuple[PhaseRecord, ...]

    @classmethod
    def read(cls, record: pb.ControllerRecord, errors: tuple[ErrorRecord, ...]) -> ControllerRecord:
        """From the envelope."""
        return cls(
            record.name,
            _MODE.get(record.mode, Mode.NOT_PARALLEL),
            record.sequence,
            status_of(record.status),
            record.start_time_ns,
            record.input_waiting_time_ns,
            record.output_waiting_time_ns,
            record.total_time_ns,
            tuple(PhaseRecord.read(phase, errors) for phase in record.phases),
        )

    def to_json(self) -> dict[str, Any]:
        """As a person reads it."""
        return {
            "name": self.name,
            "mode": self.mode.value,
            "sequence": self.sequence,
            "status": self.status.value,
            "input_waiting_time": self.input_waiting_time_ns / NS,
            "output_waiting_time": self.output_waiting_time_ns / NS,
            "total_time": self.total_time_ns / NS,
            "phases": [phase.to_json() for phase in self.phases],
        }


def last_message(modules: Sequence[pb.ModuleRecord]) -> str:
    """What the last module that ran had to say, at any depth; '' where it said nothing."""
    while modules:
        if modules[-1].message:
            return modules[-1].message
        modules = modules[-1].sub_modules
    return ""
