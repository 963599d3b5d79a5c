"""How the in-memory broker delivers: one pump for all subscriptions, in turns of the event loop."""

from __future__ import annotations

import asyncio
from collections import deque

from broker_pipeline.broker.memory_store import Consumer, Cursor, Stream
from broker_pipeline.broker.port import Handler, Message
from broker_pipeline.errors import NotFoundError

# How many messages are delivered before the event loop gets its turn.
TURN_MESSAGES = 256
ACK_PREFIX = "$MEM"


class Pump:
    """Delivers to all subscriptions, one message each in turn, whenever something has changed."""

    def __init__(self) -> None:
        self._subscriptions: deque[MemorySubscription] = deque()
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def subscriptions(self) -> list[MemorySubscription]:
        """All that there are."""
        return list(self._subscriptions)

    def add(self, subscription: MemorySubscription) -> None:
        """Deliver to it."""
        self._subscriptions.append(subscription)
        self.wake()

    def remove(self, subscription: MemorySubscription) -> None:
        """Deliver to it no more."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
        if not self._subscriptions and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def drop(self, stream: Stream) -> None:
        """A stream was deleted."""
        for subscription in list(self._subscriptions):
            if subscription.stream is stream:
                subscription.fail(
                    NotFoundError(
                        f"stream {stream.spec.name!r} was deleted while it was read; expected it "
                        "to stay; provision it again",
                        stream=stream.spec.name,
                    )
                )

    def wake(self) -> None:
        """Something has changed: deliver in the loop's next turn, never in the caller's."""
        if not self._scheduled and self._subscriptions:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._scheduled = False
        now = asyncio.get_running_loop().time()
        for subscription in self._subscriptions:
            if subscription.consumer is not None:
                subscription.consumer.expire(now)
        delivered = idle = 0
        while delivered < TURN_MESSAGES and idle < len(self._subscriptions):
            subscription = self._subscriptions[0]
            self._subscriptions.rotate(-1)
            if subscription.deliver(now):
                delivered, idle = delivered + 1, 0
            else:
                idle += 1
        if delivered == TURN_MESSAGES:
            self.wake()
        self._arm()

    def _arm(self) -> None:
        """One timer, for the first message that will have to be delivered again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        consumers = [each.consumer for each in self._subscriptions if each.consumer is not None]
        deadlines = [each.next_deadline() for each in consumers]
        due = min((each for each in deadlines if each is not None), default=None)
        if due is not None:
            self._timer = asyncio.get_running_loop().call_at(due, self._run)


class MemorySubscription:
    """A `Subscription`, on a durable consumer or with a cursor of its own."""

    def __init__(
        self,
        pump: Pump,
        stream: Stream,
        handler: Handler,
        credit: int,
        *,
        consumer: Consumer | None = None,
        cursor: Cursor | None = None,
        headers_only: bool = False,
    ) -> None:
        self.stream = stream
        self.consumer = consumer
        self._cursor = cursor
        self._pump = pump
        self._handler = handler
        self._credit = credit
        self._headers_only = headers_only
        self._ended = False
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pump.add(self)

    @property
    def failed(self) -> asyncio.Future[None]:
        """See `Subscription.failed`; cancelled by `stop`."""
        return self._failed

    @property
    def asks(self) -> bool:
        """Whether it takes what comes."""
        return not self._ended and self._credit > 0

    @property
    def place(self) -> Cursor:
        """Where it is: its own, or that of its consumer."""
        if self.consumer is not None:
            return self.consumer.cursor
        assert self._cursor is not None
        return self._cursor

    def set_credit(self, messages: int) -> None:
        """See `Subscription.set_credit`. Nothing arrives while it is 0."""
        self._credit = messages
        self._pump.wake()

    async def stop(self) -> None:
        """See `Subscription.stop`."""
        self._end()
        self._failed.cancel()

    def fail(self, error: BaseException) -> None:
        """End the reading, and say why."""
        if not self._ended:
            self._end()
            self._failed.set_exception(error)
            self._failed.exception()  # whoever cares looks; asyncio need not report it

    def _end(self) -> None:
        self._ended = True
        self._pump.remove(self)
        if self._cursor is not None and self._cursor in self.stream.cursors:
            self.stream.cursors.remove(self._cursor)

    def deliver(self, now: float) -> bool:
        """Hand over one message; False when there is none, or no credit."""
        if self._ended or self._credit <= 0:
            return False
        message = self._next(now)
        if message is None:
            return False
        try:
            self._handler(message)
        except Exception as error:  # a handler is user code
            self.fail(error)
        return True

    def _next(self, now: float) -> Message | None:
        if self.consumer is None:
            message = self.place.advance()
            if message is None:
                return None
            return delivery(message, self._headers_only, pending=self.place.pending)
        taken = self.consumer.take(now)
        if taken is None:
            return None
        stream_seq, delivered = taken
        reply = f"{ACK_PREFIX}.{self.stream.spec.name}.{self.consumer.spec.name}.{stream_seq}"
        message = self.stream.get(stream_seq)
        pending = self.consumer.cursor.pending
        return delivery(message, delivered=delivered, pending=pending, reply=reply)


def delivery(
    stored: Message,
    headers_only: bool = False,
    *,
    delivered: int = 1,
    pending: int = 0,
    reply: str = "",
) -> Message:
    """A stored message as a reader gets it: a copy, with what belongs to the delivery."""
    data, headers = stored.data, dict(stored.headers)
    if headers_only:
        headers["Nats-Msg-Size"] = str(len(data))
        data = b""
    return Message(
        stored.subject, data, headers, stored.stream_seq, stored.time, delivered, pending, reply
    )
