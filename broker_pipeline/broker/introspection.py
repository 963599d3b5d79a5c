"""What a broker tells of itself, and how connections find and ask each other: part of the port.

Nothing here is on the way of a package, and nothing of it changes what is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from broker_pipeline.broker.port import Message, StreamSpec, StreamState

ANSWERS_MAX = 1_000
"""Answers to one question at most: the rest is not heard."""
ANSWERS_BYTES_MAX = 64 << 20
"""And so many bytes of them, for anybody may answer."""


@dataclass(frozen=True, slots=True)
class ConsumerState:
    """A consumer as it is now.

    Attributes:
        durable: whether it stays when nobody pulls; False: a reader's, which vanishes with it.
        filter: what it delivers.
        ack_wait_s, max_ack_pending: see `ConsumerSpec`; 0 where nothing is acked.
        max_deliver: how often it delivers a message; None: without a bound.
        pending: messages that it has not delivered yet.
        ack_pending: messages that are delivered and not acked.
        redelivered: those among them that were delivered more than once.
        waiting: requests of pullers that are open.
        delivered_seq: the highest stream sequence that it has delivered or passed over.
        floor_seq: up to here everything is acked.
        needs: the lowest stream sequence that it still needs, now or later.
    """

    name: str
    durable: bool
    filter: str
    ack_wait_s: float
    max_ack_pending: int
    max_deliver: int | None
    pending: int
    ack_pending: int
    redelivered: int
    waiting: int
    delivered_seq: int
    floor_seq: int
    needs: int


@dataclass(frozen=True, slots=True)
class BucketSpec:
    """A bucket as it should be, of keys or with `objects` of those: see `Broker.ensure_bucket`."""

    name: str
    ttl_s: float | None = None
    objects: bool = False


class Difference(NamedTuple):
    """A setting that is not as it should be, by the broker's own name for it."""

    setting: str
    expected: object
    found: object


@dataclass(frozen=True, slots=True)
class StreamSurvey:
    """A stream, or what is behind a bucket, as it is now.

    Attributes:
        subjects, max_bytes, duplicate_window_s: see `StreamSpec`.
        replicas: on how many servers it is kept.
        current: how many of those have all of it, now.
        differs: what is not as asked for.
    """

    state: StreamState
    subjects: tuple[str, ...]
    max_bytes: int | None
    duplicate_window_s: float
    replicas: int
    current: int
    differs: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class Room:
    """What an account uses of what it may; each limit is None where there is none of its own.

    Attributes:
        tier: for streams with so many replicas, such as `R3`; '': for all.
    """

    tier: str = ""
    storage_bytes: int = 0
    storage_bytes_max: int | None = None
    memory_bytes: int = 0
    memory_bytes_max: int | None = None
    streams: int = 0
    streams_max: int | None = None
    consumers: int = 0
    consumers_max: int | None = None


@dataclass(frozen=True, slots=True)
class BrokerFacts:
    """What the server of a connection says of itself.

    Attributes:
        server: its name.
        version: its version, such as `2.15.1`.
        cluster: its cluster's name; '' where there is none.
        api_level: JetStream's.
        max_payload: the largest message, headers included, in bytes.
        round_trip_s: how long a question and its answer took, just now.
        rooms: what the account uses and may; one, or one a tier.
        features: the server's feature flags; None where it does not say.
    """

    server: str
    version: str
    cluster: str
    api_level: int
    max_payload: int
    round_trip_s: float
    rooms: tuple[Room, ...]
    features: dict[str, bool] | None


class Presence(Enum):
    """What came of asking whether somebody is there."""

    HERE = "it answered"
    SILENT = "no answer came in time"
    GONE = "no connection would answer"


Answerer = Callable[[bytes], bytes]
"""Takes a question, on the event loop, quickly; what it raises is logged and not answered."""


class Introspection(Protocol):
    """The part of `Broker` that looks, and asks."""

    async def consumer_states(self, stream: str) -> dict[str, ConsumerState]:
        """All consumers of a stream by name, durable ones and readers.

        Raises NotFoundError where there is no such stream.
        """

    async def survey(self, wanted: StreamSpec | BucketSpec) -> StreamSurvey | None:
        """A stream or bucket as it is, and where that is not as wanted: what `ensure_stream` or
        `ensure_bucket` would change. None where there is none of that name."""

    async def stream_names(self) -> list[str]:
        """The streams of the account, those behind buckets included, in order."""

    async def next_message(self, stream: str, filter: str, *, start_seq: int) -> Message | None:
        """The first message from `start_seq` on that the filter matches, read from the stream's
        leader; None where there is none. Raises NotFoundError where there is no such stream."""

    async def facts(self) -> BrokerFacts:
        """What the server says of itself."""

    async def be_present(self, subject: str) -> None:
        """Answer whoever asks on a subject that no stream stores, from when this returns to the end
        of the connection."""

    async def presence(self, subject: str, *, timeout_s: float) -> Presence:
        """Ask. A peer that hangs is SILENT; GONE says that its connection has ended, unless it has
        just begun and another server of the cluster does not know of it yet."""

    async def answer(self, subject: str, answerer: Answerer) -> None:
        """Answer every question on a subject that no stream stores, from when this returns to the
        end of the connection. An answer that is larger than a message may be is not sent."""

    async def ask_all(self, subject: str, data: bytes, *, wait_s: float) -> list[bytes]:
        """Ask all who answer on a subject; what they said within `wait_s`, at most ANSWERS_MAX
        answers and ANSWERS_BYTES_MAX bytes.

        Returns at once where there is nobody. Raises ConnectionLostError.
        """
