"""What module servers tell of their part of a journey: put into our time, and bounded."""

from __future__ import annotations

import time
from typing import Any

import pytest

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.external.port import Answer
from broker_pipeline.journey import Status
from broker_pipeline.modules import (
    CombinationModule,
)
from broker_pipeline.package import DataPackage
from broker_pipeline.runtime.execution import relaying
from broker_pipeline.runtime.execution.failure import (
    MESSAGE_BYTES_MAX,
    NAME_BYTES_MAX,
    TRACEBACK_BYTES_MAX,
)
from tests.unit.execution.external import ERROR, SUCCESS, answers, asr, nested, one, read
from tests.unit.fake_relay import Servers, said

from .conftest import package


def failed(**more: Any) -> Any:
    error = pb.Error(
        type="ValueError", message="no speech", traceback="File x", host="gpu", worker="me",
        path="Recogniser",
    )  # fmt: skip
    return said("ERROR", data=b"half", errors=[error], **more)


async def test_an_error_there_looks_like_one_here(start: Any) -> None:
    """The payload as it was; the server's name as worker; the path begins with ours."""
    finished = await one(start, answers(failed(message="sorry")))
    assert (finished.status, finished.envelope.data, finished.states) == (
        Status.ERROR,
        b"raw",
        None,
    )
    error = DataPackage.wrap(finished.envelope).errors[0]
    assert (error.type, error.message, error.traceback) == ("ValueError", "no speech", "File x")
    assert (error.host, error.worker, error.path) == ("gpu", "gpu-1", "c/ph/asr/Recogniser")
    record = read(finished).modules[0]
    assert (record.status, record.error, record.message) == (Status.ERROR, error, "sorry")


async def test_an_error_of_an_inner_record_is_found_where_it_stands_now(start: Any) -> None:
    """Behind errors that the package had already; as here, the innermost record has it."""
    inner = pb.ModuleRecord(name="net", status=ERROR, error=1)
    outer = pb.ModuleRecord(name="Recogniser", status=ERROR, sub_modules=[inner])
    desk = await start(asr(), relays=Servers(answers(failed(modules=[outer]))))
    finished = (await desk.run(package(errors=[pb.Error(message="earlier")])))[0]
    record = read(finished).modules[0]
    assert record.error is None
    assert record.sub_modules[0].sub_modules[0].error.message == "no speech"


async def test_an_error_position_that_leads_nowhere_leads_nowhere(start: Any) -> None:
    """Also where an answer that went well brings errors along: those are no failures."""
    wild = pb.ModuleRecord(name="m", status=SUCCESS, error=4_000_000_000)
    finished = await one(start, answers(failed(modules=[wild])))
    record = read(finished).modules[0]
    assert record.error.message == "no speech"
    assert record.sub_modules[0].error is None
    well = said(modules=[pb.ModuleRecord(name="m", error=1)], errors=[pb.Error(message="?")])
    finished = await one(start, answers(well))
    assert not finished.envelope.errors
    assert read(finished).modules[0].sub_modules[0].error is None


class FixedTimes:
    """A relay whose answer was sent and received at times relative to now."""

    def __init__(self, response: Any, wait_ns: int, trip_ns: int) -> None:
        self.response, self.wait_ns, self.trip_ns = response, wait_ns, trip_ns

    def __call__(self, module: Any, grown: Any) -> Any:
        return self

    room = servers = 1

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def withdraw(self) -> None: ...

    async def call(
        self, package: Any, *, state: Any, deadline_ns: Any, traceparent: str = ""
    ) -> Answer:
        sent = time.monotonic_ns() + self.wait_ns
        return Answer(self.response, "gpu-1", sent, sent + self.trip_ns)


async def timed(start: Any, response: Any, wait_ns: int = 5_000_000_000) -> Any:
    desk = await start(asr(), relays=FixedTimes(response, wait_ns, 1_000))
    return read((await desk.run(package()))[0]).modules[0]


async def test_a_servers_journey_is_put_into_our_time(start: Any) -> None:
    """Half of what the round trip took beyond the run lies before it."""
    modules = [
        pb.ModuleRecord(name="a", start_offset_ns=10, total_time_ns=200, waiting_time_ns=3),
        pb.ModuleRecord(name="b", start_offset_ns=210, total_time_ns=390),
    ]
    record = await timed(start, said(modules=modules, total_time_ns=600))
    sent = record.start_offset_ns + record.waiting_time_ns
    assert 5_000_000_000 <= record.waiting_time_ns < 6_000_000_000
    assert [m.start_offset_ns - sent for m in record.sub_modules] == [210, 410]
    assert [(m.total_time_ns, m.waiting_time_ns) for m in record.sub_modules] == [
        (200, 3),
        (390, 0),
    ]


async def test_a_server_that_does_not_tell_its_time_is_taken_by_its_records(start: Any) -> None:
    """Where they end it ends."""
    modules = [pb.ModuleRecord(name="a", start_offset_ns=100, total_time_ns=300)]
    record = await timed(start, said(modules=modules))
    sent = record.start_offset_ns + record.waiting_time_ns
    assert record.sub_modules[0].start_offset_ns - sent == 100 + (1000 - 400) // 2


async def test_times_that_cannot_be_lie_within_the_call(start: Any) -> None:
    """However large the numbers: nothing begins before it was sent or ends after the answer."""
    huge = 2**64 - 1
    inner = pb.ModuleRecord(name="i", start_offset_ns=huge, total_time_ns=huge)
    modules = [
        pb.ModuleRecord(
            name="a", start_offset_ns=5, total_time_ns=huge, waiting_time_ns=huge,
            sub_modules=[inner],
        )
    ]  # fmt: skip
    record = await timed(start, said(modules=modules, total_time_ns=huge))
    sent = record.start_offset_ns + record.waiting_time_ns
    outer, (inner_read,) = record.sub_modules[0], record.sub_modules[0].sub_modules
    assert (outer.start_offset_ns - sent, outer.total_time_ns) == (5, 995)
    assert outer.waiting_time_ns <= outer.total_time_ns
    assert (inner_read.start_offset_ns - sent, inner_read.total_time_ns) == (1000, 0)


async def test_an_answer_sent_before_it_was_asked_waited_for_nothing(start: Any) -> None:
    """No time is ever negative."""
    modules = [pb.ModuleRecord(name="a")]
    record = await timed(start, said(modules=modules, total_time_ns=600), wait_ns=-10_000_000_000)
    assert record.waiting_time_ns == 0
    assert record.sub_modules[0].start_offset_ns >= record.start_offset_ns


def depth(record: Any) -> int:
    return 1 + max((depth(inner) for inner in record.sub_modules), default=0)


async def test_a_journey_that_is_too_deep_is_cut_and_the_package_can_be_read(start: Any) -> None:
    """Deeper than a pipeline may be; the note says so. What is not too deep is whole."""
    inner: Any = asr()
    for _ in range(31):
        inner = CombinationModule([inner])
    response = said(modules=[nested(relaying.SUB_DEPTH_MAX + 40)])
    finished = await one(start, answers(response), inner)
    raw = finished.envelope.SerializeToString()
    assert pb.DataPackage.FromString(raw) == finished.envelope
    record: Any = read(finished).modules[0]
    while record.name != "asr":
        record = record.sub_modules[0]
    assert depth(record.sub_modules[0]) == relaying.SUB_DEPTH_MAX
    assert record.sub_modules[1].name == relaying.LEFT_OUT
    assert "more than 32 levels" in record.sub_modules[1].message
    finished = await one(start, answers(said(modules=[nested(relaying.SUB_DEPTH_MAX)])))
    assert len(read(finished).modules[0].sub_modules) == 1


@pytest.mark.parametrize(
    "modules",
    [
        [pb.ModuleRecord(name="x" * relaying.RECORDS_BYTES_MAX)],
        [pb.ModuleRecord()] * relaying.RECORDS_BYTES_MAX,
        [pb.ModuleRecord(sub_modules=[pb.ModuleRecord()] * relaying.RECORDS_BYTES_MAX)],
    ],
    ids=["long", "many", "many inside"],
)
async def test_a_journey_that_is_too_large_is_left_out_and_said(start: Any, modules: Any) -> None:
    """The package itself is as the server left it."""
    finished = await one(start, answers(said(data=b"ok", modules=modules)))
    (note,) = read(finished).modules[0].sub_modules
    assert (finished.envelope.data, note.name) == (b"ok", relaying.LEFT_OUT)
    assert "take more than" in note.message


async def test_what_errors_say_has_bounds(start: Any) -> None:
    """Their number, and each text: a package carries them through the whole log."""
    long = "ä" * 100_000
    error = pb.Error(type=long, message=long, traceback=long + "end", host=long, path=long)
    finished = await one(start, answers(said("ERROR", errors=[error] * 100, message=long)))
    errors = finished.envelope.errors
    assert len(errors) == relaying.ERRORS_MAX
    assert len(errors[0].type.encode()) <= NAME_BYTES_MAX
    assert len(errors[0].host.encode()) <= NAME_BYTES_MAX
    assert len(errors[0].message.encode()) <= MESSAGE_BYTES_MAX
    assert len(errors[0].path.encode()) <= MESSAGE_BYTES_MAX
    assert len(errors[0].traceback.encode()) <= TRACEBACK_BYTES_MAX
    assert errors[0].traceback.endswith("end")
    assert len(read(finished).modules[0].message.encode()) <= MESSAGE_BYTES_MAX
