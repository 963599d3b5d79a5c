"""One phase in one worker: redelivery, poison, limits, drains, and the broker's absence."""

from __future__ import annotations

import asyncio

import pytest

from broker_pipeline import Outcome
from broker_pipeline.core.names import payload_bucket
from broker_pipeline.errors import ConnectionLostError, NotFoundError
from broker_pipeline.runtime import phase_worker
from broker_pipeline.runtime.lifecycle import first_error
from broker_pipeline.runtime.worker import Worker, choose
from tests.unit.runtime.bench import Bench, results
from tests.unit.runtime.gate import Gate, pipeline
from tests.unit.runtime.shard import until


async def test_what_a_vanished_worker_held_runs_elsewhere() -> None:
    """After `ack_wait_s`, once, in order."""
    gate = Gate(is_open=False)
    bench = await Bench.begin(pipeline(gate, ack_wait_s=0.2))
    dying = await bench.work()
    await bench.send(b"1", b"2", b"3")
    await until(lambda: len(gate.entered) == 2)
    vanishing = asyncio.create_task(dying.vanish())
    await until(lambda: dying.broker._closed)  # type: ignore[attr-defined]
    gate.opened.set()
    await vanishing
    assert not bench.messages(bench.subjects.out)
    await bench.work()
    left = await bench.left(3)
    assert results(left) == [(b, Outcome.SUCCESS) for b in (b"1", b"2", b"3")]
    await bench.end()


async def test_a_package_that_kills_its_workers_is_an_error_and_the_sequence_goes_on() -> None:
    """Begun `max_deliver` times, the last of them on record: not run again."""
    gate = Gate(is_open=False)
    bench = await Bench.begin(pipeline(gate, ack_wait_s=0.1, max_deliver=3))
    await bench.send(b"poison")
    for times in (1, 2, 3):
        dying = await bench.work()
        await until(lambda times=times: len(gate.entered) == times)
        await dying.broker.close()
        dying.task.cancel()
    gate.opened.set()
    await bench.work()
    await bench.send(b"next")
    left = await bench.left(2)
    assert results(left) == [(b"poison", Outcome.ERROR), (b"next", Outcome.SUCCESS)]
    assert "begun 3 times without a result" in left[0].errors[0].message
    assert gate.entered.count(b"poison") == 3
    for worker in bench.workers[:3]:
        await worker.phase.close()
    await bench.end()


async def test_a_result_over_the_limit_is_an_error_with_the_original_payload() -> None:
    """Where an older program has deployed no place for it. And those behind it go on."""
    bench = await Bench.begin(pipeline(Gate()), max_payload=16_000)
    await bench.broker.delete_object_bucket(payload_bucket("demo"))
    await bench.work()
    await bench.send(b"grow", b"next")
    left = await bench.left(2)
    assert results(left) == [(b"grow", Outcome.ERROR), (b"next", Outcome.SUCCESS)]
    assert "BP307" in left[0].errors[0].message
    assert [phase.name for phase in left[0].controllers[0].phases] == ["p0"]
    await bench.end()


async def test_a_package_that_is_too_large_even_as_an_error_leaves_without_its_payload() -> None:
    """It came just below the limit, and there is no place for its payload: one ERROR, and no worker
    that goes round in circles."""
    bench = await Bench.begin(pipeline(Gate()), max_payload=16_000)
    await bench.broker.delete_object_bucket(payload_bucket("demo"))
    await bench.work()
    await bench.send(b"x" * 15_700, b"next")
    left = await bench.left(2)
    assert results(left) == [(b"", Outcome.ERROR), (b"next", Outcome.SUCCESS)]
    await bench.end()


@pytest.mark.parametrize("data", [b"", b"\xff\xff", b"\x08\x01"])
async def test_an_unreadable_message_in_a_queue_stops_nobody(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It is acked and logged, once."""
    bench = await Bench.begin(pipeline(Gate(), ack_wait_s=0.1))
    await bench.work()
    await bench.broker.publish(bench.subjects.queue("c", "p0", "a", 0), data)
    await bench.send(b"next")
    assert results(await bench.left(1)) == [(b"next", Outcome.SUCCESS)]
    consumer = bench.server.stream(bench.stream).consumers["c=p0"]
    await until(lambda: not consumer.counts)
    assert caplog.text.count("is no package") == 1
    await bench.end()


async def test_a_drain_gives_back_what_has_not_begun_and_finishes_the_rest() -> None:
    """Nothing stays with the drained worker; another gets it at once, not after `ack_wait_s`."""
    gate = Gate(is_open=False)
    bench = await Bench.begin(pipeline(gate, ack_wait_s=60.0))
    first = await bench.work(slots=2)
    first.phase._executor.wanted = lambda: 10  # type: ignore[method-assign]
    await bench.send(*[b"%d" % n for n in range(8)])
    await until(lambda: len(gate.entered) == 2 and len(first.phase._here) == 8)
    draining = asyncio.create_task(first.drain())
    await until(lambda: len(first.phase._here) == 2)
    assert not draining.done()
    gate.opened.set()
    await draining
    assert len(bench.messages(bench.subjects.ctl_done)) == 2
    second = await bench.work()
    left = await bench.left(8)
    assert [package.data for package in left] == [b"%d" % n for n in range(8)]
    assert sorted(gate.entered) == [b"%d" % n for n in range(8)], "something ran twice"
    consumer = bench.server.stream(bench.stream).consumers["c=p0"]
    await until(lambda: not consumer.counts)
    await second.drain()
    await bench.end()


async def test_a_long_module_is_kept_alive() -> None:
    """It runs for longer than 3 x `ack_wait_s` and is delivered once."""
    gate = Gate(is_open=False)
    bench = await Bench.begin(pipeline(gate, ack_wait_s=0.1))
    await bench.work()
    await bench.send(b"long")
    await until(lambda: gate.entered)
    loop = asyncio.get_running_loop()
    end = loop.time() + 0.4
    await until(lambda: loop.time() > end)
    gate.opened.set()
    assert results(await bench.left(1)) == [(b"long", Outcome.SUCCESS)]
    assert gate.entered == [b"long"]
    await bench.end()


async def test_a_redelivery_to_the_worker_that_still_runs_it_does_not_run_it_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after a blocked event loop: two runs at once would share one state."""
    monkeypatch.setattr(phase_worker, "SIGNS_OF_LIFE", 0.01)
    gate = Gate(is_open=False)
    bench = await Bench.begin(pipeline(gate, ack_wait_s=0.1, max_deliver=1_000))
    worker = await bench.work()
    await bench.send(b"slow")
    await until(lambda: worker.phase._here)
    (here,) = worker.phase._here.values()
    await until(lambda: here.message.delivered >= 3)
    gate.opened.set()
    assert results(await bench.left(1)) == [(b"slow", Outcome.SUCCESS)]
    assert gate.entered == [b"slow"]
    consumer = bench.server.stream(bench.stream).consumers["c=p0"]
    await until(lambda: not consumer.counts)
    await bench.end()


async def test_phases_follow_each_other_without_the_leader() -> None:
    """p0 -> p1 directly; EXIT in p0 completes at once; the order stays."""
    one, two = Gate(name="one"), Gate(name="two")
    bench = await Bench.begin(pipeline(one, two))
    await bench.work(0)
    await bench.work(1)
    await bench.send(b"1", b"exit", b"3")
    left = await bench.left(3)
    by_sequence = results(sorted(left, key=lambda package: package.sequence))
    assert by_sequence == [
        (b"1", Outcome.SUCCESS),
        (b"exit", Outcome.EXIT),
        (b"3", Outcome.SUCCESS),
    ]
    assert sorted(two.entered) == [b"1", b"3"]
    assert len(bench.messages(bench.subjects.ctl_done)) == 3
    await bench.end()


async def test_a_drain_ends_when_the_broker_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is not stored is redelivered to others; nobody waits for it."""
    monkeypatch.setattr(phase_worker, "DRAIN_STALL_S", 0.05)
    gate = Gate(is_open=False)
    bench = await Bench.begin(pipeline(gate, ack_wait_s=0.2))
    worker = await bench.work()
    await bench.send(b"1", b"2")
    await until(lambda: len(gate.entered) == 2)

    async def never(*args: object, **options: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(worker.broker, "start_publish", never)
    gate.opened.set()
    await worker.drain()
    await bench.work()
    assert len(await bench.left(2)) == 2
    await bench.end()


async def test_results_that_were_not_stored_are_run_again() -> None:
    """The connection breaks with results under way: each package leaves once."""
    gate = Gate()
    bench = await Bench.begin(pipeline(gate, ack_wait_s=0.2))
    worker = await bench.work()
    for number in range(40):
        await bench.send(b"%d" % number)
        if number % 10 == 5:
            bench.server.disconnect(worker.broker)  # type: ignore[arg-type]
    left = await bench.left(40)
    assert [package.data for package in left] == [b"%d" % n for n in range(40)]
    await bench.end()


async def test_a_consumer_that_is_deleted_ends_the_worker_with_one_clear_error() -> None:
    """NotFoundError, not a group of groups; its modules are torn down."""
    gate = Gate()
    bench = await Bench.begin(pipeline(gate))
    worker = Worker(
        bench.server.connect(reconnect=True), bench.pipeline, choose(bench.pipeline, None), slots=2
    )
    ready = asyncio.Event()
    running = asyncio.create_task(worker.run(asyncio.Event(), ready=ready.set))
    await ready.wait()
    await until(lambda: worker._phases[0]._subscription is not None)
    bench.leading.cancel()
    await bench.broker.delete_stream(bench.stream)
    with pytest.raises(NotFoundError):
        await running


async def test_a_worker_without_its_consumer_says_so() -> None:
    """As one of a newer pipeline than the deployed one."""
    bench = await Bench.begin(pipeline(Gate()))
    other = pipeline(Gate(), Gate(name="new"))
    worker = Worker(bench.server.connect(), other, choose(other, None), slots=2)
    with pytest.raises(NotFoundError, match="c=p1"):
        await worker.run(asyncio.Event(), ready=lambda: None)
    await bench.end()


async def test_a_connection_lost_for_good_ends_the_worker() -> None:
    """ConnectionLostError."""
    bench = await Bench.begin(pipeline(Gate()))
    broker = bench.server.connect(reconnect=False)
    ready = asyncio.Event()
    running = asyncio.create_task(
        Worker(broker, bench.pipeline, choose(bench.pipeline, None), slots=2).run(
            asyncio.Event(), ready=ready.set
        )
    )
    await ready.wait()
    bench.server.disconnect(broker)
    with pytest.raises(ConnectionLostError):
        await running
    await bench.end()


def test_the_first_error_stands_for_its_group() -> None:
    """However deep it is."""
    with pytest.raises(KeyError), first_error():
        raise ExceptionGroup("outer", [ExceptionGroup("inner", [KeyError("x")])])
