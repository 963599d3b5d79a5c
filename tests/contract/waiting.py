"""What the tests of the broker share: waiting for a condition, with a bound."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

from broker_pipeline.broker.port import Broker

Connect = Callable[[], Awaitable[Broker]]
WAIT_S = 15.0
POLL_S = 0.005


async def until(condition: Callable[[], object]) -> None:
    """Return as soon as `condition()`, or what it awaits, is true; fail after WAIT_S seconds."""
    async with asyncio.timeout(WAIT_S):
        while True:
            met = condition()
            if await met if inspect.isawaitable(met) else met:
                return
            await asyncio.sleep(POLL_S)
