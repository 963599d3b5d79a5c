"""The broker port: what the roles and clients need of a broker, and nothing of NATS itself.

Two adapters stand behind it, held to the same behaviour by tests/contract:
`jetstream.JetStreamBroker` and the in-memory `memory.MemoryBroker`. A `Broker` is one connection.
Nothing here retries or repairs: a connection that is lost stays lost unless it was opened with
`reconnect=True`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from broker_pipeline.broker.introspection import Introspection

PUBLISH_TIMEOUT_S = 10.0
"""Until a publish without an ack has failed, unless it says otherwise."""
READ_CREDIT = 2_000
"""Messages asked of the broker at once, unless the reader says otherwise."""
READ_BYTES_MAX = 8 << 20
"""Bytes asked of the broker at once, unless the reader says otherwise."""


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """A stream as it should be.

    Args:
        name: the stream's name.
        subjects: what it stores.
        transform: `(source, destination)`: messages that match `source` are stored under
            `destination` (NATS subject transform syntax).
        max_bytes: when full it refuses new messages and never drops old ones; None is unbounded.
        duplicate_window_s: how long a `Nats-Msg-Id` is remembered, in seconds.
        replicas: 1, 3 or 5; None: as many as it has, 1 for a new one.
    """

    name: str
    subjects: tuple[str, ...]
    transform: tuple[str, str] | None = None
    max_bytes: int | None = None
    duplicate_window_s: float = 120.0
    replicas: int | None = None


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """A durable pull consumer with explicit acks, shared by all who pull from it.

    Args:
        name: the consumer's durable name.
        filter: the ONE filter subject (two filters cost the server several times as much).
        ack_wait_s: seconds until a message that was neither acked nor extended is redelivered.
        max_ack_pending: how many messages may be delivered and not yet acked, over all pullers.
    """

    name: str
    filter: str
    ack_wait_s: float = 5.0
    max_ack_pending: int = 20_000


class Change(Enum):
    """What an `ensure_*` call did."""

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class StreamState:
    """A stream's extent. `first_seq` is `last_seq + 1` when it is empty."""

    first_seq: int
    last_seq: int
    messages: int
    bytes: int


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """A stream's extent, and what it takes: see `StreamSpec`."""

    state: StreamState
    subjects: tuple[str, ...]
    max_bytes: int | None


@dataclass(slots=True)
class Message:
    """A message read from a stream.

    Attributes:
        stream_seq: its sequence in the stream.
        time: when the stream stored it, ns since the epoch, by the broker's clock.
        delivered: how often this durable consumer has delivered it, this time included.
        pending: how many more the consumer had for delivery behind this one.
        reply: the ack subject; empty where there is nothing to ack.
    """

    subject: str
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    stream_seq: int = 0
    time: int = 0
    delivered: int = 1
    pending: int = 0
    reply: str = ""


@dataclass(frozen=True, slots=True)
class PubAck:
    """The broker has stored a message, or had it already (`duplicate`)."""

    stream: str
    stream_seq: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """A value of a bucket, with the revision that `kv_update` compares."""

    value: bytes
    revision: int


Handler = Callable[[Message], None]
"""Takes one message, on the event loop, quickly; what it raises ends the reading."""


class Subscription(Protocol):
    """Messages being pulled continuously."""

    @property
    def failed(self) -> asyncio.Future[None]:
        """Ends with an exception when the reading has ended by itself: the consumer is gone, or
        the handler raised. Cancelled by `stop`."""

    def set_credit(self, messages: int) -> None:
        """Hold at most about `messages` outstanding pull requests from now on; 0 pauses.

        What was already asked for may still arrive.
        """

    async def stop(self) -> None:
        """Ask for no more; returns when no further call of the handler will come."""


class OrderedPublisher(Protocol):
    """A pipelined publisher whose stored messages are always a prefix of what it was given.

    The broker refuses everything after a gap or a refusal; from then on every call raises.
    """

    @property
    def failed(self) -> asyncio.Future[None]:
        """Ends with an exception as soon as the broker has refused something."""

    async def publish(
        self, subject: str, data: bytes, *, msg_id: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send; returns when flow control has room, not when it is stored.

        A message whose `msg_id` the stream remembers is dropped silently.

        Raises:
            PublishRefusedError: something before this was refused.
            ConnectionLostError: the connection is gone.
        """

    async def seal(self) -> None:
        """Return when everything published so far is stored.

        Raises: as `publish`, and PublishTimeoutError.
        """

    async def close(self) -> None:
        """Seal unless something was refused before, and end."""


class Broker(Introspection, Protocol):
    """One connection to a broker; what it tells of itself is in `introspection`."""

    @property
    def max_payload(self) -> int:
        """The largest message, headers included, in bytes."""

    @property
    def lost(self) -> asyncio.Future[None]:
        """Ends with ConnectionLostError when the connection is gone for good, or is cancelled."""

    # -- provisioning ---------------------------------------------------------------------------
    async def ensure_stream(self, spec: StreamSpec) -> Change:
        """Create the stream or bring it to `spec`. Raises BrokerError when refused."""

    async def ensure_consumer(self, stream: str, spec: ConsumerSpec) -> Change:
        """Create the durable consumer or bring it to `spec`."""

    async def ensure_bucket(
        self, name: str, *, ttl_s: float | None = None, replicas: int | None = None
    ) -> Change:
        """Create the bucket; with `ttl_s` its values vanish that long after their last write.

        `replicas` is as in `StreamSpec`.
        """

    async def ensure_object_bucket(
        self, name: str, *, ttl_s: float | None = None, replicas: int | None = None
    ) -> Change:
        """Create the bucket of objects; with `ttl_s` they vanish that long after they were put."""

    async def stream_state(self, stream: str) -> StreamState:
        """The stream's extent, from its leader. Raises NotFoundError."""

    async def stream_status(self, stream: str) -> StreamStatus:
        """The stream's extent and what it takes, from its leader. Raises NotFoundError."""

    async def limit_stream(
        self, stream: str, *, subjects: tuple[str, ...], max_bytes: int | None
    ) -> None:
        """Let a stream take these subjects and so many bytes; nothing else of it changes, and what
        is stored stays, also where it is more. Readers and publishers go on."""

    async def time_ns(self, stream: str) -> int:
        """The clock that stamps the stream's messages, ns since the epoch, read at some moment
        between the call and its return. Raises NotFoundError."""

    async def delete_stream(self, stream: str) -> None:
        """Delete a stream with its consumers; one that does not exist is no error."""

    async def purge(self, stream: str, *, below: int) -> None:
        """Remove the messages with a sequence lower than `below`."""

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
        """Send one message, pipelined; returns, with the future of its ack, when there is room.

        The future ends with PublishRefusedError, PublishTimeoutError or ConnectionLostError where
        there is no ack; it always ends.

        Raises:
            PayloadTooLargeError: larger than `max_payload`.
            ConnectionLostError: the connection is gone.
        """

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = PUBLISH_TIMEOUT_S,
    ) -> PubAck:
        """Send one message and wait for its ack. Raises as `start_publish` and its future do."""

    def ordered_publisher(self, stream: str) -> OrderedPublisher:
        """A new publisher whose output to `stream` can only be a prefix of what it was given."""

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
        """Pull continuously from a durable consumer; every message must be acked, naked or left."""

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
        """Read a stream from `start_seq` on, in order, without acks, and go on as it grows.

        Nothing is skipped or repeated, also over a reconnect. Leaves no consumer behind.
        """

    async def read_range(
        self, stream: str, filter: str, *, start_seq: int, headers_only: bool = False
    ) -> list[Message]:
        """All messages from `start_seq` to what was the end when the call began, in order."""

    async def get_message(self, stream: str, stream_seq: int) -> Message:
        """One message, read from the stream's leader. Raises NotFoundError."""

    async def last_message(self, stream: str, subject: str) -> Message | None:
        """The newest message of a subject, or of those that a filter with wildcards matches, read
        from the stream's leader; None where there is none. Raises NotFoundError."""

    async def ack(self, message: Message) -> None:
        """The message is done."""

    async def nak(self, message: Message) -> None:
        """Redeliver the message now, to whoever asks."""

    async def in_progress(self, message: Message) -> None:
        """Start the message's `ack_wait_s` anew."""

    # -- key-value ------------------------------------------------------------------------------
    async def kv_get(self, bucket: str, key: str) -> Entry | None:
        """The key's value, read from the leader; None where there is none."""

    async def kv_put(self, bucket: str, key: str, value: bytes) -> int:
        """Set the key whatever it was; returns the revision."""

    async def kv_create(self, bucket: str, key: str, value: bytes) -> int | None:
        """Set the key if it has no value; returns the revision, or None where it has one."""

    async def kv_update(self, bucket: str, key: str, value: bytes, revision: int) -> int | None:
        """Set the key if its revision is still `revision`; returns the new one, or None."""

    async def kv_delete(self, bucket: str, key: str, revision: int | None = None) -> bool:
        """Remove the key (if its revision is still `revision`); False where it was another's."""

    async def kv_keys(self, bucket: str, prefix: str = "") -> list[str]:
        """The keys with a value that begin with `prefix`."""

    async def kv_listed(self, bucket: str, prefix: str) -> list[str]:
        """The keys below `prefix`, which ends with '.' or is empty, by one cheap request, to ask
        often. Those removed by `kv_delete` may be among them for as long as a value lasts."""

    async def kv_erase(self, bucket: str, key: str) -> None:
        """Remove the key with every trace of it, so that `kv_listed` has it no more."""

    # -- objects --------------------------------------------------------------------------------
    async def object_put(self, bucket: str, name: str, data: bytes) -> None:
        """Store data of any size under a name, whatever was there. The last who puts it wins.

        Raises:
            PublishRefusedError: it is not stored; what was there before stays.
            PublishTimeoutError, ConnectionLostError: it may or may not be stored, as a whole.
        """

    async def object_get(self, bucket: str, name: str) -> bytes | None:
        """What was put last; None where nothing is. Raises ObjectDamagedError, NotFoundError."""

    async def object_delete(self, bucket: str, name: str) -> None:
        """Remove it; one that does not exist is no error."""

    async def oldest_object(self, bucket: str) -> int | None:
        """When what is in the bucket for longest began to be stored, ns since the epoch, by the
        broker's clock; None where nothing is. Raises NotFoundError."""

    async def objects_purge(self, bucket: str, *, before: int) -> None:
        """Remove every object that began to be stored before that time, ns since the epoch, by the
        broker's clock; also what was left half stored. Raises NotFoundError."""

    async def delete_object_bucket(self, name: str) -> None:
        """Remove the bucket and all that is in it; one that does not exist is no error."""

    async def close(self) -> None:
        """Flush what is written and close; idempotent."""
