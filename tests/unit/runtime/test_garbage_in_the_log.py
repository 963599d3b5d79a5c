"""A leader and workers whose log strangers write into: good packages leave as if nobody had."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any

import pytest

from broker_pipeline import Controller, ExecutionModule, Mode, Phase, Pipeline, StatefulModule
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.headers import encode
from broker_pipeline.broker.port import Message
from broker_pipeline.core.envelope import Ignored, read_event
from broker_pipeline.core.events import Arrived
from broker_pipeline.core.names import HEADER_MSG_ID, completion_id, dispatch_id
from broker_pipeline.errors import NewerVersionError
from broker_pipeline.journey import STATUS_TO_PB, Outcome
from broker_pipeline.runtime import leader as leading
from broker_pipeline.runtime.leader import Leader
from tests.unit.runtime.bench import Bench
from tests.unit.runtime.shard import outcome_of, until
from tests.unit.runtime.stranger import Stranger

SUCCESS = STATUS_TO_PB[Outcome.SUCCESS]
BYTES_MAX = 20_000


class Upper(ExecutionModule[bytes]):
    """Upper case."""

    def execute(self, package: Any, run: Any) -> None:
        """One package."""
        package.data = package.data.upper()


class Count(StatefulModule[bytes, int]):
    """Numbers the packages."""

    def initial_state(self) -> int:
        """None yet."""
        return 0

    def execute(self, package: Any, run: Any, state: int) -> int:
        """One package."""
        package.data += b" %d" % (state + 1)
        return state + 1


def pipeline() -> Pipeline:
    """An ordered controller of two phases, then one with a state."""
    two = [Phase("p0", [Upper()]), Phase("p1", [Upper()])]
    return Pipeline(
        "demo",
        [
            Controller("c0", mode=Mode.ORDER_BY_SEQUENCE, max_workers=4, phases=two),
            Controller("c1", phases=[Phase("p0", [Count()], ack_wait_s=0.5, max_deliver=2)]),
        ],
    )


def arrivals(bench: Bench) -> dict[int, Arrived]:
    """The packages that the log has, good and bad, by id."""
    found = {}
    for message in bench.messages(bench.subjects.ctl_in):
        try:
            event, _ = read_event(
                bench.subjects, message.subject, message.headers, message.data,
                message.stream_seq, message.time,
            )  # fmt: skip
        except Ignored:
            continue
        if isinstance(event, Arrived):
            found[event.stream_seq] = event
    return found


def left(bench: Bench) -> list[pb.DataPackage]:
    """What has left, in order."""
    return [pb.DataPackage.FromString(m.data) for m in bench.messages(bench.subjects.out)]


async def lead_anew(bench: Bench) -> None:
    """The leader is killed, and another begins."""
    bench.leading.cancel()
    await asyncio.gather(bench.leading, return_exceptions=True)
    leader = Leader(bench.server.connect(), "demo", 0, now_ns=time.time_ns)
    bench.leading = asyncio.create_task(leader.run(bench._stop))


@pytest.mark.parametrize("seed", range(6))
async def test_strangers_change_nothing_for_those_who_do_as_agreed(
    seed: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On every subject of the log, known or not, with a leader that is killed twice: each good
    package leaves once, in order and with the state it should have; each bad arrival leaves once
    as ERROR that says why; all else is named in a line of the leader's log."""
    monkeypatch.setattr(leading, "SNAPSHOT_INTERVAL_S", 0.01)
    chance = random.Random(seed)
    bench = await Bench.begin(pipeline())
    for controller, phase in ((0, 0), (0, 1), (1, 0)):
        await bench.work(phase, controller=controller)
    stranger = Stranger(bench.broker, bench.pipeline, chance)
    for number in range(30):
        for instance in ("a", "b", "c"):
            await bench.send(b"%s%d" % (instance.encode(), number), instance=instance)
            for _ in range(chance.randint(0, 2)):
                await stranger.write()
        if number in (10, 20):
            await until(lambda: len(left(bench)) > chance.randint(0, 20))
            await lead_anew(bench)
        assert not bench.leading.done()
    await until(lambda: len(left(bench)) >= len(arrivals(bench)), "everything has left")
    packages = left(bench)
    assert sorted(package.id for package in packages) == sorted(arrivals(bench))
    for instance in ("a", "b", "c"):
        mine = [package for package in packages if package.instance == instance]
        expected = [b"%s%d %d" % (instance.upper().encode(), n, n + 1) for n in range(30)]
        assert [package.data for package in mine] == expected
        assert {package.outcome for package in mine} == {SUCCESS}
    told = {package.id: [error.message for error in package.errors] for package in packages}
    for number, event in arrivals(bench).items():
        assert not event.malformed or told[number] == [event.malformed]
    for message in bench.messages(bench.subjects.prefix + "ctl.pause"):
        assert f"message {message.stream_seq} of BP_demo_0 ignored: subject" in caplog.text
    assert not any(worker.task.done() for worker in bench.workers)
    await bench.end()


@pytest.mark.parametrize("kind", ["journey", "attributes", "unknown", "names", "phases"])
@pytest.mark.parametrize("controller", [0, 1])
async def test_a_completion_that_is_as_large_as_a_message_can_be_leaves(
    kind: str, controller: int
) -> None:
    """Whatever fills it, there is no room for what the leader adds: it goes on as less than it
    was. Once, this stopped every leader of the log for ever."""
    bench = await Bench.begin(pipeline(), max_payload=BYTES_MAX)
    await bench.send(b"1", b"2")
    await until(lambda: len(bench.messages(bench.subjects.work)) == 2)
    if controller == 1:
        for message in bench.messages(bench.subjects.work):
            await give_back(bench, message, pb.DataPackage.FromString(message.data))
        await until(lambda: bench.messages(bench.subjects.work + "c1"))
    first = bench.messages(f"{bench.subjects.work}c{controller}")[0]
    # As much as fits into a message, to the last few bytes.
    limit = BYTES_MAX - len(encode(completion_id(first_id(first), "c0"), None))
    room = next(n for n in range(limit, 0, -1) if filled(first, kind, n).ByteSize() <= limit)
    package = filled(first, kind, room)
    assert package.ByteSize() > limit - 30
    await give_back(bench, first, package)
    await until(lambda: left(bench) or len(bench.messages(bench.subjects.work + "c1")) > controller)
    assert not bench.leading.done()
    for package in left(bench):
        assert package.id == first_id(first)
        assert package.ByteSize() <= BYTES_MAX
    bench._stop.set()
    await bench.leading


def filled(message: Message, kind: str, room: int) -> pb.DataPackage:
    """A result with so many bytes of something in it."""
    package = pb.DataPackage.FromString(message.data)
    record = package.controllers[-1]
    phase = record.phases.add(name="p0", status=SUCCESS)
    if kind == "journey":
        phase.modules.add(name="m", message="x" * room)
    elif kind == "attributes":
        package.attributes["k"] = "x" * room
    elif kind == "unknown":
        package.MergeFromString(b"\xf2\x3f" + _varint(room) + b"x" * room)
    elif kind == "names":
        package.instance, package.pipeline = "x" * (room // 2), "y" * (room // 2)
    else:
        record.phases.extend([phase] * (room // 8))
    return package


def first_id(message: Message) -> int:
    """The package in a queue's message."""
    return pb.DataPackage.FromString(message.data).id


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


async def give_back(bench: Bench, message: Message, package: pb.DataPackage) -> None:
    """As a worker does, whatever is in it."""
    record = package.controllers[-1]
    if not record.phases:
        record.phases.add(name="p0", status=SUCCESS)
    await bench.broker.publish(
        bench.subjects.completion(record.name, message.subject.rpartition(".")[2]),
        package.SerializeToString(),
        msg_id=completion_id(package.id, record.name),
    )


async def test_a_forged_result_counts_for_its_package_and_for_no_other() -> None:
    """There is no authentication inside the log: who may write under `ctl.done` is a worker. A
    status that no phase ends with makes it an ERROR that says so; the others go on in order."""
    bench = await Bench.begin(pipeline())
    await bench.send(b"1", b"2")
    await until(lambda: len(bench.messages(bench.subjects.work)) == 2)
    forged = pb.DataPackage.FromString(bench.messages(bench.subjects.work)[0].data)
    forged.data = b"forged"
    forged.controllers[-1].phases.add(name="p0", status=77)
    await bench.broker.publish(bench.subjects.completion("c0", "a"), forged.SerializeToString())
    await bench.broker.publish(bench.subjects.completion("c0", "a"), b"\xff")
    for controller, phase in ((0, 0), (0, 1), (1, 0)):
        await bench.work(phase, controller=controller)
    one, two = await bench.left(2)
    assert (one.data, one.outcome) == (b"forged", STATUS_TO_PB[Outcome.ERROR])
    assert "with status 77, which is none that a phase ends with" in one.errors[-1].message
    assert (two.data, two.outcome) == (b"2 1", SUCCESS)
    await bench.end()


async def test_garbage_under_the_id_of_a_result_does_not_take_its_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Bytes that cannot be read are ignored with a line, and the leader goes on with the rest;
    only the package whose message id was taken waits."""
    bench = await Bench.begin(pipeline())
    await bench.send(b"1")
    await bench.send(b"2", instance="b")
    await until(lambda: len(bench.messages(bench.subjects.work)) == 2)
    victim = first_id(bench.messages(bench.subjects.work)[0])
    await bench.broker.publish(
        bench.subjects.completion("c0", "a"), b"\xff", msg_id=completion_id(victim, "c0")
    )
    for controller, phase in ((0, 0), (0, 1), (1, 0)):
        await bench.work(phase, controller=controller)
    (other,) = await bench.left(1)
    assert (other.instance, other.data) == ("b", b"2 1")
    assert "a completion of controller 'c0' is unreadable" in caplog.text
    assert dispatch_id(victim, "c0", "p1") in {
        m.headers[HEADER_MSG_ID] for m in bench.messages(bench.subjects.work)
    }
    await bench.end()


async def test_a_newer_plan_stops_the_leader_and_nobody_acts_on_what_follows() -> None:
    """It says where the plan is; the next leader of this version stops at the same place."""
    bench = await Bench.begin(pipeline())
    await bench.send(b"before")
    await until(lambda: bench.messages(bench.subjects.work))
    newer = json.dumps({"pipeline": "demo", "version": 3, "lanes": "more"}).encode()
    ack = await bench.broker.publish(bench.subjects.plan, newer)
    error = await outcome_of(bench.leading)
    assert isinstance(error, NewerVersionError)
    assert f"message {ack.stream_seq} of the log of 'demo' is a plan of version 3" in str(error)
    await bench.send(b"after")
    again = Leader(bench.server.connect(), "demo", 0, now_ns=time.time_ns)
    assert isinstance(await outcome_of(asyncio.create_task(again.run(bench._stop))), type(error))
    assert len(bench.messages(bench.subjects.work)) == 1, "it went on without the plan"
