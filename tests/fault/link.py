"""A `Broker` over a simulated link: what the JetStream adapter promises, and no more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from broker_pipeline.broker import headers as header_blocks
from broker_pipeline.broker.introspection import Answerer
from broker_pipeline.broker.memory_store import Consumer
from broker_pipeline.broker.port import (
    Change,
    ConsumerSpec,
    Handler,
    Message,
    PubAck,
    StreamSpec,
    StreamState,
    StreamStatus,
)
from broker_pipeline.errors import (
    BrokerError,
    BrokerUnavailableError,
    ConnectionLostError,
    PublishTimeoutError,
)
from tests.fault.link_keys import LinkKeys
from tests.fault.link_looks import LinkLooks
from tests.fault.loop import PROCESS, Process
from tests.fault.network import Network, Wire, error_future, finished, gone, outcome_of
from tests.fault.reading import Pulling
from tests.fault.session import SimSession

REQUEST_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0
RECONNECT_S = 0.1
PING_S = 5.0
"""A link that carries nothing, because its process is paused, is cut by the broker after this."""


async def connect(network: Network, *, reconnect: bool) -> Link:
    """A connection for the process that calls. Raises BrokerUnavailableError."""
    loop = network.loop
    deadline = loop.time() + CONNECT_TIMEOUT_S
    await asyncio.sleep(network.weather.latency_s)
    while loop.time() < network.down_until:
        await asyncio.sleep(0.2)
        if loop.time() > deadline:
            raise BrokerUnavailableError("the simulated broker does not answer")
    return Link(network, PROCESS.get(), reconnect=reconnect)


class Link(LinkKeys, LinkLooks):
    """A `Broker`."""

    def __init__(self, network: Network, process: Process, *, reconnect: bool) -> None:
        self.network = network
        self.reconnect = reconnect
        self.process = process
        self.max_payload = network.server.max_payload
        self.lost = error_future()
        self.closed = False
        self.up = asyncio.Event()
        self.pullings: list[Pulling] = []
        self.sessions: list[SimSession] = []
        self.answerers = {}
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._token = 0
        self._loop = network.loop
        self.wire = self._open()
        process.links.append(self)

    # -- its life -------------------------------------------------------------------------------
    def _open(self) -> Wire:
        wire = Wire(self.network, self.process, lambda: self._noticed(wire))
        self.up.set()
        return wire

    def _noticed(self, wire: Wire) -> None:
        """The process finds out that its wire is cut."""
        if self.closed or wire is not self.wire or not self.up.is_set():
            return
        self.up.clear()
        pending, self._pending = self._pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(gone())
        for session in list(self.sessions):
            session.fail(gone())
        if self.reconnect:
            self._loop.call_later(RECONNECT_S, self._try_again)
            return
        for pulling in list(self.pullings):
            pulling.fail(gone())
        self.lost.set_exception(gone())

    def _try_again(self) -> None:
        if self.closed:
            return
        if self._loop.time() < self.network.down_until:
            self._loop.call_later(RECONNECT_S, self._try_again)
            return
        self.wire = wire = self._open()
        for subject, answerer in self.answerers.items():
            wire.to_server(self._answers, wire, subject, answerer)
        for pulling in list(self.pullings):
            pulling.begin()

    def _answers(self, wire: Wire, subject: str, answerer: Answerer) -> None:
        """At the broker."""
        self.network.answering.setdefault(subject, {})[wire] = answerer

    async def close(self) -> None:
        """See `Broker.close`."""
        if self.closed:
            return
        for pulling in list(self.pullings):
            await pulling.stop()
        self.closed = True
        self.up.clear()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(gone())
                future.exception()
        self._pending.clear()
        for session in list(self.sessions):
            session.fail(gone())
        # What is written is flushed: the wire ends behind it.
        self.wire.to_server(self.wire.cut_by_client)
        self.process.links.remove(self)
        self.lost.cancel()

    # -- requests -------------------------------------------------------------------------------
    def _gone(self) -> bool:
        return self.closed or self.lost.done() or self.process.disposed

    async def until_up(self, timeout_s: float) -> None:
        """Raises ConnectionLostError where there is no connection by then."""
        if self._gone():
            raise gone()
        if self.up.is_set():
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self.up.wait()
        except TimeoutError:
            raise gone() from None

    def send(
        self, work: Callable[[], Any], timeout_s: float, late: BrokerError, lost: str
    ) -> asyncio.Future[Any]:
        """Have the broker do something; the future always ends.

        Args:
            late: the error where no answer comes in time.
            lost: the kind of weather that may lose the answer.
        """
        token, future = self._expect(timeout_s, late)
        self.wire.to_server(self._serve, self.wire, token, work, lost)
        return future

    def _expect(self, timeout_s: float, late: Any) -> tuple[int, asyncio.Future[Any]]:
        """A place for an answer, which is `late` when none comes in time."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._token += 1
        token = self._token
        self._pending[token] = future
        timer = self._loop.call_later(timeout_s, self._answered, token, late)
        future.add_done_callback(lambda _: timer.cancel())
        return token, future

    def _serve(self, wire: Wire, token: int, work: Callable[[], Any], lost: str) -> None:
        """At the broker."""
        network = self.network
        weather = network.weather
        result = outcome_of(work)
        if network.chance_of(getattr(weather, lost), lost.replace("_", " ").rstrip("s")):
            return
        if network.loop.time() < wire.process.deaf_until:
            network.injected["answer lost to a deaf client"] += 1
            return
        late_s = 0.0
        if lost == "lost_acks" and network.chance_of(weather.late_acks, "late ack"):
            late_s = network.chance.choice((0.01, 0.1, 1.0))
        wire.to_client(self._answered, token, result, late_s=late_s)

    def _answered(self, token: int, result: Any) -> None:
        future = self._pending.pop(token, None)
        if future is None or future.done():
            return
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)

    async def request(self, work: Callable[[], Any]) -> Any:
        """Have the broker do something, and wait for the answer."""
        await self.until_up(REQUEST_TIMEOUT_S)
        late = BrokerUnavailableError("the simulated broker did not answer in time")
        return await self.send(work, REQUEST_TIMEOUT_S, late, "lost_answers")

    async def _do(self, method: str, *args: Any, **options: Any) -> Any:
        """The same, for a method of the in-memory broker's connection."""
        return await self.request(
            lambda: finished(getattr(self.network.api, method)(*args, **options))
        )

    # -- provisioning ---------------------------------------------------------------------------
    async def ensure_stream(self, spec: StreamSpec) -> Change:
        """See `Broker`."""
        return await self._do("ensure_stream", spec)

    async def ensure_consumer(self, stream: str, spec: ConsumerSpec) -> Change:
        """See `Broker`."""
        return await self._do("ensure_consumer", stream, spec)

    async def ensure_bucket(
        self, name: str, *, ttl_s: float | None = None, replicas: int | None = None
    ) -> Change:
        """See `Broker`."""
        return await self._do("ensure_bucket", name, ttl_s=ttl_s)

    async def stream_state(self, stream: str) -> StreamState:
        """See `Broker`."""
        return await self._do("stream_state", stream)

    async def stream_status(self, stream: str) -> StreamStatus:
        """See `Broker`."""
        return await self._do("stream_status", stream)

    async def limit_stream(
        self, stream: str, *, subjects: tuple[str, ...], max_bytes: int | None
    ) -> None:
        """See `Broker`."""
        await self._do("limit_stream", stream, subjects=subjects, max_bytes=max_bytes)

    async def time_ns(self, stream: str) -> int:
        """See `Broker`."""
        return await self._do("time_ns", stream)

    async def delete_stream(self, stream: str) -> None:
        """See `Broker`."""
        await self._do("delete_stream", stream)

    async def purge(self, stream: str, *, below: int) -> None:
        """See `Broker`."""
        await self._do("purge", stream, below=below)

    # -- publishing -----------------------------------------------------------------------------
    async def start_publish(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> asyncio.Future[PubAck]:
        """See `Broker`."""
        block = header_blocks.encode(msg_id, headers)
        header_blocks.check_size(subject, block, data, self.max_payload)
        await self.until_up(timeout_s)
        late = PublishTimeoutError(f"no answer to a message on {subject!r} in {timeout_s:g} s")

        def store() -> PubAck:
            self.network.refuse(subject)
            return self.network.server.store(subject, data, block)

        return self.send(store, timeout_s, late, "lost_acks")

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> PubAck:
        """See `Broker`."""
        return await (
            await self.start_publish(
                subject, data, msg_id=msg_id, headers=headers, timeout_s=timeout_s
            )
        )

    def ordered_publisher(self, stream: str) -> SimSession:
        """See `Broker`."""
        return SimSession(self)

    # -- reading --------------------------------------------------------------------------------
    async def consume(
        self, stream: str, consumer: str, handler: Handler, *, credit: int, bytes_max: int = 8 << 20
    ) -> Pulling:
        """See `Broker`."""
        await self.request(lambda: self._consumer(stream, consumer))
        return Pulling(self, handler, credit, stream, consumer=consumer)

    def _consumer(self, stream: str, consumer: str) -> str:
        found: Consumer = self.network.server.stream(stream).consumers[consumer]
        return found.spec.name

    async def read(
        self,
        stream: str,
        filter: str,
        handler: Handler,
        *,
        start_seq: int = 1,
        headers_only: bool = False,
        credit: int = 2_000,
        bytes_max: int = 8 << 20,
    ) -> Pulling:
        """See `Broker`."""
        await self._do("stream_state", stream)
        return Pulling(
            self,
            handler,
            credit,
            stream,
            filter=filter,
            start_seq=start_seq,
            headers_only=headers_only,
        )

    async def read_range(
        self, stream: str, filter: str, *, start_seq: int, headers_only: bool = False
    ) -> list[Message]:
        """See `Broker`."""
        return await self._do(
            "read_range", stream, filter, start_seq=start_seq, headers_only=headers_only
        )

    async def get_message(self, stream: str, stream_seq: int) -> Message:
        """See `Broker`."""
        return await self._do("get_message", stream, stream_seq)

    async def last_message(self, stream: str, subject: str) -> Message | None:
        """See `Broker`."""
        return await self._do("last_message", stream, subject)

    def _tell(self, method: str, message: Message) -> None:
        if self._gone():
            raise gone()
        wire = self.wire  # while it is reconnecting this goes nowhere, as from a full buffer
        wire.to_server(self._acked, method, message)

    def _acked(self, method: str, message: Message) -> None:
        if not self.network.chance_of(self.network.weather.lost_acks, f"lost {method}"):
            finished(getattr(self.network.api, method)(message))

    async def ack(self, message: Message) -> None:
        """See `Broker`."""
        self._tell("ack", message)

    async def nak(self, message: Message) -> None:
        """See `Broker`."""
        self._tell("nak", message)

    async def in_progress(self, message: Message) -> None:
        """See `Broker`."""
        self._tell("in_progress", message)


__all__ = ["PING_S", "ConnectionLostError", "Link", "connect"]
