"""States of stateful modules: whoever gets the next package, the outputs are those of a fold."""

from __future__ import annotations

import asyncio
import math
import random
from typing import Any

import pytest

from broker_pipeline.broker.port import PubAck
from broker_pipeline.core.names import module_bucket
from broker_pipeline.runtime import lanes
from broker_pipeline.runtime import states as keeping
from tests.unit.runtime.bench import Bench, results
from tests.unit.runtime.folding import KEY, TEXTS, Fold, Tally, expected, one_by_one, pipeline
from tests.unit.runtime.shard import until


async def test_one_worker_folds() -> None:
    """The plain case: nothing is run twice."""
    fold = Fold()
    bench = await Bench.begin(pipeline(fold))
    await bench.work()
    texts = ["1", "2", "keep", "3"]
    assert await one_by_one(bench, texts) == expected(texts)
    assert fold.runs == 4
    await bench.end()


async def test_a_leader_that_is_quicker_than_the_ack_has_nothing_run_again() -> None:
    """It sends the next package as soon as the result is stored, and the worker may get that before
    the broker's word that it is: the state is here, and about to count."""
    fold = Fold()
    bench = await Bench.begin(pipeline(fold))
    worker = await bench.work()
    publish = worker.broker.start_publish
    telling = set()

    async def start_publish(*args: Any, **options: Any) -> asyncio.Future[PubAck]:
        stored = await publish(*args, **options)
        told: asyncio.Future[PubAck] = asyncio.get_running_loop().create_future()

        async def tell() -> None:
            ack = await stored
            await until(
                lambda: (
                    worker.phase._preparing.count or len(bench.messages(bench.subjects.out)) == 3
                ),
                "the next package waits, or there is none",
            )
            told.set_result(ack)

        telling.add(asyncio.create_task(tell()))
        return told

    worker.broker.start_publish = start_publish  # type: ignore[method-assign]
    await bench.send(b"1", b"2", b"3")
    assert results(await bench.left(3)) == expected(["1", "2", "3"])
    assert fold.runs == 3
    await bench.end()


async def test_exit_without_a_state_leaves_what_was_before() -> None:
    """Unless the module has changed it in place, which the contract forbids to rely on."""

    class Clean(Fold):
        def execute(self, package: Any, run: Any, state: Tally) -> Tally:
            if package.data.startswith(b"drop"):
                run.exit("without state")
            return super().execute(package, run, state)

    bench = await Bench.begin(pipeline(Clean()))
    await bench.work()
    texts = ["1", "drop", "2"]
    assert await one_by_one(bench, texts) == expected(texts)
    await bench.end()


@pytest.mark.parametrize("store_every_s", [0.0, 1e9])
@pytest.mark.parametrize("seed", range(6))
async def test_workers_that_take_turns_give_the_same_as_one(
    seed: int, store_every_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each package goes to a worker of chance, as if all lanes were everybody's; with states stored
    always, which are then at most one package behind, and never."""
    print(f"seed {seed}")
    monkeypatch.setattr(lanes, "lanes_of", lambda name, others, count: frozenset(range(count)))
    monkeypatch.setattr(keeping, "STORE_EVERY_S", store_every_s)
    chance = random.Random(seed)
    bench = await Bench.begin(pipeline(Fold()))
    workers = [await bench.work() for _ in range(3)]
    await until(lambda: all(worker.phase._subscription for worker in workers))
    found = []
    texts = [chance.choice(["keep", "fail", "ok", "ok", "ok"]) + str(n) for n in range(25)]
    for text in texts:
        chosen = chance.choice(workers)
        for worker in workers:
            worker.phase._subscription.set_credit(4 if worker is chosen else 0)  # type: ignore[union-attr]
            worker.phase._executor.wanted = (  # type: ignore[method-assign]
                lambda mine=worker is chosen: 4 if mine else 0
            )
        found += await one_by_one(bench, [text])
    assert found == expected(texts)
    runs_again = sum(worker.phase._states.caught_up for worker in workers)  # type: ignore[union-attr]
    assert 0 < runs_again <= (math.inf if store_every_s else len(texts))
    await bench.end()


@pytest.mark.parametrize("stored", [True, False])
async def test_a_cold_worker_catches_up(stored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From what a drained one has stored, without running anything; or from nothing."""
    if not stored:
        monkeypatch.setattr(keeping, "STORE_EVERY_S", 1e9)
    bench = await Bench.begin(pipeline(Fold()))
    first = await bench.work()
    found = await one_by_one(bench, TEXTS[:5])
    await (first.drain() if stored else first.vanish())
    entry = await bench.broker.kv_get(module_bucket("demo"), KEY)
    assert stored is (entry is not None)
    second = await bench.work()
    found += await one_by_one(bench, TEXTS[5:])
    assert found == expected(TEXTS)
    assert second.phase._states.caught_up == (0 if stored else 4)  # type: ignore[union-attr]
    await bench.end()


async def test_a_redelivered_package_gets_the_state_before_it() -> None:
    """A worker vanishes with it running; the next one folds it in once."""
    fold = Fold()
    bench = await Bench.begin(pipeline(fold))
    first = await bench.work()
    found = await one_by_one(bench, ["1", "2"])
    fold.opened.clear()
    await bench.send(b"3")
    await until(lambda: first.phase._executor._flow.running)  # type: ignore[union-attr]
    await first.broker.close()
    first.task.cancel()
    fold.opened.set()
    await asyncio.gather(first.task, return_exceptions=True)
    await first.phase.close()
    await bench.work()
    found += results(await bench.left(3))[2:]
    found += await one_by_one(bench, ["4"])
    assert found == expected(["1", "2", "3", "4"])
    await bench.end()
