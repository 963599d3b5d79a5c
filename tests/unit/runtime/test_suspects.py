"""Packages that came often: which runs count, and who waits for whom."""

from __future__ import annotations

from typing import Any

import pytest

from broker_pipeline import Outcome
from broker_pipeline.core.names import attempts_bucket
from broker_pipeline.errors import BrokerUnavailableError
from broker_pipeline.runtime import suspects
from broker_pipeline.runtime.execution.executor import PhaseExecutor
from tests.unit.runtime.bench import Bench, results
from tests.unit.runtime.gate import Gate, pipeline
from tests.unit.runtime.shard import until


@pytest.mark.parametrize("max_deliver", [1, 2, 5])
async def test_what_drains_gave_back_is_no_poison(
    max_deliver: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delivered seven times and never begun: it is run, and leaves as SUCCESS."""
    gate = Gate(is_open=False)
    bench = await Bench.begin(pipeline(gate, ack_wait_s=60.0, max_deliver=max_deliver))
    first = await bench.work(slots=1)
    await bench.send(b"first")
    await until(lambda: gate.entered)
    jobs: list[Any] = []  # of executors whose slots never come to them

    def withdraw(executor: PhaseExecutor) -> list[Any]:
        taken = jobs.copy()
        jobs.clear()
        return taken

    with monkeypatch.context() as patched:
        patched.setattr(PhaseExecutor, "submit", lambda executor, more: jobs.extend(more))
        patched.setattr(PhaseExecutor, "withdraw", withdraw)
        await bench.send(b"second", instance="b")
        for _ in range(6):
            worker = await bench.work(slots=1)
            await until(lambda worker=worker: worker.phase._here)
            await worker.drain()
    gate.opened.set()
    await bench.work(slots=1)
    left = await bench.left(2)
    assert sorted(results(left)) == [(b"first", Outcome.SUCCESS), (b"second", Outcome.SUCCESS)]
    await first.drain()
    await bench.end()


async def test_suspects_wait_for_one_of_them_and_hold_up_nobody_else() -> None:
    """Many packages came often: one at a time is run, normal ones beside it; more than may wait are
    left to the broker, and come again."""
    gate = Gate(is_open=False)
    bench = await Bench.begin(pipeline(gate, ack_wait_s=0.3))
    counts = bench.server.stream(bench.stream).consumers["c=p0"].counts
    await bench.send(*[b"%d" % n for n in range(20)])
    await until(lambda: len(bench.messages(bench.subjects.work)) == 20)
    for message in bench.messages(bench.subjects.work):
        counts[message.stream_seq] = 2
    worker = await bench.work(slots=4)
    worker.phase._executor.wanted = lambda: 50  # type: ignore[method-assign]
    await until(lambda: len(worker.phase._suspects._parked) == 19)
    await until(lambda: len(gate.entered) == 1)
    await bench.send(b"normal", instance="b")
    await until(lambda: b"normal" in gate.entered)
    assert len(gate.entered) == 2
    gate.opened.set()
    left = await bench.left(21)
    assert {outcome for _, outcome in results(left)} == {Outcome.SUCCESS}
    assert sorted(gate.entered) == sorted([b"normal", *[b"%d" % n for n in range(20)]])
    await bench.end()


async def test_more_suspects_than_may_wait_are_left_to_the_broker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And come again; none is lost, and none is called poison for it."""
    monkeypatch.setattr(suspects, "SUSPECTS_MAX", 3)
    bench = await Bench.begin(pipeline(Gate(), ack_wait_s=0.05))
    counts = bench.server.stream(bench.stream).consumers["c=p0"].counts
    await bench.send(*[b"%d" % n for n in range(30)])
    await until(lambda: len(bench.messages(bench.subjects.work)) == 30)
    for message in bench.messages(bench.subjects.work):
        counts[message.stream_seq] = 2
    worker = await bench.work(slots=4)
    worker.phase._executor.wanted = lambda: 50  # type: ignore[method-assign]
    left = await bench.left(30)
    assert results(left) == [(b"%d" % n, Outcome.SUCCESS) for n in range(30)]
    await bench.end()


async def test_without_records_a_suspect_is_left_to_redelivery(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bucket does not answer: it is neither run nor lost, and runs when it does again."""
    gate = Gate()
    bench = await Bench.begin(pipeline(gate, ack_wait_s=0.05))
    counts = bench.server.stream(bench.stream).consumers["c=p0"].counts
    await bench.send(b"1")
    await until(lambda: bench.messages(bench.subjects.work))
    counts[bench.messages(bench.subjects.work)[0].stream_seq] = 2
    worker = await bench.work()
    asked = 0

    async def no_answer(*args: Any) -> Any:
        nonlocal asked
        asked += 1
        raise BrokerUnavailableError("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(worker.broker, "kv_get", no_answer)
        await until(lambda: asked == 2)
        patched.undo()
        patched.setattr(worker.broker, "kv_create", no_answer)
        await until(lambda: asked == 4)
        assert not gate.entered
    assert results(await bench.left(1)) == [(b"1", Outcome.SUCCESS)]
    assert gate.entered == [b"1"]
    await bench.end()


async def test_without_the_bucket_deliveries_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As where an older version has deployed: it is said once, and packages go on."""
    gate = Gate()
    bench = await Bench.begin(pipeline(gate, ack_wait_s=0.1))
    bench.server.buckets.pop(attempts_bucket("demo"))
    counts = bench.server.stream(bench.stream).consumers["c=p0"].counts
    await bench.send(b"1", b"2", b"poison")
    await until(lambda: len(bench.messages(bench.subjects.work)) == 3)
    for message, count in zip(bench.messages(bench.subjects.work), (2, 4, 5), strict=True):
        counts[message.stream_seq] = count
    await bench.work()
    left = await bench.left(3)
    assert [outcome for _, outcome in results(left)] == [
        Outcome.SUCCESS, Outcome.SUCCESS, Outcome.ERROR,
    ]  # fmt: skip
    assert caplog.text.count("deploy the pipeline again") == 1
    await bench.end()
