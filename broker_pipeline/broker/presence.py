"""Whether a peer's connection still lives: a request on a subject that only this peer answers.

The server knows at once when a process has died, for its connection dies with it, and says so to
whoever asks (status 503, no responders). A process that hangs is still connected: nothing comes.
"""

from __future__ import annotations

import asyncio

import nats.errors

from broker_pipeline.broker.api import JetStreamApi
from broker_pipeline.broker.connection import FLUSH_TIMEOUT_S, Connection, cancellable
from broker_pipeline.broker.port import Presence
from broker_pipeline.errors import BrokerError

# Answers being written; beyond that none is given: a flood of questions must cost no memory.
ANSWERS_MAX = 100


class Presences:
    """Answers and asks on one connection."""

    def __init__(self, connection: Connection, api: JetStreamApi) -> None:
        self._connection = connection
        self._api = api
        self._answering: set[asyncio.Task[None]] = set()

    async def be_present(self, subject: str) -> None:
        """See `Broker.be_present`."""
        await self._connection.subscribe(subject, self._asked)
        try:
            # The server knows of it from here on.
            await cancellable(self._connection.nc.flush(int(FLUSH_TIMEOUT_S)))
        except (nats.errors.Error, OSError) as error:
            raise self._connection.gone() from error

    def _asked(self, subject: str, reply: str, data: bytes, head: bytes | None) -> None:
        if reply and len(self._answering) < ANSWERS_MAX:
            task = asyncio.ensure_future(self._connection.send(reply, b""))
            self._answering.add(task)
            task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answering.discard(task)
        if not task.cancelled():
            task.exception()  # a connection that is down: whoever asks hears nothing

    async def presence(self, subject: str, timeout_s: float) -> Presence:
        """See `Broker.presence`."""
        try:
            await self._api.ask(subject, b"", timeout_s)
        except nats.errors.NoRespondersError:
            return Presence.GONE
        except nats.errors.TimeoutError:
            return Presence.SILENT
        except (nats.errors.Error, BrokerError) as error:
            raise self._connection.gone() from error
        return Presence.HERE
