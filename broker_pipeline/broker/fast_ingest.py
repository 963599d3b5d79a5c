"""The ordered publisher: JetStream fast ingest (ADR-50) in `fail` mode.

A session numbers its messages; the server stores number n only when it has stored n-1, and ends the
session at the first gap or refusal. So what is stored is a prefix of what was published, without
waiting for any message. The protocol is in the reply subject,
`<inbox>.<session>.<flow>.fail.<number>.<operation>.$FI`, and in the server's answers to it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

import msgspec
import nats.errors
from nats.aio.subscription import Subscription as NatsSubscription

from broker_pipeline.broker.api import UNREADABLE, ApiError
from broker_pipeline.broker.connection import Connection, error_future
from broker_pipeline.broker.headers import check_size, encode
from broker_pipeline.broker.publish import no_stream, refusal
from broker_pipeline.errors import (
    BrokerError,
    ConnectionLostError,
    PublishRefusedError,
    PublishTimeoutError,
)

# The server acknowledges every FLOW messages, and OUTSTANDING such blocks may be under way
# (ADR-50 recommends 2). Measured: more than 200 gains nothing.
FLOW = 200
OUTSTANDING = 2
# nats-py writes to the socket when the loop turns: without this, a burst fills the whole window
# before the broker sees any of it (measured: a third less throughput).
YIELD_EVERY = 50
# The server ends a session after 10 s without a message.
PING_S = 3.0
# A flow ack that was lost, as at a change of the stream's leader, is asked for again this often.
STALL_PING_S = 1.0
TIMEOUT_S = 10.0

_START, _APPEND, _COMMIT, _PING = 0, 1, 3, 4


class Answer(msgspec.Struct, frozen=True):
    """Any answer to a session: a flow ack, a gap, a refusal, or the PubAck that ends it."""

    type: str = ""
    seq: int = 0
    msgs: int = 0
    last_seq: int = 0
    batch: str = ""
    count: int = 0
    stream: str = ""
    error: ApiError | None = None


_decode = msgspec.json.Decoder(Answer).decode


class _Session:
    """One run of numbered messages, from its first to the PubAck that commits it."""

    __slots__ = ("acknowledged", "block", "committed", "head", "sent", "subject", "token")

    def __init__(self, token: str, inbox: str) -> None:
        self.token = token
        self.head = f"{inbox}.{token}.{FLOW}.fail."
        self.subject = ""
        self.sent = 0
        self.acknowledged = 0
        self.block = 0  # 0 until the server has opened the session and said how often it acks
        self.committed: Answer | None = None

    def reply(self, operation: int) -> str:
        return f"{self.head}{self.sent}.{operation}.$FI"

    def has_room(self) -> bool:
        return self.acknowledged + self.block * OUTSTANDING > self.sent


class FastIngestPublisher:
    """An `OrderedPublisher` on one connection. It never outlives a loss of that connection."""

    def __init__(self, connection: Connection, stream: str) -> None:
        self._connection = connection
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._inbox = connection.nc.new_inbox()
        # Session ids must differ from those of all other publishers: the inbox is unique.
        self._id = self._inbox.rpartition(".")[2]
        self._sessions = 0
        self._session: _Session | None = None
        self._subscription: NatsSubscription | None = None
        self._news = asyncio.Event()
        # Held while a session begins or ends: nothing may be sent beside its first or last message.
        self._turn = asyncio.Lock()
        self._last_sent = 0.0
        self._stalled = 0
        self._timer: asyncio.TimerHandle | None = None
        self._pings: set[asyncio.Task[None]] = set()
        self._error: BrokerError | None = None
        self._closed = False
        self._failed = error_future()
        connection.attach(self)

    @property
    def failed(self) -> asyncio.Future[None]:
        """See `OrderedPublisher.failed`."""
        return self._failed

    async def publish(
        self, subject: str, data: bytes, *, msg_id: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """See `OrderedPublisher.publish`. The first message of a session waits for its ack."""
        head = encode(msg_id, headers)
        check_size(subject, head, data, self._connection.nc.max_payload)
        session = self._session
        if session is None or self._turn.locked() or self._error is not None:
            await self._publish_in_turn(subject, data, head)
            return
        # No await between the number and the write of the command: the order is that of the calls.
        session.sent += 1
        session.subject = subject
        await self._connection.send(subject, data, session.reply(_APPEND), head)
        if not session.has_room():
            await self._until(session.has_room, session, "made room for more")
        elif session.sent % YIELD_EVERY == 0:
            await asyncio.sleep(0)

    async def _publish_in_turn(self, subject: str, data: bytes, head: bytes) -> None:
        async with self._turn:
            self._check()
            session = self._session
            if session is None:
                session = await self._begin()
                operation = _START
            else:
                operation = _APPEND
            session.sent += 1
            session.subject = subject
            await self._connection.send(subject, data, session.reply(operation), head)
            await self._until(session.has_room, session, "made room for more")

    async def _begin(self) -> _Session:
        if self._subscription is None:
            self._subscription = await self._connection.subscribe(
                f"{self._inbox}.>", self._on_answer
            )
        self._sessions += 1
        self._session = session = _Session(f"{self._id}{self._sessions}", self._inbox)
        self._last_sent = self._loop.time()
        self._arm()
        return session

    async def seal(self) -> None:
        """See `OrderedPublisher.seal`. The next `publish` begins a new session."""
        async with self._turn:
            self._check()
            session = self._session
            if session is None:
                return
            published = session.sent
            session.sent += 1
            await self._connection.send(session.subject, b"", session.reply(_COMMIT))
            await self._until(
                lambda: session.committed is not None, session, "confirmed what was published"
            )
            assert session.committed is not None
            # It counts duplicates too, and the commit itself in none of the versions tried.
            if session.committed.count != published:
                self._fail(
                    PublishRefusedError(
                        f"the broker confirmed {session.committed.count!r} of {published!r} "
                        f"messages to stream {self._stream!r}; expected all; only these first "
                        "ones are stored: begin anew from what the stream holds",
                        confirmed=session.committed.count,
                        published=published,
                    )
                )
                self._check()
            self._session = None

    async def close(self) -> None:
        """See `OrderedPublisher.close`."""
        if self._closed:
            return
        try:
            if self._error is None:
                await self.seal()
        finally:
            self._closed = True
            self._connection.detach(self)
            self._session = None
            self._disarm()
            self._failed.cancel()
            if self._subscription is not None:
                # On a connection that is gone there is nothing to unsubscribe from.
                with contextlib.suppress(nats.errors.Error):
                    await self._subscription.unsubscribe()

    # -- waiting --------------------------------------------------------------------------------
    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed or self._connection.closing or not self._connection.up.is_set():
            raise self._connection.gone()

    async def _until(self, condition: Callable[[], bool], session: _Session, expected: str) -> None:
        self._stalled += 1
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while self._error is None and not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            self._fail(
                PublishTimeoutError(
                    f"within {TIMEOUT_S:g} s the broker has not {expected} to stream "
                    f"{self._stream!r} (sent {session.sent!r}, acknowledged "
                    f"{session.acknowledged!r}); what is stored is a prefix of what was published: "
                    "begin anew from what the stream holds",
                    stream=self._stream,
                )
            )
        finally:
            self._stalled -= 1
        if self._error is not None:
            raise self._error

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(STALL_PING_S, self._tick)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        """Ping a session that is idle, so that it lives, or stalled, to get its ack again."""
        self._timer = None
        session = self._session
        if session is None or self._error is not None:
            return
        self._arm()
        idle_s = self._loop.time() - self._last_sent
        if session.block and (self._stalled or idle_s >= PING_S):
            self._last_sent = self._loop.time()
            ping = self._loop.create_task(self._ping(session), name=f"ping {session.token}")
            self._pings.add(ping)
            ping.add_done_callback(self._pings.discard)

    async def _ping(self, session: _Session) -> None:
        try:
            await self._connection.send(session.subject, b"", session.reply(_PING))
        except ConnectionLostError as error:
            self._fail(error)

    # -- what comes back ------------------------------------------------------------------------
    def _on_answer(self, subject: str, _: str, data: bytes, head: bytes | None) -> None:
        session = self._session
        if session is None or self._error is not None or f".{session.token}." not in subject:
            # Late answers of an ended session: after a refusal each message under way gets one.
            return
        if not data:
            self._fail(no_stream(session.subject, head))
            return
        try:
            answer = _decode(data)
        except UNREADABLE:
            answer = Answer(error=ApiError(description=f"not understood: {data[:80]!r}"))
        self._apply(session, answer)

    def _apply(self, session: _Session, answer: Answer) -> None:
        if answer.error is not None:
            self._fail(refusal(session.subject, answer.error))
        elif answer.type == "ack":
            session.acknowledged = max(session.acknowledged, answer.seq)
            session.block = max(1, answer.msgs)
        elif answer.type == "gap":
            self._fail(
                PublishRefusedError(
                    f"messages {answer.last_seq!r} to {answer.seq!r} of a session to stream "
                    f"{self._stream!r} did not arrive; expected all; what is stored ends before "
                    "them: begin anew from what the stream holds",
                    stream=self._stream,
                )
            )
        else:
            session.committed = answer
        self._news.set()

    def _fail(self, error: BrokerError) -> None:
        if self._error is None:
            self._error = error
            if not self._failed.done():
                self._failed.set_exception(error)
        self._disarm()
        self._news.set()

    def disconnected(self, error: ConnectionLostError) -> None:
        """A session does not outlive its connection: fail."""
        if not self._closed:
            self._fail(error)

    def reconnected(self) -> None:
        """Nothing to do: it has failed, and its owner begins anew."""
