"""An external phase on the broker in memory: what it takes, gives back, and keeps in order."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from broker_pipeline import (
    Controller,
    ExternalModule,
    ExternalOptions,
    Mode,
    Outcome,
    Phase,
    Pipeline,
)
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.memory import MemoryBroker
from broker_pipeline.errors import (
    ModuleMismatchError,
    ModuleServerError,
    ModuleTimeoutError,
    ModuleUnreachableError,
    UnknownPhaseError,
)
from broker_pipeline.external.port import WithdrawnError
from broker_pipeline.runtime import states as state_keeper
from broker_pipeline.runtime import worker as worker_module
from broker_pipeline.runtime.execution import relaying
from broker_pipeline.runtime.execution.program import in_servers
from broker_pipeline.runtime.worker import Worker, choose, choose_external
from tests.unit.fake_relay import FakeRelay, Servers, said, upper
from tests.unit.runtime.bench import OUTCOMES, Bench, Working, results
from tests.unit.runtime.gate import Gate
from tests.unit.runtime.shard import BOUND_S, until


def asr(name: str = "asr", **more: Any) -> ExternalModule:
    options = ExternalOptions(**more.pop("call", {}))
    return ExternalModule(name, target="registry:///asr", options=options, **more)


def pipeline(*modules: Any, mode: Mode = Mode.ORDER_BY_SEQUENCE, **options: Any) -> Pipeline:
    """A controller with one phase."""
    return Pipeline("demo", [Controller("c", [Phase("p", modules, **options)], mode=mode)])


async def test_packages_go_through_module_servers_and_leave_in_order() -> None:
    """With the journey that they made there."""
    modules = [pb.ModuleRecord(name="Net", status=4)]
    servers = Servers(lambda package, state: said(data=package.data.upper(), modules=modules))
    bench = await Bench.begin(pipeline(asr()))
    await bench.work(slots=50, relays=servers)
    await bench.send(*(b"p%d" % n for n in range(30)))
    left = await bench.left(30)
    assert results(left) == [(b"P%d" % n, Outcome.SUCCESS) for n in range(30)]
    record = left[0].controllers[0].phases[0].modules[0]
    assert [record.name, *[inner.name for inner in record.sub_modules]] == ["asr", "Net"]
    await bench.end()


async def test_what_no_server_has_room_for_stays_in_the_broker() -> None:
    """Nothing while there is none; then what fits; the callback asks for more."""
    servers = Servers(room=0, answering=False)
    bench = await Bench.begin(pipeline(asr()))
    worker = await bench.work(slots=50, relays=servers)
    await bench.send(*(b"%d" % n for n in range(20)))
    await until(lambda: len(bench.messages(bench.subjects.work)) == 20)
    for _ in range(20):
        await asyncio.sleep(0)
    assert worker.phase._here == {}
    servers.change(room=3)
    await until(lambda: len(servers.seen) == 3)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(worker.phase._here) == 3
    servers.change(room=100, answering=True)
    assert len(await bench.left(20)) == 20
    await bench.end()


async def test_a_drain_gives_back_what_waits_for_a_server_and_waits_for_what_one_has() -> None:
    """At once, not after `ack_wait_s`; another bridge with a server runs it, in order."""
    dead = Servers(room=2, answering=False)
    bench = await Bench.begin(pipeline(asr(), ack_wait_s=600.0))
    leaving = await bench.work(slots=50, relays=dead)
    await bench.send(b"1", b"2")
    await until(lambda: len(dead.seen) == 2)
    # There was room when they were asked for; now one waits here, and the others in the broker.
    dead.room = 10
    leaving.phase._ask_soon()
    await asyncio.sleep(0)
    dead.room = 2
    await bench.send(b"3", b"4", b"5")
    await until(lambda: len(leaving.phase._here) == 3)
    draining = asyncio.create_task(leaving.drain())
    await until(lambda: len(leaving.phase._here) == 2)
    assert not draining.done()
    await bench.work(slots=50, relays=Servers(lambda p, s: said(data=b"other " + p.data)))
    await until(lambda: len(bench.messages(bench.subjects.ctl_done)) == 3)
    dead.change(answering=True)
    await draining
    left = await bench.left(5)
    assert [p.data for p in left] == [b"1", b"2", b"other 3", b"other 4", b"other 5"]
    await bench.end()


async def test_a_drain_without_any_server_ends() -> None:
    """Whatever waits is given back."""
    servers = Servers(room=5)
    bench = await Bench.begin(pipeline(asr(), ack_wait_s=600.0))
    worker = await bench.work(slots=50, relays=servers)
    await until(lambda: worker.phase._quota == 5)
    servers.room = 0  # the room was there when they were asked for
    await bench.send(b"1", b"2")
    await until(lambda: len(worker.phase._here) == 2)
    await worker.drain()
    await bench.work(slots=5, relays=Servers())
    assert results(await bench.left(2)) == [(b"1", Outcome.SUCCESS), (b"2", Outcome.SUCCESS)]
    await bench.end()


async def test_max_deliver_1_survives_a_drain() -> None:
    """What no server began has not begun."""
    servers = Servers(room=5)
    bench = await Bench.begin(pipeline(asr(), ack_wait_s=600.0, max_deliver=1))
    worker = await bench.work(slots=50, relays=servers)
    await until(lambda: worker.phase._quota == 5)
    servers.room = 0  # the room was there when they were asked for
    await bench.send(b"1")
    await until(lambda: len(worker.phase._here) == 1)
    await worker.drain()
    await bench.work(slots=5, relays=Servers())
    assert results(await bench.left(1)) == [(b"1", Outcome.SUCCESS)]
    await bench.end()


@pytest.mark.parametrize("max_deliver", [1, 2, 5])
async def test_drains_make_no_poison_of_what_no_server_got(
    max_deliver: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than it may begin, each while it waits here for a server."""
    bench = await Bench.begin(pipeline(asr(), ack_wait_s=600.0, max_deliver=max_deliver))
    await bench.send(b"1")
    with monkeypatch.context() as patched:
        patched.setattr(FakeRelay, "room", property(lambda relay: 5))  # gone when it is there
        for _ in range(max_deliver + 3):
            worker = await bench.work(slots=5, relays=Servers(room=0))
            await until(lambda w=worker: w.phase._executor._relays._all[0].inside == 1)
            await worker.drain()
    await bench.work(slots=5, relays=Servers())
    assert results(await bench.left(1)) == [(b"1", Outcome.SUCCESS)]
    await bench.end()


class Two:
    """Servers of two modules of a phase, `a` and `b`."""

    def __init__(self, *, room: int = 5) -> None:
        self.a, self.b = Servers(), Servers(room=room)

    def __call__(self, module: Any, grown: Any) -> Any:
        """See `RelayFactory`."""
        return {"a": self.a, "b": self.b}[module.name](module, grown)


async def between(bench: Bench) -> tuple[Working, Two]:
    """A bridge with a package that `a` has answered, and that `b` has no room for."""
    servers = Two()
    worker = await bench.work(slots=5, relays=servers)
    await until(lambda: worker.phase._quota == 5)
    servers.b.room = 0  # the room was there when it was asked for
    await bench.send(b"1")
    await until(lambda: len(servers.a.seen) == 1)
    await until(lambda: [each.inside for each in worker.phase._executor._relays._all] == [0, 1])
    return worker, servers


@pytest.mark.parametrize(
    ("idempotent", "max_deliver", "repeated"), [(False, 5, 0), (True, 1, 0), (True, 5, 1)]
)
async def test_a_drain_runs_nothing_again_that_may_not_be(
    idempotent: bool, max_deliver: int, repeated: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server has run the first module, and none has room for the second: ERROR, if not given
    back."""
    monkeypatch.setattr(relaying, "STAYS_S", 0.0)
    a, b = asr("a", call={"idempotent": idempotent}), asr("b")
    bench = await Bench.begin(pipeline(a, b, ack_wait_s=600.0, max_deliver=max_deliver))
    worker, _ = await between(bench)
    await worker.drain()
    other = Two()
    await bench.work(slots=5, relays=other)
    left = (await bench.left(1))[0]
    assert len(other.a.seen) == repeated
    assert OUTCOMES[left.outcome] is (Outcome.SUCCESS if repeated else Outcome.ERROR)
    assert [each.type for each in left.errors] == ["ModuleUnreachableError"] * (not repeated)
    await bench.end()


async def test_a_drain_looks_for_room_for_what_it_may_not_give_back() -> None:
    """A server that was busy takes the package after all."""
    bench = await Bench.begin(pipeline(asr("a"), asr("b"), ack_wait_s=600.0))
    worker, servers = await between(bench)
    draining = asyncio.create_task(worker.drain())
    await until(lambda: servers.b.relays[0]._withdrawn)
    assert not draining.done()
    servers.b.change(room=5)
    await draining
    assert results(await bench.left(1)) == [(b"1", Outcome.SUCCESS)]
    assert len(servers.a.seen) == len(servers.b.seen) == 1
    await bench.end()


async def test_a_server_that_fails_is_that_packages_error_and_the_sequence_goes_on() -> None:
    """The others are as they should be."""

    def fail(package: pb.DataPackage, state: bytes | None) -> Any:
        if package.data == b"3":
            raise ModuleServerError("the stream broke", server="gpu-1")
        return upper(package, state)

    bench = await Bench.begin(pipeline(asr()))
    await bench.work(slots=5, relays=Servers(fail))
    await bench.send(*(b"%d" % n for n in range(6)))
    assert results(await bench.left(6)) == [
        (b"%d" % n, Outcome.ERROR if n == 3 else Outcome.SUCCESS) for n in range(6)
    ]
    await bench.end()


def count(package: pb.DataPackage, state: bytes | None) -> Any:
    """A server with a state: how many it has seen."""
    number = int(state or b"0") + 1
    return said(data=b"%s is %d" % (package.data, number), state=b"%d" % number)


async def test_the_state_of_an_external_module_is_kept_here(monkeypatch: Any) -> None:
    """From package to package, and from bridge to bridge: stored, or by running again."""
    monkeypatch.setattr(state_keeper, "STORE_EVERY_S", 0.0)
    bench = await Bench.begin(pipeline(asr(stateful=True), mode=Mode.NOT_PARALLEL))
    first = await bench.work(slots=5, relays=Servers(count))
    await bench.send(b"a", b"b")
    await bench.left(2)
    await first.drain()
    servers = Servers(count)
    await bench.work(slots=5, relays=servers)
    await bench.send(b"c", b"d")
    left = await bench.left(4)
    assert [p.data for p in left] == [b"a is 1", b"b is 2", b"c is 3", b"d is 4"]
    await bench.end()


@pytest.mark.parametrize(
    "fault",
    [
        ModuleUnreachableError("nobody is there"),
        ModuleTimeoutError("it did not finish in time on its module server"),
        ModuleMismatchError("no module server can be used: it wants a token"),
        WithdrawnError(),
    ],
    ids=lambda fault: type(fault).__name__,
)
async def test_a_state_that_no_server_can_compute_again_now_is_no_error(fault: Exception) -> None:
    """The input went well once: the package is redelivered and tried again later."""
    bench = await Bench.begin(
        pipeline(asr(stateful=True), mode=Mode.NOT_PARALLEL, ack_wait_s=0.2, max_deliver=50)
    )
    first = await bench.work(slots=5, relays=Servers(count))
    await bench.send(b"a", b"b")
    await bench.left(2)
    await first.vanish()
    down = True
    tried: list[bytes] = []

    def sometimes(package: pb.DataPackage, state: bytes | None) -> Any:
        tried.append(package.data)
        if down:
            raise fault
        return count(package, state)

    await bench.work(slots=5, relays=Servers(sometimes))
    await bench.send(b"c")
    await until(lambda: len(tried) > 0)
    down = False
    left = await bench.left(3)
    assert results(left)[2] == (b"c is 3", Outcome.SUCCESS)
    await bench.end()


def test_only_what_runs_in_servers_may_time_out_for_their_fault() -> None:
    """A module of our own that does not finish again has a fault of its own."""
    controller = mixed().controllers[0]
    labels = [in_servers(controller, phase) for phase in controller.phases]
    assert labels == [[], ["c/there/asr"], ["c/both/asr"]]


async def test_bridges_that_vanish_change_nothing() -> None:
    """Random delays, two bridges, one of which is killed and comes back: in order, none twice."""
    chance = random.Random(4)
    bench = await Bench.begin(pipeline(asr(), ack_wait_s=0.2, max_deliver=50))
    slow = [Servers(room=8, answering=False) for _ in range(3)]
    first = await bench.work(slots=20, relays=slow[0])
    await bench.work(slots=20, relays=slow[1])
    await bench.send(*(b"p%d" % n for n in range(60)))
    await until(lambda: len(slow[0].seen) == len(slow[1].seen) == 8)
    vanishing = asyncio.create_task(first.vanish())
    await until(lambda: first.broker._closed)  # type: ignore[attr-defined]
    slow[0].change(answering=True)
    await vanishing
    await bench.work(slots=20, relays=slow[2])
    while len(bench.messages(bench.subjects.out)) < 60:
        slow[chance.choice((1, 2))].change(answering=chance.random() < 0.5)
        await asyncio.sleep(0)
    left = await bench.left(60)
    assert results(left) == [(b"P%d" % n, Outcome.SUCCESS) for n in range(60)]
    assert len({p.id for p in left}) == 60
    for each in slow:
        each.change(answering=True)
    await bench.end()


def mixed() -> Pipeline:
    """One phase of each kind, and one with both."""
    phases = [
        Phase("here", [Gate()]),
        Phase("there", [asr()]),
        Phase("both", [Gate(), asr()]),
    ]
    return Pipeline("mixed", [Controller("c", phases, mode=Mode.NO_ORDER)])


def names(chosen: Any) -> list[str]:
    return [phase.name for _, phase in chosen]


def test_a_worker_leaves_external_phases_to_bridges_unless_they_are_named() -> None:
    """A phase that has a module of its own is a worker's."""
    assert names(choose(mixed(), None)) == ["here", "both"]
    assert names(choose(mixed(), ["c.there", "c.here"])) == ["there", "here"]
    assert names(choose_external(mixed(), None)) == ["there"]
    assert names(choose_external(mixed(), ["c.there"])) == ["there"]


def test_what_a_worker_or_a_bridge_cannot_run_is_said() -> None:
    """And what to start instead."""
    with pytest.raises(UnknownPhaseError, match=r"runs 'c\.there'.*broker-pipeline worker"):
        choose_external(mixed(), ["c.both"])
    with pytest.raises(UnknownPhaseError, match=r"'c\.what' .* is not in the plan"):
        choose_external(mixed(), ["c.what"])
    with pytest.raises(UnknownPhaseError, match="no phase of nothing but ExternalModules"):
        choose_external(pipeline(Gate()), None)
    with pytest.raises(UnknownPhaseError, match=r"every phase .* is external: 'c\.p'"):
        choose(pipeline(asr()), None)


async def test_a_relay_that_has_ended_ends_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its error: a new process can go on, and this one would only keep packages."""
    monkeypatch.setattr(worker_module, "LOST_SLOTS_CHECK_S", 0.01)
    bench = await Bench.begin(pipeline(asr()))
    servers = Servers()
    chosen = choose_external(bench.pipeline, None)
    worker = Worker(bench.server.connect(), bench.pipeline, chosen, slots=2, relays=servers)
    running = asyncio.create_task(worker.run(asyncio.Event(), ready=lambda: None))
    await bench.send(b"1")
    await bench.left(1)
    servers.relays[0].failed = RuntimeError("what nobody foresaw")
    with pytest.raises(RuntimeError, match="what nobody foresaw"):
        async with asyncio.timeout(BOUND_S):
            await running
    await bench.end()


async def test_servers_that_come_while_the_queue_is_opened_are_not_missed(monkeypatch: Any) -> None:
    """They are told of once."""
    servers = Servers(room=0)
    bench = await Bench.begin(pipeline(asr()))
    await bench.send(b"1")
    opening = MemoryBroker.consume

    async def slowly(self: Any, *args: Any, **options: Any) -> Any:
        subscription = await opening(self, *args, **options)
        if options.get("credit") == 0:
            servers.change(room=5)
            await asyncio.sleep(0)
        return subscription

    monkeypatch.setattr(MemoryBroker, "consume", slowly)
    await bench.work(slots=5, relays=servers)
    assert results(await bench.left(1)) == [(b"1", Outcome.SUCCESS)]
    await bench.end()
