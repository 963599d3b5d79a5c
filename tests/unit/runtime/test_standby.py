"""Standing by on the in-memory broker, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from broker_pipeline.broker.introspection import Presence
from broker_pipeline.broker.memory import MemoryBroker, MemoryServer
from broker_pipeline.broker.subjects import matcher
from broker_pipeline.core.names import LEASE_BUCKET, LEASE_TTL_S, Subjects, presence_subject
from broker_pipeline.errors import LeadershipLostError
from broker_pipeline.runtime.standby import GONE_TIMES, STANDBY_POLL_S, Standby
from tests.unit.test_lease import VirtualLoop, until_time

SOON_S = (GONE_TIMES + 1) * STANDBY_POLL_S


class MistakenBroker(MemoryBroker):
    """Sees of others what it is told to see."""

    sees = Presence.GONE

    async def presence(self, subject: str, *, timeout_s: float) -> Presence:
        if self.sees is Presence.SILENT:
            await asyncio.sleep(timeout_s)
        return self.sees


def run(scenario: Callable[[MemoryServer], Awaitable[None]]) -> None:
    """Run a scenario on a fresh broker, in virtual time."""

    async def main() -> None:
        server = MemoryServer()
        await server.connect().ensure_bucket(LEASE_BUCKET, ttl_s=LEASE_TTL_S)
        await scenario(server)

    loop = VirtualLoop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def standby(broker: MemoryBroker, holder: str, *, trusts_from: float = 0.0) -> Standby:
    """One for shard 0 of p."""
    return Standby(
        broker, "p", 0, holder, trusts_from=trusts_from, announce=lambda line: said.append(line)
    )


said: list[str] = []


async def lead(server: MemoryServer) -> tuple[Standby, MemoryBroker]:
    """A leader, and its connection."""
    broker = server.connect()
    leader = standby(broker, "host.one-1")
    await leader.until_leading()
    return leader, broker


async def took(waiting: Standby) -> float:
    """How long it took until it led."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await waiting.until_leading()
    return loop.time() - begun


def test_a_dead_leader_is_followed_at_once() -> None:
    """Its connection has ended: the lease is taken long before its TTL is over, and it is said."""

    async def scenario(server: MemoryServer) -> None:
        said.clear()
        _, broker = await lead(server)
        server.disconnect(broker)
        two = standby(server.connect(), "two")
        assert await took(two) <= SOON_S
        assert two.lease.held and two.lease.term == 2
        assert said == ["takes 'p' over from 'host.one-1', which is gone"]

    run(scenario)


def test_a_living_leader_is_not_followed() -> None:
    """It answers, also when it has just begun."""

    async def scenario(server: MemoryServer) -> None:
        one, _ = await lead(server)
        holding = asyncio.ensure_future(one.lease.hold())
        waiting = asyncio.ensure_future(took(standby(server.connect(), "two")))
        await until_time(10 * LEASE_TTL_S)
        assert one.lease.held and not holding.done() and not waiting.done()
        for task in (holding, waiting):
            task.cancel()

    run(scenario)


def test_a_leader_that_hangs_is_followed_after_the_ttl() -> None:
    """Silence is no proof."""

    async def scenario(server: MemoryServer) -> None:
        await lead(server)
        broker = MistakenBroker(server, reconnect=False)
        broker.sees = Presence.SILENT
        assert await took(standby(broker, "two")) >= LEASE_TTL_S - STANDBY_POLL_S

    run(scenario)


def test_a_renewal_proves_that_the_holder_lives() -> None:
    """Whatever the broker says: answers that nobody is there count between two renewals only."""

    async def scenario(server: MemoryServer) -> None:
        one, _ = await lead(server)
        broker = MistakenBroker(server, reconnect=False)
        waiting = asyncio.ensure_future(took(standby(broker, "two")))
        for _ in range(100):
            await asyncio.sleep(STANDBY_POLL_S / 2)
            await one.lease.renew()
        assert not waiting.done()
        waiting.cancel()

    run(scenario)


def test_two_that_do_not_see_each_other_do_not_depose_each_other_in_turns() -> None:
    """Who has lost the lead alive waits for the TTL, and the other leads on."""

    async def scenario(server: MemoryServer) -> None:
        one, _ = await lead(server)
        two = standby(MistakenBroker(server, reconnect=False), "two")
        assert await took(two) <= SOON_S
        with pytest.raises(LeadershipLostError):
            await one.lease.hold()
        holding = asyncio.ensure_future(two.lease.hold())
        loop = asyncio.get_running_loop()
        again = standby(
            MistakenBroker(server, reconnect=False), "host.one-1", trusts_from=loop.time() + 30.0
        )
        waiting = asyncio.ensure_future(took(again))
        await until_time(loop.time() + 29.0)
        assert two.lease.held and not waiting.done()
        for task in (holding, waiting):
            task.cancel()

    run(scenario)


def test_only_one_of_two_standbys_takes_over() -> None:
    """The lease changes hands by compare-and-set."""

    async def scenario(server: MemoryServer) -> None:
        _, broker = await lead(server)
        server.disconnect(broker)
        standbys = [standby(server.connect(), name) for name in ("two", "three")]
        waiting = [asyncio.ensure_future(took(each)) for each in standbys]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(SOON_S)
        assert sum(each.lease.held for each in standbys) == 1
        for task in waiting:
            task.cancel()

    run(scenario)


@pytest.mark.parametrize("holder", ["host.example.org-12-a1", "a b*>", "ü"])
def test_presence_is_not_stored(holder: str) -> None:
    """Its subject is outside of the log's, and one token after the shard, whoever the holder is."""
    subject = presence_subject("p", 0, holder)
    assert not matcher(f"{Subjects('p').prefix}>")(subject)
    assert matcher("bp-presence.p.0.*")(subject)
