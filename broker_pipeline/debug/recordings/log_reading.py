"""Reading stretches of a log beside live traffic: bounded in memory, and leaving nothing behind.

Everything here reads through ephemeral consumers without acks, which end with the reading, or by
themselves when the reader was killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import TypeVar

from broker_pipeline.broker.port import Broker, Message, StreamState, Subscription
from broker_pipeline.errors import BrokerError, BrokerUnavailableError, NotFoundError

CREDIT = 500
"""Messages asked of the broker at once."""
BYTES_MAX = 4 << 20
"""Bytes asked of the broker at once."""
WAITING_MAX = 1_000
WAITING_BYTES_MAX = 8 << 20
"""Beyond either, nothing more is asked for until the reader has taken what waits."""
LOOK_S = 1.0
"""After a silence of so long the broker is asked whether anything is still to come."""
STALL_S = 15.0
"""Reading gives up when nothing has come for so long, though there is something."""
PATIENCE_S = 60.0
"""A broker that does not answer, as while it restarts, is asked again for so long."""
RETRY_MIN_S = 0.05
RETRY_MAX_S = 1.0
"""Between two attempts, doubling from the first to the last."""

T = TypeVar("T")


async def patiently(broker: Broker, ask: Callable[[], Awaitable[T]]) -> T:
    """What `ask` gives, asked again where the broker does not answer for now. Raises BrokerError
    where it refuses, where the connection is gone for good, or after PATIENCE_S."""
    now = asyncio.get_running_loop().time
    end, delay = now() + PATIENCE_S, RETRY_MIN_S
    while True:
        try:
            return await ask()
        except BrokerError as error:
            if not error.retriable or broker.lost.done() or now() >= end:
                raise
        await asyncio.sleep(delay)
        delay = min(RETRY_MAX_S, delay * 2)


async def read_log(
    broker: Broker,
    stream: str,
    filter: str,
    *,
    start_seq: int,
    end_seq: int,
    headers_only: bool = False,
) -> AsyncGenerator[list[Message], None]:
    """The messages that a filter matches, from one stream sequence to another, both included.

    In order, a list at a time; a broker that is away for a while is waited for. What is purged
    meanwhile is passed over: compare the stream's `first_seq` afterwards where that matters.

    Raises:
        NotFoundError: there is no such stream.
        BrokerUnavailableError: the broker delivers nothing for STALL_S, though there is something.
        BrokerError: it does not answer, for PATIENCE_S.
    """
    last = await patiently(broker, partial(broker.last_message, stream, filter))
    if last is None or start_seq > min(end_seq, last.stream_seq):
        return
    goal = min(end_seq, last.stream_seq)  # one at or behind it comes, unless all were purged
    taking = _Taking()
    read = partial(
        broker.read,
        stream,
        filter,
        taking.take,
        start_seq=start_seq,
        headers_only=headers_only,
        credit=CREDIT,
        bytes_max=BYTES_MAX,
    )
    taking.subscription = await patiently(broker, read)
    taking.subscription.failed.add_done_callback(lambda _: taking.wake.set())
    try:
        while batch := await _next(broker, stream, taking, goal):
            is_last = batch[-1].stream_seq >= goal
            if is_last:
                batch = [message for message in batch if message.stream_seq <= end_seq]
            if batch:
                yield batch
            if is_last:
                return
    finally:
        await taking.subscription.stop()


class _Taking:
    """What was delivered and waits for the reader."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.bytes = 0
        self.wake = asyncio.Event()
        self.paused = False
        self.subscription: Subscription | None = None

    def take(self, message: Message) -> None:
        self.messages.append(message)
        self.bytes += len(message.data)
        self.wake.set()
        full = len(self.messages) >= WAITING_MAX or self.bytes >= WAITING_BYTES_MAX
        if full and not self.paused and self.subscription is not None:
            self.paused = True
            self.subscription.set_credit(0)

    def hand_over(self) -> list[Message]:
        """All that waits; empty where nothing does."""
        taken, self.messages, self.bytes = self.messages, [], 0
        self.wake.clear()
        if self.paused and self.subscription is not None:
            self.paused = False
            self.subscription.set_credit(CREDIT)
        return taken


async def _next(broker: Broker, stream: str, taking: _Taking, goal: int) -> list[Message]:
    """What comes next; empty where nothing will, for it was purged."""
    loop = asyncio.get_running_loop()
    since = loop.time()
    while not (batch := taking.hand_over()):
        assert taking.subscription is not None
        if taking.subscription.failed.done():
            taking.subscription.failed.result()
        try:
            async with asyncio.timeout(LOOK_S):
                await taking.wake.wait()
        except TimeoutError:
            asked = loop.time()
            state = await patiently(broker, partial(broker.stream_state, stream))
            since += loop.time() - asked  # it may have been away
            if state.first_seq > goal:
                return []
            if loop.time() - since >= STALL_S:
                raise BrokerUnavailableError(
                    f"reading stream {stream!r} has stalled for {STALL_S:g} s; expected the "
                    f"broker to deliver; try again when it is up",
                    stream=stream,
                ) from None
    return batch


async def first_since(broker: Broker, stream: str, time_ns: int, state: StreamState) -> int:
    """The first message that was stored at a time or later, by its stream sequence; behind the last
    where there is none. Times never go back in a log."""
    low, high = state.first_seq - 1, state.last_seq + 1
    while low + 1 < high:
        middle = (low + high) // 2
        try:
            get = partial(broker.get_message, stream, middle)
            is_young = (await patiently(broker, get)).time >= time_ns
        except NotFoundError:
            is_young = False  # purged meanwhile
        if is_young:
            high = middle
        else:
            low = middle
    return high
