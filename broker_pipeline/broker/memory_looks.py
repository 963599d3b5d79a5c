"""What the in-memory broker tells of itself, and how its connections ask each other."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Protocol

from broker_pipeline.broker.introspection import (
    ANSWERS_MAX,
    Answerer,
    BrokerFacts,
    BucketSpec,
    ConsumerState,
    Difference,
    Presence,
    Room,
    StreamSurvey,
)
from broker_pipeline.broker.memory_pull import MemorySubscription, delivery
from broker_pipeline.broker.memory_store import Consumer, Stream
from broker_pipeline.broker.port import Message, StreamSpec, StreamState

if TYPE_CHECKING:
    from broker_pipeline.broker.memory import MemoryServer

log = logging.getLogger(__name__)

API_LEVEL = 4
"""What it can do is what nats-server can of this level."""


class _Connected(Protocol):
    @property
    def max_payload(self) -> int:
        """The largest message."""

    @property
    def is_closed(self) -> bool:
        """Whether it has ended."""

    def server(self) -> MemoryServer:
        """The server, while connected."""


class Answering:
    """Who answers on which subject."""

    def __init__(self) -> None:
        self._answerers: dict[str, list[tuple[_Connected, Answerer]]] = {}

    def add(self, subject: str, connection: _Connected, answerer: Answerer) -> None:
        """Somebody more."""
        self._answerers[subject] = [*self.living(subject), (connection, answerer)]

    def living(self, subject: str) -> Iterator[tuple[_Connected, Answerer]]:
        """Those whose connection has not ended."""
        return (each for each in self._answerers.get(subject, ()) if not each[0].is_closed)


class MemoryLooks:
    """`Introspection` of `MemoryBroker`."""

    async def consumer_states(self: _Connected, stream: str) -> dict[str, ConsumerState]:
        """See `Broker.consumer_states`."""
        server = self.server()
        found = server.stream(stream)
        pulls = [each for each in server.pump.subscriptions if each.stream is found]
        states = [_durable(found, each, pulls) for each in found.consumers.values()]
        states += [
            _reader(found, f"reader-{number}", each)
            for number, each in enumerate(pulls)
            if each.consumer is None
        ]
        return {each.name: each for each in states}

    async def survey(self: _Connected, wanted: StreamSpec | BucketSpec) -> StreamSurvey | None:
        """See `Broker.survey`; there is one replica whatever `wanted` says."""
        server = self.server()
        if isinstance(wanted, StreamSpec):
            stream = server.streams.get(wanted.name)
            return None if stream is None else _surveyed(stream, wanted)
        bucket = (server.objects if wanted.objects else server.buckets).get(wanted.name)
        if bucket is None:
            return None
        differs = () if bucket.ttl_s == wanted.ttl_s else (bucket.ttl_s,)
        return StreamSurvey(
            StreamState(1, 0, 0, 0), (), None, 0.0, 1, 1,
            tuple(Difference("ttl_s", wanted.ttl_s, found) for found in differs),
        )  # fmt: skip

    async def stream_names(self: _Connected) -> list[str]:
        """See `Broker.stream_names`; buckets are no streams here."""
        return sorted(self.server().streams)

    async def next_message(
        self: _Connected, stream: str, filter: str, *, start_seq: int
    ) -> Message | None:
        """See `Broker.next_message`."""
        found = self.server().stream(stream).first(filter, start_seq)
        return None if found is None else delivery(found)

    async def facts(self: _Connected) -> BrokerFacts:
        """See `Broker.facts`."""
        streams = self.server().streams.values()
        room = Room(
            memory_bytes=sum(each.bytes for each in streams),
            streams=len(streams),
            consumers=sum(len(each.consumers) for each in streams),
        )
        return BrokerFacts("memory", "", "", API_LEVEL, self.max_payload, 0.0, (room,), None)

    # -- asking ---------------------------------------------------------------------------------
    async def be_present(self: _Connected, subject: str) -> None:
        """See `Broker.be_present`."""
        self.server().answering.add(subject, self, lambda _: b"")

    async def presence(self: _Connected, subject: str, *, timeout_s: float) -> Presence:
        """See `Broker.presence`; here nobody is ever SILENT."""
        living = list(self.server().answering.living(subject))
        return Presence.HERE if living else Presence.GONE

    async def answer(self: _Connected, subject: str, answerer: Answerer) -> None:
        """See `Broker.answer`."""
        self.server().answering.add(subject, self, answerer)

    async def ask_all(self: _Connected, subject: str, data: bytes, *, wait_s: float) -> list[bytes]:
        """See `Broker.ask_all`; here all answer at once, or never."""
        answers = []
        for connection, answerer in list(self.server().answering.living(subject)):
            try:
                answer = answerer(data)
            except Exception:  # as a real one: whoever asks hears nothing
                log.exception("a question on %s is not answered", subject)
                continue
            if len(answer) <= connection.max_payload:
                answers.append(answer)
        return answers[:ANSWERS_MAX]


def _durable(stream: Stream, consumer: Consumer, pulls: list[MemorySubscription]) -> ConsumerState:
    spec = consumer.spec
    needs = stream.floor(spec.name)
    return ConsumerState(
        name=spec.name,
        durable=True,
        filter=spec.filter,
        ack_wait_s=spec.ack_wait_s,
        max_ack_pending=spec.max_ack_pending,
        max_deliver=None,
        pending=consumer.cursor.pending,
        ack_pending=len(consumer.counts),
        redelivered=sum(count > 1 for count in consumer.counts.values()),
        waiting=sum(each.asks for each in pulls if each.consumer is consumer),
        delivered_seq=consumer.cursor.next_seq - 1,
        floor_seq=needs - 1,
        needs=needs,
    )


def _reader(stream: Stream, name: str, reading: MemorySubscription) -> ConsumerState:
    cursor = reading.place
    return ConsumerState(
        name=name,
        durable=False,
        filter=cursor.filter,
        ack_wait_s=0.0,
        max_ack_pending=0,
        max_deliver=None,
        pending=cursor.pending,
        ack_pending=0,
        redelivered=0,
        waiting=int(reading.asks),
        delivered_seq=cursor.next_seq - 1,
        floor_seq=cursor.next_seq - 1,
        needs=cursor.next_seq if cursor.pending else stream.last_seq + 1,
    )


def _surveyed(stream: Stream, wanted: StreamSpec) -> StreamSurvey:
    spec = stream.spec
    differs = (
        Difference(each.name, getattr(wanted, each.name), getattr(spec, each.name))
        for each in fields(StreamSpec)
        if each.name != "replicas"
    )
    return StreamSurvey(
        stream.state,
        spec.subjects,
        spec.max_bytes,
        spec.duplicate_window_s,
        1,
        1,
        tuple(each for each in differs if each.expected != each.found),
    )
