"""An idempotent producer: whatever has to be repeated, the controller takes once and in order."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from broker_pipeline.broker.headers import check_size, encode
from broker_pipeline.broker.large_payloads import Upload
from broker_pipeline.broker.port import Broker, PubAck
from broker_pipeline.broker.storage import WHY_SILENT
from broker_pipeline.core.names import HEADER_NUMBER, HEADER_PRODUCER
from broker_pipeline.errors import (
    BrokerError,
    BrokerUnavailableError,
    ConnectionLostError,
    LogFullError,
    NotFoundError,
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
# "JetStream system temporarily unavailable"), or while an earlier attempt is still on its way to
# the replicas ("duplicate message id is in process").
NO_RESPONDERS = 503
PASSING_REFUSALS = frozenset({NO_RESPONDERS, 10008, 10158})
OnFull = Callable[[LogFullError], None]
"""Is told whenever a package has to wait for room."""


@dataclass(frozen=True)
class Log:
    """Where what a producer sends is filed, and what it does when there is no room.

    Attributes:
        stream: the log's stream.
        wait_full_s: how long a package waits for room before it is refused.
        on_full: is told, once for each package that begins to wait.
    """

    stream: str
    wait_full_s: float = 0.0
    on_full: OnFull | None = None


def _new_name() -> str:
    return uuid.uuid4().hex[:16]


class Producer:
    """Numbers what it sends to one subject, and repeats it until it is stored.

    Args:
        renew_after_s: idle for so long with everything answered, it begins anew under a new name.
        log: where it is filed; None: a log that is full is a refusal like any other.
    """

    def __init__(
        self,
        broker: Broker,
        subject: str,
        *,
        timeout_s: float,
        renew_after_s: float = RENEW_AFTER_S,
        new_name: Callable[[], str] = _new_name,
        log: Log | None = None,
    ) -> None:
        self._broker = broker
        self._subject = subject
        self._timeout_s = timeout_s
        self._log = log
        self._refused: set[int] = set()
        self._wait_for_room: set[int] = set()
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

    async def send(self, data: bytes | Upload, headers: Mapping[str, str]) -> PubAck:
        """Send, and return when it is stored. Numbers are given in the order of the calls; large
        payloads are stored beside each other meanwhile.

        Raises:
            PayloadTooLargeError, PayloadError: it cannot be sent; no number was used up.
            LogFullError: the log has no room, nor had any within `wait_full_s`; it is not stored.
            StorageFullError: the broker had no room for it until `timeout_s` was over.
            PublishRefusedError: the broker did not store it for another reason.
            PublishTimeoutError: whether it is stored is not known.
            ConnectionLostError: it was never sent.
        """
        uploading = None
        if isinstance(data, Upload):
            uploading = asyncio.create_task(self._upload(data), name=f"upload {self._name}")
        try:
            message = await self._in_turn(data, uploading, headers)
        finally:
            if uploading is not None:
                uploading.cancel()
                uploading.add_done_callback(lambda done: done.cancelled() or done.exception())
                self._answered.set()  # the turn is free, also where no message came of it
        try:
            return await message.store()
        except BrokerError:
            if message.is_surely_not_stored and message.name == self._name:
                self._give_back(message.number)
            raise
        finally:
            self._wait_for_room.discard(message.number)
            self._unanswered.pop(message.number, None)
            self._active = self._loop.time()
            self._answered.set()

    async def _in_turn(
        self,
        data: bytes | Upload,
        uploading: asyncio.Task[bytes] | None,
        headers: Mapping[str, str],
    ) -> _Message:
        """The message with its number."""
        async with self._turn:
            # Behind one that waits for room none is sent: the controller would wait for it.
            while self._wait_for_room or (
                self._unanswered and self._last + 1 - next(iter(self._unanswered)) >= SPAN_MAX
            ):
                self._answered.clear()
                await self._answered.wait()
            if uploading is None or not isinstance(data, Upload):
                assert isinstance(data, bytes)
                return self._next(data, headers)
            message = self._next(await uploading, headers)
            message.renew = data.message
            return message

    async def _upload(self, upload: Upload) -> bytes:
        """The bytes of a package whose payload is stored; tried for as long as a message is."""
        deadline = self._loop.time() + self._timeout_s
        delay = RETRY_MIN_S
        while True:
            try:
                return await upload.message()
            except BrokerError as error:
                again = error.retriable or getattr(error, "err_code", 0) in PASSING_REFUSALS
                late = self._loop.time() + delay >= deadline
                if not again or late or self._broker.lost.done():
                    raise
            await asyncio.sleep(delay)
            delay = min(RETRY_MAX_S, delay * 2)

    async def _turn_for_room(self, number: int) -> None:
        """Those that wait for room go in their order, or it would be lost when it is short."""
        while self._wait_for_room and min(self._wait_for_room) < number:
            self._answered.clear()
            await self._answered.wait()

    def _give_back(self, number: int) -> None:
        """It is stored nowhere: give it again, so that nothing waits for a number that never comes.
        Of several that were under way the last may be refused last."""
        self._refused.add(number)
        while self._last in self._refused:
            self._refused.discard(self._last)
            self._last -= 1

    async def settled(self) -> None:
        """Return when nothing that was sent is without an answer."""
        while self._unanswered or self._turn.locked():
            self._answered.clear()
            await self._answered.wait()

    def _next(self, data: bytes, headers: Mapping[str, str]) -> _Message:
        now = self._loop.time()
        if self._last and not self._unanswered and now - self._active >= self._renew_after_s:
            self._name, self._last = self._new_name(), 0
            self._refused.clear()
        number = self._last + 1
        message = _Message(
            self._broker,
            self._subject,
            data,
            f"{self._name}.{number}",
            number,
            {**headers, HEADER_PRODUCER: self._name, HEADER_NUMBER: str(number)},
            timeout_s=self._timeout_s,
            log=self._log,
        )
        message.name = self._name
        message.waits_for_room = lambda: self._wait_for_room.add(number)
        message.turn_for_room = lambda: self._turn_for_room(number)
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
        log: Log | None = None,
    ) -> None:
        self.number = number
        self.name = ""
        self.waits_for_room: Callable[[], None] = lambda: None
        self.turn_for_room: Callable[[], Awaitable[None]] | None = None
        self.renew: Callable[[], Awaitable[bytes]] | None = None
        self._log = log
        self._full_since = 0.0
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
            begun = self._loop.time()
            try:
                return await self._attempt(deadline - begun)
            except (PublishTimeoutError, ConnectionLostError, BrokerUnavailableError) as error:
                last: BrokerError = error
            except PublishRefusedError as error:
                full = await self._full(error)
                passing = error.err_code in PASSING_REFUSALS
                if full is not None:
                    deadline = self._wait_for(full, deadline)
                elif not passing and not isinstance(error, StorageFullError):
                    raise
                last = full or error
            if not self.is_surely_not_stored:
                # As long as its id is remembered, however long it has waited for room before.
                deadline = min(deadline, begun + self._timeout_s)
            if self._loop.time() + delay >= deadline or self._broker.lost.done():
                raise self._given_up(last) from last
            await asyncio.sleep(delay)
            delay = min(RETRY_MAX_S, delay * 2)
            # One that may be stored has its number's place already, and no time to spare.
            waits = isinstance(last, LogFullError) and self.is_surely_not_stored
            if waits and self.turn_for_room is not None:
                left_s = deadline - self._loop.time()
                await self.turn_for_room()
                deadline = self._loop.time() + left_s

    async def _full(self, error: PublishRefusedError) -> LogFullError | None:
        """The error in plain words where the log has no room; None where it is another one.

        A log that is closed for producers looks to them like a broker that is starting.
        """
        is_full = isinstance(error, LogFullError)
        if self._log is None or not (is_full or error.err_code == NO_RESPONDERS):
            return None
        level = "its size"
        with contextlib.suppress(BrokerUnavailableError, ConnectionLostError, NotFoundError):
            status = await self._broker.stream_status(self._log.stream)
            public = f"{self._subject.rpartition('.')[0]}.*"
            if not is_full and public in status.subjects:
                return None
            level = f"{status.state.bytes} of {status.max_bytes} bytes"
            return self._log_full(error.err_code, level)
        return self._log_full(error.err_code, level) if is_full else None

    def _log_full(self, err_code: int, level: str) -> LogFullError:
        assert self._log is not None
        return LogFullError(
            f"a package on {self._subject!r} was refused, and is not stored: the log "
            f"{self._log.stream!r} is full, with {level}; it takes packages again by itself when "
            f"those inside have made room; send it again then, wait with wait_full_s, start more "
            f"workers, or deploy with a larger log_bytes_max",
            err_code=err_code,
            subject=self._subject,
            stream=self._log.stream,
        )

    def _wait_for(self, full: LogFullError, deadline: float) -> float:
        """Wait for room; returns until when. Raises the error where that is over."""
        assert self._log is not None
        if not self.is_surely_not_stored:
            return deadline  # one that may be stored is not repeated when its id may be forgotten
        now = self._loop.time()
        if not self._full_since:
            self._full_since = now
            if self._log.wait_full_s and self._log.on_full is not None:
                self._log.on_full(full)
        if now - self._full_since >= self._log.wait_full_s:
            raise full
        self.waits_for_room()
        # When there is room again it has its full time for everything else that may go wrong.
        return max(now, self._full_since + self._log.wait_full_s) + self._timeout_s

    async def _attempt(self, left_s: float) -> PubAck:
        if self.renew is not None:  # what it refers to must still be there when it arrives
            self._data = await self.renew()
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
        if isinstance(last, PublishRefusedError) and self.is_surely_not_stored:
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
