"""An ordered publisher over a simulated link: a fast-ingest session in `fail` mode."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from broker_pipeline.broker import headers as header_blocks
from broker_pipeline.errors import (
    BrokerError,
    PublishRefusedError,
    PublishTimeoutError,
)
from tests.fault.network import Wire, error_future, gone

if TYPE_CHECKING:
    from tests.fault.link import Link

FLOW = 5
"""The broker acknowledges every so many messages; two such blocks may be under way."""
TIMEOUT_S = 10.0


class _AtBroker:
    """What the broker knows of a session: it stores number n only when it has stored n - 1."""

    def __init__(self) -> None:
        self.ended = False
        self.stored = 0


class SimSession:
    """An `OrderedPublisher`."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._wire = link.wire
        self.failed = error_future()
        self._error: BrokerError | None = None
        self._at_broker: _AtBroker | None = None
        self._sent = 0
        self._acknowledged = -1
        self._committed = False
        self._news = asyncio.Event()
        self._turn = asyncio.Lock()
        link.sessions.append(self)

    async def publish(
        self, subject: str, data: bytes, *, msg_id: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """See `OrderedPublisher`."""
        block = header_blocks.encode(msg_id, headers)
        header_blocks.check_size(subject, block, data, self._link.max_payload)
        async with self._turn:
            self._check()
            if self._at_broker is None:
                self._at_broker, self._sent, self._acknowledged = _AtBroker(), 0, -1
            self._sent += 1
            arguments = (self._wire, self._at_broker, self._sent, subject, data, block)
            self._wire.to_server(self._store, *arguments)
            await self._until(lambda: self._acknowledged + 2 * FLOW >= self._sent)

    def _store(
        self, wire: Wire, session: _AtBroker, number: int, subject: str, data: bytes, block: bytes
    ) -> None:
        """At the broker."""
        if session.ended:
            return
        network = self._link.network
        if network.chance_of(network.weather.gaps, "gap in a session"):
            session.ended = True
            text = f"message {number} of a session did not arrive"
            wire.to_client(self.fail, PublishRefusedError(text), late_s=0.001)
            return
        try:
            network.refuse(subject)
            network.server.store(subject, data, block)
        except PublishRefusedError as error:
            session.ended = True
            wire.to_client(self.fail, error)
            return
        session.stored = number
        if number % FLOW == 1 or number == 1:
            wire.to_client(self._acked, number)

    def _acked(self, number: int) -> None:
        self._acknowledged = max(self._acknowledged, number)
        self._news.set()

    async def seal(self) -> None:
        """See `OrderedPublisher`."""
        async with self._turn:
            self._check()
            if self._at_broker is None:
                return
            self._committed = False
            self._wire.to_server(self._commit, self._wire, self._at_broker, self._sent)
            await self._until(lambda: self._committed)
            self._at_broker = None

    def _commit(self, wire: Wire, session: _AtBroker, published: int) -> None:
        """At the broker. A session that has ended gets no answer, or a refusal."""
        network = self._link.network
        if session.ended or network.loop.time() < network.away_until:
            session.ended = True
            wire.to_client(self.fail, PublishRefusedError("the session is not known any more"))
        elif session.stored == published:
            session.ended = True
            wire.to_client(self._confirmed)

    def _confirmed(self) -> None:
        self._committed = True
        self._news.set()

    async def _until(self, condition: object) -> None:
        assert callable(condition)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while self._error is None and not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            self.fail(PublishTimeoutError("the session has stalled"))
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        """See `OrderedPublisher`."""
        try:
            if self._error is None:
                await self.seal()
        finally:
            if self in self._link.sessions:
                self._link.sessions.remove(self)
            self.failed.cancel()

    def fail(self, error: BrokerError) -> None:
        """Nothing more is stored."""
        if self._error is None:
            self._error = error
            if not self.failed.done():
                self.failed.set_exception(error)
        self._news.set()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._link.closed or self._link.process.disposed or not self._link.up.is_set():
            raise gone()
