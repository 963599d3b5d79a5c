"""The load: producers of each style, each package's payload its name, drawn from the seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from broker_pipeline.broker.port import Broker
from broker_pipeline.client.producer import Producer
from broker_pipeline.core.names import (
    HEADER_NUMBER,
    HEADER_PRODUCER,
    escape_instance,
    ingress_subject,
)
from broker_pipeline.errors import BrokerError
from tests.fault.modules import ERROR, EXIT, POISON
from tests.fault.real.pipeline import KINDS, POISON_PLACE
from tests.fault.scenario import NAME

INSTANCES = 50
STYLES = ("sdk", "raw", "numbered")
"""The client's; raw bytes with a Nats-Msg-Id; numbered by itself, without a Nats-Msg-Id."""
EXIT_SHARE = 0.02
ERROR_SHARE = 0.02
SEND_TIMEOUT_S = 60.0
"""Far below the dedup window of 120 s, and above any pause of the broker."""
ATTEMPT_S = 3.0
RETRY_S = 0.3
IN_FLIGHT_MAX = 40
"""Sends of one producer without an answer."""
INSIDE_MAX = 6_000
"""Packages sent and not out yet, beyond which producers wait: the load must not be what fails."""


@dataclass(frozen=True)
class Source:
    """One producer: it writes `count` packages to one instance."""

    number: int
    style: str
    instance: str
    count: int

    def payloads(self, seed: int, poison: frozenset[int]) -> list[bytes]:
        """Everything it sends, in order."""
        chance = random.Random(f"payloads {seed} {self.number}")
        places = list(KINDS)
        made = []
        for index in range(self.count):
            head = f"{self.number}.{index}"
            drawn = chance.random()
            if index in poison:
                head += f";{POISON_PLACE}={POISON}"
            elif drawn < EXIT_SHARE:
                head += f";{chance.choice(places)}={EXIT}"
            elif drawn < EXIT_SHARE + ERROR_SHARE:
                head += f";{chance.choice(places)}={ERROR}"
            made.append(head.encode())
        return made


def draw_sources(packages: int) -> list[Source]:
    """Producers for all instances; every fifth instance has two."""
    places = [f"room {n}" for n in range(INSTANCES)]
    places += [f"room {n}" for n in range(0, INSTANCES, 5)]
    share, rest = divmod(packages, len(places))
    return [
        Source(number, STYLES[number % len(STYLES)], place, share + (number < rest))
        for number, place in enumerate(places)
    ]


class Load:
    """All producers at work.

    Attributes:
        acked: payloads that were said to be stored, with where.
        unknown: payloads of which it is not known.
        paused: set while producers may send.
    """

    def __init__(
        self, sources: list[Source], seed: int, poison: int, inside: Callable[[int], int]
    ) -> None:
        self.acked: dict[str, dict[bytes, list[int]]] = {}
        self.unknown: list[bytes] = []
        self.sent = 0
        self.sources = sources
        self.stopped = False
        self._inside = inside
        chance = random.Random(f"poison {seed}")
        chosen = chance.sample(range(len(sources)), min(poison, len(sources)))
        self._payloads = {
            source.number: source.payloads(
                seed,
                frozenset({chance.randrange(source.count // 4, 1 + source.count * 3 // 4)})
                if source.number in chosen
                else frozenset(),
            )
            for source in sources
        }

    @property
    def packages(self) -> int:
        """How many are to be sent."""
        return sum(source.count for source in self.sources)

    async def run(self, brokers: dict[str, Broker], rate: Callable[[], float]) -> None:
        """Send everything, all together `rate()` packages a second."""
        async with asyncio.TaskGroup() as group:
            for source in self.sources:
                group.create_task(
                    self._run(source, brokers[source.style], rate), name=f"source {source.number}"
                )

    async def _run(self, source: Source, broker: Broker, rate: Callable[[], float]) -> None:
        token = escape_instance(source.instance)
        subject = ingress_subject(NAME, token)
        acked = self.acked.setdefault(token, {})
        producer = Producer(broker, subject, timeout_s=SEND_TIMEOUT_S)
        room = asyncio.Semaphore(IN_FLIGHT_MAX)
        due = asyncio.get_running_loop().time()

        async def send(number: int, data: bytes) -> None:
            try:
                if source.style == "sdk":
                    seq = (await producer.send(data, {})).stream_seq
                else:
                    seq = await self._send_raw(broker, subject, source, number, data)
                acked.setdefault(data, []).append(seq)
            except BrokerError:
                self.unknown.append(data)
            finally:
                room.release()

        async with asyncio.TaskGroup() as group:
            for number, data in enumerate(self._payloads[source.number], 1):
                due = max(due, asyncio.get_running_loop().time() - 1.0)
                due += len(self.sources) / rate()
                await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
                while self._inside(self.sent) > INSIDE_MAX:  # noqa: ASYNC110 - other processes bring it about
                    await asyncio.sleep(RETRY_S)
                if self.stopped:
                    return
                await room.acquire()
                self.sent += 1
                group.create_task(send(number, data), name=f"send {number}")

    async def _send_raw(
        self, broker: Broker, subject: str, source: Source, number: int, data: bytes
    ) -> int:
        headers = None
        msg_id: str | None = f"raw{source.number}.{number}"
        if source.style == "numbered":
            headers = {HEADER_PRODUCER: f"n{source.number}", HEADER_NUMBER: str(number)}
            msg_id = None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + SEND_TIMEOUT_S
        while True:
            try:
                ack = await broker.publish(
                    subject, data, msg_id=msg_id, headers=headers, timeout_s=ATTEMPT_S
                )
            except BrokerError:
                if loop.time() > deadline:
                    raise
                await asyncio.sleep(RETRY_S)
            else:
                return ack.stream_seq
