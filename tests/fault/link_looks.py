"""The part of a simulated link that looks and asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from broker_pipeline.broker.introspection import (
    Answerer,
    BrokerFacts,
    BucketSpec,
    ConsumerState,
    Presence,
    StreamSurvey,
)
from broker_pipeline.broker.port import Message, StreamSpec
from tests.fault.network import Network, Wire


class LinkLooks:
    """`Introspection`; `Link` has the rest.

    Attributes:
        answerers: what it answers on which subject; on a new wire again.
    """

    network: Network
    wire: Wire
    answerers: dict[str, Answerer]
    request: Callable[[Callable[[], Any]], Any]
    until_up: Any
    _do: Any
    _expect: Any
    _answered: Any
    _answers: Any

    async def consumer_states(self, stream: str) -> dict[str, ConsumerState]:
        """See `Broker`."""
        return await self._do("consumer_states", stream)

    async def survey(self, wanted: StreamSpec | BucketSpec) -> StreamSurvey | None:
        """See `Broker`."""
        return await self._do("survey", wanted)

    async def stream_names(self) -> list[str]:
        """See `Broker`."""
        return await self._do("stream_names")

    async def next_message(self, stream: str, filter: str, *, start_seq: int) -> Message | None:
        """See `Broker`."""
        return await self._do("next_message", stream, filter, start_seq=start_seq)

    async def facts(self) -> BrokerFacts:
        """See `Broker`."""
        return await self._do("facts")

    # -- asking ---------------------------------------------------------------------------------
    async def be_present(self, subject: str) -> None:
        """See `Broker`."""
        await self.answer(subject, lambda _: b"")

    async def answer(self, subject: str, answerer: Answerer) -> None:
        """See `Broker`."""
        self.answerers[subject] = answerer
        await self.request(lambda: self._answers(self.wire, subject, answerer))

    async def presence(self, subject: str, *, timeout_s: float) -> Presence:
        """See `Broker`."""
        await self.until_up(timeout_s)
        token, future = self._expect(timeout_s, Presence.SILENT)
        self.wire.to_server(self._find, self.wire, token, subject)
        return await future

    def _find(self, wire: Wire, token: int, subject: str) -> None:
        """At the broker: pass the question on, if there is somebody; he answers by the same way."""
        network = self.network
        peer = next(iter(network.answering.get(subject, ())), None)
        if network.chance_of(network.weather.lost_answers, "lost answer"):
            return
        if peer is None or network.chance_of(network.weather.unseen, "living peer not seen"):
            wire.to_client(self._answered, token, Presence.GONE)
        else:
            answer = (wire.to_client, self._answered, token, Presence.HERE)
            peer.to_client(peer.to_server, *answer)

    async def ask_all(self, subject: str, data: bytes, *, wait_s: float) -> list[bytes]:
        """See `Broker`; it waits until the end also where nobody is there."""
        await self.until_up(wait_s)
        answers: list[bytes] = []
        self.wire.to_server(self._pass_on, self.wire, subject, data, answers)
        await asyncio.sleep(wait_s)
        return list(answers)

    def _pass_on(self, wire: Wire, subject: str, data: bytes, answers: list[bytes]) -> None:
        """At the broker: the question to all who are there, and their answers back."""

        def asked(peer: Wire, answerer: Answerer) -> None:
            peer.to_server(wire.to_client, answers.append, answerer(data))

        for peer, answerer in self.network.answering.get(subject, {}).items():
            peer.to_client(asked, peer, answerer)
