"""A pipeline with something of everything, running in this process, for what looks at its log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from broker_pipeline import (
    Controller,
    ExecutionModule,
    Mode,
    Phase,
    Pipeline,
    StatefulModule,
    connect,
)
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.client.client import Client
from broker_pipeline.runtime.local import LocalRoles

BOUND_S = 40.0


class Count(msgspec.Struct):
    """How many came before."""

    n: int = 0


class Upper(ExecutionModule[bytes]):
    """Makes them louder, or does as it is told."""

    def execute(self, package: Any, run: Any) -> None:
        """Do as the payload says."""
        if b"exit" in package.data:
            run.exit("as asked")
        if b"fail" in package.data:
            raise ValueError("cannot bear this one")
        run.message = "louder"
        package.data = package.data.upper()


class Number(StatefulModule[bytes, Count]):
    """Numbers what it sees."""

    def initial_state(self) -> Count:
        """None yet."""
        return Count()

    def execute(self, package: Any, run: Any, state: Count) -> Count:
        """Put the number before it."""
        package.data = b"%d " % (state.n + 1) + package.data
        return Count(state.n + 1)


class Stay(ExecutionModule[bytes]):
    """Keeps those that say so, until `gate` opens."""

    gate: asyncio.Event

    def setup(self) -> None:
        """Closed, at first."""
        type(self).gate = asyncio.Event()

    async def execute(self, package: Any, run: Any) -> None:
        """Wait."""
        if b"STAY" in package.data:
            await self.gate.wait()


pipeline = Pipeline(
    "tour",
    [
        Controller("count", [Phase("number", [Number()])], mode=Mode.NOT_PARALLEL),
        Controller(
            "shout",
            [Phase("upper", [Upper()]), Phase("stay", [Stay()])],
            mode=Mode.ORDER_BY_SEQUENCE,
            max_workers=4,
            queue_size=4,
        ),
    ],
)


@asynccontextmanager
async def running(deployed: Pipeline = pipeline) -> AsyncIterator[Client]:
    """A client of a server of its own, on which the pipeline runs."""
    async with EmbeddedServer() as server, connect(server.url) as client:
        await client.deploy(deployed)
        async with LocalRoles(server.url, deployed):
            yield client


async def send(
    client: Client, instance: str, *payloads: bytes, wait: int | None = None
) -> list[str]:
    """Send, and wait until so many have left, all by default; their ids."""
    async with client.instance(pipeline, instance) as room:
        ids = await room.send_many(payloads)
        left = len(payloads) if wait is None else wait
        if left:
            async with asyncio.timeout(BOUND_S):
                async for _ in room.results():
                    left -= 1
                    if not left:
                        break
    return ids


async def close(client: Client, instance: str) -> None:
    """End the instance's life."""
    async with client.instance(pipeline, instance) as room:
        await room.close()
