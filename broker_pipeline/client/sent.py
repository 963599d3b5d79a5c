"""What an instance object has sent, until it has left: so that `results` knows where to end."""

from __future__ import annotations

import asyncio

from broker_pipeline.broker.port import Broker, Message
from broker_pipeline.core.names import HEADER_MSG_ID, emission_id
from broker_pipeline.errors import HistoryPurgedError

LOOK_AT = 10_000
"""Packages of which nobody has seen that they left; with more, the log is asked."""


class SentPackages:
    """The packages of one object that are inside, as far as it knows.

    Args:
        results: the subject filter for everything that leaves the instance.
    """

    def __init__(self, broker: Broker, stream: str, results: str) -> None:
        self._broker = broker
        self._stream = stream
        self._results = results
        self._inside: set[int] = set()
        self._last_left = 0
        self._untold = 0
        self._look_at = LOOK_AT
        self._settling = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._inside)

    async def add(self, package_id: int) -> None:
        """A package was stored."""
        self._inside.add(package_id)
        if len(self._inside) >= self._look_at and not self._settling.locked():
            async with self._settling:
                await self._look()

    def left(self, package_id: int, stream_seq: int) -> None:
        """A package, of whomever, was seen to leave at `stream_seq`."""
        if package_id in self._inside:
            self._inside.discard(package_id)
            self._last_left = max(self._last_left, stream_seq)

    async def all_left(self) -> int:
        """Wait until everything that was added has left; the stream sequence of the last."""
        if self._inside:
            await self._look()
        if self._untold:
            raise HistoryPurgedError(
                f"whether {self._untold} packages have left is not in the log any more; expected "
                f"their results to be read while it has them: read results as they come, or keep "
                f"more: replay_window_s, log_bytes_max",
                packages=self._untold,
            )
        if self._inside:
            await self._watch()
        return self._last_left

    async def _look(self) -> None:
        """Drop what has left already. So many that are inside are remembered, and no more."""
        known = {emission_id(package_id): package_id for package_id in self._inside}
        start = min(self._inside) + 1
        first_seq = (await self._broker.stream_state(self._stream)).first_seq
        for message in await self._broker.read_range(
            self._stream, self._results, start_seq=start, headers_only=True
        ):
            self._note(known, message)
        # Of these the log does not say any more whether they have left.
        purged = {package_id for package_id in self._inside if package_id < first_seq}
        self._inside -= purged
        self._untold += len(purged)
        self._look_at = max(LOOK_AT, 2 * len(self._inside))

    async def _watch(self) -> None:
        known = {emission_id(package_id): package_id for package_id in self._inside}
        done = asyncio.Event()

        def take(message: Message) -> None:
            self._note(known, message)
            if not self._inside:
                done.set()

        start = min(self._inside) + 1
        subscription = await self._broker.read(
            self._stream, self._results, take, start_seq=start, headers_only=True
        )
        waiting = asyncio.ensure_future(done.wait())
        try:
            await asyncio.wait((waiting, subscription.failed), return_when=asyncio.FIRST_COMPLETED)
            if not done.is_set():
                subscription.failed.result()
        finally:
            waiting.cancel()
            await subscription.stop()

    def _note(self, known: dict[str, int], message: Message) -> None:
        package_id = known.get(message.headers.get(HEADER_MSG_ID, ""))
        if package_id is not None:
            self.left(package_id, message.stream_seq)
