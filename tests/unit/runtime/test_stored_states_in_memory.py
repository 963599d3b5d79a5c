"""States that are stored: large ones, ones that cannot be, ones of no use; and who goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from broker_pipeline import ExecutionModule, Outcome
from broker_pipeline.broker.memory import MemoryServer
from broker_pipeline.core.names import HEADER_CONTROL, module_bucket, object_bucket
from broker_pipeline.modules import StatefulModule
from broker_pipeline.runtime import phase_worker
from broker_pipeline.runtime import states as keeping
from broker_pipeline.runtime.large_states import LargeStates
from tests.unit.runtime.bench import Bench, results
from tests.unit.runtime.folding import KEY, TEXTS, Fold, expected, one_by_one, pipeline
from tests.unit.runtime.shard import until


class Filter(ExecutionModule[bytes]):
    """Lets some leave early."""

    def execute(self, package: Any, run: Any) -> None:
        """By its text."""
        if package.data.startswith(b"out"):
            run.exit("early")


async def test_early_leavers_of_phase_one_are_no_inputs_of_phase_two() -> None:
    """`previous_sequences` is by phase; a cold worker of phase two catches up without them."""
    bench = await Bench.begin(pipeline(Filter(), Fold()))
    await bench.work(0)
    first = await bench.work(1)
    found = await one_by_one(bench, ["1", "out", "2", "fail", "out", "3"])
    await first.vanish()
    await bench.work(1)
    found += await one_by_one(bench, ["out", "4"])
    assert [data for data, outcome in found if outcome is Outcome.SUCCESS] == [
        b"1", b"1 2", b"1 2 3", b"1 2 3 4",
    ]  # fmt: skip
    await bench.end()


@pytest.mark.parametrize("lost", [False, True])
async def test_a_state_over_the_limit_is_stored_as_an_object(
    lost: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another worker goes on from it; where it is lost, that is said, and the log has the rest."""
    monkeypatch.setattr(keeping, "STORE_EVERY_S", 0.0)
    bench = await Bench.begin(pipeline(Fold()), max_payload=16_000)
    first = await bench.work()
    found = await one_by_one(bench, ["1", "big", "2"])
    await first.drain()
    entry = await bench.broker.kv_get(module_bucket("demo"), KEY)
    assert entry is not None and len(entry.value) < 200
    if lost:
        await bench.broker.object_delete(
            object_bucket("demo"), msgspec.msgpack.decode(entry.value)["object"]
        )
    second = await bench.work()
    found += await one_by_one(bench, ["3"])
    assert found == expected(["1", "big", "2", "3"])
    assert second.phase._states.caught_up == (3 if lost else 0)  # type: ignore[union-attr]
    assert ("computed from the log" in caplog.text) is lost
    await bench.end()


async def test_storing_large_states_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is being stored, for ever, packages are acked; a drain gives it up."""
    monkeypatch.setattr(keeping, "STORE_EVERY_S", 0.0)
    monkeypatch.setattr(phase_worker, "DRAIN_STALL_S", 0.05)
    bench = await Bench.begin(pipeline(Fold()), max_payload=16_000)
    first = await bench.work()
    puts = 0

    async def never(*args: Any) -> None:
        nonlocal puts
        puts += 1
        await asyncio.Event().wait()

    monkeypatch.setattr(first.broker, "object_put", never)
    found = await one_by_one(bench, ["big", "1", "2"])
    consumers = bench.server.stream(bench.stream).consumers.values()
    await until(lambda: not any(consumer.counts for consumer in consumers))
    assert puts == 1
    await first.drain()
    await bench.work()
    found += await one_by_one(bench, ["3"])
    assert found == expected(["big", "1", "2", "3"])
    await bench.end()


async def test_large_states_are_stored_as_often_as_their_cost_allows() -> None:
    """At most a tenth of the time goes into it: after one that took 0.1 s, none for 1 s."""
    large = LargeStates(MemoryServer().connect(), "demo")
    now = asyncio.get_running_loop().time()
    assert large.is_due
    large.spent(0.1)
    assert not large.is_due
    assert 0.9 < large._due - now < 1.2


async def test_a_state_that_cannot_be_encoded_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one with a number of more than 64 bits: it is said, and computed from the log."""
    monkeypatch.setattr(keeping, "STORE_EVERY_S", 0.0)

    class Huge(msgspec.Struct):
        number: int = 1

    class Grow(StatefulModule[bytes, Huge]):
        def initial_state(self) -> Huge:
            return Huge()

        def execute(self, package: Any, run: Any, state: Huge) -> Huge:
            state.number <<= 40
            package.data = b"%d" % state.number.bit_length()
            return state

    bench = await Bench.begin(pipeline(Grow()))
    first = await bench.work()
    found = await one_by_one(bench, ["1", "2"])
    await first.drain()
    await bench.work()
    found += await one_by_one(bench, ["3"])
    assert [data for data, _ in found] == [b"41", b"81", b"121"]
    assert "cannot be encoded" in caplog.text
    await bench.end()


@pytest.mark.parametrize("raw", [b"", b"junk", b"\xa1\xff", msgspec.msgpack.encode((2, 1, 3, {}))])
async def test_a_stored_state_of_no_use_is_not_used(raw: bytes) -> None:
    """Unreadable, or of another life: computed from the log."""
    bench = await Bench.begin(pipeline(Fold()))
    first = await bench.work()
    found = await one_by_one(bench, TEXTS[:4])
    await first.vanish()
    if raw == msgspec.msgpack.encode((2, 1, 3, {})):
        raw = msgspec.msgpack.encode((999, 1, 3, {}))
    await bench.broker.kv_put(module_bucket("demo"), KEY, raw)
    await bench.work()
    found += await one_by_one(bench, TEXTS[4:])
    assert found == expected(TEXTS)
    await bench.end()


async def test_a_new_life_begins_with_a_fresh_state() -> None:
    """The instance is closed: the next package finds the initial state, also with a warm worker."""
    bench = await Bench.begin(pipeline(Fold()))
    await bench.work()
    found = await one_by_one(bench, ["1", "2"])
    await bench.broker.publish(bench.subjects.arrival("a"), b"", headers={HEADER_CONTROL: "close"})
    found += await one_by_one(bench, ["3", "4"])
    assert found == expected(["1", "2"]) + expected(["3", "4"])
    await bench.end()


async def test_a_drain_during_catching_up_gives_the_package_back() -> None:
    """Also where catching up has not even begun: nothing hangs, and another worker runs it."""
    for delay in range(12):
        bench = await Bench.begin(pipeline(Fold(), ack_wait_s=60.0))
        first = await bench.work()
        found = await one_by_one(bench, ["1", "2"])
        await first.drain()
        bench.server.bucket(module_bucket("demo"))._values.clear()
        second = await bench.work()
        await bench.send(b"3")
        await until(lambda second=second: second.phase._here)
        for _ in range(delay):
            await asyncio.sleep(0)
        await second.drain()
        await bench.work()
        found += results(await bench.left(3))[2:]
        assert found == expected(["1", "2", "3"])
        await bench.end()


async def test_cold_workers_do_not_catch_up_with_everything_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many instances move to a worker that knows none: a bounded number is read at a time."""
    monkeypatch.setattr(keeping, "STORE_EVERY_S", 1e9)
    bench = await Bench.begin(pipeline(Fold(), ack_wait_s=5.0))
    first = await bench.work()
    names = [f"i{n}" for n in range(60)]
    for name in names:
        await bench.send(b"1", instance=name)
    await bench.left(60)
    await first.vanish()
    for name in names:
        await bench.send(b"2", instance=name)
    second = await bench.work()
    most = 0
    keeper = second.phase._states
    assert keeper is not None
    real, now = keeper._load, 0

    async def counted(*args: Any) -> Any:
        nonlocal most, now
        now += 1
        most = max(most, now)
        try:
            return await real(*args)
        finally:
            now -= 1

    monkeypatch.setattr(keeper, "_load", counted)
    left = await bench.left(120)
    assert sorted(data for data, _ in results(left)) == [b"1"] * 60 + [b"1 2"] * 60
    assert most <= 16
    await bench.end()
