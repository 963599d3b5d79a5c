"""Continuous pulling: one inbox, a callback, and a request for more whenever half is used up.

`Puller` serves a durable consumer; `Reader` reads a stream through an ephemeral one that it makes
again, behind the last message it has handed over, whenever it may have missed something.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from nats.aio.subscription import Subscription as NatsSubscription

from broker_pipeline.broker.api import ConsumerInfo, JetStreamApi, pause_before_retry
from broker_pipeline.broker.connection import Connection, error_future
from broker_pipeline.broker.headers import number, parse, status
from broker_pipeline.broker.port import Handler, Message
from broker_pipeline.errors import BrokerError, ConnectionLostError, NotFoundError
from broker_pipeline.journey import NS

REQUEST_EXPIRES_S = 30.0
HEARTBEAT_S = 1.5
# Neither a message nor a heartbeat for this long: what was asked for is asked for again.
SILENCE_S = 4.0
# How long the server keeps an ephemeral consumer that nobody pulls from: a process that was killed
# leaves none behind for longer.
INACTIVE_S = 30.0
STOP_TIMEOUT_S = 3.0

_ACK_PREFIX = "$JS.ACK."
_NAK = b"-NAK"


def delivery(subject: str, reply: str, data: bytes, head: bytes | None) -> tuple[Message, str, int]:
    """A delivered message, its consumer, and its number with that.

    Raises:
        BrokerError: `reply` is no ack subject.
    """
    # v1 has 9 tokens: $JS.ACK.<stream>.<consumer>.<delivered>.<stream sequence>.
    # <consumer sequence>.<time>.<pending>; v2 has <domain>.<account> before the stream, and 11 or
    # more.
    tokens = reply.split(".")
    at = 4 if len(tokens) == 9 else 6
    try:
        sequence, time = int(tokens[at + 1]), int(tokens[at + 3])
        delivered, pending = int(tokens[at]), int(tokens[at + 4])
        message = Message(subject, data, parse(head), sequence, time, delivered, pending, reply)
        return message, tokens[at - 1], int(tokens[at + 2])
    except (ValueError, IndexError) as error:
        raise BrokerError(
            f"{reply[:200]!r} came as an ack subject and is none ({error}); expected one of "
            f"JetStream's: look at who else publishes to this connection's inbox",
            reply=reply[:200],
        ) from error


class Puller:
    """A `Subscription` on a durable consumer.

    Args:
        credit: about how many messages to have asked for at most.
        bytes_max: about how many bytes they may have together.
        silence_s: after how long without a sign of life to ask again.
    """

    def __init__(
        self,
        connection: Connection,
        api: JetStreamApi,
        stream: str,
        consumer: str,
        handler: Handler,
        *,
        credit: int,
        bytes_max: int,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._connection = connection
        self._api = api
        self._stream = stream
        self._consumer = consumer
        self._handler = handler
        self._silence_s = silence_s
        # Two to three requests are open at a time, each with its own bound.
        self._request_bytes = max(1, bytes_max // 2)
        self._request_bytes_now = self._request_bytes
        self._credit = credit
        self._low = credit // 2
        self._outstanding = 0
        self._heard = False
        self._doubtful = False
        self._stopped = False
        self._attempt = 0
        self._late: list[str] = []
        self._wake = asyncio.Event()
        self._inbox = connection.nc.new_inbox()
        self._subscription: NatsSubscription | None = None
        self._task: asyncio.Task[None] | None = None
        self._failed = error_future()

    @property
    def failed(self) -> asyncio.Future[None]:
        """See `Subscription.failed`; cancelled by `stop`."""
        return self._failed

    async def start(self) -> None:
        """Subscribe and ask for the first messages. Raises NotFoundError for a missing consumer."""
        await self._prepare()
        self._subscription = await self._connection.subscribe(self._inbox, self._take)
        self._connection.attach(self)
        self._task = asyncio.get_running_loop().create_task(
            self._tend(), name=f"pull {self._stream}/{self._consumer}"
        )
        await self._ask()

    def set_credit(self, messages: int) -> None:
        """See `Subscription.set_credit`."""
        self._credit = messages
        self._low = messages // 2
        self._wake.set()

    async def stop(self) -> None:
        """See `Subscription.stop`. What was delivered and not handed over is given back at once."""
        if self._stopped:
            return
        self._stopped = True
        self._connection.detach(self)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._end_subscription()
        self._failed.cancel()

    async def _end_subscription(self) -> None:
        """Unsubscribe, and give back what was under way.

        nats-py's drain waits for a PONG on a future; were that cancelled, the PONG would end the
        read loop. So it is only ever abandoned, and then ends by its own timeout.
        """
        if self._subscription is None:
            return
        if self._connection.up.is_set():
            drain = asyncio.ensure_future(self._subscription.drain())  # type: ignore[no-untyped-call]
            drain.add_done_callback(lambda task: task.cancelled() or task.exception())
            await asyncio.wait([drain], timeout=STOP_TIMEOUT_S)
            late, self._late = self._late, []
            for reply in late:
                with contextlib.suppress(ConnectionLostError):
                    await self._connection.send(reply, _NAK)
        else:
            with contextlib.suppress(Exception):
                await self._subscription.unsubscribe()

    # -- what a kind of puller does differently ---------------------------------------------------
    async def _prepare(self) -> None:
        """Have a consumer to pull from. Raises NotFoundError when there can be none."""
        path = f"CONSUMER.INFO.{self._stream}.{self._consumer}"
        await self._api.request(path, None, ConsumerInfo)

    def _deliver(self, message: Message, consumer: str, consumer_seq: int) -> None:
        """Hand one message over."""
        self._handler(message)

    # -- the hot path -----------------------------------------------------------------------------
    def _take(self, subject: str, reply: str, data: bytes, head: bytes | None) -> None:
        """Take what the inbox gets. An exception would end nats-py's read loop, where it runs."""
        try:
            if not reply.startswith(_ACK_PREFIX):
                self._on_status(*status(head), parse(head))
            elif self._stopped:
                self._late.append(reply)
            else:
                self._heard = True
                self._outstanding -= 1
                self._deliver(*delivery(subject, reply, data, head))
            if self._outstanding <= self._low:
                self._wake.set()
        except Exception as error:  # a handler is user code
            self._fail(error)

    def _on_status(self, code: str, text: str, headers: Mapping[str, str]) -> None:
        self._heard = True
        if code == "100":  # an idle heartbeat
            return
        pending = headers.get("Nats-Pending-Messages")
        if pending is not None and code in ("404", "408", "409"):
            # A request has ended with so many messages of it not delivered.
            self._outstanding = max(0, self._outstanding - number(pending))
            if "MaxBytes" in text:
                self._on_too_large(number(headers.get("Nats-Pending-Bytes", "")))
            if "Deleted" not in text and "Leadership" not in text and "Shutdown" not in text:
                return
        # The consumer may be gone, or has moved: all requests are void.
        self._outstanding = 0
        self._doubtful = True
        self._wake.set()

    def _on_too_large(self, bytes_left: int) -> None:
        """The next message did not fit into what a request had left; larger, if it had all left."""
        if bytes_left >= self._request_bytes_now:
            self._request_bytes_now *= 2

    async def _ask(self) -> None:
        count = self._credit - self._outstanding
        if count <= 0 or self._stopped or not self._connection.up.is_set():
            return
        self._outstanding += count
        request = {
            "batch": count,
            "expires": int(REQUEST_EXPIRES_S * NS),
            "idle_heartbeat": int(HEARTBEAT_S * NS),
            "max_bytes": self._request_bytes_now,
        }
        await self._connection.send(
            f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}",
            msgspec.json.encode(request),
            self._inbox,
        )

    # -- keeping it going -------------------------------------------------------------------------
    async def _tend(self) -> None:
        """Ask for more, and again after silences and reconnections; repair what is in doubt."""
        try:
            while True:
                await self._wait_for_news()
                if not self._connection.up.is_set():
                    continue
                if self._doubtful:
                    await self._repair()
                if self._outstanding <= self._low:
                    await self._ask()
        except ConnectionLostError as error:
            if not self._connection.reconnect or self._connection.nc.is_closed:
                self._fail(error)
        except BrokerError as error:
            self._fail(error)

    async def _wait_for_news(self) -> None:
        self._heard = False
        try:
            async with asyncio.timeout(self._silence_s):
                await self._wake.wait()
        except TimeoutError:
            if self._heard:
                self._attempt = 0
            elif self._outstanding:
                self._outstanding = 0
                self._doubtful = True
        self._wake.clear()

    async def _repair(self) -> None:
        """Find out whether the consumer is there, until the broker says yes or no."""
        await pause_before_retry(self._attempt)
        self._attempt += 1
        self._doubtful = False
        try:
            await self._prepare()
        except NotFoundError:
            raise
        except BrokerError:
            if self._connection.nc.is_closed:
                raise
            self._doubtful = True
            self._wake.set()

    def _fail(self, error: BaseException) -> None:
        """End the reading, and say why."""
        if self._stopped:
            return
        self._stopped = True
        self._connection.detach(self)
        if not self._failed.done():
            self._failed.set_exception(error)
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        if self._subscription is not None:
            ending = asyncio.ensure_future(self._end_subscription())
            _background.add(ending)
            ending.add_done_callback(_background.discard)

    def disconnected(self, error: ConnectionLostError) -> None:
        """Requests do not outlive a connection; the reading ends with one that is gone for good."""
        self._outstanding = 0
        if self._connection.nc.is_closed or not self._connection.reconnect:
            self._fail(error)

    def reconnected(self) -> None:
        """Look at the consumer, and ask again."""
        self._outstanding = 0
        self._attempt = 0
        self._doubtful = True
        self._wake.set()


# Tasks that end a failed subscription; asyncio itself keeps only weak references.
_background: set[asyncio.Future[Any]] = set()


class Reader(Puller):
    """A `Subscription` that reads a stream in order, without acks, gaps or repeats.

    Args:
        start_seq: the first stream sequence to read.
        on_begin: called with the number of messages waiting whenever a consumer was made.
    """

    def __init__(
        self,
        connection: Connection,
        api: JetStreamApi,
        stream: str,
        filter: str,
        handler: Handler,
        *,
        start_seq: int,
        headers_only: bool,
        credit: int,
        bytes_max: int,
        silence_s: float = SILENCE_S,
        on_begin: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(
            connection, api, stream, "", handler,
            credit=credit, bytes_max=bytes_max, silence_s=silence_s,
        )  # fmt: skip
        self._filter = filter
        self._headers_only = headers_only
        self._last_seq = max(start_seq, 1) - 1
        self._consumer_seq = 0
        self._on_begin = on_begin
        self._made = itertools.count(1)

    async def _prepare(self) -> None:
        """Make a consumer that begins behind the last message handed over."""
        await self._remove_consumer()
        self._consumer = f"r{self._inbox.rpartition('.')[2]}{next(self._made)}"
        self._consumer_seq = 0
        self._outstanding = 0
        config = {
            "name": self._consumer,
            "filter_subject": self._filter,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._last_seq + 1,
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "headers_only": self._headers_only,
            "inactive_threshold": int(INACTIVE_S * NS),
        }
        made = await self._api.request(
            f"CONSUMER.CREATE.{self._stream}.{self._consumer}",
            {"stream_name": self._stream, "config": config, "action": "create"},
            ConsumerInfo,
        )
        if self._on_begin is not None:
            self._on_begin(made.num_pending)

    async def _remove_consumer(self) -> None:
        consumer, self._consumer = self._consumer, ""
        if consumer and self._connection.up.is_set():
            # It vanishes by itself after INACTIVE_S if this does not reach the broker.
            with contextlib.suppress(BrokerError):
                path = f"CONSUMER.DELETE.{self._stream}.{consumer}"
                await self._api.request(path, None, ConsumerInfo)

    def _deliver(self, message: Message, consumer: str, consumer_seq: int) -> None:
        # Late messages of a consumer that was replaced, and whatever follows a gap, are made good
        # by the next consumer, which begins behind the last one that was handed over.
        if self._doubtful or consumer != self._consumer:
            return
        if consumer_seq != self._consumer_seq + 1:
            self._doubtful = True
            self._wake.set()
            return
        self._consumer_seq = consumer_seq
        message.reply = ""  # there is nothing to ack
        self._handler(message)
        self._last_seq = message.stream_seq

    async def _end_subscription(self) -> None:
        if self._subscription is not None:
            with contextlib.suppress(Exception):
                await self._subscription.unsubscribe()
        await self._remove_consumer()
