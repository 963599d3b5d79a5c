"""Reading a stream at the pace of whoever takes the messages, with a bound on what waits."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from broker_pipeline.broker.port import Broker, Message, Subscription
from broker_pipeline.errors import ClientError, HistoryPurgedError

CREDIT = 500
"""Messages asked of the broker at once; so many more may arrive after reading has paused."""
BYTES_MAX = 4 << 20
"""Bytes asked of the broker at once."""
WAITING_MAX = 1_000
WAITING_BYTES_MAX = 16 << 20
"""Beyond either, reading pauses; it goes on when half of what waits was taken."""


class Reader:
    """The messages of one filter, in order, from `start_seq` on.

    Args:
        end: the stream sequence to end after, as soon as it is known; None: never.
    """

    def __init__(
        self,
        broker: Broker,
        stream: str,
        filter: str,
        start_seq: int,
        end: asyncio.Future[int] | None = None,
    ) -> None:
        self._broker = broker
        self._stream = stream
        self._filter = filter
        self._read_until = start_seq - 1
        self._end = end
        self._paused_at = 0
        self._waiting: deque[Message] = deque()
        self._waiting_bytes = 0
        self._paused = False
        self._resumed = False
        self._closed = False
        self._wake = asyncio.Event()
        self._subscription: Subscription | None = None

    async def messages(self) -> AsyncGenerator[Message, None]:
        """The messages. Raises BrokerError when reading fails, ClientError after `close`."""
        if self._end is not None:
            self._end.add_done_callback(self._on_news)
        subscription = await self._broker.read(
            self._stream,
            self._filter,
            self._take,
            start_seq=self._read_until + 1,
            credit=CREDIT,
            bytes_max=BYTES_MAX,
        )
        self._subscription = subscription
        subscription.failed.add_done_callback(self._on_news)
        try:
            last: int | None = None
            while True:
                self._set_pace(subscription)
                if self._resumed:
                    self._resumed = False
                    await self._require_history()
                if self._waiting:
                    message = self._waiting.popleft()
                    self._waiting_bytes -= len(message.data)
                    if self._is_beyond_end(message):
                        return
                    yield message
                    continue
                if self._end is not None and self._end.done():
                    if last is None:
                        last = await self._last_before_end(self._end.result())
                    if self._read_until >= last and not self._waiting:
                        return
                self._require_open(subscription)
                self._wake.clear()
                if not self._waiting:
                    await self._wake.wait()
        finally:
            if self._end is not None:
                self._end.remove_done_callback(self._on_news)
            await subscription.stop()

    def close(self) -> None:
        """End the reading; whoever waits for the next message gets a ClientError."""
        self._closed = True
        self._wake.set()

    def _take(self, message: Message) -> None:
        self._waiting.append(message)
        self._waiting_bytes += len(message.data)
        self._read_until = message.stream_seq
        self._wake.set()
        if self._subscription is not None:
            self._set_pace(self._subscription)

    def _set_pace(self, subscription: Subscription) -> None:
        full = max(
            len(self._waiting) / WAITING_MAX,
            self._waiting_bytes / WAITING_BYTES_MAX,
        )
        if not self._paused and full >= 1:
            self._paused = True
            subscription.set_credit(0)
        elif self._paused and full <= 0.5:
            self._paused_at = self._read_until
            self._paused, self._resumed = False, True
            subscription.set_credit(CREDIT)

    async def _require_history(self) -> None:
        """Raises HistoryPurgedError where the log was purged past what was read, in the pause."""
        state = await self._broker.stream_state(self._stream)
        if state.first_seq > self._paused_at + 1:
            raise HistoryPurgedError(
                f"results were read too slowly: the log begins at {state.first_seq} by now, and "
                f"they were read up to {self._paused_at}; some may be gone: start at 'beginning', "
                f"read faster, or keep more: replay_window_s, log_bytes_max",
                first_seq=state.first_seq,
                read_until=self._paused_at,
            )

    def _is_beyond_end(self, message: Message) -> bool:
        end = self._end
        return end is not None and end.done() and message.stream_seq > end.result()

    async def _last_before_end(self, end: int) -> int:
        """The last message that is still to be read; 0 where there is none."""
        rest = await self._broker.read_range(
            self._stream, self._filter, start_seq=self._read_until + 1, headers_only=True
        )
        return max((m.stream_seq for m in rest if m.stream_seq <= end), default=0)

    def _require_open(self, subscription: Subscription) -> None:
        if self._closed:
            raise ClientError(
                "the reading of results was ended by leaving its `async with`; expected it to be "
                "open: read inside the block"
            )
        if subscription.failed.done():
            subscription.failed.result()

    def _on_news(self, _: asyncio.Future[int] | asyncio.Future[None]) -> None:
        self._wake.set()
