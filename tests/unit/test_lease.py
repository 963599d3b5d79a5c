"""Leases on the in-memory broker, in virtual time: nothing here waits for a real second."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from broker_pipeline.broker.lease import Lease
from broker_pipeline.broker.memory import MemoryBroker, MemoryServer
from broker_pipeline.errors import LeadershipLostError

TTL_S = 3.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        self.now = 0.0
        selector = selectors.DefaultSelector()
        wait = selector.select

        def skip(timeout: float | None = None) -> Any:
            self.now += timeout or 0.0
            return wait(0)

        selector.select = skip  # type: ignore[method-assign]
        super().__init__(selector)

    def time(self) -> float:
        return self.now


class DeafBroker(MemoryBroker):
    """A broker that stops answering."""

    deaf = False

    async def kv_update(self, bucket: str, key: str, value: bytes, revision: int) -> int | None:
        if self.deaf:
            await asyncio.Event().wait()
        return await super().kv_update(bucket, key, value, revision)


async def until_time(at: float) -> None:
    """Let virtual time pass up to `at` seconds."""
    await asyncio.sleep(at - asyncio.get_running_loop().time())


def run(scenario: Callable[[MemoryServer], Awaitable[None]]) -> None:
    """Run a scenario on a fresh broker with bucket L, in virtual time."""

    async def main() -> None:
        server = MemoryServer()
        await server.connect().ensure_bucket("L", ttl_s=TTL_S)
        await scenario(server)

    loop = VirtualLoop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def lease(broker: MemoryBroker, holder: str) -> Lease:
    """A lease on shard 0."""
    return Lease(broker, "L", "shard.0", holder=holder, ttl_s=TTL_S)


def test_one_of_two_holds_it() -> None:
    """The other gets it when it is released, at once."""

    async def scenario(server: MemoryServer) -> None:
        one, two = lease(server.connect(), "one"), lease(server.connect(), "two")
        assert await one.acquire()
        assert not await two.acquire()
        assert (one.held, two.held) == (True, False)
        await one.release()
        assert not one.held
        assert await two.acquire()

    run(scenario)


def test_it_lasts_as_long_as_it_is_held() -> None:
    """Renewals keep it far beyond its TTL."""

    async def scenario(server: MemoryServer) -> None:
        one, two = lease(server.connect(), "one"), lease(server.connect(), "two")
        await one.acquire()
        holding = asyncio.ensure_future(one.hold())
        for half in range(20):
            await until_time(half * TTL_S / 2)
            assert one.held
            assert not await two.acquire()
        holding.cancel()

    run(scenario)


def test_it_runs_out_when_it_is_not_renewed() -> None:
    """The holder stops believing no later than another can take it."""

    async def scenario(server: MemoryServer) -> None:
        one, two = lease(server.connect(), "one"), lease(server.connect(), "two")
        await one.acquire()
        await until_time(TTL_S - 0.01)
        assert one.held
        assert not await two.acquire()
        await until_time(TTL_S)
        assert not one.held
        assert await two.acquire()
        with pytest.raises(LeadershipLostError):
            await one.renew()
        assert two.held

    run(scenario)


def test_holding_ends_when_the_broker_does_not_answer() -> None:
    """With LeadershipLostError, one TTL after the last successful renewal was asked for."""

    async def scenario(server: MemoryServer) -> None:
        broker = DeafBroker(server, reconnect=False)
        one = lease(broker, "one")
        await one.acquire()
        loop = asyncio.get_running_loop()
        start = loop.time()
        holding = asyncio.ensure_future(one.hold())
        await until_time(TTL_S / 2)  # one renewal, at a third of the TTL
        broker.deaf = True
        with pytest.raises(LeadershipLostError, match="no answer came"):
            await holding
        assert loop.time() - start == pytest.approx(TTL_S / 3 + TTL_S)
        assert not one.held

    run(scenario)


def test_holding_ends_when_another_has_taken_it() -> None:
    """LeadershipLostError at the next renewal."""

    async def scenario(server: MemoryServer) -> None:
        broker = server.connect()
        one = lease(broker, "one")
        await one.acquire()
        await broker.kv_put("L", "shard.0", b'{"holder":"thief"}')
        with pytest.raises(LeadershipLostError, match="another process has taken"):
            await one.hold()
        assert not one.held

    run(scenario)


def test_a_holder_takes_up_its_own_lease() -> None:
    """Its renewal was stored, but not answered: it need not wait for the TTL."""

    async def scenario(server: MemoryServer) -> None:
        await lease(server.connect(), "one").acquire()
        again = lease(server.connect(), "one")
        assert await again.acquire()
        assert again.term == 2

    run(scenario)


def test_release_leaves_anothers_lease_alone() -> None:
    """It removes the key only at its own revision."""

    async def scenario(server: MemoryServer) -> None:
        one, two = lease(server.connect(), "one"), lease(server.connect(), "two")
        await one.acquire()
        await until_time(TTL_S)
        assert await two.acquire()
        await one.release()
        three = lease(server.connect(), "three")
        assert not await three.acquire()

    run(scenario)
