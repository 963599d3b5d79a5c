"""An idempotent producer: whatever has to be repeated, the controller takes once and in order."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping

from broker_pipeline.broker.headers import check_size, encode
from broker_pipeline.broker.port import Broker, PubAck
from broker_pipeline.broker.storage import WHY_SILENT
from broker_pipeline.core.names import HEADER_NUMBER, HEADER_PRODUCER
from broker_pipeline.errors import (
    BrokerError,
    ConnectionLostError,
    NotStoringError,
    PublishRefusedError,
    PublishTimeoutError,
    StorageFullError,
)

RENEW_AFTER_S = 10.0
"""Idle for so long a producer begins anew: the controller forgets those of ended instances."""
ATTEMPT_TIMEOUT_S = 5.0
"""Without an answer for so long a message is sent again."""
RETRY_MIN_S = 0.05
RETRY_MAX_S = 1.0
"""Before it is sent again, doubling from the first to the last, until `timeout_s` is over."""
SPAN_MAX = 500
"""From the oldest number without an answer to the newest: below the number of packages that the
controller holds for a producer (core.producers.HELD_MAX) before it gives a missing one up."""
# What the broker answers while it is starting or electing a leader (its words: "no responders",
# "JetStream system temporarily unavailable").
PASSING_REFUSALS = frozenset({503, 10008})


def _new_name() -> str:
    return uuid.uuid4().hex[:16]


class Producer:
    """Numbers what it sends to one subject, and repeats it until it is stored.

    Args:
        renew_after_s: idle for so long with everything answered, it begins anew under a new name.
    """

    def __init__(
        self,
        broker: Broker,
        subject: str,
        *,
        timeout_s: float,
        renew_after_s: float = RENEW_AFTER_S,
        new_name: Callable[[], str] = _new_name,
    ) -> None:
        self._broker = broker
        self._subject = subject
        self._timeout_s = timeout_s
        self._renew_after_s = renew_after_s
        self._new_name = new_name
        self._loop = asyncio.get_running_loop()
        self._name = new_name()
        self._last = 0
        self._active = self._loop.time()
        self._unanswered: dict[int, None] = {}
        self._turn = asyncio.Lock()
        self._answered = asyncio.Event()

    @property
    def name(self) -> str:
        """Under which the controller knows it now."""
        return self._name

    async def send(self, data: bytes, headers: Mapping[str, str]) -> PubAck:
        """Send, and return when it is stored. Numbers are given in the order of the calls.

        Raises:
            PayloadTooLargeError, PayloadError: it cannot be sent; no number was used up.
            PublishRefusedError: the broker did not store it.
            StorageFullError: nor had the broker room for it until `timeout_s` was over.
        PublishTimeoutError: whether it is stored is not known.
            ConnectionLostError: it was never sent.
        """
        async with self._turn:
            while self._unanswered and self._last + 1 - next(iter(self._unanswered)) >= SPAN_MAX:
                self._answered.clear()
                await self._answered.wait()
            message = self._next(data, headers)
        try:
            return await message.store()
        except BrokerError:
            if message.is_surely_not_stored and message.number == self._last:
                self._last -= 1  # so that nothing waits for a number that never comes
            raise
        finally:
            self._unanswered.pop(message.number, None)
            self._active = self._loop.time()
            self._answered.set()

    async def settled(self) -> None:
        """Return when nothing that was sent is without an answer."""
        while self._unanswered or self._turn.locked():
            self._answered.clear()
            await self._answered.wait()

    def _next(self, data: bytes, headers: Mapping[str, str]) -> _Message:
        now = self._loop.time()
        if self._last and not self._unanswered and now - self._active >= self._renew_after_s:
            self._name, self._last = self._new_name(), 0
        number = self._last + 1
        message = _Message(
            self._broker,
            self._subject,
            data,
            f"{self._name}.{number}",
            number,
            {**headers, HEADER_PRODUCER: self._name, HEADER_NUMBER: str(number)},
            timeout_s=self._timeout_s,
        )
        message.check()
        self._last = number
        self._unanswered[number] = None
        return message


class _Message:
    """One numbered message, on its way into the log."""

    def __init__(
        self,
        broker: Broker,
        subject: str,
        data: bytes,
        msg_id: str,
        number: int,
        headers: Mapping[str, str],
        *,
        timeout_s: float,
    ) -> None:
        self.number = number
        self._broker = broker
        self._subject = subject
        self._data = data
        self._msg_id = msg_id
        self._headers = headers
        self._timeout_s = timeout_s
        self._unanswered = 0
        self._loop = asyncio.get_running_loop()

    @property
    def is_surely_not_stored(self) -> bool:
        """No attempt was left without an answer."""
        return not self._unanswered

    def check(self) -> None:
        """Raises PayloadTooLargeError or PayloadError where it can never be sent."""
        head = encode(self._msg_id, self._headers)
        check_size(self._subject, head, self._data, self._broker.max_payload)

    async def store(self) -> PubAck:
        """Send it, again and again until there is an answer or the time is over."""
        deadline = self._loop.time() + self._timeout_s
        delay = RETRY_MIN_S
        while True:
            try:
                return await self._attempt(deadline - self._loop.time())
            except (PublishTimeoutError, ConnectionLostError) as error:
                last: BrokerError = error
            except PublishRefusedError as error:
                passing = error.err_code in PASSING_REFUSALS
                if not passing and not isinstance(error, StorageFullError):
                    raise
                last = error
            if self._loop.time() + delay >= deadline or self._broker.lost.done():
                raise self._given_up(last) from last
            await asyncio.sleep(delay)
            delay = min(RETRY_MAX_S, delay * 2)

    async def _attempt(self, left_s: float) -> PubAck:
        future = await self._broker.start_publish(
            self._subject,
            self._data,
            msg_id=self._msg_id,
            headers=self._headers,
            timeout_s=min(ATTEMPT_TIMEOUT_S, max(left_s, RETRY_MIN_S)),
        )
        self._unanswered += 1
        try:
            ack = await future
        except PublishRefusedError:
            self._unanswered -= 1
            raise
        return ack

    def _given_up(self, last: BrokerError) -> BrokerError:
        if isinstance(last, PublishRefusedError):
            return last
        if self.is_surely_not_stored:
            return ConnectionLostError(
                f"a package on {self._subject!r} was not sent: there was no connection for "
                f"{self._timeout_s:g} s; it is not stored; send it again when the broker is back",
                subject=self._subject,
            )
        not_storing = isinstance(last, NotStoringError)
        kind = NotStoringError if not_storing else PublishTimeoutError
        why = f"; {WHY_SILENT}" if not_storing else ""
        return kind(
            f"whether a package on {self._subject!r} is stored is not known: no answer came within "
            f"{self._timeout_s:g} s, and it was sent; it may still come out, once; calling send "
            f"with it again makes a second package, which may come out beside it{why}",
            subject=self._subject,
            msg_id=self._msg_id,
            timeout_s=self._timeout_s,
        )
