"""A continuous pull over a simulated link: requests for messages, and what comes of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from broker_pipeline.broker.memory_pull import MemorySubscription
from broker_pipeline.broker.port import Handler, Message
from tests.fault.network import Wire, error_future, finished

if TYPE_CHECKING:
    from tests.fault.link import Link


class _AtBroker:
    """The broker's side of one pulling on one wire: it sends as many as it was asked for."""

    def __init__(self, pulling: Pulling, wire: Wire) -> None:
        self._pulling = pulling
        self._wire = wire
        self._allowed = 0
        self.ended = False
        self._subscription: MemorySubscription | None = None

    def begin(self, start_seq: int) -> None:
        """Subscribe."""
        if self.ended:
            return
        pulling, session = self._pulling, self._wire.session
        if pulling.consumer:
            work = session.consume(pulling.stream, pulling.consumer, self._deliver, credit=0)
        else:
            work = session.read(
                pulling.stream,
                pulling.filter,
                self._deliver,
                start_seq=start_seq,
                headers_only=pulling.headers_only,
                credit=0,
            )
        self._subscription = finished(work)

    def ask(self, count: int) -> None:
        """So many more."""
        self._allowed += count
        if self._subscription is not None:
            self._subscription.set_credit(self._allowed)

    def _deliver(self, message: Message) -> None:
        self._allowed -= 1
        if self._subscription is not None and self._allowed <= 0:
            self._subscription.set_credit(0)
        self._wire.to_client(self._pulling.take, self, message)

    def end(self) -> None:
        """Unsubscribe."""
        self.ended = True
        if self._subscription is not None:
            finished(self._subscription.stop())


class Pulling:
    """A `Subscription`."""

    def __init__(
        self,
        link: Link,
        handler: Handler,
        credit: int,
        stream: str,
        *,
        consumer: str = "",
        filter: str = "",
        start_seq: int = 1,
        headers_only: bool = False,
    ) -> None:
        self.stream = stream
        self.consumer = consumer
        self.filter = filter
        self.headers_only = headers_only
        self.failed = error_future()
        self._link = link
        self._handler = handler
        self._credit = credit
        self._outstanding = 0
        self._next_seq = start_seq
        self._stopped = False
        self._at_broker: _AtBroker | None = None
        self._wire = link.wire
        link.pullings.append(self)
        self.begin()

    def begin(self) -> None:
        """Ask on the link's present wire."""
        self._wire = self._link.wire
        self._at_broker = _AtBroker(self, self._wire)
        self._outstanding = 0
        self._wire.to_server(self._at_broker.begin, self._next_seq)
        self._ask()

    def set_credit(self, messages: int) -> None:
        """See `Subscription`."""
        self._credit = messages
        if self._outstanding <= messages // 2:
            self._ask()

    def _ask(self) -> None:
        count = self._credit - self._outstanding
        if count > 0 and not self._stopped and self._at_broker is not None:
            self._outstanding += count
            self._wire.to_server(self._at_broker.ask, count)

    def take(self, sender: _AtBroker, message: Message) -> None:
        """A message came, on the wire on which it was asked for."""
        if self._stopped or sender is not self._at_broker:
            return
        self._outstanding -= 1
        self._next_seq = message.stream_seq + 1
        try:
            self._handler(message)
        except Exception as error:
            self.fail(error)
            return
        if self._outstanding <= self._credit // 2:
            self._ask()

    async def stop(self) -> None:
        """See `Subscription`. What comes afterwards is given back."""
        if not self._stopped:
            self._end()
            await asyncio.sleep(0)
            self.failed.cancel()

    def fail(self, error: BaseException) -> None:
        """End the reading, and say why."""
        if not self._stopped:
            self._end()
            self.failed.set_exception(error)

    def _end(self) -> None:
        self._stopped = True
        self._link.pullings.remove(self)
        if self._at_broker is not None:
            self._wire.to_server(self._at_broker.end)
