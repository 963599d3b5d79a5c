"""The broker port on NATS JetStream: one connection, put together from the parts beside it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

from broker_pipeline.broker import provision
from broker_pipeline.broker.api import Answer, JetStreamApi
from broker_pipeline.broker.buckets import Buckets, is_marker, subject_of
from broker_pipeline.broker.connection import Connection
from broker_pipeline.broker.fast_ingest import FastIngestPublisher
from broker_pipeline.broker.looking import JetStreamLooks
from broker_pipeline.broker.objects import Objects
from broker_pipeline.broker.port import (
    PUBLISH_TIMEOUT_S,
    READ_BYTES_MAX,
    READ_CREDIT,
    Change,
    ConsumerSpec,
    Entry,
    Handler,
    Message,
    OrderedPublisher,
    PubAck,
    StreamSpec,
    StreamState,
    StreamStatus,
    Subscription,
)
from broker_pipeline.broker.publish import PipelinedPublisher
from broker_pipeline.broker.pull import Puller, Reader
from broker_pipeline.broker.ranges import until_done
from broker_pipeline.errors import NotFoundError

RANGE_CREDIT = 5_000
# A write to a bucket that is electing its leader is answered by nobody; a lease is competed for
# with such writes, and 10 s without an answer would be 10 s without a leader.
KV_TIMEOUT_S = 2.0
RANGE_BYTES = 16 << 20


async def connect(
    url: str,
    *,
    reconnect: bool,
    name: str,
    on_event: Callable[[str], None] | None = None,
) -> JetStreamBroker:
    """Connect to nats-server.

    Args:
        url: `nats://host:port`, or several with commas between them.
        reconnect: True: reconnect for ever, with backoff, and go on reading. False: the first
            disconnect ends the connection and `lost`, so that nothing stale is ever sent after it.
        name: how the connection is called in the server's monitoring.
        on_event: takes a line about each disconnect, reconnect and error; for logs.

    Raises:
        ClientError: `url` is no address.
        BrokerUnavailableError: no broker answers within two seconds.
        BrokerTooOldError: JetStream is disabled, or its API level is below 4.
    """
    connection = Connection(url, reconnect=reconnect, on_event=on_event)
    await connection.open(name)
    broker = JetStreamBroker(connection)
    try:
        await broker.begin()
    except BaseException:
        await broker.close()
        raise
    return broker


class JetStreamBroker(JetStreamLooks):
    """A `Broker` on one connection to nats-server; made by `connect`."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, JetStreamApi(connection))
        self._publisher = PipelinedPublisher(connection, self._api.answers)
        self._buckets = Buckets(self._api, self._publish_now)
        self._objects = Objects(
            self._api,
            publish=self._publish_now,
            start_publish=self.start_publish,
            max_payload=lambda: self.max_payload,
        )
        self._open: set[Puller] = set()

    async def begin(self) -> None:
        """Check the broker's version and subscribe to acks."""
        await self._api.check_level()
        await self._publisher.start()

    @property
    def max_payload(self) -> int:
        """See `Broker.max_payload`."""
        return self._connection.nc.max_payload

    @property
    def lost(self) -> asyncio.Future[None]:
        """See `Broker.lost`."""
        return self._connection.lost

    async def close(self) -> None:
        """See `Broker.close`."""
        if self._connection.closing:
            return
        for each in list(self._open):
            await each.stop()
        await self._connection.close()

    # -- provisioning ---------------------------------------------------------------------------
    async def ensure_stream(self, spec: StreamSpec) -> Change:
        """See `Broker.ensure_stream`."""
        return await provision.ensure_stream(self._api, provision.stream_config(spec))

    async def ensure_consumer(self, stream: str, spec: ConsumerSpec) -> Change:
        """See `Broker.ensure_consumer`."""
        return await provision.ensure_consumer(self._api, stream, provision.consumer_config(spec))

    async def ensure_bucket(
        self, name: str, *, ttl_s: float | None = None, replicas: int | None = None
    ) -> Change:
        """See `Broker.ensure_bucket`."""
        config = provision.bucket_config(name, ttl_s, replicas)
        return await provision.ensure_stream(self._api, config)

    async def ensure_object_bucket(
        self, name: str, *, ttl_s: float | None = None, replicas: int | None = None
    ) -> Change:
        """See `Broker.ensure_object_bucket`."""
        config = provision.object_bucket_config(name, ttl_s, replicas)
        return await provision.ensure_stream(self._api, config)

    async def stream_state(self, stream: str) -> StreamState:
        """See `Broker.stream_state`."""
        return await self._api.stream_state(stream)

    async def stream_status(self, stream: str) -> StreamStatus:
        """See `Broker.stream_status`."""
        return await self._api.stream_status(stream)

    async def limit_stream(
        self, stream: str, *, subjects: tuple[str, ...], max_bytes: int | None
    ) -> None:
        """See `Broker.limit_stream`."""
        await provision.limit_stream(self._api, stream, subjects, max_bytes)

    async def time_ns(self, stream: str) -> int:
        """See `Broker.time_ns`."""
        return await self._api.time_ns(stream)

    async def delete_stream(self, stream: str) -> None:
        """See `Broker.delete_stream`."""
        with contextlib.suppress(NotFoundError):
            await self._api.request(f"STREAM.DELETE.{stream}", None, Answer)

    async def purge(self, stream: str, *, below: int) -> None:
        """See `Broker.purge`."""
        # The server takes 0 for everything, and skips sequences when asked for more than there is.
        below = min(below, (await self.stream_state(stream)).last_seq + 1)
        if below > 1:
            await self._api.request(f"STREAM.PURGE.{stream}", {"seq": below}, Answer)

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
        """See `Broker.start_publish`."""
        return await self._publisher.start_publish(subject, data, msg_id, headers, timeout_s)

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
        ack = await self._publisher.start_publish(subject, data, msg_id, headers, timeout_s)
        return await ack

    async def _publish_now(
        self, subject: str, data: bytes, headers: dict[str, str] | None
    ) -> PubAck:
        return await self.publish(subject, data, headers=headers, timeout_s=KV_TIMEOUT_S)

    def ordered_publisher(self, stream: str) -> OrderedPublisher:
        """See `Broker.ordered_publisher`."""
        return FastIngestPublisher(self._connection, stream)

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
        """See `Broker.consume`. Raises NotFoundError when there is no such consumer."""
        puller = Puller(
            self._connection, self._api, stream, consumer, handler,
            credit=credit, bytes_max=bytes_max,
        )  # fmt: skip
        return await self._started(puller)

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
        """See `Broker.read`. Raises NotFoundError when there is no such stream."""
        reader = Reader(
            self._connection, self._api, stream, filter, handler,
            start_seq=start_seq, headers_only=headers_only, credit=credit, bytes_max=bytes_max,
        )  # fmt: skip
        return await self._started(reader)

    async def _started(self, puller: Puller) -> Puller:
        self._open.add(puller)
        puller.failed.add_done_callback(lambda _: self._open.discard(puller))
        try:
            await puller.start()
        except BaseException:
            await puller.stop()
            raise
        return puller

    async def read_range(
        self, stream: str, filter: str, *, start_seq: int, headers_only: bool = False
    ) -> list[Message]:
        """See `Broker.read_range`."""
        end = (await self.stream_state(stream)).last_seq
        found: list[Message] = []
        done = asyncio.Event()

        def take(message: Message) -> None:
            if message.stream_seq <= end:
                found.append(message)
            if message.stream_seq >= end or not message.pending:
                done.set()

        def begin(waiting: int) -> None:
            if not waiting:
                done.set()

        if end < start_seq:
            return found
        reader = Reader(
            self._connection, self._api, stream, filter, take,
            start_seq=start_seq, headers_only=headers_only,
            credit=RANGE_CREDIT, bytes_max=RANGE_BYTES, on_begin=begin,
        )  # fmt: skip
        await self._started(reader)
        try:
            await until_done(
                self._api, done, reader, found,
                stream=stream, filter=filter, start_seq=start_seq, end=end,
            )  # fmt: skip
        finally:
            await reader.stop()
        return found

    async def get_message(self, stream: str, stream_seq: int) -> Message:
        """See `Broker.get_message`."""
        return await self._api.stored_message(stream, {"seq": stream_seq})

    async def last_message(self, stream: str, subject: str) -> Message | None:
        """See `Broker.last_message`."""
        return await self._api.last_message(stream, subject)

    async def ack(self, message: Message) -> None:
        """See `Broker.ack`."""
        if message.reply:
            await self._connection.send(message.reply, b"")

    async def nak(self, message: Message) -> None:
        """See `Broker.nak`."""
        if message.reply:
            await self._connection.send(message.reply, b"-NAK")

    async def in_progress(self, message: Message) -> None:
        """See `Broker.in_progress`."""
        if message.reply:
            await self._connection.send(message.reply, b"+WPI")

    # -- key-value ------------------------------------------------------------------------------
    async def kv_get(self, bucket: str, key: str) -> Entry | None:
        """See `Broker.kv_get`."""
        return await self._buckets.get(bucket, key)

    async def kv_put(self, bucket: str, key: str, value: bytes) -> int:
        """See `Broker.kv_put`."""
        return await self._buckets.put(bucket, key, value)

    async def kv_create(self, bucket: str, key: str, value: bytes) -> int | None:
        """See `Broker.kv_create`."""
        return await self._buckets.create(bucket, key, value)

    async def kv_update(self, bucket: str, key: str, value: bytes, revision: int) -> int | None:
        """See `Broker.kv_update`."""
        return await self._buckets.update(bucket, key, value, revision)

    async def kv_delete(self, bucket: str, key: str, revision: int | None = None) -> bool:
        """See `Broker.kv_delete`."""
        return await self._buckets.delete(bucket, key, revision)

    async def kv_keys(self, bucket: str, prefix: str = "") -> list[str]:
        """See `Broker.kv_keys`."""
        # With a history of 1 the stream holds the newest message of each key and nothing else.
        stream, base = provision.bucket_stream(bucket), subject_of(bucket, "")
        entries = await self.read_range(stream, base + ">", start_seq=1, headers_only=True)
        keys = [each.subject[len(base) :] for each in entries if not is_marker(each)]
        return [key for key in keys if key.startswith(prefix)]

    async def kv_listed(self, bucket: str, prefix: str) -> list[str]:
        """See `Broker.kv_listed`."""
        return await self._buckets.listed(bucket, prefix)

    async def kv_erase(self, bucket: str, key: str) -> None:
        """See `Broker.kv_erase`."""
        await self._buckets.erase(bucket, key)

    # -- objects --------------------------------------------------------------------------------
    async def object_put(self, bucket: str, name: str, data: bytes) -> None:
        """See `Broker.object_put`."""
        await self._objects.put(bucket, name, data)

    async def object_get(self, bucket: str, name: str) -> bytes | None:
        """See `Broker.object_get`."""
        return await self._objects.get(bucket, name)

    async def object_delete(self, bucket: str, name: str) -> None:
        """See `Broker.object_delete`."""
        await self._objects.delete(bucket, name)

    async def oldest_object(self, bucket: str) -> int | None:
        """See `Broker.oldest_object`."""
        return await self._objects.oldest(bucket)

    async def objects_purge(self, bucket: str, *, before: int) -> None:
        """See `Broker.objects_purge`."""
        await self._objects.purge(bucket, before)

    async def delete_object_bucket(self, name: str) -> None:
        """See `Broker.delete_object_bucket`."""
        await self.delete_stream(provision.object_stream(name))
