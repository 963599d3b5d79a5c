"""Results that the broker has no room for: held, and published again until it has.

A result that is given up is computed again when the broker redelivers its package, and each
delivery counts: while a disk or the log is full, packages would become poison with nothing wrong
about them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from broker_pipeline.broker.port import PubAck
from broker_pipeline.errors import BrokerError, LogFullError, NotStoringError, StorageFullError
from broker_pipeline.observe.about import in_phase

log = logging.getLogger(__name__)

RETRY_MIN_S = 0.05
RETRY_MAX_S = 2.0
"""Between two attempts to store the first that is held, doubling from the first to the last."""

Ack = asyncio.Future[PubAck]
Send = Callable[[], Awaitable[Ack]]


class Holding:
    """What one phase's worker holds; no more than was delivered, for it takes nothing more then.

    Args:
        room: called when nothing is held any more.
    """

    def __init__(self, name: str, room: Callable[[], None]) -> None:
        self._name = name
        self._room = room
        self._held: deque[tuple[Send, Callable[[Ack], None]]] = deque()
        self._publishing: asyncio.Task[None] | None = None

    @property
    def full(self) -> bool:
        """Whether the broker has no room: take nothing more."""
        return bool(self._held)

    @property
    def count(self) -> int:
        """How many results are held."""
        return len(self._held)

    def hold(self, error: BaseException, send: Send, ended: Callable[[Ack], None]) -> bool:
        """Hold a result if that is what its error asks for.

        Args:
            send: publishes it once more, under the same message id.
            ended: takes the ack, or what failed for another reason.
        """
        if not isinstance(error, StorageFullError | NotStoringError | LogFullError):
            return False
        self._held.append((send, ended))
        if self._publishing is None or self._publishing.done():
            what = in_phase(self._name)
            log.warning(
                "%s takes no packages and holds its results: %s", self._name, error, extra=what
            )
            self._publishing = asyncio.create_task(self._publish(), name=f"hold {self._name}")
        return True

    async def _publish(self) -> None:
        delay = RETRY_MIN_S
        while self._held:
            await asyncio.sleep(delay)
            send, ended = self._held[0]
            ack = await _outcome(send)
            error = ack.exception()
            if isinstance(error, BrokerError) and error.retriable:
                delay = min(RETRY_MAX_S, max(RETRY_MIN_S, delay * 2))
                continue
            self._held.popleft()
            ended(ack)
            delay = 0.0
        what = in_phase(self._name)
        log.warning("%s goes on: the broker stores again", self._name, extra=what)
        self._room()

    def close(self) -> None:
        """Hold no longer: what is held is redelivered to another worker."""
        if self._publishing is not None:
            self._publishing.cancel()


async def _outcome(send: Send) -> Ack:
    """The ended future of an attempt, whatever way it ended."""
    try:
        ack = await send()
        ack.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait((ack,))
    except BrokerError as error:
        ack = asyncio.get_running_loop().create_future()
        ack.set_exception(error)
    return ack
