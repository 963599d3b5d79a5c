"""Envelopes of the log: what a message says to the machine, and the bytes of what it decides."""

from __future__ import annotations

from collections.abc import Mapping

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.core.commands import Command, Dispatch, Entered, Stamp
from broker_pipeline.core.events import (
    Arrived,
    Closed,
    Completed,
    Deployed,
    Event,
    Opened,
    Ticked,
)
from broker_pipeline.core.names import (
    CONTROL_CLOSE,
    CONTROL_OPEN,
    HEADER_CONTENT_TYPE,
    HEADER_CONTROL,
    HEADER_NUMBER,
    HEADER_PRODUCER,
    INSTANCE_BYTES_MAX,
    TICK_PAUSE,
    TICK_RESUME,
    Subjects,
    canonical_token,
    dispatch_id,
    emission_id,
    readable_instance,
    shortened_token,
)
from broker_pipeline.core.plan import VERSION_MAX, Plan
from broker_pipeline.errors import MalformedPackageError, NewerVersionError, PlanError
from broker_pipeline.journey import MODE_TO_PB, STATUS_TO_PB, Mode, Outcome, Status, outcome_of
from broker_pipeline.package import CONTENT_TYPE, parse_envelope

_PAUSED = {TICK_PAUSE: True, TICK_RESUME: False}
_NOT_PARALLEL = MODE_TO_PB[Mode.NOT_PARALLEL]
_RUNNING = STATUS_TO_PB[Status.RUNNING]
_ERROR = STATUS_TO_PB[Status.ERROR]
_TOO_LONG = f"the name of an instance has more than {INSTANCE_BYTES_MAX} bytes"
_COMPLETIONS = (Outcome.SUCCESS, Outcome.EXIT, Outcome.ERROR, Outcome.OUTDATED)
PRODUCER_CHARS_MAX = 128
"""A producer's name is kept while its instance lives; a longer one counts as none."""
_PRODUCERS_OWN = ("data", "content_type", "attributes", "reference")
_JOURNEY = tuple(
    name for name in pb.DataPackage.DESCRIPTOR.fields_by_name if name not in _PRODUCERS_OWN
)


class Ignored(Exception):
    """A message under `ctl.` that no role of ours writes; its text says why. It changes nothing."""


def read_event(
    subjects: Subjects,
    subject: str,
    headers: Mapping[str, str],
    data: bytes,
    stream_seq: int,
    time: int,
) -> tuple[Event, pb.DataPackage | None]:
    """What a message of the log is, and the envelope in it (None where there is none).

    Never fails on what a producer wrote: bytes that claim to be a package and are not become an
    arrival that says so.

    Raises:
        Ignored: nobody of ours wrote it.
        NewerVersionError: a plan that this program cannot follow; whoever goes on without it would
            decide otherwise than those that know it.
    """
    if subject.startswith(subjects.ctl_in):
        return _arrival(subject[len(subjects.ctl_in) :], headers, data, stream_seq, time)
    if subject.startswith(subjects.ctl_done):
        return _completion(subject[len(subjects.ctl_done) :], data, stream_seq, time)
    if subject == subjects.tick:
        return Ticked(stream_seq, time, _PAUSED.get(data)), None
    if subject == subjects.plan:
        return Deployed(stream_seq, time, _plan(subjects, data, stream_seq)), None
    raise Ignored(f"subject {subject!r} is none that the design knows")


def _plan(subjects: Subjects, data: bytes, stream_seq: int) -> Plan:
    newer: NewerVersionError | None = None
    try:
        plan = Plan.from_bytes(data)
        pipeline = plan.pipeline
    except PlanError as error:
        raise Ignored(str(error)) from error
    except NewerVersionError as error:
        newer, pipeline = error, error.pipeline
    if pipeline != subjects.pipeline:
        raise Ignored(f"a plan of pipeline {pipeline!r} was sent to another's log")
    if newer is not None:
        raise NewerVersionError(
            f"message {stream_seq} of the log of {pipeline!r} is a plan of version "
            f"{newer.version}; this program knows versions up to {VERSION_MAX} and cannot decide "
            f"what comes after it: run controllers of the version that deployed it, or delete that "
            f"message if nobody has",
            pipeline=pipeline,
            version=newer.version,
        )
    return plan


def _arrival(
    written: str, headers: Mapping[str, str], data: bytes, stream_seq: int, time: int
) -> tuple[Event, pb.DataPackage | None]:
    if not written:
        raise Ignored("an arrival names no instance")
    named = canonical_token(written)
    token = shortened_token(named)
    if token != named:  # it cannot be refused any more: it leaves as ERROR, under what fits
        if HEADER_CONTROL in headers:
            raise Ignored(f"{_TOO_LONG}: {token!r}...")
        malformed = str(MalformedPackageError(f"{_TOO_LONG}: {token!r}..."))
        return Arrived(stream_seq, time, token, malformed=malformed), pb.DataPackage(data=data)
    if not headers:
        return Arrived(stream_seq, time, token), pb.DataPackage(data=data)
    control = headers.get(HEADER_CONTROL)
    if control == CONTROL_OPEN:
        return Opened(stream_seq, time, token), None
    if control == CONTROL_CLOSE:
        return Closed(stream_seq, time, token), None
    envelope, malformed = _producers_envelope(_text(headers.get(HEADER_CONTENT_TYPE, "")), data)
    if control is not None:  # of a newer client, or nobody's: as a package it would be misread
        known = f"expected {CONTROL_OPEN!r} or {CONTROL_CLOSE!r}"
        malformed = f"the control {_text(control)[:40]!r} is none that this program knows; {known}"
        malformed = str(MalformedPackageError(malformed))
    producer = _text(headers.get(HEADER_PRODUCER, ""))
    digits = headers.get(HEADER_NUMBER, "")
    # A number that is none counts as no number: the package is taken in arrival order.
    number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 19 else 0
    if not number or len(producer) > PRODUCER_CHARS_MAX:
        producer, number = "", 0
    return Arrived(stream_seq, time, token, producer, number, malformed), envelope


def _text(header: str) -> str:
    """A header as protobuf and MessagePack can carry it: without lone surrogates."""
    return header if header.isascii() else header.encode("utf-8", "replace").decode()


def _producers_envelope(content_type: str, data: bytes) -> tuple[pb.DataPackage, str]:
    """The package as its producer means it: payload, attributes and what a newer version of it
    may say besides; no journey."""
    if content_type != CONTENT_TYPE:
        return pb.DataPackage(data=data, content_type=content_type), ""
    try:
        sent = parse_envelope(data)
    except MalformedPackageError as error:
        return pb.DataPackage(data=data), str(error)
    for field in _JOURNEY:
        sent.ClearField(field)
    return sent, ""


def _completion(
    rest: str, data: bytes, stream_seq: int, time: int
) -> tuple[Completed, pb.DataPackage]:
    controller, _, token = rest.partition(".")
    try:
        envelope = parse_envelope(data)
    except MalformedPackageError as error:
        raise Ignored(
            f"a completion of controller {controller!r} is unreadable: {error}"
        ) from error
    if not envelope.controllers or envelope.controllers[-1].name != controller:
        raise Ignored(f"a completion of controller {controller!r} has no record of it")
    record = envelope.controllers[-1]
    status = record.phases[-1].status if record.phases else _ERROR
    outcome = outcome_of(status)
    if outcome not in _COMPLETIONS:
        # Nobody sends another one: ignored, the package would be in flight for ever.
        outcome = Outcome.ERROR
        record.phases[-1].status = _ERROR
        unknown = MalformedPackageError(
            f"phase {record.phases[-1].name!r} of controller {controller!r} gave the package back "
            f"with status {status}, which is none that a phase ends with; expected one of "
            f"{', '.join(_COMPLETIONS)}: run workers of this version"
        )
        envelope.errors.add(type="MalformedPackageError", message=str(unknown))
    return Completed(
        stream_seq,
        time,
        token,
        envelope.epoch,
        envelope.id,
        controller,
        record.sequence,
        outcome,
        len(record.phases),
        envelope.start_time_ns,
        tuple([phase.state_stream_seq for phase in record.phases])
        if record.mode == _NOT_PARALLEL
        else (),
    ), envelope


def message_of(plan: Plan, subjects: Subjects, command: Command) -> tuple[str, str]:
    """The subject and the message id of a command: equal commands give equal ids."""
    if isinstance(command, Dispatch):
        rules = plan.controllers[command.controller]
        phase = rules.phases[0]
        return (
            subjects.queue(rules.name, phase.name, command.instance, phase.lanes),
            dispatch_id(command.package.id, rules.name, phase.name),
        )
    return subjects.outcome(command.outcome, command.instance), emission_id(command.package.id)


def write(plan: Plan, shard: int, command: Command, source: pb.DataPackage) -> bytes:
    """The bytes of a command.

    Args:
        source: the envelope in the message that the command names as its source; it is changed.
    """
    package = command.package
    if package.source == package.id:  # straight from a producer: it gets its address
        source.id = package.id
        source.pipeline = plan.pipeline
        source.shard = shard
        source.instance = readable_instance(command.instance)
        source.epoch = command.epoch
        source.sequence = package.sequence
        source.start_time_ns = package.arrived
    for stamp in command.stamps:
        _stamp(plan, source, stamp)
    if not isinstance(command, Dispatch):
        source.outcome = STATUS_TO_PB[command.outcome]
        source.end_time_ns = command.time
        if command.malformed:
            source.errors.add(type="MalformedPackageError", message=command.malformed)
    return source.SerializeToString()


def _stamp(plan: Plan, envelope: pb.DataPackage, stamp: Stamp) -> None:
    rules = plan.controllers[stamp.controller]
    if isinstance(stamp, Entered):
        envelope.controllers.add(
            name=rules.name,
            mode=MODE_TO_PB[rules.mode],
            sequence=stamp.sequence,
            status=_RUNNING,
            start_time_ns=stamp.time,
            previous_sequences=stamp.previous,
        )
        return
    record = envelope.controllers[-1]
    begun = record.start_time_ns
    record.status = STATUS_TO_PB[stamp.outcome]
    record.total_time_ns = max(0, stamp.time - begun)
    if not record.phases:
        record.input_waiting_time_ns = record.total_time_ns
        return
    # Workers' clocks against the log's: a difference may show, and is never negative.
    last = record.phases[-1]
    record.input_waiting_time_ns = max(0, record.phases[0].start_time_ns - begun)
    record.output_waiting_time_ns = max(0, stamp.time - last.start_time_ns - last.total_time_ns)
