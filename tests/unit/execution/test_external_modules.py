"""External modules in a phase: what their servers get, and what is taken from their answers."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.errors import ModuleMismatchError, ModuleUnreachableError, SetupError
from broker_pipeline.external.port import Answer
from broker_pipeline.journey import STATUS_TO_PB, Status
from broker_pipeline.modules import (
    CombinationModule,
    ConditionModule,
    ExecutionModule,
    ExternalModule,
    ExternalOptions,
)
from broker_pipeline.package import DataPackage
from broker_pipeline.runtime.execution import relaying
from broker_pipeline.runtime.execution.failure import (
    MESSAGE_BYTES_MAX,
    NAME_BYTES_MAX,
    TRACEBACK_BYTES_MAX,
)
from broker_pipeline.runtime.execution.program import compile_phase
from tests.unit.fake_relay import Servers, said, upper

from .conftest import package, until

SUCCESS, ERROR = STATUS_TO_PB["SUCCESS"], STATUS_TO_PB["ERROR"]


class Append(ExecutionModule[bytes]):
    """Appends its name, in this process."""

    def execute(self, package: Any, run: Any) -> None:
        package.data = package.data + self.name.encode()


def asr(**more: Any) -> ExternalModule:
    options = more.pop("options", None) or ExternalOptions(**more.pop("call", {}))
    return ExternalModule("asr", target="registry:///asr", options=options, **more)


def answers(*responses: Any) -> Any:
    """One after the other."""
    left = list(responses)
    return lambda package, state: left.pop(0)


def read(finished: Any) -> Any:
    return DataPackage.wrap(finished.envelope).controllers[-1].phases[-1]


async def one(start: Any, behave: Any, module: Any = None, **options: Any) -> Any:
    """Run one package; what came back."""
    desk = await start(module or asr(), relays=Servers(behave), **options)
    return (await desk.run(package(b"raw")))[0]


async def test_an_answer_is_taken_as_a_whole(start: Any) -> None:
    """Data, content type and all attributes; what the server said is the record's message."""
    response = said(data=b"text", message="heard")
    response.payload.content_type = "text/plain"
    response.payload.attributes["new"] = "1"
    given = package(b"raw", content_type="audio/pcm", attributes={"old": "0"})
    desk = await start(asr(), relays=Servers(answers(response)))
    finished = (await desk.run(given))[0]
    envelope = finished.envelope
    assert finished.status is Status.SUCCESS
    assert (envelope.data, envelope.content_type) == (b"text", "text/plain")
    assert dict(envelope.attributes) == {"new": "1"}
    record = read(finished).modules[0]
    assert (record.name, record.status, record.message) == ("asr", Status.SUCCESS, "heard")
    assert not envelope.errors


async def test_an_answer_without_a_payload_changes_nothing(start: Any) -> None:
    """Absent is unchanged; an empty payload is an empty one."""
    servers = Servers(answers(said(), said(data=b"")))
    desk = await start(asr(), relays=servers)
    same, empty = await desk.run(package(b"raw", attributes={"a": "1"}), package(b"raw", 2))
    assert (same.envelope.data, dict(same.envelope.attributes)) == (b"raw", {"a": "1"})
    assert empty.envelope.data == b""


async def test_a_payload_by_reference_stays_one(start: Any) -> None:
    """What a server has put beside the log is carried on, and data takes its place again."""
    response = said(data=b"")
    response.payload.reference.object = "o1"
    finished = await one(start, answers(response))
    assert (finished.envelope.reference.object, finished.envelope.data) == ("o1", b"")
    given = package(b"", reference=pb.PayloadReference(object="o2", size=9))
    desk = await start(asr(), relays=Servers(answers(said(data=b"small"))))
    back = (await desk.run(given))[0].envelope
    assert back.data == b"small"
    assert not back.HasField("reference")


async def test_a_server_gets_the_package_as_it_stands(start: Any) -> None:
    """With what the modules before it have made of it, and its journey up to this phase."""
    got: list[pb.DataPackage] = []

    def keep(given: pb.DataPackage, state: bytes | None) -> Any:
        got.append(pb.DataPackage.FromString(given.SerializeToString()))
        return upper(given, state)

    desk = await start(Append(name="-x"), asr(), Append(name="-y"), relays=Servers(keep))
    finished = (await desk.run(package(b"raw")))[0]
    assert (got[0].data, got[0].id, got[0].controllers[-1].name) == (b"raw-x", 1, "c")
    assert finished.envelope.data == b"RAW-X-y"


async def test_an_exit_ends_the_phase_with_its_reason(start: Any) -> None:
    """As a module of ours: what it did to the payload is kept, nothing after it runs."""
    desk = await start(
        asr(), Append(name="never"), relays=Servers(answers(said("EXIT", data=b"x", message="no")))
    )
    finished = (await desk.run(package()))[0]
    assert (finished.status, finished.envelope.data) == (Status.EXIT, b"x")
    assert [m.message for m in read(finished).modules] == ["no"]
    assert DataPackage.wrap(finished.envelope).reason == "no"


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


def nested(levels: int) -> pb.ModuleRecord:
    record = pb.ModuleRecord(name="deepest")
    for _ in range(levels - 1):
        record = pb.ModuleRecord(name="m", sub_modules=[record])
    return record


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


@pytest.mark.parametrize("status", ["WAITING", "RUNNING", "OVERFLOW"])
async def test_an_answer_that_does_not_tell_how_it_ended_is_an_error(
    start: Any, status: str
) -> None:
    """BP510, with the server's name; nothing of it is taken."""
    finished = await one(start, answers(said(status, data=b"lie")))
    assert (finished.status, finished.envelope.data) == (Status.ERROR, b"raw")
    error = finished.envelope.errors[0]
    assert error.type == "ModuleServerError"
    assert "'gpu-1'" in error.message
    assert (error.worker, error.path) == ("w", "c/ph/asr")


async def test_an_error_without_errors_says_so(start: Any) -> None:
    """There is always something to read."""
    finished = await one(start, answers(said("ERROR")))
    assert "did not say why" in finished.envelope.errors[0].message


async def test_what_a_relay_raises_is_the_packages_error(start: Any) -> None:
    """Without a traceback: it would show our files, which are not at fault."""

    def raise_(package: Any, state: Any) -> Any:
        raise ModuleUnreachableError("nobody is there; start a server")

    finished = await one(start, raise_)
    error = finished.envelope.errors[0]
    assert (finished.status, error.type) == (Status.ERROR, "ModuleUnreachableError")
    assert "BP511 nobody is there" in error.message
    assert "File" not in error.traceback
    assert read(finished).modules[0].status is Status.ERROR


async def test_a_state_travels_and_is_kept_as_it_came(start: Any) -> None:
    """None at the beginning; what the server returned, with EXIT too."""
    servers = Servers(answers(said(state=b"\x00one"), said("EXIT", state=b"")))
    desk = await start(asr(stateful=True), relays=servers)
    first = (await desk.run(package(b"1")))[0]
    assert first.states == {"0": b"\x00one"}
    second = (await desk.run(package(b"2", 2), states=first.states))[1]
    assert (second.status, second.states) == (Status.EXIT, {"0": b""})
    assert [(data, state) for data, state, _ in servers.seen] == [(b"1", None), (b"2", b"\x00one")]


async def test_an_answer_without_a_state_is_that_packages_error(start: Any) -> None:
    """Where the module has one."""
    finished = await one(start, answers(said(data=b"x")), asr(stateful=True))
    assert (finished.status, finished.states, finished.envelope.data) == (
        Status.ERROR,
        None,
        b"raw",
    )
    assert "without a state" in finished.envelope.errors[0].message


async def test_a_relay_is_given_a_little_less_time_than_there_is(start: Any) -> None:
    """It can say why it was in vain; without a timeout it has all the time."""
    servers = Servers()
    desk = await start(asr(call={"timeout_s": 10.0}), asr(), relays=servers)
    before = time.monotonic_ns()
    await desk.run(package())
    (_, _, deadline), (_, _, none) = servers.seen
    assert none is None
    lead = before + 10_000_000_000 - (deadline or 0)
    assert -1_000_000_000 < lead <= relaying.DEADLINE_LEAD_NS
    short = Servers()
    desk = await start(asr(call={"timeout_s": 0.1}), relays=short)
    await desk.run(package())
    assert (short.seen[0][2] or 0) > before + 80_000_000


async def test_a_relay_that_does_not_keep_time_is_cancelled(start: Any) -> None:
    """The walk's own timeout is the backstop, and the slot is free again."""
    servers = Servers(room=1, answering=False)
    desk = await start(asr(call={"timeout_s": 0.05}), relays=servers, slots=1)
    finished = (await desk.run(package()))[0]
    assert finished.envelope.errors[0].type == "ModuleTimeoutError"
    await until(lambda: servers.relays[0].room == 1)
    servers.change(answering=True)
    assert (await desk.run(package(b"b", 2)))[1].envelope.data == b"B"
    assert desk.executor.lost_slots == 0


async def test_a_mutex_lets_one_package_out_at_a_time(start: Any) -> None:
    """In this process; its wait is waiting time."""
    servers = Servers(answering=False)
    desk = await start(asr(call={"use_mutex": True}), relays=servers, slots=4)
    desk.submit(*(package(b"%d" % n, n) for n in range(3)))
    await until(lambda: len(servers.seen) == 1)
    assert servers.relays[0].room == 99
    servers.change(answering=True)
    finished = await desk.until(3)
    waits = sorted(read(each).modules[0].waiting_time_ns for each in finished)
    assert waits[0] < waits[1] < waits[2]


async def test_an_external_phase_runs_on_the_loop_of_its_worker(start: Any) -> None:
    """No hop between threads for any package, combinations included."""
    threads: set[int] = set()

    def look(given: Any, state: Any) -> Any:
        threads.add(threading.get_ident())
        return upper(given, state)

    desk = await start(CombinationModule([asr(), asr()]), asr(), relays=Servers(look), slots=8)
    before = threading.active_count()
    finished = await desk.run(*(package(b"x", n) for n in range(50)))
    assert {each.envelope.data for each in finished} == {b"X"}
    assert threads == {threading.get_ident()}
    assert threading.active_count() == before


async def test_nested_in_other_modules_it_is_called_the_same_way(start: Any) -> None:
    """From the module loop, on the worker's: beside sync modules, in a condition."""
    choice: ConditionModule[bytes] = ConditionModule(
        CombinationModule([asr(), Append(name="-y")]), condition=lambda p: p.data == b"a"
    )
    desk = await start(choice, relays=Servers(), slots=4)
    finished = await desk.run(package(b"a"), package(b"b", 2))
    assert {each.envelope.data for each in finished} == {b"A-y", b"b"}


@pytest.mark.parametrize("inside", [False, True], ids=["bridged", "nested"])
async def test_a_recall_brings_back_what_no_server_has(start: Any, inside: bool) -> None:
    """As WAITING, not as a failure; what a server has goes on, and nothing is lost."""
    servers = Servers(room=1, answering=False)
    modules = [Append(name="-y"), asr()] if inside else [asr()]
    desk = await start(*modules, relays=servers, slots=3)
    desk.submit(*(package(b"%d" % n, n) for n in range(3)))
    await until(lambda: sum(each.inside for each in desk.executor._relays._all) == 3)
    desk.executor.recall()
    back = await desk.until(2)
    assert [each.status for each in back] == [Status.WAITING] * 2
    assert [each.begun for each in back] == [inside] * 2  # the module of ours has run
    assert not any(each.envelope.errors for each in back)
    servers.change(answering=True)
    assert (await desk.until(3))[2].status is Status.SUCCESS
    assert desk.executor.idle


async def test_an_external_phase_wants_what_its_servers_have_room_for(start: Any) -> None:
    """No more than the slots either; nothing while nobody is there."""
    servers = Servers(room=5, answering=False)
    desk = await start(asr(), relays=servers, slots=8)
    assert desk.executor.wanted() == 5
    desk.submit(package(b"1"), package(b"2", 2))
    assert desk.executor.wanted() == 3
    await until(lambda: len(servers.seen) == 2)
    assert desk.executor.wanted() == 3
    servers.change(room=100)
    assert desk.executor.wanted() == 6
    servers.change(room=0)
    assert desk.executor.wanted() == 0
    servers.change(room=100, answering=True)
    await desk.until(2)
    assert desk.executor.wanted() == 8


async def test_one_full_module_of_several_holds_the_phase(start: Any) -> None:
    """What came would only wait here behind the others."""
    first, second = Servers(room=5), Servers(room=1, answering=False)
    made: list[Servers] = [first, second]

    def factory(module: Any, grown: Any) -> Any:
        return made[len(first.relays) + len(second.relays)](module, grown)

    desk = await start(asr(), asr(), relays=factory, slots=8)
    assert desk.executor.wanted() == 5
    desk.submit(package())
    await until(lambda: len(second.seen) == 1)
    assert desk.executor.wanted() == 0
    second.change(answering=True)
    await desk.until(1)
    assert desk.executor.wanted() == 5


async def test_relays_start_with_the_phase_and_close_with_it(start: Any) -> None:
    """One for each module object."""
    shared = asr()
    servers = Servers()
    desk = await start(CombinationModule([shared, shared]), asr(), relays=servers)
    assert len(servers.relays) == 2
    await desk.executor.close()
    assert all(relay.closed for relay in servers.relays)


async def test_a_relay_that_will_never_work_stops_the_start(start: Any) -> None:
    """Its error as it is; it is closed, as are those that were started."""
    servers = Servers()
    servers.mismatch = ModuleMismatchError("it serves another module")
    with pytest.raises(ModuleMismatchError):
        await start(asr(), relays=servers)
    assert [relay.closed for relay in servers.relays] == [True]


async def test_an_external_module_without_anything_that_calls_it_is_refused(start: Any) -> None:
    """Before any package is taken."""
    with pytest.raises(SetupError, match="runs in module servers"):
        await start(Append(), asr())


async def test_which_servers_went_and_came_is_said_once(start: Any, caplog: Any) -> None:
    """When it begins and when it ends."""
    servers = Servers(room=0)
    desk = await start(asr(), relays=servers)
    for _ in range(3):
        desk.executor.look()
    assert [r.message for r in caplog.records] == [
        "no server of registry:///asr is there; packages wait, for c/ph/asr"
    ]
    servers.change(room=1)
    for _ in range(3):
        desk.executor.look()
    assert [r.message for r in caplog.records][1:] == [
        "servers of registry:///asr are there again, for c/ph/asr"
    ]


def test_a_walk_outside_of_a_worker_says_that_it_has_no_relay() -> None:
    """Rather than to fail in a way that nobody understands."""
    from broker_pipeline.pipeline import Phase
    from broker_pipeline.runtime.execution.inline import run_inline

    envelope, status, _ = run_inline(compile_phase("c", Phase("ph", [asr()])), package())
    assert status is Status.ERROR
    assert "has no relay" in envelope.errors[0].message
