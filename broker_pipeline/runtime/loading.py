"""Large payloads in a worker: fetched before the modules run, put away again behind them.

Modules see the payload in its place. What they leave as it was goes on with the same reference;
what they change is stored anew where it is large. So nothing is ever written twice under a name: a
worker that dies, or runs a package that another runs too, leaves an object that nobody refers to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.held_bytes import HeldBytes
from broker_pipeline.broker.large_payloads import LargePayloads, Reference, refer
from broker_pipeline.broker.port import Broker
from broker_pipeline.errors import LogFullError, NotStoringError, StorageFullError
from broker_pipeline.observe.about import about, in_phase
from broker_pipeline.pipeline import Pipeline
from broker_pipeline.runtime.failures import ROOM_BYTES
from broker_pipeline.runtime.results import Here

log = logging.getLogger(__name__)

FETCHED_BYTES_MAX = 256 << 20
"""Payloads that a phase's worker holds at the same time; a larger one is held alone. Packages are
small until then, and many of them may wait here."""
PUT_BYTES_MAX = 256 << 20
"""Results that are being stored, of a phase's worker, from which on it takes no more packages."""
RETRY_MIN_S = 0.05
RETRY_MAX_S = 2.0
"""Between two attempts to store a payload where the broker has no room, doubling from the first to
the last."""


class Fetched:
    """A payload as it came: `size` of it count as held."""

    __slots__ = ("data", "reference", "size")

    def __init__(self, data: bytes, reference: Reference, size: int) -> None:
        self.data = data
        self.reference = reference
        self.size = size


class Loading:
    """The large payloads of one phase in one worker.

    Args:
        name: of the phase, for logs.
        room: called when it is not `full` any more.

    Attributes:
        putting: how many payloads are being stored right now.
    """

    def __init__(
        self, broker: Broker, pipeline: Pipeline, name: str, *, room: Callable[[], None]
    ) -> None:
        self._name = name
        self._payloads = LargePayloads(broker, pipeline.name, pipeline.large_payload_bytes)
        self._broker = broker
        self._held = HeldBytes(FETCHED_BYTES_MAX)
        self._room = room
        self.putting = 0
        self._put_bytes = self._refused = 0

    @property
    def full(self) -> bool:
        """Whether results wait for room at the broker, or too many for their turn: take nothing
        more."""
        return self._refused > 0 or self._put_bytes > PUT_BYTES_MAX

    async def fetch(self, here: Here, envelope: pb.DataPackage) -> None:
        """Put the payload of a package into its place, when there is room for it.

        Raises: as `LargePayloads.load`.
        """
        size = await self._held.take(envelope.reference.size)
        here.fetched = Fetched(b"", envelope.reference, size)
        reference = await self._payloads.load(envelope)
        here.fetched = Fetched(envelope.data, reference, size)

    async def fetch_again(self, envelope: pb.DataPackage) -> None:
        """The same for a recorded input, which is run for the state only, and for what a module
        server has answered; it does not count as held."""
        await self._payloads.load(envelope)

    def let_go(self, here: Here) -> None:
        """A package is not here any more."""
        if here.fetched is not None:
            self._held.give(here.fetched.size)
            here.fetched = None

    def concerns(self, here: Here, size: int) -> bool:
        """Whether `put_away` has anything to do for a package of so many bytes."""
        return here.fetched is not None or self._payloads.is_large(size)

    async def put_away(self, here: Here, envelope: pb.DataPackage, size: int) -> bytes:
        """The bytes of a package as it goes on, without a large payload; that is stored by then.
        Where the broker has no room for it this waits for that.

        Args:
            size: of the package with its payload.

        Raises: as `LargePayloads.put`, but for StorageFullError and NotStoringError.
        """
        fetched = here.fetched
        loaded = fetched is not None and not envelope.HasField("reference")
        if fetched is not None and loaded and envelope.data == fetched.data:
            refer(envelope, fetched.reference)
            return envelope.SerializeToString()
        payload = len(envelope.data)
        too_large = payload > ROOM_BYTES and size > self._broker.max_payload - ROOM_BYTES
        if too_large or self._payloads.is_large(payload):
            refer(envelope, await self._put(envelope))
        return envelope.SerializeToString()

    async def _put(self, envelope: pb.DataPackage) -> Reference:
        record = envelope.controllers[-1]
        name = f"{envelope.id}.{record.name}.{record.phases[-1].name}"
        size, refused = len(envelope.data), False
        delay = RETRY_MIN_S
        self._put_bytes += size
        try:
            while True:
                self.putting += 1
                try:
                    reference = await self._payloads.put(envelope.data, name)
                    break
                except (StorageFullError, NotStoringError, LogFullError) as error:
                    if not self._refused:
                        log.warning(
                            "%s takes no packages and holds its large results: %s",
                            self._name, error, extra=about(envelope, self._name),
                        )  # fmt: skip
                    self._refused += not refused
                    refused = True
                finally:
                    self.putting -= 1
                await asyncio.sleep(delay)
                delay = min(RETRY_MAX_S, delay * 2)
        finally:
            was_full = self.full
            self._put_bytes -= size
            self._refused -= refused
            if was_full and not self.full:
                self._room()
        if refused and not self._refused:
            what = in_phase(self._name)
            log.warning("%s goes on: the broker stores large results again", self._name, extra=what)
        return reference
