"""Leaders that crash, overlap, pause and stop: what leaves is the same."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import msgspec
import pytest

from broker_pipeline import Mode
from broker_pipeline.broker.port import PubAck
from broker_pipeline.core import snapshot
from broker_pipeline.core.names import (
    STATE_BUCKET,
    snapshot_key,
)
from broker_pipeline.errors import ConnectionLostError, LeadershipLostError, PublishRefusedError
from broker_pipeline.runtime import leader as leading
from tests.unit.runtime.shard import (
    NAME,
    SUBJECTS,
    CrashingBroker,
    Hands,
    Shard,
    outcome_of,
    pipeline,
    turns,
    until,
)

CHAINS = [
    (Mode.ORDER_BY_SEQUENCE,),
    (Mode.FIRST_WINS,),
    (Mode.NOT_PARALLEL, Mode.ORDER_BY_SEQUENCE),
    (Mode.ORDER_BY_SEQUENCE, Mode.NO_ORDER, Mode.NOT_PARALLEL),
]


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots whenever there is something new."""
    monkeypatch.setattr(leading, "SNAPSHOT_INTERVAL_S", 0.0)
    monkeypatch.setattr(snapshot, "WHOLE_MAX", 0)
    monkeypatch.setattr(snapshot, "SLICES", 2)
    monkeypatch.setattr(snapshot, "SLICES_MAX", 4)

    async def at_once(function: Callable[..., object], *args: object) -> object:
        return function(*args)

    # Threads take as long as they like; the number of operations must be the same each time.
    monkeypatch.setattr(asyncio, "to_thread", at_once)


async def run_with_crashes(modes: tuple[Mode, ...], crashes: list[CrashingBroker]) -> None:
    """A few packages; each leader of the list leads until it crashes, then one that does not."""
    shard = await Shard.begin(pipeline(*modes))
    server = shard.server
    for crashing in crashes:
        crashing._server, crashing._real = server, server.connect()
    hands = await Hands(shard, random.Random(1)).begin()
    for number in range(4):
        await shard.send("a", b"a%d" % number)
        await shard.send("b", b"b%d" % number)
    for crashing in crashes:
        running = shard.lead(crashing)  # type: ignore[arg-type]
        await until(
            lambda running=running: running.task.done() or len(shard.left()) == 8 or hands.waiting
        )
        for _ in range(200):
            if running.task.done() or len(shard.left()) == 8:
                break
            await hands.finish_one()
            await turns(3)
        await running.kill()
    shard.lead()
    await hands.until_all_left()
    shard.check(modes[-1])
    await hands.end()
    await shard.end()


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("modes", CHAINS, ids=lambda modes: "-".join(modes))
@pytest.mark.parametrize("after", [False, True])
async def test_a_crash_at_any_operation_changes_nothing(
    modes: tuple[Mode, ...], after: bool
) -> None:
    """The connection breaks at the k-th call to the broker, for every k: publishes, the seal before
    a snapshot, its parts, its head and the purge behind it included."""
    placeholder = (await Shard.begin(pipeline(*modes))).server
    points = 0
    for k in range(1, 400):
        crashing = CrashingBroker(placeholder, k, after=after)
        try:
            await run_with_crashes(modes, [crashing])
        except AssertionError as error:
            raise AssertionError(f"crash at operation {k}: {error}") from error
        if not crashing.crashed:
            break
        points = k
    assert points > 40, "there are more operations than that"


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("seed", range(30))
async def test_leaders_that_come_and_go_and_overlap_change_nothing(seed: int) -> None:
    """Arrivals, results, kills, and leaders beside the first, as a seed draws them."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    modes = chance.choice(CHAINS)
    shard = await Shard.begin(pipeline(*modes))
    hands = await Hands(shard, chance).begin()
    shard.lead()
    for number in range(120):
        action = chance.random()
        if action < 0.5:
            await shard.send(chance.choice("abc"), b"%d" % number)
        elif action < 0.85:
            await hands.finish_one()
        elif action < 0.9 and shard.leaders:
            running = shard.leaders.pop(chance.randrange(len(shard.leaders)))
            if chance.random() < 0.5:
                shard.server.disconnect(running.broker)  # type: ignore[arg-type]
            await running.kill()
        elif len(shard.leaders) < 3:
            shard.lead()
        await turns(chance.randrange(8))
    shard.lead()
    await hands.until_all_left()
    shard.check(modes[-1])
    await hands.end()
    await shard.end()


async def test_a_paused_leader_that_wakes_up_repeats_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has read and not published while another went on: all of it is known by id."""
    shard = await Shard.begin(pipeline(Mode.ORDER_BY_SEQUENCE))
    gate = asyncio.Event()
    apply = leading.Leader._apply

    async def wait_first(self: leading.Leader, *args: object) -> None:
        if self is stale.leader:
            await gate.wait()
        await apply(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(leading.Leader, "_apply", wait_first)
    stale = shard.lead()
    hands = await Hands(shard, random.Random(3)).begin()
    for number in range(20):
        await shard.send("a", b"%d" % number)
    await until(lambda: len(stale.leader._inbox) >= 20)
    shard.lead()
    await hands.until_all_left()
    before = [message.stream_seq for message in shard.messages(SUBJECTS.prefix)]
    gate.set()
    await until(lambda: stale.leader.machine.applied >= before[-1] - 1 or stale.task.done())
    await turns(100)
    shard.check(Mode.ORDER_BY_SEQUENCE)
    await hands.end()
    await shard.end()


async def test_stop_stores_a_snapshot_and_ends_even_in_the_middle_of_one() -> None:
    """What the next leader applies again is nothing; `stop` is seen wherever it is set."""
    for delay in range(40):
        shard = await Shard.begin(pipeline(Mode.ORDER_BY_SEQUENCE))
        running = shard.lead()
        await shard.send("a", b"x")
        await turns(delay)
        await running.stopped()
        entry = await shard.broker.kv_get(STATE_BUCKET, snapshot_key(NAME, 0))
        if entry is not None:  # else it was stopped before it led
            again = shard.lead()
            await until(lambda again=again: again.leader._subscription is not None)
            assert again.leader.machine.applied == running.leader.machine.applied
        await shard.end()


async def test_a_leader_that_stops_as_it_is_refused_claims_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its snapshot would say that the refused output is stored, and the package would be lost:
    found by seed 67 of the simulation."""
    shard = await Shard.begin(pipeline(Mode.ORDER_BY_SEQUENCE))
    running = shard.lead()
    await until(lambda: running.leader._subscription is not None)
    store = shard.server.store

    def refuse(subject: str, data: bytes, block: bytes) -> PubAck:
        if subject.startswith(SUBJECTS.work):
            running.stop.set()
            raise PublishRefusedError("a gap")
        return store(subject, data, block)

    with monkeypatch.context() as patched:
        patched.setattr(shard.server, "store", refuse)
        await shard.send("a", b"x")
        assert isinstance(await outcome_of(running.task), PublishRefusedError)
    shard.lead()
    await until(lambda: shard.messages(SUBJECTS.work))
    await shard.end()


@pytest.mark.usefixtures("often")
async def test_stop_is_seen_while_a_snapshot_is_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wake-up is not lost: nothing else would wake the leader again."""
    shard = await Shard.begin(pipeline(Mode.ORDER_BY_SEQUENCE))
    running = shard.lead()
    due = leading.Leader._snapshot_if_due

    async def stop_meanwhile(self: leading.Leader, *args: object) -> float:
        found = await due(self, *args)  # type: ignore[arg-type]
        if self.machine.applied > 1:
            running.stop.set()
            await turns(5)
            self._stored_applied = self.machine.applied
        return found

    monkeypatch.setattr(leading.Leader, "_snapshot_if_due", stop_meanwhile)
    await shard.send("a", b"x")
    async with asyncio.timeout(10):
        await running.task
    await shard.end()


async def test_stop_ends_a_recovery_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that does not answer holds up nobody."""
    shard = await Shard.begin(pipeline(Mode.ORDER_BY_SEQUENCE))

    async def never(*args: object, **options: object) -> None:
        await asyncio.Event().wait()

    broker = shard.server.connect()
    monkeypatch.setattr(broker, "read_range", never)
    running = shard.lead(broker)
    await turns(20)
    assert not running.task.done()
    await running.stopped()
    await shard.end()


async def test_a_lost_connection_ends_the_leader() -> None:
    """It raises, and leaves no task behind."""
    shard = await Shard.begin(pipeline(Mode.ORDER_BY_SEQUENCE))
    running = shard.lead()
    await until(lambda: running.leader._subscription is not None)
    shard.server.disconnect(running.broker)  # type: ignore[arg-type]
    assert isinstance(await outcome_of(running.task), ConnectionLostError)
    await shard.end()


@pytest.mark.usefixtures("often")
async def test_a_leader_whose_snapshot_is_refused_ends_at_once() -> None:
    """Another has stored a newer one: the stale leader does not go on until the next is due."""
    shard = await Shard.begin(pipeline(Mode.ORDER_BY_SEQUENCE))
    stale = shard.lead()
    await shard.send("a", b"x")
    await until(lambda: stale.leader._stored_applied > 1)
    key = snapshot_key(NAME, 0)
    entry = await shard.broker.kv_get(STATE_BUCKET, key)
    assert entry is not None
    newer = stale.leader._snapshots._read(entry.value)
    raw = msgspec.msgpack.encode((10**9, newer.head, newer.parts))
    await shard.broker.kv_put(STATE_BUCKET, key, raw)
    await shard.send("a", b"y")
    assert isinstance(await outcome_of(stale.task), LeadershipLostError)
    await shard.end()


async def test_much_that_changed_is_stored_before_it_is_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CHANGED_MAX instances are worth a snapshot, fewer are not: none is ever much larger."""
    monkeypatch.setattr(leading, "SNAPSHOT_INTERVAL_S", 3600.0)
    monkeypatch.setattr(snapshot, "CHANGED_MAX", 5)
    shard = await Shard.begin(pipeline(Mode.ORDER_BY_SEQUENCE))
    running = shard.lead()
    for token in "abcd":
        await shard.send(token, b"x")
    await until(lambda: len(running.leader.machine.changed) == 4)
    await turns(50)
    assert running.leader._stored_applied == 0
    await shard.send("e", b"x")
    await until(lambda: running.leader._stored_applied > 1)
    assert not running.leader.machine.changed
    await shard.end()
