"""What `top` makes of two readings: rates, gauges and quantiles that are right, or None."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from broker_pipeline.broker.port import StreamState
from broker_pipeline.debug.operation.reading import Reading, read
from broker_pipeline.debug.operation.top import View, view
from broker_pipeline.external.registry import Announcement
from broker_pipeline.journey import NS
from broker_pipeline.observe import catalogue
from broker_pipeline.observe.meter import Meter, Metric, Sample
from broker_pipeline.observe.status import Role, Status
from tests.unit.debug.ward import BEGAN_NS, HOLDER, Ward

SHARD = ("p", "0")
C = (*SHARD, "c")
ONE = ("p", "c", "one")


async def quiet() -> Reading:
    """A pipeline that is deployed and led, and whose roles say nothing of themselves."""
    ward = await Ward.healthy()
    return replace(await read(ward.broker, (await ward.facts()).in_force), statuses=(), servers=())


def status(
    role: Role, samples: Sequence[Sample], *, at: float = 0, name: str = "host-1", began: float = -9
) -> Status:
    """What a role says at so many seconds."""
    return Status(
        role=role, name=name, phases=("c.one",) if role is Role.WORKER else (),
        holder=HOLDER if role is Role.CONTROLLER else "",
        since=BEGAN_NS + int(began * NS), at=BEGAN_NS + int(at * NS), samples=tuple(samples),
    )  # fmt: skip


def pair(reading: Reading, before: Sequence[Status], after: Sequence[Status]) -> View:
    """The view of two readings ten seconds apart."""
    return view(
        replace(reading, statuses=tuple(before)),
        replace(reading, statuses=tuple(after), at_ns=reading.at_ns + 10 * NS),
    )


def counts(metric: Metric, *values: int) -> tuple[int, ...]:
    """A histogram with these observations."""
    histogram = Meter().histogram(metric, *["x"] * len(metric.labels))
    for each in values:
        histogram.observe(each)
    return tuple(histogram.counts)


def leading(came: int, left: int, took: Sequence[int] = (), **others: float | str) -> Status:
    """What a leader says."""
    samples = [
        catalogue.PACKAGES_IN.sample(*SHARD, value=came),
        catalogue.PACKAGES_OUT.sample(*SHARD, "success", value=left),
        catalogue.PACKAGES_INSIDE.sample(*SHARD, value=came - left),
        Sample(
            catalogue.PACKAGE_TIME.name, (*SHARD, "success"), 0.0,
            counts(catalogue.PACKAGE_TIME, *took),
        ),
        catalogue.CONTROLLER_IN.sample(*C, value=came),
        catalogue.CONTROLLER_WAITING_OUT.sample(*C, value=3),
        catalogue.CONTROLLER_OLDEST.sample(*C, value=BEGAN_NS / NS - 2),
    ]  # fmt: skip
    return status(Role.CONTROLLER, samples, **others)  # type: ignore[arg-type]


async def test_rates_are_differences_over_the_role_s_own_clock() -> None:
    """Two readings ten seconds apart; the role was heard eight seconds apart."""
    seen = pair(await quiet(), [leading(100, 40, at=1)], [leading(900, 440, at=9)])
    assert seen.over_s == 10
    assert seen.total.flow.in_s == 100 and seen.total.inside == 460
    assert seen.total.flow.out_s == {
        "success": 50, "exit": 0, "error": 0, "overflow": 0, "outdated": 0
    }  # fmt: skip
    (controller,) = seen.controllers
    assert (controller.flow.in_s, controller.waiting_out) == (100, 3)
    assert (controller.flow.out_s, controller.processing) == (None, None)
    assert controller.oldest_s == 12
    assert seen.shards[0].leader == HOLDER and seen.shards[0].answers


async def test_one_reading_given_twice_is_no_rate() -> None:
    """A role that is asked too often gives what it said before: nothing is known, not 0."""
    seen = pair(await quiet(), [leading(100, 40, at=1)], [leading(100, 40, at=1)])
    assert (seen.total.flow.in_s, seen.total.inside) == (None, 60)


async def test_a_new_leader_goes_on_with_the_counts_and_not_with_the_times() -> None:
    """Counts follow from the log; what took how long was seen by one process only."""
    took = [2_000_000] * 5
    seen = pair(
        await quiet(),
        [leading(100, 40, [10**9] * 50, at=1, name="host-1")],
        [leading(900, 440, took, at=5, name="host-2", began=4)],
    )
    assert seen.total.flow.in_s == 80
    assert seen.total.flow.p99_s is not None and seen.total.flow.p99_s < 0.003


async def test_a_leader_after_nobody_has_no_rates_yet() -> None:
    """What it counts came long before: the log's counts are not what it did since it began."""
    new = leading(9_000_000, 40, at=5, began=4)
    seen = pair(await quiet(), [], [new])
    assert (seen.total.flow.in_s, seen.total.flow.out_s) == (None, None)
    assert seen.total.inside == 9_000_000 - 40


async def test_a_standby_that_took_over_is_compared_with_itself() -> None:
    """Its times of an earlier term are not those of what leaves now."""
    standby = msgspec.structs.replace(
        leading(0, 0, [10**9] * 90, at=1, name="host-2"), holder="other"
    )
    now = msgspec.structs.replace(
        leading(900, 440, [10**9] * 90 + [1_000_000] * 5, at=9, name="host-2"), holder="other"
    )
    reading = await quiet()
    assert reading.lease is not None
    lease = msgspec.structs.replace(reading.lease, holder="other")
    before = replace(reading, statuses=(leading(100, 40, at=1), standby))
    after = replace(reading, statuses=(now,), lease=lease, at_ns=reading.at_ns + 10 * NS)
    flow = view(before, after).total.flow
    assert flow.in_s == 80 and flow.p99_s is not None and flow.p99_s <= 0.001


async def test_quantiles_are_of_what_left_meanwhile() -> None:
    """Not of everything since the role began; None where nothing left."""
    before, slow = [1_000_000] * 100, [400_000_000] * 10
    one = leading(0, 0, before, at=0)
    seen = pair(await quiet(), [one], [leading(0, 0, before + slow, at=9)])
    p50 = seen.total.flow.p50_s
    assert p50 is not None and 0.25 < p50 <= 0.5
    seen = pair(await quiet(), [one], [msgspec.structs.replace(one, at=one.at + NS)])
    assert (seen.total.flow.p50_s, seen.total.flow.p99_s) == (None, None)


def working(came: int, *, held: int = 0, **others: float | str) -> Status:
    """What a worker says."""
    samples = [
        catalogue.PHASE_IN.sample(*ONE, value=came),
        catalogue.PHASE_OUT.sample(*ONE, "error", value=came),
        catalogue.PHASE_PROCESSING.sample(*ONE, value=3),
        catalogue.PHASE_SLOTS.sample(*ONE, value=4),
        catalogue.PHASE_HELD.sample(*ONE, value=held),
    ]
    return status(Role.WORKER, samples, **others)  # type: ignore[arg-type]


async def test_a_phase_is_the_sum_of_its_workers() -> None:
    """One heard twice, one that began meanwhile, and one of which only the end is known: its rate
    is not guessed."""
    seen = pair(
        await quiet(),
        [working(1000, at=0)],
        [
            working(1100, at=10),
            working(70, at=10, name="host-2", began=3),
            working(9_999_999, at=10, name="host-3", held=2),
        ],
    )
    phase = seen.phases[0]
    assert (phase.flow.in_s, phase.running, phase.processing) == (17, 3, 9)
    assert phase.flow.out_s == {"success": 0, "exit": 0, "error": 17}
    assert [each.in_s for each in seen.roles] == [10, 7, None]
    assert [(each.slots, each.load, each.held_results) for each in seen.roles][2] == (4, 0.75, 2)


async def test_a_process_that_began_anew_has_not_counted_backwards() -> None:
    """Another process under the same name: its counts are its own."""
    seen = pair(await quiet(), [working(1000, at=0)], [working(30, at=10, name="host-1", began=7)])
    assert seen.phases[0].flow.in_s == 3


async def test_what_a_bridge_can_take_is_what_its_servers_take() -> None:
    """Not its own thousand slots."""
    bridge = msgspec.structs.replace(
        working(10), role=Role.BRIDGE,
        samples=(
            catalogue.PHASE_PROCESSING.sample(*ONE, value=3),
            catalogue.PHASE_SLOTS.sample(*ONE, value=1000),
            catalogue.RELAY_CREDIT.sample(*ONE, "m", "t", value=6),
        ),
    )  # fmt: skip
    (role,) = pair(await quiet(), [], [bridge]).roles
    assert (role.slots, role.load) == (6, 0.5)


async def test_where_nobody_answers_the_broker_still_tells() -> None:
    """Who holds the lease, what is queued, how the log grows; the rest is not guessed."""
    reading = await quiet()
    first, second = reading.queues
    later = replace(
        reading,
        at_ns=reading.at_ns + 10 * NS,
        log=replace(reading.log, state=StreamState(1, 501, 501, 9999)),
        queues=(replace(first, pending=5, redelivered=1, oldest_ns=reading.at_ns), second),
    )
    seen = view(reading, later)
    (shard,) = seen.shards
    assert (shard.leader, shard.answers, shard.messages_s) == (HOLDER, False, 50)
    assert (seen.total.flow.in_s, seen.total.flow.out_s, seen.total.inside) == (None, None, None)
    phase = seen.phases[0]
    assert (phase.pending, phase.redelivered, phase.oldest_s, phase.running) == (5, 1, 10, 0)
    assert (phase.flow.in_s, phase.flow.out_s, phase.flow.p50_s) == (None, None, None)
    assert seen.roles == seen.servers == ()
    assert view(reading, replace(later, lease=None)).shards[0].leader is None


async def test_strange_numbers_are_left_out() -> None:
    """Anybody may answer: no number, buckets of another size, a metric that is none."""
    strange = [
        catalogue.PACKAGES_IN.sample(*SHARD, value=math.nan),
        catalogue.PACKAGES_INSIDE.sample(*SHARD, value=math.inf),
        Sample(catalogue.PACKAGE_TIME.name, (*SHARD, "success"), 1.0, (1, 2)),
        Sample("nothing", ("a",), 1.0),
        Sample(catalogue.PACKAGES_OUT.name, ("too", "few"), 1.0),
    ]
    both = [status(Role.CONTROLLER, strange, at=each) for each in (0, 5)]
    seen = pair(await quiet(), both[:1], both[1:])
    assert (seen.total.flow.in_s, seen.total.inside, seen.total.flow.p50_s) == (None, None, None)


async def test_a_module_server_by_what_it_announces_and_what_it_says() -> None:
    """Its load is announced every second; its rate is in its status, by its address."""
    said = Announcement(
        name="asr", address="a:1", server="host-7", capacity=4, running=3, waiting=2,
        run_time_ns=NS // 20,
    )  # fmt: skip
    reading = replace(await quiet(), servers=(said,))
    statuses = [
        msgspec.structs.replace(
            status(Role.SERVER, [catalogue.SERVER_IN.sample("asr", value=value)], at=at),
            address="a:1",
        )
        for at, value in ((0, 10), (10, 110))
    ]
    (server,) = pair(reading, statuses[:1], statuses[1:]).servers
    assert (server.in_s, server.load, server.run_time_s, server.waiting) == (10, 0.75, 0.05, 2)
    (server,) = pair(reading, [], []).servers
    assert (server.in_s, server.name) == (None, "host-7")


def relaying(target: str, ended: int, **others: float | str) -> Status:
    """What a bridge says of servers that announce themselves nowhere, or do."""
    labels = (*ONE, "asr", target)
    took = counts(catalogue.RELAY_TIME, *[10**7] * ended)
    samples = [
        catalogue.RELAY_SERVERS.sample(*labels, "good", value=2),
        catalogue.RELAY_SERVERS.sample(*labels, "ejected", value=1),
        catalogue.RELAY_SERVERS.sample(*labels, "full", value=0),
        catalogue.RELAY_SENT.sample(*labels, value=3),
        catalogue.RELAY_CALLS.sample(*labels, value=5),
        catalogue.RELAY_CREDIT.sample(*labels, value=4),
        Sample(catalogue.RELAY_TIME.name, (*labels, "success"), 0.0, took),
        catalogue.RELAY_SERVERS.sample("too few", value=1),
    ]
    return status(Role.BRIDGE, samples, **others)  # type: ignore[arg-type]


async def test_servers_that_are_announced_nowhere_are_what_bridges_see() -> None:
    """By module and target, over all bridges; those of the registry tell of themselves."""
    seen = pair(
        await quiet(),
        [relaying("dns:///asr:1", 10, at=0), relaying("registry:///asr", 1, name="host-2")],
        [
            relaying("dns:///asr:1", 60, at=10),
            relaying("registry:///asr", 9, at=10, name="host-2"),
            relaying("dns:///asr:1", 20, at=10, name="host-3", began=5),
        ],
    )
    (server,) = seen.servers
    assert (server.module, server.address, server.state) == (
        "asr", "dns:///asr:1", "4 good, 2 ejected"
    )  # fmt: skip
    assert (server.running, server.waiting, server.capacity, server.load) == (6, 4, 8, 0.75)
    assert server.in_s == 7


async def test_a_view_is_plain_values() -> None:
    """As JSON and back."""
    seen = pair(await quiet(), [leading(1, 0, at=0)], [leading(2, 1, at=5), working(3)])
    assert msgspec.json.decode(msgspec.json.encode(seen), type=View) == seen
