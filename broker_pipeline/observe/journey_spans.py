"""The journey of a package as the spans of one trace: pure, and the same from whoever tells of it.

From the outside in: the package from its arrival to its leaving; its controllers, with what it
waited for in them; its phases, as work of the worker or bridge that ran them; their modules; and
below an external module what its server did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.core.names import stream_name
from broker_pipeline.journey import MODE_TO_PB, NS, Status, outcome_of, status_of
from broker_pipeline.observe import context
from broker_pipeline.observe.context import TraceContext

SPANS_MAX = 1000
"""More are no journey of ours, and of no use to a reader: what is over is left out, and said."""
_TIME_MAX = (1 << 63) - 1
"""Times are bounded so: a stranger's package may hold any number, and OTLP takes none above."""
_MODES = {number: name for name, number in MODE_TO_PB.items()}
CONTROLLER, WORKER, BRIDGE, SERVER = "controller", "worker", "bridge", "server"


class Kind(Enum):
    """What OpenTelemetry calls the kind of a span."""

    INTERNAL = "internal"
    CLIENT = "client"
    SERVER = "server"
    CONSUMER = "consumer"


Value = str | int | float | bool


@dataclass(slots=True)
class SpanData:
    """A span, as plain data.

    Attributes:
        parent_id: None: nothing is above it.
        role: of the process that did the work, such as "worker".
        process: that process's name; "" where it is not known.
        exceptions: what went wrong in it.
        failed: why; None: it did not.
    """

    name: str
    kind: Kind
    context: TraceContext
    parent_id: str | None
    start_ns: int
    end_ns: int
    role: str
    process: str
    attributes: dict[str, Value] = field(default_factory=dict)
    exceptions: list[pb.Error] = field(default_factory=list)
    failed: str | None = None


def spans_of(
    headers: Mapping[str, str] | None, envelope: pb.DataPackage, leader: str = ""
) -> list[SpanData]:
    """The trace of a package that has left; parents come before their children.

    Args:
        headers: the context that it came with; None: one that follows from the package.
        leader: the name of the process that led its shard.
    """
    parent = context.parse(headers) if headers else None
    if parent is None:
        parent = context.derived(
            envelope.pipeline, envelope.shard, envelope.id, envelope.start_time_ns
        )
    telling = _Telling(envelope, leader)
    telling.package(replace(parent, sampled=True))
    return telling.told


class _Telling:
    """One journey being told.

    Attributes:
        told: the spans up to now.
    """

    def __init__(self, envelope: pb.DataPackage, leader: str) -> None:
        self._envelope = envelope
        self._leader = leader
        self._errors = list(envelope.errors)
        self._taken: set[int] = set()  # numbers of errors that a span has
        self._left_out = 0
        self.told: list[SpanData] = []

    def _tell(self, span: SpanData) -> SpanData:
        if len(self.told) < SPANS_MAX:
            self.told.append(span)
        else:
            self._left_out += 1
        return span

    def package(self, parent: TraceContext) -> None:
        """The root, and all below it."""
        envelope = self._envelope
        own = context.package_span(parent, envelope.pipeline, envelope.shard, envelope.id)
        start_ns = _time(envelope.start_time_ns)
        root = self._tell(
            SpanData(
                f"process {envelope.pipeline}",
                Kind.CONSUMER,
                own,
                None if parent.span_id == own.span_id else parent.span_id,
                start_ns,
                _time(envelope.end_time_ns, start_ns),
                CONTROLLER,
                self._leader,
                _package_attributes(envelope),
            )
        )
        for record in envelope.controllers:
            self._controller(own, record)
        # What no module is to blame for: bytes that are no package, a result that fits nowhere.
        root.exceptions = self._not_taken("")
        if envelope.outcome == pb.STATUS_ERROR:
            root.failed = self._errors[-1].message if self._errors else ""
        if self._left_out:
            root.attributes["broker_pipeline.spans_left_out"] = self._left_out

    def _not_taken(self, path: str) -> list[pb.Error]:
        """The errors of that path that no span has yet; '': of any."""
        found = []
        for number, error in enumerate(self._errors, 1):
            if number not in self._taken and path in ("", error.path):
                self._taken.add(number)
                found.append(error)
        return found

    def _controller(self, package: TraceContext, record: pb.ControllerRecord) -> None:
        own = context.controller_span(package, record.name)
        start_ns = _time(record.start_time_ns)
        end_ns = _time(record.start_time_ns + record.total_time_ns, start_ns)
        status = status_of(record.status)
        self._tell(
            SpanData(
                f"controller {record.name}", Kind.INTERNAL, own, package.span_id,
                start_ns, end_ns, CONTROLLER, self._leader,
                {"broker_pipeline.controller": record.name,
                 "broker_pipeline.mode": _MODES.get(record.mode, ""),
                 "broker_pipeline.sequence": record.sequence,
                 "broker_pipeline.status": status.value},
                failed="" if status is Status.ERROR else None,
            )
        )  # fmt: skip
        if record.input_waiting_time_ns:
            self._wait(
                own, "wait in", start_ns, min(start_ns + record.input_waiting_time_ns, end_ns)
            )
        for phase in record.phases:
            self._phase(own, record.name, phase)
        if record.output_waiting_time_ns:
            self._wait(
                own, "wait out", max(start_ns, end_ns - record.output_waiting_time_ns), end_ns
            )

    def _wait(self, controller: TraceContext, name: str, start_ns: int, end_ns: int) -> None:
        own, above = controller.child(name), controller.span_id
        span = SpanData(name, Kind.INTERNAL, own, above, start_ns, end_ns, CONTROLLER, self._leader)
        self._tell(span)

    def _phase(self, controller: TraceContext, around: str, record: pb.PhaseRecord) -> None:
        start_ns = _time(record.start_time_ns)
        # Where nothing ran but what runs in servers, it was relayed: a bridge's work.
        relayed = bool(record.modules) and all(module.server for module in record.modules)
        status = status_of(record.status)
        span = self._tell(
            SpanData(
                f"phase {around}.{record.name}", Kind.CONSUMER,
                context.phase_span(controller, record.name), controller.span_id,
                start_ns, _time(record.start_time_ns + record.total_time_ns, start_ns),
                BRIDGE if relayed else WORKER, record.worker,
                {"messaging.system": "nats", "broker_pipeline.controller": around,
                 "broker_pipeline.phase": record.name, "broker_pipeline.status": status.value},
                failed="" if status is Status.ERROR else None,
            )
        )  # fmt: skip
        self._modules(span, record.modules, start_ns)
        if (
            status is Status.ERROR
        ):  # what no module could be run for, such as a payload that is gone
            span.exceptions = self._not_taken(f"{around}/{record.name}")

    def _modules(self, around: SpanData, records: Any, phase_ns: int) -> None:
        """Modules and all inside them; their offsets count from `phase_ns`."""
        if len(self.told) >= SPANS_MAX:
            self._left_out += len(records)
            return
        for position, record in enumerate(records):
            start_ns = _time(phase_ns + record.start_offset_ns, around.start_ns)
            status = status_of(record.status)
            span = self._tell(
                SpanData(
                    f"module {record.name}", Kind.CLIENT if record.server else Kind.INTERNAL,
                    context.module_span(around.context, position, record.name),
                    around.context.span_id, start_ns,
                    _time(start_ns + record.total_time_ns, start_ns), around.role, around.process,
                    {"broker_pipeline.module": record.name,
                     "broker_pipeline.status": status.value},
                )
            )  # fmt: skip
            if record.waiting_time_ns:
                span.attributes["broker_pipeline.waiting_time_s"] = record.waiting_time_ns / NS
            if record.message:
                span.attributes["broker_pipeline.message"] = record.message
            if 0 < record.error <= len(self._errors):
                self._taken.add(record.error)
                span.exceptions.append(self._errors[record.error - 1])
            if status is Status.ERROR:
                span.failed = span.exceptions[-1].message if span.exceptions else ""
            inside = self._tell(_server(span, record, phase_ns)) if record.server else span
            self._modules(inside, record.sub_modules, phase_ns)


def _package_attributes(envelope: pb.DataPackage) -> dict[str, Value]:
    """By OpenTelemetry's semantic conventions for messaging, where they have a name."""
    outcome = outcome_of(envelope.outcome)
    return {
        "messaging.system": "nats",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": stream_name(envelope.pipeline, envelope.shard),
        "messaging.message.id": f"{envelope.pipeline}/{envelope.shard}/{envelope.id}",
        "broker_pipeline.pipeline": envelope.pipeline,
        "broker_pipeline.shard": envelope.shard,
        "broker_pipeline.instance": envelope.instance,
        "broker_pipeline.epoch": envelope.epoch,
        "broker_pipeline.sequence": envelope.sequence,
        "broker_pipeline.content_type": envelope.content_type,
        "broker_pipeline.outcome": "" if outcome is None else outcome.value,
    }


def _server(caller: SpanData, record: pb.ModuleRecord, phase_ns: int) -> SpanData:
    """What a server did: as long as its own records say, or as its caller waited for it."""
    start_ns, end_ns = _time(caller.start_ns + record.waiting_time_ns, caller.start_ns), 0
    if record.sub_modules:
        first, last = record.sub_modules[0], record.sub_modules[-1]
        start_ns = _time(phase_ns + first.start_offset_ns, start_ns)
        end_ns = phase_ns + last.start_offset_ns + last.total_time_ns
    return SpanData(
        f"serve {record.name}", Kind.SERVER, context.server_span(caller.context),
        caller.context.span_id, start_ns, _time(end_ns or caller.end_ns, start_ns),
        SERVER, record.server, {"broker_pipeline.module": record.name}, failed=caller.failed,
    )  # fmt: skip


def _time(ns: int, least: int = 0) -> int:
    return max(least, min(ns, _TIME_MAX))
