"""What the tests of calling module servers share: relays that leave nothing behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.broker.memory import MemoryServer
from broker_pipeline.broker.port import Broker
from broker_pipeline.external.caller import ServerRelay, relay_factory
from broker_pipeline.external.finding import LookUp, look_up
from broker_pipeline.external.port import Answer
from broker_pipeline.external.registry import Announcer
from broker_pipeline.modules import ExternalModule, ExternalOptions
from tests.contract.waiting import until
from tests.integration.scripted_server import Script, ScriptedServer, echo

BOUND_S = 20.0


def package(number: int, data: bytes = b"data", **fields: Any) -> pb.DataPackage:
    """A package."""
    return pb.DataPackage(id=number, data=data, **fields)


def in_s(seconds: float) -> int:
    """A deadline."""
    return time.monotonic_ns() + int(seconds * 1e9)


class Calls:
    """Relays and servers of one test."""

    def __init__(self) -> None:
        self.relays: list[ServerRelay] = []
        self.servers: list[ScriptedServer] = []
        self.announcers: list[Announcer] = []
        self.rooms = 0

    async def server(
        self,
        script: Script = echo,
        *,
        before: Callable[[ScriptedServer], Any] | None = None,
        **description: Any,
    ) -> ScriptedServer:
        """A server that listens; `before` is called with it before it does."""
        description = {"server": f"s{len(self.servers)}"} | description
        made = ScriptedServer(script, **description)
        if before is not None:
            before(made)
        self.servers.append(await made.start())
        return made

    async def relay(
        self,
        target: str,
        *,
        broker: Broker | None = None,
        lookup: LookUp = look_up,
        replicas: int = 1,
        stateful: bool = False,
        name: str = "asr",
        **options: Any,
    ) -> ServerRelay:
        """A relay that has started."""

        def on_room() -> None:
            self.rooms += 1

        module = ExternalModule(
            name,
            target=target,
            options=ExternalOptions(**options),
            replicas=replicas,
            stateful=stateful,
        )
        made = relay_factory(broker, caller="test", lookup=lookup)(module, on_room)
        assert isinstance(made, ServerRelay)
        self.relays.append(made)
        await made.start()
        return made

    async def registered(self, *addresses: str, **options: Any) -> ServerRelay:
        """A relay to servers that are announced at these addresses, ready."""
        broker = MemoryServer().connect()
        for each in addresses:
            what = service.Description(name="asr")
            self.announcers.append(Announcer(broker, what, each, service.Load))
            await self.announcers[-1].start()
        made = await self.relay("registry:///asr", broker=broker, **options)
        count = len(addresses)
        await until(lambda: sum(each.credit > 0 for each in made._standings) == count)
        return made

    async def end(self) -> None:
        """Close all; nothing of them may be left."""
        for announcer in self.announcers:
            await announcer.withdraw()
        for relay in self.relays:
            await relay.close()
            assert relay._failed is None
            assert not relay._calls and not relay._waiting and not relay._tasks
        for server in self.servers:
            await server.stop()
        own = [
            task
            for task in asyncio.all_tasks()
            if any(
                word in task.get_name() for word in ("session", "tend", "write", "run ", "sweep")
            )
        ]
        assert own == []


@pytest.fixture
async def calls() -> AsyncIterator[Calls]:
    """Relays and servers that end with the test."""
    made = Calls()
    yield made
    await made.end()


async def call(
    relay: ServerRelay,
    number: int,
    data: bytes = b"data",
    *,
    timeout_s: float | None = BOUND_S,
    state: bytes | None = None,
) -> Answer:
    """Have one package run, in a bounded time."""
    deadline = None if timeout_s is None else in_s(timeout_s)
    async with asyncio.timeout(BOUND_S):
        return await relay.call(package(number, data), state=state, deadline_ns=deadline)


def several(relay: ServerRelay, numbers: range, **options: Any) -> list[asyncio.Task[Answer]]:
    """Many at once."""
    return [asyncio.create_task(call(relay, n, **options), name=f"call {n}") for n in numbers]


async def is_ready(relay: ServerRelay, room: int = 1) -> None:
    """Until there is room."""
    await until(lambda: relay.room >= room)
