"""Packages that do not fit the broker's limit with what was added to them: they go on by reference,
and leave as ERROR where that does not help."""

from __future__ import annotations

import logging

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.large_payloads import LargePayloads, refer
from broker_pipeline.core.commands import Command, Dispatch
from broker_pipeline.core.names import Subjects, completion_id, emission_id
from broker_pipeline.errors import PayloadTooLargeError
from broker_pipeline.journey import STATUS_TO_PB, Outcome, Status
from broker_pipeline.observe.about import about

log = logging.getLogger(__name__)

HEADER_BYTES = 1024
"""What a message's headers may take of the broker's limit: its id, and the context of a trace."""
TEXT_KEPT = 400
"""Characters of each text that stay where a package must be cut to who it is."""
_ERROR = STATUS_TO_PB[Status.ERROR]


async def moved_out(payloads: LargePayloads, envelope: pb.DataPackage, bytes_max: int) -> bool:
    """Let a package go on by reference, if it fits without its payload; whether it does."""
    if envelope.ByteSize() - len(envelope.data) > bytes_max - HEADER_BYTES:
        return False
    try:
        refer(envelope, await payloads.put(envelope.data, f"{envelope.id}"))
    except PayloadTooLargeError as error:
        what = about(envelope)
        log.warning("package %d cannot go on by reference: %s", envelope.id, error, extra=what)
        return False
    return True


def instead(
    subjects: Subjects,
    stream: str,
    command: Command,
    envelope: pb.DataPackage,
    error: PayloadTooLargeError,
    bytes_max: int,
) -> tuple[str, bytes, str]:
    """What the leader publishes for a command that does not fit: `(subject, data, message id)`.

    A dispatch becomes the completion that a worker would have sent, an ERROR: the machine takes it
    from there. A package that leaves does so as ERROR, in the same place of the order.
    """
    text = f"{error}; its payload is in message {command.package.source} of stream {stream}"
    envelope.errors.add(type="PayloadTooLargeError", message=text)
    if isinstance(command, Dispatch):
        controller = envelope.controllers[-1].name
        subject = subjects.completion(controller, command.instance)
        msg_id = completion_id(command.package.id, controller)
    else:
        envelope.outcome = _ERROR
        subject = subjects.outcome(Outcome.ERROR, command.instance)
        msg_id = emission_id(command.package.id)
    return subject, shortened(envelope, bytes_max), msg_id


def shortened(envelope: pb.DataPackage, bytes_max: int) -> bytes:
    """An envelope without what makes it too large: what errors recorded besides, its payload, then
    what travels along, then what its modules said, and at last all but who it is and what it failed
    of."""
    room = bytes_max - HEADER_BYTES
    without_details(envelope)
    envelope.data = b""
    if envelope.ByteSize() > room:
        envelope.attributes.clear()
        envelope.content_type = ""
    if envelope.ByteSize() > room:
        envelope.DiscardUnknownFields()
        del envelope.errors[:-1]
        for record in envelope.controllers:
            for phase in record.phases:
                del phase.modules[:]
    if envelope.ByteSize() > room:  # a stranger's: no role of ours writes that much besides
        envelope.CopyFrom(_bare(envelope))
    return envelope.SerializeToString()


def without_details(envelope: pb.DataPackage) -> None:
    """An error is worth more than its details."""
    for error in envelope.errors:
        error.ClearField("details")


def _bare(envelope: pb.DataPackage) -> pb.DataPackage:
    bare = pb.DataPackage(
        id=envelope.id,
        pipeline=envelope.pipeline[:TEXT_KEPT],
        shard=envelope.shard,
        instance=envelope.instance[:TEXT_KEPT],
        epoch=envelope.epoch,
        sequence=envelope.sequence,
        outcome=envelope.outcome,
        start_time_ns=envelope.start_time_ns,
        end_time_ns=envelope.end_time_ns,
    )
    for record in envelope.controllers[-1:]:
        last = bare.controllers.add(
            name=record.name[:TEXT_KEPT],
            mode=record.mode,
            sequence=record.sequence,
            status=record.status,
            start_time_ns=record.start_time_ns,
            total_time_ns=record.total_time_ns,
        )
        for phase in record.phases[-1:]:
            last.phases.add(name=phase.name[:TEXT_KEPT], status=phase.status)
    for error in envelope.errors[-1:]:
        bare.errors.add(type=error.type[:TEXT_KEPT], message=error.message[:TEXT_KEPT])
    return bare
