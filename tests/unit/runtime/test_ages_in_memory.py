"""Packages that are too old: a worker does not run them, and a leader does not let them wait."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker_pipeline import Mode, Outcome, Phase, Pipeline
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.memory import MemoryBroker
from broker_pipeline.core.names import module_bucket
from broker_pipeline.errors import BrokerUnavailableError
from broker_pipeline.journey import NS, STATUS_TO_PB, Status
from broker_pipeline.pipeline import Controller
from broker_pipeline.runtime import ages
from tests.unit.runtime.bench import Bench, results
from tests.unit.runtime.shard import until
from tests.unit.runtime.test_phase_worker import Gate
from tests.unit.runtime.test_states_in_memory import KEY, Fold

AGE_S = 60.0


class Clock:
    """The broker's: 2001, far behind the wall clocks of those who run this."""

    ns = 1_000_000_000 * NS

    def __call__(self) -> int:
        """One ns later each time."""
        self.ns += 1
        return self.ns

    def jump(self) -> None:
        """What is here now is too old."""
        self.ns += int(AGE_S * NS)


def aged(*modules: Any, mode: Mode = Mode.NO_ORDER, **options: Any) -> Pipeline:
    """One controller with a phase for each module."""
    phases = [Phase(f"p{n}", [module]) for n, module in enumerate(modules)]
    options.setdefault("max_age_s", AGE_S)
    return Pipeline("demo", [Controller("c", mode=mode, phases=phases, **options)])


def phases(package: pb.DataPackage) -> list[tuple[Status, int]]:
    """How each phase of the only controller ended, and how many modules it has run."""
    (record,) = package.controllers
    names = {number: status for status, number in STATUS_TO_PB.items()}
    return [(Status(names[phase.status]), len(phase.modules)) for phase in record.phases]


async def test_a_backlog_that_is_too_old_is_not_run() -> None:
    """By the broker's clock, whatever the worker's own says; what is young is run."""
    clock, gate = Clock(), Gate()
    bench = await Bench.begin(aged(gate), now_ns=clock)
    await bench.send(b"1", b"2")
    await until(lambda: len(bench.messages(bench.subjects.work)) == 2)
    clock.jump()
    await bench.work()
    left = await bench.left(2)
    await bench.send(b"3")
    left = await bench.left(3)
    assert results(left) == [
        (b"1", Outcome.OUTDATED),
        (b"2", Outcome.OUTDATED),
        (b"3", Outcome.SUCCESS),
    ]
    assert [phases(package) for package in left[1:]] == [
        [(Status.OUTDATED, 0)],
        [(Status.SUCCESS, 1)],
    ]
    assert gate.entered == [b"3"]
    await bench.end()


async def test_a_later_phase_leaves_out_what_got_too_old_on_the_way() -> None:
    """The record says which phases ran it."""
    clock, later = Clock(), Gate()
    bench = await Bench.begin(aged(Gate(), later), now_ns=clock)
    await bench.work(0)
    await bench.send(b"1")
    await until(lambda: bench.messages(bench.subjects.queue("c", "p1", "a", 0)))
    clock.jump()
    await bench.work(1)
    (package,) = await bench.left(1)
    assert package.outcome == STATUS_TO_PB[Status.OUTDATED]
    assert phases(package) == [(Status.SUCCESS, 1), (Status.OUTDATED, 0)]
    assert not later.entered
    await bench.end()


async def test_a_worker_looks_at_the_clock_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What gets too old while it is busy is not run, but for the few that it has at hand."""
    monkeypatch.setattr(ages, "CLOCK_EVERY_S", 0.01)
    clock, gate = Clock(), Gate(is_open=False)
    bench = await Bench.begin(aged(gate), now_ns=clock)
    working = await bench.work(slots=1)
    await bench.send(*(b"%d" % number for number in range(9)))
    await until(lambda: gate.entered)
    clock.jump()
    now = clock.ns
    await until(lambda: working.phase._ages._read_ns >= now)
    gate.opened.set()
    assert {outcome for _, outcome in results(await bench.left(9))} == {Outcome.OUTDATED}
    assert len(gate.entered) < 5
    await bench.end()


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_worker_that_cannot_read_the_clock_runs_what_it_gets(
    hangs: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so, and the controller finds what was too old."""

    async def no_answer(self: MemoryBroker, stream: str) -> int:
        if hangs:
            await asyncio.get_running_loop().create_future()
        raise BrokerUnavailableError("no answer")

    monkeypatch.setattr(ages, "CLOCK_BEGIN_S", 0.01)
    monkeypatch.setattr(MemoryBroker, "time_ns", no_answer)
    clock, gate = Clock(), Gate()
    bench = await Bench.begin(aged(gate), now_ns=clock)
    await bench.send(b"1")
    await until(lambda: bench.messages(bench.subjects.work))
    clock.jump()
    await bench.work()
    (package,) = await bench.left(1)
    assert package.outcome == STATUS_TO_PB[Status.OUTDATED]
    assert phases(package) == [(Status.SUCCESS, 1)]
    assert gate.entered == [b"1"]
    assert "clock was not read" in caplog.text or "does not tell the time" in caplog.text
    await bench.end()


async def test_a_package_that_was_left_out_leaves_no_trace_in_a_state() -> None:
    """Neither with the worker that left it out, nor with one that catches up."""
    clock, fold = Clock(), Fold()
    bench = await Bench.begin(aged(fold, mode=Mode.NOT_PARALLEL), now_ns=clock)
    first = await bench.work()
    await bench.send(b"a")
    await bench.left(1)
    await first.drain()
    await bench.send(b"old")
    await until(lambda: len(bench.messages(bench.subjects.work)) == 2)
    clock.jump()
    second = await bench.work()
    await bench.left(2)
    await bench.send(b"b")
    await bench.left(3)
    await second.drain()
    await bench.broker.kv_delete(module_bucket("demo"), KEY)
    await bench.work()
    await bench.send(b"c")
    assert results(await bench.left(4)) == [
        (b"a", Outcome.SUCCESS),
        (b"old", Outcome.OUTDATED),
        (b"a b", Outcome.SUCCESS),
        (b"a b c", Outcome.SUCCESS),
    ]
    assert fold.runs == 2 + 3
    await bench.end()


async def test_what_waits_leaves_by_ticks() -> None:
    """Nothing else happens: the leader publishes one when it is time, and not one for each."""
    bench = await Bench.begin(aged(Gate(), mode=Mode.NOT_PARALLEL, max_age_s=0.2))
    await bench.send(*(b"%d" % number for number in range(50)))
    left = await bench.left(49)
    assert {outcome for _, outcome in results(left)} == {Outcome.OUTDATED}
    assert all(each.end_time_ns - each.start_time_ns >= 0.2 * NS for each in left)
    assert 1 <= len(bench.messages(bench.subjects.tick)) < 25
    await bench.end()
