"""The two brokers that every contract test runs on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.jetstream import connect
from broker_pipeline.broker.memory import MemoryServer
from broker_pipeline.broker.port import Broker
from tests.contract.waiting import Connect


@pytest.fixture(params=["memory", "nats"])
async def open_connection(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    """Opens connections to one broker, empty at first; closes them after the test."""
    opened: list[Broker] = []
    if request.param == "memory":
        memory = MemoryServer()

        async def open_memory() -> Broker:
            opened.append(memory.connect())
            return opened[-1]

        yield open_memory
        for each in opened:
            await each.close()
        return
    async with EmbeddedServer() as server:

        async def open_nats() -> Broker:
            opened.append(await connect(server.url, reconnect=False, name="contract"))
            return opened[-1]

        yield open_nats
        for each in opened:
            await each.close()


@pytest.fixture
async def broker(open_connection: Connect) -> Broker:
    """One connection."""
    return await open_connection()
