"""Many sends at once, bounded, with their results in the order of the calls."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
)
from typing import TypeVar

T = TypeVar("T")

IN_FLIGHT_MAX = 256
"""Enough to hide a round trip of 10 ms at 25,000 packages/s."""


async def each_in_order(
    send: Callable[[T], Awaitable[str]],
    items: Iterable[T] | AsyncIterable[T],
    in_flight_max: int = IN_FLIGHT_MAX,
) -> AsyncGenerator[tuple[T, str], None]:
    """Send every item without waiting for the one before; yields `(item, id)` in order.

    The first that fails ends it: nothing more is sent, what is under way is waited for, and its
    error is raised.
    """
    under_way: deque[tuple[T, asyncio.Task[str]]] = deque()
    try:
        async for item in _async(items):
            under_way.append((item, asyncio.ensure_future(_call(send, item))))
            # The task's first step gives the package its number.
            await asyncio.sleep(0)
            while under_way and (len(under_way) >= in_flight_max or under_way[0][1].done()):
                first, task = under_way.popleft()
                yield first, await task
        while under_way:
            first, task = under_way.popleft()
            yield first, await task
    finally:
        if under_way:
            await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)


async def _call(send: Callable[[T], Awaitable[str]], item: T) -> str:
    return await send(item)


async def _async(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
