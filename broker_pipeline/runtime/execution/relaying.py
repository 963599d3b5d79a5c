"""An `ExternalModule` in a walk: what a module server is asked, and what is taken from its answer.

Nothing in an answer is trusted: times are put between the sending and the receiving, and texts,
errors and records are bounded, so that the package can be stored and read whatever a server says.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.errors import BrokerPipelineError, ModuleServerError, ModuleUnreachableError
from broker_pipeline.external.port import Answer, WithdrawnError
from broker_pipeline.journey import STATUS_TO_PB, Status
from broker_pipeline.modules import ExternalModule
from broker_pipeline.observe.context import TraceContext
from broker_pipeline.observe.error_detail import DETAILS_BYTES_MAX
from broker_pipeline.package import DataPackage
from broker_pipeline.pipeline import DEPTH_MAX
from broker_pipeline.runtime.execution.failure import (
    MESSAGE_BYTES_MAX,
    NAME_BYTES_MAX,
    TRACEBACK_BYTES_MAX,
    bounded,
)
from broker_pipeline.runtime.execution.program import Step

DEADLINE_LEAD_NS = 100_000_000
"""So much before the walk's own deadline a relay gives up, which can say why. A relay looks for
deadlines only now and then."""
DEADLINE_LEAD_SHARE = 10
"""Of short timeouts the lead is only this part."""
STAYS_S = 5.0
"""How long a worker that drains looks for room for a package that may not be given back: half of
what containers are given to end."""
STAYS_LOOK_S = 0.05
"""Between two looks: a relay that was withdrawn tells of no room."""
ERRORS_MAX = 8
"""Errors that are taken from one answer: a module of ours gives one."""
RECORDS_BYTES_MAX = 32 * 1024
"""What the records of one answer may take in the package: hundreds of modules."""
SUB_DEPTH_MAX = DEPTH_MAX
"""Levels of records that are taken, as many as a pipeline may have around the external module."""
LEFT_OUT = "[...]"
"""The name of the record that stands for what was left out."""

_STATUS = {STATUS_TO_PB[status]: status for status in (Status.SUCCESS, Status.EXIT, Status.ERROR)}


async def ask(
    step: Step,
    package: DataPackage[Any],
    state: bytes | None,
    deadline_ns: int | None,
    *,
    stays: bool = False,
    span: TraceContext | None = None,
) -> Answer:
    """Have a server run it. Raises what a relay does, and PayloadError.

    Args:
        stays: what has run before it must not run again: it is not taken back by a drain.
        span: of the module; None: it is not traced.
    """
    if step.remote is None:
        raise RuntimeError(
            f"external module {step.label!r} has no relay: nothing calls its servers"
        )
    package.encode()
    traceparent = "" if span is None else span.traceparent
    if deadline_ns is not None:
        left_ns = max(0, deadline_ns - time.monotonic_ns())
        deadline_ns -= min(DEADLINE_LEAD_NS, left_ns // DEADLINE_LEAD_SHARE)
    looks = round(STAYS_S / STAYS_LOOK_S) if stays else 0
    while True:
        try:
            answer: Answer = await step.remote(
                package.envelope, state=state, deadline_ns=deadline_ns, traceparent=traceparent
            )
        except BrokerPipelineError as error:  # its traceback shows our files, not at fault
            raise error.with_traceback(None) from None
        except WithdrawnError:
            if not stays:
                raise
            if not looks:
                raise _stranded(step) from None
            looks -= 1
            await asyncio.sleep(STAYS_LOOK_S)
        else:
            return answer


def may_repeat(step: Step) -> bool:
    """Whether its servers may run a package twice."""
    return isinstance(step.module, ExternalModule) and step.module.options.idempotent


def _stranded(step: Step) -> ModuleUnreachableError:
    return ModuleUnreachableError(
        f"no server of {step.label!r} had room while this worker drained, for {STAYS_S:g} s; a "
        f"module before it has run and may not run again, so the package is not given to another "
        f"worker: where it may, declare it with idempotent=True"
    )


def status_of(answer: Answer) -> Status:
    """How it ended there. Raises ModuleServerError where the answer does not tell that."""
    response = answer.response
    status = _STATUS.get(response.status)
    if status is None:
        raise _wrong(answer, f"answered with the status {response.status!r}; expected SUCCESS (4), "
                     f"EXIT (5) or ERROR (6)")  # fmt: skip
    if status is Status.ERROR and not response.errors:
        raise _wrong(answer, "answered ERROR and did not say why; expected at least one error")
    return status


def state_of(answer: Answer) -> bytes:
    """The state after the package, as only servers understand it. Raises ModuleServerError."""
    if not answer.response.HasField("state"):
        raise _wrong(answer, "answered without a state; expected the one after the package, which "
                     "a stateful module always has")  # fmt: skip
    return answer.response.state


def _wrong(answer: Answer, what: str) -> ModuleServerError:
    return ModuleServerError(
        f"module server {bounded(answer.server, NAME_BYTES_MAX)!r} {what}: mend the server",
        server=answer.server,
    )


def take_payload(answer: Answer, package: DataPackage[Any]) -> None:
    """What the server made of the package, as a whole; nothing where it changed nothing."""
    if not answer.response.HasField("payload"):
        return
    payload, envelope = answer.response.payload, package.envelope
    package.set_raw(payload.data, payload.content_type)
    if envelope.attributes or payload.attributes:
        envelope.attributes.clear()
        envelope.attributes.MergeFrom(payload.attributes)
    envelope.ClearField("reference")
    if payload.HasField("reference"):
        envelope.reference.CopyFrom(payload.reference)


def write(
    answer: Answer, step: Step, record: pb.ModuleRecord, envelope: pb.DataPackage, start_ns: int
) -> None:
    """Write an answer's journey into the module's record.

    Args:
        record: the module's own, in `envelope`.
        start_ns: when the phase began, on the clock of the answer.
    """
    response = answer.response
    entered_ns = record.start_offset_ns
    sent_ns = max(entered_ns, answer.sent_ns - start_ns)
    received_ns = max(sent_ns, answer.received_ns - start_ns)
    record.waiting_time_ns = sent_ns - entered_ns
    record.server = bounded(answer.server, NAME_BYTES_MAX)
    if response.message:
        record.message = bounded(response.message, MESSAGE_BYTES_MAX)
    before = len(envelope.errors)
    failed = response.status == STATUS_TO_PB[Status.ERROR]
    if failed:
        for error in response.errors[:ERRORS_MAX]:
            envelope.errors.append(_told(error, answer.server, step.label))
    taken = len(envelope.errors) - before
    placed = False
    if response.modules:
        total_ns = response.total_time_ns or _extent(response)
        transit_ns = max(0, received_ns - sent_ns - total_ns) // 2
        placing = _Placing(sent_ns, sent_ns + transit_ns, received_ns, before, taken)
        _take_records(response, record, placing)
        placed = placing.has_errors
    if taken and not placed:  # as in a module of ours, the innermost record tells it
        record.error = before + taken


def _told(error: pb.Error, server: str, label: str) -> pb.Error:
    path = f"{label}/{error.path}" if error.path else label
    return pb.Error(
        type=bounded(error.type, NAME_BYTES_MAX),
        message=bounded(error.message, MESSAGE_BYTES_MAX),
        traceback=bounded(error.traceback, TRACEBACK_BYTES_MAX, keep_end=True),
        host=bounded(error.host, NAME_BYTES_MAX),
        worker=bounded(server, NAME_BYTES_MAX),
        path=bounded(path, MESSAGE_BYTES_MAX),
        details=_details(error),
    )


def _details(error: pb.Error) -> dict[str, str]:
    """What a server has recorded; nothing of what is more than ours would."""
    taken = error.details if sum(map(len, error.details.values())) <= DETAILS_BYTES_MAX else {}
    if sum(map(len, taken)) > DETAILS_BYTES_MAX:
        return {}
    return dict(taken)


def _extent(response: service.RunResponse) -> int:
    """When the last record ends, for a server that does not tell how long it took."""
    return max(each.start_offset_ns + each.total_time_ns for each in response.modules)


def _take_records(
    response: service.RunResponse, record: pb.ModuleRecord, placing: _Placing
) -> None:
    size = 0
    for each in response.modules:
        size += each.ByteSize() + 2  # what it costs as a field, at least
        if size > RECORDS_BYTES_MAX:
            said = f"its {len(response.modules)} records take more than {RECORDS_BYTES_MAX} bytes"
            _note(record.sub_modules, response.status, said)
            return
    record.sub_modules.MergeFrom(response.modules)
    placing.place(record.sub_modules, 1)
    if placing.cut:
        said = f"its records are nested to more than {SUB_DEPTH_MAX} levels"
        _note(record.sub_modules, response.status, said)


def _note(records: Any, status: Any, said: str) -> None:
    records.add(name=LEFT_OUT, status=status, message=f"left out what the server told: {said}")


class _Placing:
    """Moves a server's records into the time and the errors of our package.

    Attributes:
        has_errors: whether one of them has an error that was taken.
        cut: whether there were more levels than are taken.
    """

    __slots__ = ("_before", "_first_ns", "_last_ns", "_shift_ns", "_taken", "cut", "has_errors")

    def __init__(self, first_ns: int, shift_ns: int, last_ns: int, before: int, taken: int) -> None:
        self._first_ns = first_ns
        self._shift_ns = shift_ns
        self._last_ns = last_ns
        self._before = before
        self._taken = taken
        self.has_errors = False
        self.cut = False

    def place(self, records: Any, level: int) -> None:
        """Move these and all inside them."""
        first_ns, last_ns = self._first_ns, self._last_ns
        for record in records:
            begin_ns = min(max(first_ns, record.start_offset_ns + self._shift_ns), last_ns)
            record.start_offset_ns = begin_ns
            if record.total_time_ns > last_ns - begin_ns:
                record.total_time_ns = last_ns - begin_ns
            if record.waiting_time_ns > record.total_time_ns:
                record.waiting_time_ns = record.total_time_ns
            if record.error:
                known = record.error <= self._taken
                record.error = self._before + record.error if known else 0
                self.has_errors = self.has_errors or known
            if record.sub_modules:
                if level < SUB_DEPTH_MAX:
                    self.place(record.sub_modules, level + 1)
                else:
                    record.ClearField("sub_modules")
                    self.cut = True
