"""Module servers that die, stop, or are killed by a package: it costs time only."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter

import grpc
import pytest

from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.errors import (
    ModuleServerError,
    ModuleUnreachableError,
)
from tests.contract.waiting import until
from tests.integration.calling import Calls, call, calls, package, several
from tests.integration.scripted_server import Side, silent

__all__ = ["calls"]


async def test_a_package_that_kills_its_servers_ends(calls: Calls) -> None:
    """Also one that may be repeated: so many servers are enough."""

    async def abort(side: Side, request: service.RunRequest) -> None:
        await side.end(grpc.StatusCode.INTERNAL)

    server = await calls.server(abort)
    relay = await calls.relay(server.address, idempotent=True)
    with pytest.raises(ModuleServerError, match="INTERNAL"):
        await call(relay, 1)
    assert server.got == [1] * 4


class Process:
    """The scripted server as a process, which echoes."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port

    @classmethod
    async def begin(cls, name: str, port: int = 0) -> Process:
        """Start it, and wait until it listens."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.integration.scripted_server", str(port), name,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdout is not None
        return cls(process, int(await process.stdout.readline()))

    def signal(self, number: signal.Signals) -> None:
        """Send it."""
        os.kill(self.process.pid, number)

    async def end(self) -> None:
        """Kill it."""
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_process_that_dies_or_stops_costs_time_only(
    calls: Calls, number: signal.Signals
) -> None:
    """Where packages may be repeated: all are answered, by those that are left, and it is used
    again when it is back."""
    one, two = await Process.begin("one"), await Process.begin("two")
    try:
        addresses = (f"127.0.0.1:{each.port}" for each in (one, two))
        relay = await calls.registered(*addresses, idempotent=True)
        tasks = several(relay, range(200))
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        one.signal(number)
        tasks += several(relay, range(200, 600))
        found = Counter([got.response.package for got in await asyncio.gather(*tasks)])
        assert found == Counter(range(600))
        if number is signal.SIGSTOP:
            one.signal(signal.SIGCONT)
        else:
            await one.end()
            one = await Process.begin("one", one.port)
        number_ = 600
        seen: set[str] = set()
        async with asyncio.timeout(20):
            while "one" not in seen:
                got = await asyncio.gather(*several(relay, range(number_, number_ + 20)))
                seen |= {each.server for each in got}
                number_ += 20
    finally:
        for each in (one, two):
            await each.end()


async def test_twenty_thousand_calls_over_four_servers_with_one_dying(calls: Calls) -> None:
    """Each is answered exactly once, its own answer; those that the dying one may have begun end
    with an error, and no other."""
    servers = [await calls.server() for _ in range(4)]
    relay = await calls.registered(*(server.address for server in servers))
    answered: Counter[int] = Counter()
    failed: list[tuple[int, str]] = []
    numbers = iter(range(20_000))

    async def work() -> None:
        for number in numbers:
            data = number.to_bytes(4, "big")
            try:
                got = await relay.call(package(number, data), state=None, deadline_ns=None)
            except ModuleServerError as error:
                failed.append((number, error.server))
            else:
                assert got.response.payload.data == data
                answered[number] += 1
            if number == 8_000:
                await servers[2].stop()
            if number == 12_000:
                await servers[2].start()

    async with asyncio.timeout(60):
        await asyncio.gather(*(work() for _ in range(100)))
    assert set(answered.values()) == {1}
    assert sorted([*answered, *(number for number, _ in failed)]) == list(range(20_000))
    assert len(failed) <= 100 and {server for _, server in failed} <= {"s2"}
    ran = Counter(number for server in servers for number in server.got)
    assert max(ran.values()) == 1
    assert min(len(server.got) for server in servers) > 1000


async def test_nothing_is_unreachable_that_has_begun(calls: Calls) -> None:
    """A package that waits for another server after the first has failed ends with that failure,
    not as if nobody had begun it."""
    server = await calls.server(silent)
    relay = await calls.relay(server.address, idempotent=True)
    one = several(relay, range(1), timeout_s=1.0)
    await until(lambda: server.got)
    await server.stop()
    with pytest.raises(ModuleServerError):
        await one[0]
    with pytest.raises(ModuleUnreachableError):
        await call(relay, 2, timeout_s=0.1)
