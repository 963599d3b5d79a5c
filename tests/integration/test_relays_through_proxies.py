"""What bridges call module servers with, `external.caller`, through the proxies under infra/."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker_pipeline import ExternalModule, ExternalOptions
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.external import caller
from tests.integration.proxies import FILES, EchoServer, echo_servers, find, running

BOUND_S = 60.0
PACKAGES = 2_000
AT_A_TIME = 48
STREAMS = 12
"""A few times the number of servers, as infra/README.md says: of 4 a proxy that chooses by chance
(Envoy) was seen to give one of 3 servers none."""
HALF = PACKAGES // 2


@pytest.fixture
def servers() -> Iterator[list[EchoServer]]:
    """Servers that may be killed."""
    with echo_servers() as started:
        yield started


@pytest.fixture(params=FILES)
def proxy(request: pytest.FixtureRequest, servers: list[EchoServer], tmp_path: Path) -> Any:
    """A proxy's address."""
    if find(request.param) is None:
        pytest.skip(f"{request.param} is not installed: make tools, or the extra 'test'")
    with running(request.param, tmp_path, [server.port for server in servers]) as address:
        yield address


@asynccontextmanager
async def relay_to(address: str, method: Any) -> AsyncIterator[Any]:
    """A relay of a module that may be run twice."""
    options = ExternalOptions(method=method, streams=STREAMS, idempotent=True)
    module = ExternalModule("echo", target=address, options=options)
    relay = caller.relay_factory(None, caller="test")(module, lambda: None)
    await relay.start()
    try:
        async with asyncio.timeout(BOUND_S):
            yield relay
    finally:
        await relay.close()


class Sent:
    """Packages on their way, and which server each answer came from."""

    def __init__(self, relay: Any) -> None:
        self._relay = relay
        self._places = asyncio.Semaphore(AT_A_TIME)
        self.answered: list[int] = []
        self.by = Counter[str]()
        self.half = asyncio.Event()

    async def one(self, number: int) -> None:
        """A package, and its answer."""
        async with self._places:
            package = pb.DataPackage(id=number, data=b"%d" % number)
            answer = await self._relay.call(package, state=None, deadline_ns=None)
        assert answer.response.package == number
        assert answer.response.payload.data == b"%d" % number
        self.answered.append(number)
        self.by[answer.response.message] += 1
        if len(self.answered) == HALF:
            self.half.set()

    async def all(self) -> None:
        """Every package once."""
        async with asyncio.TaskGroup() as group:
            for number in range(1, PACKAGES + 1):
                group.create_task(self.one(number))
        assert sorted(self.answered) == list(range(1, PACKAGES + 1))


@pytest.mark.parametrize("method", ["stream", "run"])
async def test_packages_are_spread_and_each_is_answered_once(
    proxy: str, servers: list[EchoServer], method: str
) -> None:
    """Streams go where the proxy sends them, calls one by one: all servers have a share."""
    async with relay_to(proxy, method) as relay:
        sent = Sent(relay)
        await sent.all()
        print(sent.by)
        assert set(sent.by) == {server.name for server in servers}


@pytest.mark.parametrize("method", ["stream", "run"])
async def test_a_server_that_is_killed_costs_no_package(
    proxy: str, servers: list[EchoServer], method: str
) -> None:
    """In the middle, with packages on it: they are answered by the others."""
    async with relay_to(proxy, method) as relay:
        sent = Sent(relay)
        sending = asyncio.create_task(sent.all())
        await asyncio.wait(
            {sending, asyncio.create_task(sent.half.wait())}, return_when="FIRST_COMPLETED"
        )
        servers[0].kill()
        servers[0] = await asyncio.to_thread(EchoServer, servers[0].port)
        await sending
