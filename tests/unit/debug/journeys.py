"""A package with a long way behind it, made by hand."""

from __future__ import annotations

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.port import Message
from broker_pipeline.debug.inspection.history import Completion, PackageHistory, PhaseInput
from broker_pipeline.journey import MODE_TO_PB, NS, STATUS_TO_PB, Mode, Status

BEGIN_NS = 1_700_000_000 * NS
MS = 1_000_000


def at(ms: float) -> int:
    """So long after it arrived."""
    return BEGIN_NS + round(ms * MS)


def controller(
    envelope: pb.DataPackage, name: str, mode: Mode, start: float, status: Status = Status.SUCCESS
) -> pb.ControllerRecord:
    """It came into a controller."""
    return envelope.controllers.add(
        name=name, mode=MODE_TO_PB[mode], sequence=7, status=STATUS_TO_PB[status],
        start_time_ns=at(start),
    )  # fmt: skip


def phase(
    record: pb.ControllerRecord, name: str, worker: str, start: float, took: float, status: Status
) -> pb.PhaseRecord:
    """It was in a phase."""
    return record.phases.add(
        name=name, worker=worker, start_time_ns=at(start), total_time_ns=round(took * MS),
        status=STATUS_TO_PB[status],
    )  # fmt: skip


def module(
    record: pb.PhaseRecord, name: str, start: float, took: float, **fields: object
) -> pb.ModuleRecord:
    """A module ran."""
    fields.setdefault("status", STATUS_TO_PB[Status.SUCCESS])
    return record.modules.add(
        name=name, start_offset_ns=round(start * MS), total_time_ns=round(took * MS),
        **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def message(subject: str, stream_seq: int, ms: float, data: bytes = b"") -> Message:
    """In the log."""
    return Message(f"bp.talk.0.{subject}", data, {}, stream_seq, at(ms))


def failed() -> PackageHistory:
    """Through one controller, and an ERROR in the second phase of the next."""
    envelope = pb.DataPackage(
        id=17, pipeline="talk", instance="room", epoch=2, sequence=7, data=b"LOUDER",
        content_type="text/plain", start_time_ns=BEGIN_NS, end_time_ns=at(400),
        outcome=STATUS_TO_PB[Status.ERROR], attributes={"who": "me"},
    )  # fmt: skip
    first = controller(envelope, "hear", Mode.NOT_PARALLEL, 0)
    first.input_waiting_time_ns, first.output_waiting_time_ns = 20 * MS, 10 * MS
    first.total_time_ns = 80 * MS
    heard = phase(first, "split", "alpha-1", 20, 50, Status.SUCCESS)
    module(heard, "Split", 0, 50, message="two words\n\x1b[31mred")
    second = controller(envelope, "say", Mode.ORDER_BY_SEQUENCE, 80, Status.ERROR)
    second.input_waiting_time_ns, second.total_time_ns = 20 * MS, 320 * MS
    upper = phase(second, "upper", "beta-2", 100, 100, Status.SUCCESS)
    outer = module(upper, "Both", 0, 100)
    outer.sub_modules.add(
        name="Upper", status=STATUS_TO_PB[Status.SUCCESS], start_offset_ns=10 * MS,
        total_time_ns=90 * MS, waiting_time_ns=30 * MS, server="gpu-1",
    )  # fmt: skip
    broken = phase(second, "speak", "beta-2", 250, 150, Status.ERROR)
    envelope.errors.add(
        type="ValueError", message="cannot bear this one", host="beta", worker="beta-2",
        path="say/speak/Speak",
        traceback='Traceback (most recent call last):\n  File "speak.py", line 7, in execute\n'
        "ValueError: cannot bear this one\n",
    )  # fmt: skip
    module(broken, "Speak", 0, 150, status=STATUS_TO_PB[Status.ERROR], error=1)
    raw = pb.DataPackage(data=b"louder")
    text = pb.DataPackage(data=b"louder", content_type="text/plain")
    loud = pb.DataPackage(data=b"LOUDER", content_type="text/plain")
    return PackageHistory(
        "talk", 0, 17, "room", message("ctl.in.room", 17, 0, b"louder"), raw,
        (
            PhaseInput("hear", "split", message("work.hear.split.3.room", 20, 5), raw),
            PhaseInput("say", "upper", message("work.say.upper.room", 23, 90), text),
            PhaseInput("say", "speak", message("work.say.speak.room", 26, 200), loud, begun=3),
        ),
        (
            Completion("hear", message("ctl.done.hear.room", 22, 75), text),
            Completion("say", message("ctl.done.say.room", 29, 400), envelope),
        ),
        message("out.error.room", 30, 400), envelope, ("something is gone",),
    )  # fmt: skip


def inside() -> PackageHistory:
    """In the queue of the second controller's first phase."""
    whole = failed()
    envelope = pb.DataPackage()
    assert whole.outcome is not None
    envelope.CopyFrom(whole.outcome)
    envelope.ClearField("outcome")
    envelope.ClearField("end_time_ns")
    envelope.ClearField("errors")
    del envelope.controllers[1].phases[:]
    envelope.controllers[1].status = STATUS_TO_PB[Status.RUNNING]
    envelope.controllers[1].total_time_ns = envelope.controllers[1].input_waiting_time_ns = 0
    step = PhaseInput("say", "upper", whole.inputs[1].message, envelope)
    return PackageHistory(
        "talk", 0, 17, "room", whole.arrival, whole.arrived, (whole.inputs[0], step),
        whole.completions[:1],
    )  # fmt: skip
