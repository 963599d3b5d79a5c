"""What the in-memory broker keeps: streams, their consumers, and buckets. No asyncio, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from broker_pipeline.broker import headers
from broker_pipeline.broker.port import (
    Change,
    ConsumerSpec,
    Entry,
    Message,
    PubAck,
    StreamSpec,
    StreamState,
)
from broker_pipeline.broker.storage import STREAM_FULL, log_full
from broker_pipeline.broker.subjects import matcher, overlap, transformer
from broker_pipeline.core.names import HEADER_MSG_ID
from broker_pipeline.errors import BrokerError, NotFoundError, PublishRefusedError
from broker_pipeline.journey import NS

NO_RESPONDERS = 503
# What nats-server's file store adds to each message; so that `max_bytes` means the same here.
_RECORD_BYTES = 30
_RECORD_HEADER_BYTES = 4


class Cursor:
    """A place in a stream, and how many messages that it matches lie behind it."""

    def __init__(self, stream: Stream, filter: str, start_seq: int) -> None:
        self._stream = stream
        self.filter = filter
        self.match = matcher(filter)
        self.next_seq = max(1, start_seq)
        self.pending = 0
        self.count()

    def count(self) -> None:
        """Count what lies behind; for when messages were removed."""
        self.pending = sum(1 for _ in self._stream.messages_from(self.next_seq, self.match))

    def advance(self) -> Message | None:
        """The next message; None at the end."""
        for message in self._stream.messages_from(self.next_seq, self.match):
            self.next_seq = message.stream_seq + 1
            self.pending -= 1
            return message
        self.next_seq = max(self.next_seq, self._stream.last_seq + 1)
        return None


@dataclass
class Consumer:
    """A durable consumer: where it is, and what was delivered and not acked.

    Attributes:
        deadlines: the loop time at which each delivered message is redelivered.
        again: sequences to deliver again, before anything new.
        counts: how often each message that is not acked was delivered.
    """

    spec: ConsumerSpec
    cursor: Cursor
    deadlines: dict[int, float] = field(default_factory=dict)
    again: deque[int] = field(default_factory=deque)
    counts: dict[int, int] = field(default_factory=dict)

    def has_room(self) -> bool:
        """Whether `max_ack_pending` lets one more out."""
        return len(self.deadlines) < self.spec.max_ack_pending

    def forget(self, stream_seq: int) -> None:
        """It is acked, or removed from the stream."""
        self.deadlines.pop(stream_seq, None)
        self.counts.pop(stream_seq, None)
        if stream_seq in self.again:
            self.again.remove(stream_seq)

    def redeliver(self, stream_seq: int) -> None:
        """Deliver it again, next."""
        if self.deadlines.pop(stream_seq, None) is not None:
            self.again.append(stream_seq)

    def extend(self, stream_seq: int, now: float) -> None:
        """Start its ack_wait anew. Kept in the order of the deadlines, for `next_deadline`."""
        if self.deadlines.pop(stream_seq, None) is not None:
            self.deadlines[stream_seq] = now + self.spec.ack_wait_s

    def take(self, now: float) -> tuple[int, int] | None:
        """What to deliver next, as `(sequence, how often by then)`; None when there is nothing."""
        if not self.has_room():
            return None
        if self.again:
            stream_seq = self.again.popleft()
        else:
            message = self.cursor.advance()
            if message is None:
                return None
            stream_seq = message.stream_seq
        self.deadlines[stream_seq] = now + self.spec.ack_wait_s
        self.counts[stream_seq] = self.counts.get(stream_seq, 0) + 1
        return stream_seq, self.counts[stream_seq]

    def expire(self, now: float) -> None:
        """Take back what was not acked in time."""
        while (due := self.next_deadline()) is not None and due <= now:
            self.redeliver(next(iter(self.deadlines)))

    def next_deadline(self) -> float | None:
        """When the next message is to be taken back."""
        return next(iter(self.deadlines.values()), None)


class Stream:
    """A stream: messages in one total order, each id once within the window."""

    def __init__(self, spec: StreamSpec) -> None:
        self.last_seq = 0
        self.bytes = 0
        self.consumers: dict[str, Consumer] = {}
        self.cursors: list[Cursor] = []
        self._messages: dict[int, Message] = {}
        self._first_seq = 1
        self._last_time = 0
        self._ids: dict[str, tuple[int, int]] = {}
        self.configure(spec)

    def configure(self, spec: StreamSpec) -> None:
        """Take a new specification."""
        self.spec = spec
        self._matches = [matcher(each) for each in spec.subjects]
        self._transform = transformer(*spec.transform) if spec.transform else None

    def listens_on(self, subject: str) -> bool:
        """Whether it stores messages that are published on `subject`."""
        return any(match(subject) for match in self._matches)

    @property
    def state(self) -> StreamState:
        """Its extent."""
        return StreamState(self._first_seq, self.last_seq, len(self._messages), self.bytes)

    def store(self, subject: str, data: bytes, block: bytes, now_ns: int) -> PubAck:
        """Store a message, or find that its id is known. Raises PublishRefusedError when full."""
        fields = headers.parse(block)
        msg_id = fields.get(HEADER_MSG_ID)
        self._forget_ids(now_ns)
        if msg_id is not None and msg_id in self._ids:
            return PubAck(self.spec.name, self._ids[msg_id][0], duplicate=True)
        if self._transform is not None:
            subject = self._transform(subject)
        message = Message(subject, data, fields)
        size = _size(message, block)
        if self.spec.max_bytes is not None and self.bytes + size > self.spec.max_bytes:
            full = log_full(subject, STREAM_FULL, "maximum bytes exceeded")
            assert full is not None  # it is that code
            raise full
        self.last_seq += 1
        # The clock is the caller's and may stand still or go back; a stream's times do not.
        self._last_time = max(self._last_time, now_ns)
        message.stream_seq, message.time = self.last_seq, self._last_time
        self._messages[self.last_seq] = message
        self.bytes += size
        if msg_id is not None:
            self._ids[msg_id] = (self.last_seq, now_ns)
        for cursor in self.cursors:
            if cursor.match(subject):
                cursor.pending += 1
        return PubAck(self.spec.name, self.last_seq)

    def _forget_ids(self, now_ns: int) -> None:
        oldest = now_ns - int(self.spec.duplicate_window_s * NS)
        while self._ids:
            msg_id, (_, stored) = next(iter(self._ids.items()))
            if stored > oldest:
                return
            del self._ids[msg_id]

    def add_cursor(self, filter: str, start_seq: int) -> Cursor:
        """A cursor that is kept up to date."""
        cursor = Cursor(self, filter, start_seq)
        self.cursors.append(cursor)
        return cursor

    def consumer(self, name: str) -> Consumer:
        """A durable consumer. Raises NotFoundError."""
        if name not in self.consumers:
            raise NotFoundError(
                f"stream {self.spec.name!r} has no consumer {name!r}; expected one of "
                f"{sorted(self.consumers)!r}; provision it first",
                stream=self.spec.name,
                consumer=name,
            )
        return self.consumers[name]

    def floor(self, name: str) -> int:
        """The lowest sequence that a durable consumer needs."""
        consumer = self.consumer(name)
        pending = self.messages_from(consumer.cursor.next_seq, consumer.cursor.match)
        ahead = next((message.stream_seq for message in pending), self.last_seq + 1)
        return min((*consumer.deadlines, *consumer.again, ahead))

    def messages_from(
        self, start_seq: int, match: Callable[[str], object | None]
    ) -> Iterator[Message]:
        """The messages from `start_seq` on that match, in order."""
        for stream_seq in range(max(start_seq, self._first_seq), self.last_seq + 1):
            message = self._messages[stream_seq]
            if match(message.subject):
                yield message

    def get(self, stream_seq: int) -> Message:
        """One message. Raises NotFoundError."""
        message = self._messages.get(stream_seq)
        if message is None:
            raise NotFoundError(
                f"stream {self.spec.name!r} holds no message {stream_seq!r}; expected one from "
                f"{self._first_seq!r} to {self.last_seq!r}",
                stream=self.spec.name,
                stream_seq=stream_seq,
            )
        return message

    def last(self, subject: str) -> Message | None:
        """The newest message of a subject; wildcards are allowed."""
        match = matcher(subject)
        for message in reversed(self._messages.values()):
            if match(message.subject):
                return message
        return None

    def first(self, filter: str, start_seq: int) -> Message | None:
        """The first message from a sequence on that a filter matches."""
        return next(self.messages_from(start_seq, matcher(filter)), None)

    def purge(self, below: int) -> None:
        """Remove what lies below a sequence."""
        below = min(below, self.last_seq + 1)
        for stream_seq in range(self._first_seq, below):
            message = self._messages.pop(stream_seq)
            block = headers.encode(None, message.headers)
            self.bytes -= _size(message, block)
            for consumer in self.consumers.values():
                consumer.forget(stream_seq)
        self._first_seq = max(self._first_seq, below)
        for cursor in self.cursors:
            cursor.count()


def _size(message: Message, block: bytes) -> int:
    head = _RECORD_HEADER_BYTES + len(block) if block else 0
    return _RECORD_BYTES + len(message.subject) + head + len(message.data)


@dataclass
class Value:
    """What a key holds; `data` is None when it was removed. `time`: of objects, when they were put,
    ns since the epoch."""

    data: bytes | None
    revision: int
    expires: float | None
    time: int = 0


class Bucket:
    """A key-value bucket; times are the loop's."""

    def __init__(self, ttl_s: float | None) -> None:
        self.ttl_s = ttl_s
        self._revision = 0
        self._values: dict[str, Value] = {}

    def get(self, key: str, now: float) -> Value | None:
        """What a key holds; None when nothing does, or no longer."""
        value = self._values.get(key)
        if value is not None and value.expires is not None and value.expires <= now:
            del self._values[key]
            return None
        return value

    def set(self, key: str, data: bytes | None, now: float, time: int = 0) -> int:
        """Set or remove it; its new revision."""
        self._revision += 1
        self._values.pop(key, None)  # keys are listed in the order of their last write
        expires = None if self.ttl_s is None else now + self.ttl_s
        self._values[key] = Value(data, self._revision, expires, time)
        return self._revision

    def value(self, key: str, now: float) -> Entry | None:
        """Its value, unless it has none or was removed."""
        found = self.get(key, now)
        return None if found is None or found.data is None else Entry(found.data, found.revision)

    def create(self, key: str, data: bytes, now: float) -> int | None:
        """Set it if it has no value."""
        return None if self.value(key, now) else self.set(key, data, now)

    def update(self, key: str, data: bytes | None, revision: int, now: float) -> int | None:
        """Set or remove it if `revision` is its newest; 0 is that of a key never set."""
        found = self.get(key, now)
        if (found.revision if found else 0) != revision:
            return None
        return self.set(key, data, now)

    def erase(self, key: str) -> None:
        """Forget that there ever was such a key."""
        self._values.pop(key, None)

    def times(self, now: float) -> dict[str, int]:
        """When each of its keys was set, removed ones included."""
        live = [(key, self.get(key, now)) for key in list(self._values)]
        return {key: value.time for key, value in live if value is not None}

    def keys(self, now: float) -> list[str]:
        """The keys with a value."""
        live = [(key, self.get(key, now)) for key in list(self._values)]
        return [key for key, value in live if value is not None and value.data is not None]


class Store:
    """All that a broker in memory holds."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self.now_ns = now_ns
        self.streams: dict[str, Stream] = {}
        self.buckets: dict[str, Bucket] = {}
        self.objects: dict[str, Bucket] = {}

    def stream(self, name: str) -> Stream:
        """A stream. Raises NotFoundError."""
        if name not in self.streams:
            raise NotFoundError(
                f"there is no stream {name!r}; expected one of {sorted(self.streams)!r}; "
                "provision it first",
                stream=name,
            )
        return self.streams[name]

    def bucket(self, name: str) -> Bucket:
        """A bucket. Raises NotFoundError."""
        if name not in self.buckets:
            raise NotFoundError(
                f"there is no bucket {name!r}; expected one of {sorted(self.buckets)!r}; "
                "provision it first",
                bucket=name,
            )
        return self.buckets[name]

    def object_bucket(self, name: str) -> Bucket:
        """A bucket of objects. Raises NotFoundError."""
        if name not in self.objects:
            raise NotFoundError(
                f"there is no object bucket {name!r}; expected one of {sorted(self.objects)!r}; "
                "provision it first",
                bucket=name,
            )
        return self.objects[name]

    def ensure(self, spec: StreamSpec) -> Change:
        """Create a stream, or bring it to `spec`. Raises BrokerError for subjects of another."""
        for name, stream in self.streams.items():
            for mine, other in ((a, b) for a in spec.subjects for b in stream.spec.subjects):
                if name != spec.name and overlap(mine, other):
                    raise BrokerError(
                        f"stream {spec.name!r} cannot store {mine!r}: stream {name!r} stores "
                        f"{other!r}; expected subjects of its own; rename one",
                        stream=spec.name,
                    )
        if spec.name not in self.streams:
            self.streams[spec.name] = Stream(spec)
            return Change.CREATED
        if self.streams[spec.name].spec == spec:
            return Change.UNCHANGED
        self.streams[spec.name].configure(spec)
        return Change.UPDATED

    def store(self, subject: str, data: bytes, block: bytes) -> PubAck:
        """Store one message. Raises PublishRefusedError."""
        for stream in self.streams.values():
            if stream.listens_on(subject):
                return stream.store(subject, data, block, self.now_ns())
        raise PublishRefusedError(
            f"no stream listens on {subject!r}; expected one that stores it; provision it first, "
            "or correct the subject",
            err_code=NO_RESPONDERS,
            subject=subject,
        )
