"""What tests/golden/recording_v1.bprec holds. Written once, by this module; read for ever:

python -m tests.golden.recordings
"""

from __future__ import annotations

from pathlib import Path

from broker_pipeline import Outcome
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.debug.recordings.recorded import RecordedEvent, RecordedOutcome, RecordingMeta
from broker_pipeline.journey import STATUS_TO_PB

FILE = Path(__file__).parent / "recording_v1.bprec"
PLAN = (
    '{"pipeline":"talk","controllers":[{"name":"c","mode":"NO_ORDER","phases":[{"name":"p",'
    '"modules":[{"name":"Pass","kind":"execution"}],"ack_wait_s":30.0,"max_deliver":5}]}],'
    '"instance_idle_ns":300000000000,"producer_gap_ns":2000000000,"version":1}'
)
META = RecordingMeta(
    pipeline="talk",
    shard=0,
    plan=PLAN,
    target="app:pipeline",
    selection="everything",
    recorded_at_ns=1_700_000_000_000_000_000,
    version="0.1.0",
    first_seq=2,
    last_seq=20,
    notes=("1 payloads were objects and are gone",),
)
TEXT = b"the same again and again, " * 20
NOISE = bytes((7 * n * n + 13 * n) % 251 for n in range(60))
PACKAGE_TYPE = "application/vnd.broker-pipeline.package.v1+protobuf"


def _package(data: bytes, **fields: object) -> bytes:
    return pb.DataPackage(data=data, **fields).SerializeToString()  # type: ignore[arg-type]


def _arrival(
    seq: int, data: bytes, token: str = "room", subject: str = "", gone: str = "", **headers: str
) -> RecordedEvent:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return RecordedEvent(
        seq, seq * 1_000_000, "in", token, subject or f"bp.talk.0.ctl.in.{token}", named, data,
        gone=gone,
    )  # fmt: skip


def _done(seq: int, package_id: int) -> RecordedEvent:
    return RecordedEvent(
        seq, seq * 1_000_000, "done", "room", "bp.talk.0.ctl.done.c.room", package_id=package_id,
        controller="c",
    )  # fmt: skip


EVENTS = [
    RecordedEvent(2, 2_000_000, "open", "room", "bp.talk.0.ctl.in.room", {"Bp-Control": "open"}),
    _arrival(3, TEXT),
    _arrival(4, NOISE, Content_Type="text/plain", Bp_Producer="p", Bp_Number="1"),
    _arrival(5, _package(TEXT, attributes={"a": "1"}), Content_Type=PACKAGE_TYPE),
    _arrival(6, b"\xff\xff no package", Content_Type=PACKAGE_TYPE),
    _arrival(7, b"", "=FF", "bp.talk.0.ctl.in.\udcff"),
    _arrival(
        8,
        _package(b"", reference=pb.PayloadReference(bucket="bp_payloads_talk", object="x", size=9)),
        gone="BP403 it is not there any more",
        Content_Type=PACKAGE_TYPE,
    ),
    _done(9, 3),
    RecordedEvent(10, 10_000_000, "tick", subject="bp.talk.0.ctl.tick"),
    RecordedEvent(11, 11_000_000, "plan", subject="bp.talk.0.ctl.plan", data=PLAN.encode()),
    _done(12, 4),
    RecordedEvent(
        13, 13_000_000, "close", "room", "bp.talk.0.ctl.in.room", {"Bp-Control": "close"}
    ),
]


def _left(
    seq: int, package_id: int, sequence: int, outcome: Outcome, data: bytes
) -> RecordedOutcome:
    packed = _package(
        data,
        id=package_id,
        pipeline="talk",
        instance="room",
        epoch=2,
        sequence=sequence,
        outcome=STATUS_TO_PB[outcome],
        start_time_ns=package_id * 1_000_000,
        end_time_ns=seq * 1_000_000,
    )
    return RecordedOutcome(package_id, "room", 2, sequence, outcome, seq, seq * 1_000_000, packed)


OUTCOMES = [
    _left(14, 3, 1, Outcome.SUCCESS, TEXT.upper()),
    _left(15, 4, 2, Outcome.EXIT, NOISE),
    _left(16, 5, 3, Outcome.ERROR, TEXT),
    _left(17, 6, 4, Outcome.OVERFLOW, b""),
    _left(18, 8, 5, Outcome.OUTDATED, b"x"),
]


def main() -> None:
    """Write the file. It must not be there yet: what it is must not change."""
    from broker_pipeline.debug.recordings.recording import Recording

    with Recording.create(FILE, META) as recording:
        for event in EVENTS:
            recording.add_event(event)
        for outcome in OUTCOMES:
            recording.add_outcome(outcome)


if __name__ == "__main__":
    main()
