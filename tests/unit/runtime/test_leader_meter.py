"""What a leader counts and tells: over takeovers, of what it has published, and of its log."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from broker_pipeline import Mode
from broker_pipeline.core.names import HEADER_CONTENT_TYPE
from broker_pipeline.journey import Status
from broker_pipeline.observe.meter import Meter
from broker_pipeline.package import CONTENT_TYPE
from broker_pipeline.runtime import leader_meter
from broker_pipeline.runtime.leader_meter import STATES, LeaderMeter
from broker_pipeline.runtime.per_instance import OTHER
from tests.unit.runtime.readings import Values, values
from tests.unit.runtime.shard import NAME, SUBJECTS, Hands, Shard, pipeline, until

LABELS = (NAME, "0")
C0, C1 = (*LABELS, "c0"), (*LABELS, "c1")


class Controller:
    """One controller process, with what it counts."""

    def __init__(self, shard: Shard, **options: Any) -> None:
        self.meter = Meter()
        self.counts = LeaderMeter(self.meter, NAME, 0, **options)
        self.shard = shard

    def lead(self) -> Any:
        """A term."""
        return self.shard.lead(meter=self.counts)

    def read(self) -> Values:
        """A reading, with what must hold in each."""
        found = values(self.meter)
        for level, labels, gauges in (
            ("packages", LABELS, ("packages_inside",)),
            ("controller_packages", C0, CONTROLLER_GAUGES),
            ("controller_packages", C1, CONTROLLER_GAUGES),
        ):
            if (f"{level}_in_total", labels) in found:
                out = f"{level}_out_total"
                left = sum(v for (n, ls), v in found.items() if n == out and ls[:-1] == labels)
                inside = sum(found[gauge, labels] for gauge in gauges)
                assert found[f"{level}_in_total", labels] == left + inside
        return found

    def state(self) -> str:
        """What it says that it does."""
        found = self.read()
        (state,) = [each for each in STATES if found["leader_state", (*LABELS, each)]]
        return state


CONTROLLER_GAUGES = ("controller_processing", "controller_waiting_in", "controller_waiting_out")


def leaders_counts(found: Values) -> Values:
    """Those that only who leads tells, and that never go back."""
    names = ("packages_in_total", "packages_out_total", "controller_packages_in_total",
             "controller_packages_out_total")  # fmt: skip
    return {key: value for key, value in found.items() if key[0] in names}


async def test_the_counts_go_on_where_a_killed_leader_left_them() -> None:
    """Two leaders in turns, killed at any moment, with packages of every kind: what the next tells
    first is not less than what the last one told, and in the end it is what the log has."""
    shard = await Shard.begin(pipeline(Mode.ORDER_BY_SEQUENCE, Mode.FIRST_WINS))
    hands = await Hands(shard, random.Random(7)).begin()
    controllers = [Controller(shard) for _ in range(2)]
    told: Values = {}
    for turn in range(8):
        controller = controllers[turn % 2]
        running = controller.lead()
        for number in range(6):
            await shard.send(f"i{number % 2}", b"%d" % (turn * 6 + number))
            await hands.finish_one()
        await shard.send("i0", b"\xff", **{HEADER_CONTENT_TYPE: CONTENT_TYPE})
        await until(lambda controller=controller: controller.state() == "leading")
        for _ in range(20):
            found = leaders_counts(controller.read())
            assert not {key: (told[key], found[key]) for key in told if found[key] < told[key]}
            told = found
            await asyncio.sleep(0)
        await running.kill()
        assert leaders_counts(controller.read()) == {}, "who leads no more tells nothing of it"
    last = controllers[0]
    running = last.lead()
    await hands.until_all_left()
    await until(lambda: last.read().get(("packages_inside", LABELS)) == 0)
    found = last.read()
    outcomes = [subject.subject.split(".")[4] for subject in shard.messages(SUBJECTS.out)]
    for outcome in ("success", "exit", "error", "overflow", "outdated"):
        assert found["packages_out_total", (*LABELS, outcome)] == outcomes.count(outcome)
    terms = [controller.read()["leader_terms_total", LABELS] for controller in controllers]
    assert terms == [5, 4]
    timed = sum(
        value
        for controller in controllers
        for (name, _), value in controller.read().items()
        if name == "package_time_seconds"
    )
    assert timed == len(outcomes), "each was timed by the leader that published it"
    await hands.end()
    await shard.end()


async def test_a_leader_that_has_to_catch_up_tells_no_counts_until_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They would lie behind those of the last one. Its lag is told meanwhile."""
    shard = await Shard.begin(pipeline(Mode.NO_ORDER))
    for number in range(20):
        await shard.send("a", b"%d" % number)
    controller = Controller(shard)
    running = controller.lead()
    seen: list[tuple[str, bool, float]] = []
    applied = running.leader._apply

    async def slowly(*given: Any) -> None:
        found = controller.read()
        told = ("packages_in_total", LABELS) in found
        seen.append((controller.state(), told, found["leader_lag_messages", LABELS]))
        await applied(*given)

    monkeypatch.setattr(running.leader, "_apply", slowly)
    await until(lambda: controller.read().get(("packages_in_total", LABELS)) == 20)
    assert [each[:2] for each in seen] == [("catching_up", False)] * 21
    assert seen[0][2] >= seen[-1][2] == 0
    assert controller.state() == "leading"
    assert controller.read()["leader", LABELS] == 1
    await running.stopped()
    assert controller.state() == "standing_by"
    assert controller.read()["leader", LABELS] == 0
    again = controller.lead()
    await until(lambda: controller.state() == "leading")  # nothing new has come
    await again.kill()
    await shard.end()


async def test_waiting_in_and_out_and_processing_are_told_and_timed() -> None:
    """Five packages in a window of three, in order: two wait for a place, one for its turn."""
    shard = await Shard.begin(pipeline(Mode.ORDER_BY_SEQUENCE))
    hands = await Hands(shard, random.Random(1)).begin()
    controller = Controller(shard)
    running = controller.lead()
    for number in range(5):
        await shard.send("a", b"%d" % number)
    await until(lambda: len(hands.waiting) == 3)
    await hands.complete(hands.waiting.pop(1), Status.SUCCESS)

    def gauges() -> list[float]:
        found = controller.read()
        return [found.get((gauge, C0), -1) for gauge in CONTROLLER_GAUGES]

    await until(lambda: gauges() == [3, 1, 1])
    await hands.complete(hands.waiting.pop(0), Status.EXIT)
    await until(lambda: gauges() == [3, 0, 0])
    found = controller.read()
    assert found["controller_time_seconds", (*C0, "exit")] == 1
    assert found["controller_waiting_out_seconds", C0] == 2
    await hands.until_all_left()
    await until(lambda: gauges() == [0, 0, 0])
    await hands.end()
    await running.stopped()
    await shard.end()


async def test_what_only_the_broker_knows_is_asked_beside_the_packages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The extent of the log, the queue of each phase and its oldest, the oldest package of each
    controller, and the gate. When nothing is inside nothing is oldest."""
    monkeypatch.setattr(leader_meter, "LOOK_EVERY_S", 0.0)
    shard = await Shard.begin(pipeline(Mode.NO_ORDER, log_bytes_max=1 << 30))
    hands = await Hands(shard, random.Random(1)).begin()
    controller = Controller(shard)
    running = controller.lead()
    shard.clock.ns += 1_000_000_000
    arrived = shard.clock.ns + 1_000
    for number in range(2):
        await shard.send("a", b"%d" % number)
    queue = (*C0, "p")
    await until(lambda: controller.read().get(("queue_pending", queue)) == 2)
    await until(lambda: ("controller_oldest_timestamp_seconds", C0) in controller.read())
    found = controller.read()
    assert found["controller_oldest_timestamp_seconds", C0] == arrived / 1e9
    assert found["queue_oldest_timestamp_seconds", queue] >= arrived / 1e9
    assert found["queue_delivered", queue] == found["queue_redelivered", queue] == 0
    assert (found["log_open", LABELS], found["log_limit_bytes", LABELS]) == (1, 1 << 30)
    assert found["log_last_sequence", LABELS] >= found["log_messages", LABELS] >= 5
    await hands.until_all_left()
    await until(lambda: ("controller_oldest_timestamp_seconds", C0) not in controller.read())
    await hands.end()
    await running.stopped()
    await shard.end()


async def test_snapshots_are_timed_and_their_age_begins_with_what_they_lack() -> None:
    """A leader that has stored all is never behind, however long nothing happens."""
    shard = await Shard.begin(pipeline(Mode.NO_ORDER))
    controller = Controller(shard)
    running = controller.lead()
    await shard.send("a", b"1")
    await until(lambda: controller.read().get(("snapshot_age_seconds", LABELS), 0) > 0)
    await running.stopped()
    found = controller.read()
    assert found["snapshot_seconds", LABELS] >= 1
    again = controller.lead()
    await until(lambda: controller.state() == "leading")
    assert controller.read()["snapshot_age_seconds", LABELS] == 0
    await again.kill()
    await shard.end()


async def test_instances_are_told_apart_up_to_the_number_that_was_asked_for() -> None:
    """The others are one series, as is an instance of that very name; the place of one that ends
    is free again, and the sum over all never goes back."""
    shard = await Shard.begin(pipeline(Mode.NO_ORDER))
    hands = await Hands(shard, random.Random(1)).begin()
    controller = Controller(shard, instances=2)
    running = controller.lead()

    async def pass_through(*names: str) -> dict[str, float]:
        for name in names:
            await shard.send(name, b"x")
        await until(lambda: len(hands.waiting) == len(names))
        while hands.waiting:
            await hands.complete(hands.waiting.pop(0), Status.SUCCESS)
        await until(lambda: controller.read().get(("packages_inside", LABELS)) == 0)
        await until(lambda: sum(told().values()) >= total + len(names))
        return told()

    def told() -> dict[str, float]:
        out = [
            (k, v) for k, v in controller.read().items() if k[0] == "instance_packages_out_total"
        ]
        return {labels[2]: value for (_, labels), value in out if labels[3] == "success"}

    total = 0.0
    assert await pass_through("=28other=29") == {OTHER: 1}
    total = 1
    assert await pass_through("a", "b", "c", "c") == {"a": 1, "b": 1, OTHER: 3}
    await shard.send("a", b"", **{"Bp-Control": "close"})
    await until(lambda: "a" not in told())
    assert told() == {"b": 1, OTHER: 4}
    total = 5
    assert await pass_through("c", "d") == {"b": 1, "c": 1, OTHER: 5}
    found = controller.read()
    assert found["instance_packages_inside", (*LABELS, OTHER)] == 0
    await hands.end()
    await running.stopped()
    await shard.end()
