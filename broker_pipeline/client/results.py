"""Results: packages that left, from a place in the log that the reader names."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

from broker_pipeline.broker.large_payloads import LargePayloads
from broker_pipeline.broker.port import Broker, StreamState
from broker_pipeline.client.deploy import SHARD, require_deployed
from broker_pipeline.client.reader import Reader
from broker_pipeline.core.names import (
    HEADER_MSG_ID,
    Subjects,
    canonical_token,
    emission_id,
    stream_name,
)
from broker_pipeline.errors import (
    BrokerError,
    ClientError,
    HistoryPurgedError,
    MalformedPackageError,
    NotFoundError,
    PayloadGoneError,
)
from broker_pipeline.journey import Outcome
from broker_pipeline.observe.about import about
from broker_pipeline.package import DataPackage
from broker_pipeline.pipeline import Pipeline

log = logging.getLogger(__name__)

RETRY_MIN_S = 0.05
RETRY_MAX_S = 1.0
"""Before a payload is asked for again that the broker gave no answer about, doubling from the first
to the last: a lost connection is waited for."""
Seen = Callable[[int, int], None]
"""Takes `(package id, stream sequence at which it left)`."""


@dataclass(eq=False)
class ResultsReader:
    """Reads what leaves a pipeline.

    Args:
        token: the instance's, escaped; None: all instances.
        opened_seq: the stream sequence that `start="opened"` means; 0: there is none.
        end: the stream sequence to end after, once it is known.
        seen: is told of every package that was read, of whatever outcome.
    """

    broker: Broker
    pipeline: Pipeline
    token: str | None = None
    opened_seq: int = 0
    end: asyncio.Future[int] | None = None
    seen: Seen | None = None
    _open: set[Reader] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._payloads = LargePayloads(self.broker, self.pipeline.name)

    async def read(
        self, start: str, outcome: Outcome | None
    ) -> AsyncGenerator[DataPackage[Any], None]:
        """The packages. See `Instance.results`."""
        types = self.pipeline.payload_types
        start_seq, after = await self._place(start)
        # The package that the reader names may have left with any outcome.
        wanted = None if after else outcome
        reader = Reader(self.broker, self._stream, self.subject(wanted), start_seq, self.end)
        self._open.add(reader)
        messages = reader.messages()
        try:
            async for message in messages:
                try:
                    package = DataPackage.from_bytes(message.data, types)
                except MalformedPackageError as error:
                    log.warning("a message on %r is passed over: %s", message.subject, error)
                    continue
                package_id = package.envelope.id
                if self.seen is not None:
                    self.seen(package_id, message.stream_seq)
                if after:
                    after = 0 if package_id == after else after
                elif outcome is None or package.outcome is outcome:
                    if package.envelope.HasField("reference"):
                        await self._load(package)
                    yield package
        finally:
            self._open.discard(reader)
            await messages.aclose()

    async def _load(self, package: DataPackage[Any]) -> None:
        """Put a large payload back in its place; where it cannot be read, reading it says so."""
        delay = RETRY_MIN_S
        while True:
            try:
                await self._payloads.load(package.envelope)
                return
            except (PayloadGoneError, MalformedPackageError) as error:
                what = about(package.envelope)
                log.warning("package %s is without its payload: %s", package.id, error, extra=what)
                return
            except BrokerError as error:
                if not error.retriable or self.broker.lost.done():
                    raise
            await asyncio.sleep(delay)
            delay = min(RETRY_MAX_S, delay * 2)

    def close(self) -> None:
        """End all readings."""
        for reader in self._open:
            reader.close()

    def subject(self, outcome: Outcome | None) -> str:
        """The one filter for what is wanted."""
        which = "*" if outcome is None else outcome.value.lower()
        return f"{Subjects(self.pipeline.name, SHARD).out}{which}.{self.token or '*'}"

    @property
    def _stream(self) -> str:
        return stream_name(self.pipeline.name, SHARD)

    async def _place(self, start: str) -> tuple[int, int]:
        """Where to begin: the stream sequence, and the package to skip up to, or 0."""
        state = await require_deployed(self.broker, self.pipeline.name)
        if start == "beginning":
            return state.first_seq, 0
        if start == "opened" and self.opened_seq:
            if state.first_seq > self.opened_seq:
                raise HistoryPurgedError(
                    f"what left since this object was entered is not all in the log any more: it "
                    f"begins at {state.first_seq}, and the object was entered at "
                    f"{self.opened_seq}; start at 'beginning' or 'now', or keep more: "
                    f"replay_window_s, log_bytes_max",
                    first_seq=state.first_seq,
                )
            return self.opened_seq, 0
        if start == "now":
            return state.last_seq + 1, 0
        package_id = self._parse(start)
        await self._require_known(start, package_id, state)
        return max(package_id + 1, state.first_seq), package_id

    def _parse(self, start: str) -> int:
        name, shard, digits = ([*start.split("/"), "", ""])[:3]
        is_number = digits.isascii() and digits.isdigit() and len(digits) < 20 and int(digits) > 0
        if start.count("/") != 2 or not is_number or shard != str(SHARD):
            places = "'opened', 'now', 'beginning'" if self.opened_seq else "'now', 'beginning'"
            raise ClientError(
                f"results cannot start at {start!r}; expected {places}, or a package's id, such "
                f"as '{self.pipeline.name}/{SHARD}/17'",
                start=start,
            )
        if name != self.pipeline.name:
            raise ClientError(
                f"package {start!r} is not of pipeline {self.pipeline.name!r}; start after one "
                "that is",
                start=start,
            )
        return int(digits)

    async def _require_known(self, start: str, package_id: int, state: StreamState) -> None:
        subjects = Subjects(self.pipeline.name, SHARD)
        try:
            subject = (await self.broker.get_message(self._stream, package_id)).subject
        except NotFoundError:
            if package_id < state.first_seq and await self._has_left(package_id):
                return
            raise ClientError(
                f"the log of pipeline {self.pipeline.name!r} does not hold package {start!r}: it "
                f"has {state.first_seq!r} to {state.last_seq!r}, and what followed it may be "
                "gone; start at 'beginning'",
                start=start,
            ) from None
        token = canonical_token(subject.removeprefix(subjects.ctl_in))
        is_arrival = subject.startswith(subjects.ctl_in)
        if not is_arrival or self.token not in (None, token):
            raise ClientError(
                f"there is no package {start!r} of this instance: that place in the log holds "
                f"{subject!r}; start after a package of the instance",
                start=start,
            )

    async def _has_left(self, package_id: int) -> bool:
        """Whether the log still has its leaving: then it has all that followed, too."""
        wanted = emission_id(package_id)
        left = await self.broker.read_range(
            self._stream, self.subject(None), start_seq=package_id + 1, headers_only=True
        )
        return any(message.headers.get(HEADER_MSG_ID) == wanted for message in left)
