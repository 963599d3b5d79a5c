"""The broker port in memory: for tests, users' and ours, and for the fault simulation.

Everything happens on one event loop and in the order of the calls. Streams take their timestamps
from an injected clock; waiting (ack_wait, TTL) is measured with the loop's. tests/contract holds
this broker to the behaviour of a real one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from broker_pipeline.broker import headers as header_blocks
from broker_pipeline.broker.memory_keys import MemoryKeys
from broker_pipeline.broker.memory_looks import Answering, MemoryLooks
from broker_pipeline.broker.memory_objects import MemoryObjects, ensure_bucket
from broker_pipeline.broker.memory_ordered import MemoryOrderedPublisher
from broker_pipeline.broker.memory_pull import ACK_PREFIX, MemorySubscription, Pump, delivery
from broker_pipeline.broker.memory_store import Consumer, Store
from broker_pipeline.broker.port import (
    PUBLISH_TIMEOUT_S,
    READ_BYTES_MAX,
    READ_CREDIT,
    Change,
    ConsumerSpec,
    Handler,
    Message,
    OrderedPublisher,
    PubAck,
    StreamSpec,
    StreamState,
    StreamStatus,
    Subscription,
)
from broker_pipeline.broker.subjects import matcher
from broker_pipeline.errors import (
    BrokerError,
    ConnectionLostError,
    PublishRefusedError,
)

# A publish that never waits would keep everything else from running; it waits every so often.
YIELD_EVERY = 64


class MemoryServer(Store):
    """A broker in memory, shared by the connections that it hands out.

    Args:
        now_ns: the clock for streams' timestamps and their dedup windows, ns since the epoch.
        max_payload: the largest message, headers included, in bytes.
    """

    def __init__(
        self, *, now_ns: Callable[[], int] = time.time_ns, max_payload: int = 1 << 20
    ) -> None:
        super().__init__(now_ns)
        self.max_payload = max_payload
        self.pump = Pump()
        self.answering = Answering()

    def connect(self, *, reconnect: bool = False) -> MemoryBroker:
        """A new connection. With `reconnect` it survives `disconnect`, as a real one would."""
        return MemoryBroker(self, reconnect=reconnect)

    def disconnect(self, connection: MemoryBroker) -> None:
        """Break a connection; what it has published and got no ack for stays stored."""
        connection.break_off()

    def store(self, subject: str, data: bytes, block: bytes) -> PubAck:
        """Store one message, and deliver it in the loop's next turn. Raises PublishRefusedError."""
        ack = super().store(subject, data, block)
        if not ack.duplicate:
            self.pump.wake()
        return ack


class MemoryBroker(MemoryKeys, MemoryObjects, MemoryLooks):
    """A `Broker`: one connection to a `MemoryServer`."""

    def __init__(self, server: MemoryServer, *, reconnect: bool) -> None:
        self._server = server
        self._reconnect = reconnect
        self._loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._closed = False
        self._sent = 0
        self._waiting: set[asyncio.Future[PubAck]] = set()
        self._subscriptions: set[MemorySubscription] = set()
        self._ordered: list[MemoryOrderedPublisher] = []

    @property
    def max_payload(self) -> int:
        """See `Broker.max_payload`."""
        return self._server.max_payload

    @property
    def lost(self) -> asyncio.Future[None]:
        """See `Broker.lost`."""
        return self._lost

    @property
    def is_closed(self) -> bool:
        """Whether it has ended, by itself or otherwise."""
        return self._closed

    def server(self) -> MemoryServer:
        """The server, while connected. Raises ConnectionLostError."""
        if self._closed:
            raise _gone()
        return self._server

    def break_off(self) -> None:
        """See `MemoryServer.disconnect`."""
        for future in self._waiting:
            if not future.done():
                future.set_exception(_gone())
        self._waiting.clear()
        for publisher in self._ordered:
            publisher.fail(_gone())
        self._ordered.clear()
        if self._reconnect or self._closed:
            return
        self._closed = True
        for subscription in list(self._subscriptions):
            subscription.fail(_gone())
        self._lost.set_exception(_gone())
        self._lost.exception()  # whoever cares looks; asyncio need not report it

    async def close(self) -> None:
        """See `Broker.close`."""
        if not self._closed:
            self._closed = True
            for subscription in list(self._subscriptions):
                await subscription.stop()
            self.break_off()
        self._lost.cancel()

    # -- provisioning ---------------------------------------------------------------------------
    async def ensure_stream(self, spec: StreamSpec) -> Change:
        """See `Broker.ensure_stream`."""
        return self.server().ensure(spec)

    async def ensure_consumer(self, stream: str, spec: ConsumerSpec) -> Change:
        """See `Broker.ensure_consumer`."""
        found = self.server().stream(stream)
        consumer = found.consumers.get(spec.name)
        if consumer is None:
            found.consumers[spec.name] = Consumer(spec, found.add_cursor(spec.filter, 1))
            return Change.CREATED
        if consumer.spec == spec:
            return Change.UNCHANGED
        consumer.cursor.match = matcher(spec.filter)
        consumer.cursor.count()
        consumer.spec = spec
        self._server.pump.wake()
        return Change.UPDATED

    async def ensure_bucket(
        self, name: str, *, ttl_s: float | None = None, replicas: int | None = None
    ) -> Change:
        """See `Broker.ensure_bucket`; there is one replica whatever `replicas` says."""
        return ensure_bucket(self.server().buckets, name, ttl_s)

    async def stream_state(self, stream: str) -> StreamState:
        """See `Broker.stream_state`."""
        return self.server().stream(stream).state

    async def stream_status(self, stream: str) -> StreamStatus:
        """See `Broker.stream_status`."""
        found = self.server().stream(stream)
        return StreamStatus(found.state, found.spec.subjects, found.spec.max_bytes)

    async def limit_stream(
        self, stream: str, *, subjects: tuple[str, ...], max_bytes: int | None
    ) -> None:
        """See `Broker.limit_stream`."""
        spec = self.server().stream(stream).spec
        self._server.ensure(replace(spec, subjects=subjects, max_bytes=max_bytes))

    async def time_ns(self, stream: str) -> int:
        """See `Broker.time_ns`."""
        self.server().stream(stream)
        return self._server.now_ns()

    async def delete_stream(self, stream: str) -> None:
        """See `Broker.delete_stream`."""
        server = self.server()
        gone = server.streams.pop(stream, None)
        if gone is not None:
            server.pump.drop(gone)

    async def purge(self, stream: str, *, below: int) -> None:
        """See `Broker.purge`."""
        self.server().stream(stream).purge(below)

    # -- publishing -----------------------------------------------------------------------------
    async def start_publish(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = PUBLISH_TIMEOUT_S,
    ) -> asyncio.Future[PubAck]:
        """See `Broker.start_publish`. It is stored at once; the ack comes in the next turn."""
        block = header_blocks.encode(msg_id, headers)
        header_blocks.check_size(subject, block, data, self.max_payload)
        server = self.server()
        future: asyncio.Future[PubAck] = self._loop.create_future()
        self._waiting.add(future)
        try:
            ack = server.store(subject, data, block)
        except PublishRefusedError as error:
            self._loop.call_soon(self._resolve, future, error)
        else:
            self._loop.call_soon(self._resolve, future, ack)
        await self.take_turns()
        return future

    def _resolve(self, future: asyncio.Future[PubAck], result: PubAck | BrokerError) -> None:
        self._waiting.discard(future)
        if future.done():
            return
        if isinstance(result, BrokerError):
            future.set_exception(result)
        else:
            future.set_result(result)

    async def take_turns(self) -> None:
        """Let others run, every so often."""
        self._sent += 1
        if self._sent % YIELD_EVERY == 0:
            await asyncio.sleep(0)

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = PUBLISH_TIMEOUT_S,
    ) -> PubAck:
        """See `Broker.publish`."""
        return await (
            await self.start_publish(
                subject, data, msg_id=msg_id, headers=headers, timeout_s=timeout_s
            )
        )

    def ordered_publisher(self, stream: str) -> OrderedPublisher:
        """See `Broker.ordered_publisher`."""
        publisher = MemoryOrderedPublisher(self)
        self._ordered.append(publisher)
        return publisher

    def forget(self, publisher: MemoryOrderedPublisher) -> None:
        """It is closed."""
        if publisher in self._ordered:
            self._ordered.remove(publisher)

    # -- reading --------------------------------------------------------------------------------
    async def consume(
        self,
        stream: str,
        consumer: str,
        handler: Handler,
        *,
        credit: int,
        bytes_max: int = READ_BYTES_MAX,
    ) -> Subscription:
        """See `Broker.consume`."""
        server = self.server()
        found = server.stream(stream)
        subscription = MemorySubscription(
            server.pump, found, handler, credit, consumer=found.consumer(consumer)
        )
        return self._opened(subscription)

    async def read(
        self,
        stream: str,
        filter: str,
        handler: Handler,
        *,
        start_seq: int = 1,
        headers_only: bool = False,
        credit: int = READ_CREDIT,
        bytes_max: int = READ_BYTES_MAX,
    ) -> Subscription:
        """See `Broker.read`."""
        server = self.server()
        found = server.stream(stream)
        subscription = MemorySubscription(
            server.pump,
            found,
            handler,
            credit,
            cursor=found.add_cursor(filter, start_seq),
            headers_only=headers_only,
        )
        return self._opened(subscription)

    def _opened(self, subscription: MemorySubscription) -> MemorySubscription:
        self._subscriptions.add(subscription)
        subscription.failed.add_done_callback(lambda _: self._subscriptions.discard(subscription))
        return subscription

    async def read_range(
        self, stream: str, filter: str, *, start_seq: int, headers_only: bool = False
    ) -> list[Message]:
        """See `Broker.read_range`."""
        found = self.server().stream(stream)
        cursor = found.add_cursor(filter, start_seq)
        messages = []
        while (message := cursor.advance()) is not None:
            messages.append(delivery(message, headers_only, pending=cursor.pending))
        found.cursors.remove(cursor)
        return messages

    async def get_message(self, stream: str, stream_seq: int) -> Message:
        """See `Broker.get_message`."""
        return delivery(self.server().stream(stream).get(stream_seq))

    async def last_message(self, stream: str, subject: str) -> Message | None:
        """See `Broker.last_message`."""
        found = self.server().stream(stream).last(subject)
        return None if found is None else delivery(found)

    def _consumer_of(self, message: Message) -> Consumer | None:
        """Who waits for the ack of a message; None where nobody does, or no longer."""
        server = self.server()
        if not message.reply.startswith(ACK_PREFIX):
            return None
        _, stream, consumer, _ = message.reply.split(".")
        found = server.streams.get(stream)
        return None if found is None else found.consumers.get(consumer)

    async def ack(self, message: Message) -> None:
        """See `Broker.ack`."""
        if (consumer := self._consumer_of(message)) is not None:
            consumer.forget(message.stream_seq)
            self._server.pump.wake()

    async def nak(self, message: Message) -> None:
        """See `Broker.nak`."""
        if (consumer := self._consumer_of(message)) is not None:
            consumer.redeliver(message.stream_seq)
            self._server.pump.wake()

    async def in_progress(self, message: Message) -> None:
        """See `Broker.in_progress`."""
        if (consumer := self._consumer_of(message)) is not None:
            consumer.extend(message.stream_seq, self._loop.time())


def _gone() -> ConnectionLostError:
    return ConnectionLostError(
        "the connection to the in-memory broker is down; expected it to be up; what was not "
        "acknowledged may or may not be stored: publish it again with the same id"
    )
