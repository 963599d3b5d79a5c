"""Events and outcomes for recordings."""

from __future__ import annotations

from broker_pipeline import Controller, ExecutionModule, Outcome, Phase, Pipeline
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.core.names import Subjects
from broker_pipeline.core.plan import Plan, compile_plan
from broker_pipeline.debug.recordings.recorded import RecordedEvent, RecordedOutcome, RecordingMeta
from broker_pipeline.journey import NS, STATUS_TO_PB

META = RecordingMeta(pipeline="talk")
SUBJECTS = Subjects("talk")
BEGIN_NS = 1_700_000_000 * NS


def at(stream_seq: int) -> int:
    """When the message was stored."""
    return BEGIN_NS + stream_seq * 1_000_000


def plan_of(name: str) -> Plan:
    """A plan with one controller."""
    return compile_plan(Pipeline(name, [Controller("c", [Phase("p", [Pass()])])]))


class Pass(ExecutionModule[bytes]):
    """Does nothing."""

    def execute(self, package: object, run: object) -> None:
        """Nothing."""


def arrival(
    stream_seq: int,
    data: bytes = b"sound",
    token: str = "room",
    headers: dict[str, str] | None = None,
) -> RecordedEvent:
    """A package reaches the pipeline."""
    subject = SUBJECTS.arrival(token)
    return RecordedEvent(stream_seq, at(stream_seq), "in", token, subject, headers or {}, data)


def done(stream_seq: int, package_id: int, controller: str, token: str = "room") -> RecordedEvent:
    """It comes back to a controller."""
    return RecordedEvent(
        stream_seq,
        at(stream_seq),
        "done",
        token,
        SUBJECTS.completion(controller, token),
        package_id=package_id,
        controller=controller,
    )


def left(
    package_id: int,
    sequence: int,
    data: bytes = b"sound",
    *,
    token: str = "room",
    epoch: int = 1,
    outcome: Outcome = Outcome.SUCCESS,
    stream_seq: int,
) -> RecordedOutcome:
    """It leaves."""
    envelope = pb.DataPackage(
        id=package_id,
        pipeline="talk",
        instance=token,
        epoch=epoch,
        sequence=sequence,
        data=data,
        outcome=STATUS_TO_PB[outcome],
        start_time_ns=at(package_id),
        end_time_ns=at(stream_seq),
    )
    return RecordedOutcome(
        package_id, token, epoch, sequence, outcome, stream_seq, at(stream_seq),
        envelope.SerializeToString(),
    )  # fmt: skip
