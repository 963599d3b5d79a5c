"""External modules in a phase: what their servers get, and what is taken from their answers."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.errors import ModuleMismatchError, ModuleUnreachableError, SetupError
from broker_pipeline.journey import Status
from broker_pipeline.modules import (
    CombinationModule,
    ConditionModule,
    ExecutionModule,
)
from broker_pipeline.package import DataPackage
from broker_pipeline.runtime.execution import relaying
from broker_pipeline.runtime.execution.program import compile_phase
from tests.unit.execution.external import answers, asr, one, read
from tests.unit.fake_relay import Servers, said, upper

from .conftest import package, until


class Append(ExecutionModule[bytes]):
    """Appends its name, in this process."""

    def execute(self, package: Any, run: Any) -> None:
        package.data = package.data + self.name.encode()


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
