"""One connection to nats-server: its life, its events, and what it hides of nats-py's ways."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import nats.errors
from nats.aio.client import Client, Server
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from broker_pipeline.broker import headers
from broker_pipeline.broker.addresses import broker_addresses, without_credentials
from broker_pipeline.errors import BrokerError, BrokerUnavailableError, ConnectionLostError

CONNECT_TIMEOUT_S = 2.0
# A broker that is just starting is worth a second try within that time.
CONNECT_RETRY_S = 0.2
# Between two attempts to reconnect, doubling from the first to the last; there is no last attempt.
RECONNECT_MIN_S = 0.05
RECONNECT_MAX_S = 2.0
FLUSH_TIMEOUT_S = 10.0
# With 2 outstanding a dead peer, or a read loop that an exception has ended without a word
# (nats-py 2.16), is noticed within 15 s. The server's own settings are the same.
PING_INTERVAL_S = 5
PINGS_OUTSTANDING = 2
# Above this a publish waits for the socket. The publishers' own windows are smaller.
PENDING_BYTES_MAX = 64 << 20
# How often a connection is looked at that ended without its callbacks being called (see `_check`).
CHECK_S = 0.25

# White space, and surrogates but for those that stand for bytes (`_Client._process_msg`).
_UNSAFE_SUBJECT = re.compile("[ \t\r\n\ud800-\udc7f\udd00-\udfff]")

T = TypeVar("T")
Taker = Callable[[str, str, bytes, bytes | None], None]
"""Takes a message as `(subject, reply, data, header block)`; it must not raise."""


class Link(Protocol):
    """What depends on a connection and is told about its life; neither may raise."""

    def disconnected(self, error: ConnectionLostError) -> None:
        """The connection is down; what was sent and not answered may or may not have arrived."""

    def reconnected(self) -> None:
        """It is up again, and its subscriptions are restored."""


class _Client(Client):
    """nats-py's client, handing the messages of `takers` over without a queue and a task between.

    That, and its way with headers, are half of what nats-py costs a message (measured: 20 against
    9 us). `_process_msg` is private: should a release not call it any more, the messages take the
    ordinary way, through the callback that `Connection.subscribe` registers as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.takers: dict[int, Taker] = {}

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        take = self.takers.get(sid)
        if take is None:
            await super()._process_msg(sid, subject, reply, data, headers)
        else:
            # Anybody may publish with any bytes: a strict decode would end the read loop.
            take(
                subject.decode("utf-8", "surrogateescape"),
                reply.decode("utf-8", "surrogateescape"),
                data,
                headers,
            )

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self.takers.pop(sid, None)
        super()._remove_sub(sid, max_msgs)


class Connection:
    """A nats-py client that says when it is gone.

    Attributes:
        nc: the client.
        lost: ends with ConnectionLostError when the connection is gone for good.
        up: set while connected.
    """

    def __init__(
        self, url: str, *, reconnect: bool, on_event: Callable[[str], None] | None
    ) -> None:
        self._url = url
        self.url = without_credentials(url)  # for errors and logs
        self.reconnect = reconnect
        self.nc = _Client()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost.add_done_callback(_retrieve)
        self.up = asyncio.Event()
        self.closing = False
        self._on_event = on_event
        self._links: list[Link] = []
        self._timer: asyncio.TimerHandle | None = None
        self._last_error: BaseException | None = None

    async def open(self, name: str) -> None:
        """Connect. Raises BrokerUnavailableError within about CONNECT_TIMEOUT_S, ClientError where
        `url` is none."""
        addresses = broker_addresses(self._url)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self.nc.connect(
                    addresses,
                    name=name,
                    error_cb=self._on_error,
                    disconnected_cb=self._on_disconnected,
                    reconnected_cb=self._on_reconnected,
                    closed_cb=self._on_closed,
                    allow_reconnect=self.reconnect,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=CONNECT_RETRY_S,  # type: ignore[arg-type] # a float works
                    reconnect_to_server_handler=_next_server,
                    ping_interval=PING_INTERVAL_S,
                    max_outstanding_pings=PINGS_OUTSTANDING,
                    pending_size=PENDING_BYTES_MAX,
                    flush_timeout=FLUSH_TIMEOUT_S,
                )
        except (TimeoutError, OSError, nats.errors.Error) as error:
            await self.close()
            cause = self._last_error or error
            raise BrokerUnavailableError(
                f"no broker answers at {self.url!r} ({type(cause).__name__}: {cause}); expected a "
                f"nats-server within {CONNECT_TIMEOUT_S:g} s; start one, or correct the address",
                url=self.url,
            ) from cause
        self.up.set()
        self._check()

    @property
    def info(self) -> Mapping[str, Any]:
        """What the server said of itself when it was connected to; empty where nothing is known."""
        return getattr(self.nc, "_server_info", None) or {}

    def attach(self, link: Link) -> None:
        """Tell `link` from now on."""
        self._links.append(link)

    def detach(self, link: Link) -> None:
        """Tell it no more."""
        with contextlib.suppress(ValueError):
            self._links.remove(link)

    def gone(self) -> ConnectionLostError:
        """The error for a call that needs the connection when it is down."""
        return ConnectionLostError(
            f"the connection to {self.url!r} is down; expected it to be up; what was not "
            "acknowledged may or may not be stored: publish it again with the same id",
            url=self.url,
        )

    async def send(self, subject: str, data: bytes, reply: str = "", head: bytes = b"") -> None:
        """Write one message; `head` is its header block. The bytes are queued before any wait.

        Raises:
            ConnectionLostError: the connection is gone for good.
            BrokerError: the subject is not one.
        """
        nc = self.nc
        if nc.is_closed:
            raise self.gone()
        if not subject or _UNSAFE_SUBJECT.search(subject):
            raise BrokerError(
                f"{subject!r} is not a subject; expected tokens with dots between them and no "
                "white space; escape the token",
                subject=subject,
            )
        if head:
            size = len(head) + len(data)
            text = f"HPUB {subject} {reply} {len(head)} {size}\r\n"
        else:
            text = f"PUB {subject} {reply} {len(data)}\r\n"
        # Workers answer under the token that a raw producer chose, which may be no UTF-8.
        line = text.encode("utf-8", "surrogateescape")
        # Client.publish does just this, but builds the headers with a regular expression each:
        # 13 against 5 us a message. A test publishes through it, so a change would not go unseen.
        await nc._send_command(b"%b%b%b\r\n" % (line, head, data))
        if nc._flush_queue is not None and nc._flush_queue.empty():
            await nc._flush_pending()

    async def subscribe(self, subject: str, take: Taker) -> NatsSubscription:
        """Receive `subject`, without a limit on nats-py's side: a full queue drops silently."""

        async def ordinary_way(message: Msg) -> None:
            fields = message.headers or {}
            first = f"{headers.VERSION} {fields.get('Status', '')} {fields.get('Description', '')}"
            block = headers.encode(None, fields).partition(b"\r\n")
            take(message.subject, message.reply, message.data, first.encode() + b"\r\n" + block[2])

        try:
            subscription = await self.nc.subscribe(
                subject, cb=ordinary_way, pending_msgs_limit=-1, pending_bytes_limit=-1
            )
        except nats.errors.ConnectionClosedError as error:
            raise self.gone() from error
        self.nc.takers[subscription._id] = take
        return subscription

    async def close(self) -> None:
        """Flush what is written and close; idempotent."""
        self.closing = True
        if self._timer is not None:
            self._timer.cancel()
        # A peer that is gone makes the last flush fail; there is nothing left to flush it to.
        # uvloop: closing while it reconnects raises RuntimeError, for its transport is gone.
        with contextlib.suppress(OSError, RuntimeError, nats.errors.Error):
            await self.nc.close()
        self._release()
        self.up.clear()
        self._tell_disconnected()
        self._links.clear()
        self.lost.cancel()

    # -- what nats-py calls ---------------------------------------------------------------------
    async def _on_error(self, error: BaseException) -> None:
        self._last_error = error
        self._event(f"error: {error!r}")
        # An end of file is reported here first; the state that `_check` reads follows at once.
        asyncio.get_running_loop().call_soon(self._look)

    async def _on_disconnected(self) -> None:
        self.up.clear()
        self._event("disconnected")
        self._tell_disconnected()

    async def _on_reconnected(self) -> None:
        self.up.set()
        self._event("reconnected")
        for link in list(self._links):
            link.reconnected()

    async def _on_closed(self) -> None:
        self._look()

    # -- the connection's end -------------------------------------------------------------------
    def _check(self) -> None:
        """Look at regular intervals whether the client has closed.

        nats-py calls neither `disconnected_cb` nor `closed_cb` when its last flush to a peer that
        is gone raises, which is just when a broker is killed under load.
        """
        self._look()
        if not (self.lost.done() or self.closing):
            self._timer = asyncio.get_running_loop().call_later(CHECK_S, self._check)

    def _look(self) -> None:
        if self.nc.is_closed and not self.closing and not self.lost.done():
            self.up.clear()
            self._release()
            self.lost.set_exception(self.gone())
            self._event("lost")
            self._tell_disconnected()

    def _release(self) -> None:
        """Close the socket that nats-py leaves open when its last flush raises."""
        transport = getattr(self.nc, "_transport", None)
        if transport is not None:
            with contextlib.suppress(OSError, RuntimeError):
                transport.close()

    def _tell_disconnected(self) -> None:
        for link in list(self._links):
            link.disconnected(self.gone())

    def _event(self, text: str) -> None:
        if self._on_event is not None and not self.closing:
            self._on_event(text)


def _next_server(servers: Sequence[Server], _: Mapping[str, Any]) -> tuple[Server, float]:
    """The server that was tried least, after a wait that doubles with every try."""
    server = min(servers, key=lambda each: each.reconnects)
    return server, min(RECONNECT_MAX_S, RECONNECT_MIN_S * 2 ** min(server.reconnects, 10))


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Keep asyncio from reporting an error that nobody awaits: who cares looks at the future."""
    if not future.cancelled():
        future.exception()


async def cancellable(waiting: Coroutine[Any, Any, T]) -> T:
    """Await something of nats-py's that a cancellation ends for sure: its `wait_for` swallows one
    that comes together with the answer (Python 3.11), and who cancels would wait for ever."""
    task = asyncio.ensure_future(waiting)
    try:
        await asyncio.wait((task,))
    except asyncio.CancelledError:
        task.add_done_callback(_retrieve)
        task.cancel()
        raise
    return task.result()


def error_future() -> asyncio.Future[None]:
    """A future that carries an error to whoever looks, and complains to nobody else."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.add_done_callback(_retrieve)
    return future
