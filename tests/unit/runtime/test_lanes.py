"""Workers of a stateful phase come and go: lanes, their packages and their states change hands."""

from __future__ import annotations

import pytest

from broker_pipeline.core.lanes import LANES
from broker_pipeline.core.names import LEASE_BUCKET
from broker_pipeline.runtime import lanes
from broker_pipeline.runtime import states as keeping
from tests.unit.runtime.bench import Bench, Working, results
from tests.unit.runtime.shard import until
from tests.unit.runtime.test_states_in_memory import Fold, pipeline

NAMES = [f"i{n}" for n in range(40)]


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers look for each other every few milliseconds, and store states only at a change."""
    monkeypatch.setattr(lanes, "LOOK_S", 0.01)
    monkeypatch.setattr(keeping, "STORE_EVERY_S", 1e9)


async def send_all(bench: Bench, text: bytes) -> None:
    """One package for each instance."""
    for name in NAMES:
        await bench.send(text, instance=name)


def have_all(*workers: Working) -> bool:
    """Whether each has lanes, each lane is pulled by exactly one, and each holds its own states."""
    found = [worker.phase._lanes for worker in workers]
    pulled = sorted(lane for each in found if each is not None for lane in each._pulled)
    keepers = [worker.phase._states for worker in workers]
    if pulled != list(range(LANES)) or not all(each and each._pulled for each in found):
        return False
    return not any(
        each._is_anothers(token)
        for each, keeper in zip(found, keepers, strict=True)
        if each is not None and keeper is not None
        for token in keeper.tokens()
    )


def run_again(*workers: Working) -> int:
    """Inputs that were run again."""
    return sum(worker.phase._states.caught_up for worker in workers)  # type: ignore[union-attr]


async def test_a_worker_that_joins_gets_states_and_one_that_drains_leaves_them() -> None:
    """Nothing is run again at either, though no state is stored but for that."""
    bench = await Bench.begin(pipeline(Fold()))
    first = await bench.work()
    await send_all(bench, b"1")
    await bench.left(40)
    second = await bench.work()
    await until(lambda: have_all(first, second))
    await send_all(bench, b"2")
    left = results(await bench.left(80))
    assert [data for data, _ in left] == [b"1"] * 40 + [b"1 2"] * 40
    assert second.phase._states.tokens()  # type: ignore[union-attr]
    await first.drain()
    await until(lambda: have_all(second))
    await send_all(bench, b"3")
    left = results(await bench.left(120))
    assert [data for data, _ in left[80:]] == [b"1 2 3"] * 40
    assert run_again(first, second) == 0
    await bench.end()


async def test_what_has_not_begun_in_a_lost_lane_is_given_back() -> None:
    """At once, long before its ack_wait is over; what runs ends where it began."""
    fold = Fold()
    bench = await Bench.begin(pipeline(fold, ack_wait_s=60.0))
    fold.opened.clear()
    await send_all(bench, b"1")
    await until(lambda: len(bench.messages(bench.subjects.work)) == 40)
    first = await bench.work(slots=1)
    await until(lambda: len(first.phase._here) > 20)
    before = set(first.phase._here)
    second = await bench.work(slots=1)
    await until(lambda: have_all(first, second) and len(second.phase._here) > 10)
    assert before - set(first.phase._here)
    fold.opened.set()
    assert len(await bench.left(40)) == fold.runs == 40
    await bench.end()


async def test_a_worker_without_the_broker_keeps_its_lanes() -> None:
    """It is forgotten after a while, and another takes over: both pull, and states are right."""
    bench = await Bench.begin(pipeline(Fold()))
    first, second = await bench.work(), await bench.work()
    await until(lambda: have_all(first, second))
    found = second.phase._lanes
    assert found is not None
    mine = set(found._pulled)
    for task in found._tasks:
        task.cancel()  # it hears and says nothing of others any more
    await bench.broker.kv_erase(LEASE_BUCKET, found._members + found._name)
    await until(lambda: have_all(first))
    assert set(found._pulled) == mine
    for text in (b"1", b"2", b"3"):
        await send_all(bench, text)
    left = await bench.left(120)
    assert (
        sorted(data for data, _ in results(left)) == [b"1"] * 40 + [b"1 2"] * 40 + [b"1 2 3"] * 40
    )
    await bench.end()


async def test_a_lane_has_its_share_of_the_credit_and_pauses_with_the_rest() -> None:
    """A power of two each, at least one; none while nothing is wanted."""
    bench = await Bench.begin(pipeline(Fold()))
    worker = await bench.work()
    await until(lambda: have_all(worker))
    found = worker.phase._lanes
    assert found is not None
    for wanted, each in ((1, 1), (0, 0), (5, 1), (200, 4), (0, 0)):
        found.set_credit(wanted)
        assert {one._credit for one in found._pulled.values()} == {each}  # type: ignore[attr-defined]
    await bench.end()
