"""The network between the simulated processes and the broker: delays, losses, cuts.

A link is a connection, seen from its process; `link.py` makes a `Broker` of it. Within a link
everything arrives in the order in which it was sent, as with TCP; what breaks is decided here.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from typing import Any, TypeVar

from broker_pipeline.broker.api import ApiError
from broker_pipeline.broker.introspection import Answerer
from broker_pipeline.broker.memory import MemoryBroker, MemoryServer
from broker_pipeline.broker.port import Message, PubAck
from broker_pipeline.broker.publish import refusal
from broker_pipeline.errors import BrokerError, ConnectionLostError, PublishRefusedError
from broker_pipeline.journey import NS
from tests.fault.loop import Process, VirtualLoop

T = TypeVar("T")

EPOCH_NS = 1_700_000_000 * NS
LOG_FULL = 10077
SERVER_FULL = 10023
NO_RESPONDERS = 503


@dataclass
class Weather:
    """How often what happens to a message, while there are faults.

    Attributes:
        lost_acks: the answer to a publish that was stored does not come.
        late_acks: it comes late, behind others that were sent after it.
        stalls: a link carries nothing for a while.
        gaps: a message of an ordered session is lost in the broker.
        lost_answers: the answer to any other request does not come.
        unseen: a peer that is there is not seen by whoever asks for it.
        lost_objects: an object is found to be damaged.
    """

    latency_s: float = 0.0005
    lost_acks: float = 0.0
    late_acks: float = 0.0
    stalls: float = 0.0
    gaps: float = 0.0
    lost_answers: float = 0.0
    unseen: float = 0.0
    lost_objects: float = 0.0


def finished(work: Any) -> Any:
    """The result of a coroutine that waits for nothing but its next turn."""
    while True:
        try:
            work.send(None)
        except StopIteration as end:
            return end.value


class Network:
    """The broker and all links to it.

    Attributes:
        weather: what goes wrong by chance; calm by default.
        down_until: nobody can connect before.
        away_until: there is no stream leader: publishes are refused, sessions end.
        full_until: `(ingress, everything)`: the log takes no more.
        injected: how often which fault was.
        answering: who answers on which subject, and what.
    """

    def __init__(self, loop: VirtualLoop, chance: random.Random) -> None:
        self.loop = loop
        self.chance = chance
        self.process = Process("broker", chance)
        self.weather = Weather()
        self.injected: Counter[str] = Counter()
        self.down_until = 0.0
        self.away_until = 0.0
        self.full_until = [0.0, 0.0]
        self.links: list[Wire] = []
        self.stored: list[Message] = []
        self.answering: dict[str, dict[Wire, Answerer]] = {}
        self.server = self.process.context.run(lambda: MemoryServer(now_ns=self.now_ns))
        self.api = self.process.context.run(self.server.connect)

    def record(self, name: str) -> None:
        """Keep all that a stream stores from its first message on, also what is purged later."""
        stream = self.server.stream(name)
        real, purge = stream.store, stream.purge
        self.stored += stream.messages_from(1, lambda _: True)

        def store(subject: str, data: bytes, block: bytes, now_ns: int) -> PubAck:
            try:
                ack = real(subject, data, block, now_ns)
            except PublishRefusedError:
                self.injected["publish refused, log really full"] += 1
                raise
            if not ack.duplicate:
                self.stored.append(stream.get(ack.stream_seq))
            return ack

        def counted(below: int) -> None:
            before = stream.state.messages
            purge(below)
            self.injected["message purged"] += before - stream.state.messages

        stream.store, stream.purge = store, counted  # type: ignore[method-assign]

    def now_ns(self) -> int:
        """The broker's wall clock."""
        return EPOCH_NS + int(self.loop.time() * NS)

    def chance_of(self, probability: float, fault: str) -> bool:
        """Whether a fault happens now; it is counted."""
        if probability and self.chance.random() < probability:
            self.injected[fault] += 1
            return True
        return False

    def refuse(self, subject: str) -> None:
        """Raises PublishRefusedError where the broker does not store it now."""
        now = self.loop.time()
        if now < self.away_until:
            self.injected["publish refused, no stream leader"] += 1
            raise _refused(subject, NO_RESPONDERS)
        if now < self.full_until[1]:
            self.injected["publish refused, disk full"] += 1
            raise _refused(subject, SERVER_FULL)
        if ".in." in subject and now < self.full_until[0]:
            self.injected["publish refused, log full"] += 1
            raise _refused(subject, LOG_FULL)

    def take_down(self, until: float) -> None:
        """The broker restarts: what is stored stays, every link is cut."""
        self.down_until = until
        for wire in list(self.links):
            wire.cut(noticed_s=0.0)


def _refused(subject: str, code: int) -> PublishRefusedError:
    return refusal(subject, ApiError(err_code=code, description="as the scenario says"))


class Wire:
    """One life of a link: from its connection to its cut. Both directions keep their order.

    Args:
        lost: called in the process when it notices that the wire is cut.
    """

    def __init__(self, network: Network, process: Process, lost: Callable[[], None]) -> None:
        self.network = network
        self.process = process
        self.session: MemoryBroker = network.process.context.run(network.server.connect)
        self.is_cut = False
        self._lost = lost
        self._chance = network.chance
        self._loop = network.loop
        self._up = _Lane(self, network.process.context)
        self._down = _Lane(self, process.context)
        network.links.append(self)

    def to_server(self, work: Callable[..., None], *args: Any) -> None:
        """Do something at the broker, after all that was sent before."""
        if not self.is_cut and not self.process.disposed:
            self._up.send(work, args, 0.0)

    def to_client(self, work: Callable[..., None], *args: Any, late_s: float = 0.0) -> None:
        """Do something in the process, after all that was sent before; late: behind later ones."""
        if not self.is_cut:
            self._down.send(work, args, late_s)

    def cut(self, *, noticed_s: float) -> None:
        """Nothing gets through any more, but for some of what is on its way to the broker.

        Args:
            noticed_s: when either side finds out; the broker goes on sending until then.
        """
        if self.is_cut:
            return
        self.is_cut = True
        self.network.links.remove(self)
        self._up.cut(self._chance.choice((0, 0, self._chance.randrange(8), 1 << 30)))
        self._down.cut(0)
        later = self._chance.uniform(0, noticed_s) if noticed_s else 0.0
        self._loop.call_later(noticed_s, self._lost, context=self.process.context)
        self._loop.call_later(later, self._end_session, context=self.network.process.context)

    def cut_by_client(self) -> None:
        """The client has closed it; called at the broker."""
        if not self.is_cut:
            self.is_cut = True
            self.network.links.remove(self)
            self._down.cut(0)
            self._end_session()

    def _end_session(self) -> None:
        for answering in self.network.answering.values():
            answering.pop(self, None)
        finished(self.session.close())


class _Lane:
    """One direction."""

    def __init__(self, wire: Wire, context: Context) -> None:
        self._wire = wire
        self._context = context
        self._last = 0.0
        self._sent = 0
        self._arrived = 0
        self._limit: int | None = None

    def send(self, work: Callable[..., None], args: tuple[Any, ...], late_s: float) -> None:
        """Arrive after a while."""
        network = self._wire.network
        loop, weather = network.loop, network.weather
        at = loop.time() + weather.latency_s * (0.5 + network.chance.random())
        if late_s:
            loop.call_at(at + late_s, self._late, work, args, context=self._context)
            return
        if weather.stalls and network.chance_of(weather.stalls, "link stalled"):
            at += network.chance.choice((0.02, 0.2, 1.5))
        self._last = at = max(at, self._last)
        self._sent += 1
        loop.call_at(at, self._arrive, work, args, context=self._context)

    def cut(self, more: int) -> None:
        """Only so many more arrive."""
        self._limit = self._arrived + more

    def _arrive(self, work: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self._limit is None or self._arrived < self._limit:
            self._arrived += 1
            work(*args)

    def _late(self, work: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self._limit is None:
            work(*args)


def gone() -> ConnectionLostError:
    """The connection is not there."""
    return ConnectionLostError("the simulated connection is down; what was not answered is unknown")


def outcome_of(work: Callable[[], T]) -> T | BrokerError:
    """What a call at the broker gives, errors of the broker included."""
    try:
        return work()
    except BrokerError as error:
        return error


def error_future() -> asyncio.Future[None]:
    """A future whose error is for whoever looks."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future
