"""The pipelined publisher: many messages under way, each with the future of its ack.

nats-py's `publish_async` was not taken: its futures never end when an ack is lost, and keep their
permits. Here every future ends - with the ack, a refusal, a timeout or the loss of the connection -
and gives its room back when it does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from broker_pipeline.broker.api import UNREADABLE, ApiError
from broker_pipeline.broker.connection import Connection
from broker_pipeline.broker.headers import check_size, encode, number, status
from broker_pipeline.broker.port import PubAck
from broker_pipeline.broker.storage import log_full, not_storing, storage_full
from broker_pipeline.errors import (
    ConnectionLostError,
    PublishRefusedError,
    PublishTimeoutError,
)

# Measured: throughput is flat from about 1,000 on; 4,000 leaves room for slower links.
WINDOW_MESSAGES = 4_000
WINDOW_BYTES = 16 << 20
# One timer for all: a timeout is noticed at most this much late, and told when it is known why.
SWEEP_S = 0.25


class Acknowledgement(msgspec.Struct, frozen=True):
    """The broker's answer to a published message."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: ApiError | None = None


_decode = msgspec.json.Decoder(Acknowledgement).decode


class _Pending:
    __slots__ = ("deadline", "future", "size", "subject", "timeout_s")

    def __init__(
        self,
        future: asyncio.Future[PubAck],
        size: int,
        subject: str,
        deadline: float,
        timeout_s: float,
    ) -> None:
        self.future = future
        self.size = size
        self.subject = subject
        self.deadline = deadline
        self.timeout_s = timeout_s


class PipelinedPublisher:
    """Publishes over one connection, with a window bounded in messages and bytes.

    Args:
        answers: whether the broker answers questions, asked when an ack does not come; it is
            bounded in time and does not raise.
    """

    def __init__(
        self,
        connection: Connection,
        answers: Callable[[], Awaitable[bool]],
        *,
        window_messages: int = WINDOW_MESSAGES,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self._connection = connection
        self._answers = answers
        self._explaining: set[asyncio.Task[None]] = set()
        self._window_messages = window_messages
        self._window_bytes = window_bytes
        self._loop = asyncio.get_running_loop()
        self._prefix = connection.nc.new_inbox() + "."
        self._pending: dict[str, _Pending] = {}
        self._pending_bytes = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._token = 0
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Subscribe to the acks."""
        await self._connection.subscribe(self._prefix + "*", self._on_ack)
        self._connection.attach(self)

    async def start_publish(
        self,
        subject: str,
        data: bytes,
        msg_id: str | None,
        headers: Mapping[str, str] | None,
        timeout_s: float,
    ) -> asyncio.Future[PubAck]:
        """See `Broker.start_publish`. While reconnecting it waits, for at most `timeout_s`."""
        head = encode(msg_id, headers)
        size = check_size(subject, head, data, self._connection.nc.max_payload)
        connection = self._connection
        if not connection.up.is_set():
            await self._until_up(timeout_s)
        # Whoever comes while others wait joins the queue, so that none is overtaken for ever.
        if self._waiting or self._is_full():
            await self._room()
        self._token += 1
        token = str(self._token)
        future: asyncio.Future[PubAck] = self._loop.create_future()
        deadline = self._loop.time() + timeout_s
        self._pending[token] = _Pending(future, size, subject, deadline, timeout_s)
        self._pending_bytes += size
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        try:
            await connection.send(subject, data, self._prefix + token, head)
        except BaseException:
            self._take(token)
            raise
        return future

    # -- the window -----------------------------------------------------------------------------
    def _is_full(self) -> bool:
        return (
            len(self._pending) >= self._window_messages or self._pending_bytes >= self._window_bytes
        )

    async def _room(self) -> None:
        turn: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(turn)
        try:
            await turn
        except BaseException:
            if turn in self._waiting:
                self._waiting.remove(turn)
            # It was let in and does not come: the next one may.
            self._let_in()
            raise

    async def _until_up(self, timeout_s: float) -> None:
        connection = self._connection
        if connection.reconnect and not connection.closing:
            try:
                async with asyncio.timeout(timeout_s):
                    await connection.up.wait()
            except TimeoutError:
                raise connection.gone() from None
            if not connection.closing:
                return
        raise connection.gone()

    def _take(self, token: str) -> _Pending | None:
        pending = self._pending.pop(token, None)
        if pending is not None:
            self._pending_bytes -= pending.size
            if self._waiting:
                self._let_in()
        return pending

    def _let_in(self) -> None:
        """Let in as many as there is room for; one at a time, for each will take its own share."""
        while self._waiting and not self._is_full():
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    # -- how a message ends ---------------------------------------------------------------------
    def _on_ack(self, subject: str, _: str, data: bytes, head: bytes | None) -> None:
        pending = self._take(subject[len(self._prefix) :])
        if pending is None or pending.future.done():
            return
        try:
            ack = _parse_ack(pending.subject, data, head)
        except PublishRefusedError as error:
            pending.future.set_exception(error)
        else:
            pending.future.set_result(PubAck(ack.stream, ack.seq, ack.duplicate))

    def _sweep(self) -> None:
        now = self._loop.time()
        late = [token for token, each in self._pending.items() if each.deadline <= now]
        taken = [pending for token in late if (pending := self._take(token)) is not None]
        if taken:
            task = self._loop.create_task(self._end_late(taken), name="late acks")
            self._explaining.add(task)
            task.add_done_callback(self._explaining.discard)
        waiting = self._pending or self._waiting
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep) if waiting else None

    async def _end_late(self, late: list[_Pending]) -> None:
        """A broker that answers otherwise does not store: that is worth another error."""
        answers = await self._answers()
        for pending in late:
            if not pending.future.done():
                pending.future.set_exception(_late(pending, answers))

    def disconnected(self, error: ConnectionLostError) -> None:
        """End every future: which of the messages arrived is not known."""
        pending, self._pending, self._pending_bytes = self._pending, {}, 0
        for each in pending.values():
            if not each.future.done():
                each.future.set_exception(error)
        waiting, self._waiting = self._waiting, deque()
        for turn in waiting:
            if not turn.done():
                turn.set_exception(error)
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    def reconnected(self) -> None:
        """Nothing to do: the subscription is restored, and there is nothing under way."""


def _late(pending: _Pending, answers: bool) -> PublishTimeoutError:
    if answers:
        return not_storing(pending.subject, pending.timeout_s)
    return PublishTimeoutError(
        f"no acknowledgement for a message on {pending.subject!r} came within "
        f"{pending.timeout_s:g} s; it may or may not be stored; publish it again with the same id",
        subject=pending.subject,
        timeout_s=pending.timeout_s,
    )


def _parse_ack(subject: str, data: bytes, head: bytes | None) -> Acknowledgement:
    """Decode a publish's answer. Raises PublishRefusedError where it is a refusal."""
    if not data:
        raise no_stream(subject, head)
    try:
        ack = _decode(data)
    except UNREADABLE as error:
        raise PublishRefusedError(
            f"the answer to a message on {subject!r} is no acknowledgement: {data[:80]!r}; "
            "expected a JetStream stream to answer",
            subject=subject,
        ) from error
    if ack.error is not None:
        raise refusal(subject, ack.error)
    return ack


def no_stream(subject: str, head: bytes | None) -> PublishRefusedError:
    """The error for an answer without content: 503, nobody listens."""
    code, _ = status(head)
    return PublishRefusedError(
        f"no stream listens on {subject!r} (status {code or 'missing'}); expected one that "
        "stores it; provision it first, or correct the subject",
        err_code=number(code),
        subject=subject,
    )


def refusal(subject: str, error: ApiError) -> PublishRefusedError:
    """The error for a message that the broker did not store."""
    told = subject, error.err_code, error.description
    return (
        storage_full(*told)
        or log_full(*told)
        or PublishRefusedError(
            f"the broker refused a message on {subject!r}: {error.description} "
            f"(code {error.err_code}); it is not stored",
            err_code=error.err_code,
            subject=subject,
            description=error.description,
        )
    )
