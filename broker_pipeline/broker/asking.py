"""Questions between connections: requests on subjects that no stream stores.

The server knows at once when a process has died, for its connection dies with it, and says so to
whoever asks (status 503, no responders). A process that hangs is still connected: nothing comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

import nats.errors

from broker_pipeline.broker import headers
from broker_pipeline.broker.api import JetStreamApi
from broker_pipeline.broker.connection import FLUSH_TIMEOUT_S, Connection, cancellable
from broker_pipeline.broker.introspection import (
    ANSWERS_BYTES_MAX,
    ANSWERS_MAX,
    Answerer,
    Presence,
)
from broker_pipeline.errors import BrokerError

log = logging.getLogger(__name__)

# Answers being written; beyond that none is given: a flood of questions must cost no memory.
WRITTEN_MAX = 100
NO_RESPONDERS = "503"


class Asking:
    """Answers and asks on one connection."""

    def __init__(self, connection: Connection, api: JetStreamApi) -> None:
        self._connection = connection
        self._api = api
        self._answering: set[asyncio.Task[None]] = set()

    async def answer(self, subject: str, answerer: Answerer) -> None:
        """See `Broker.answer`."""

        def asked(_: str, reply: str, data: bytes, head: bytes | None) -> None:
            if reply and len(self._answering) < WRITTEN_MAX:
                self._answer(subject, reply, data, answerer)

        await self._connection.subscribe(subject, asked)
        try:
            # The server knows of it from here on.
            await cancellable(self._connection.nc.flush(int(FLUSH_TIMEOUT_S)))
        except (nats.errors.Error, OSError) as error:
            raise self._connection.gone() from error

    def _answer(self, subject: str, reply: str, data: bytes, answerer: Answerer) -> None:
        try:
            answer = answerer(data)
        except Exception:  # whatever it is, it must not end the read loop
            log.exception("a question on %s is not answered", subject)
            return
        most = self._connection.nc.max_payload
        if len(answer) > most:  # the server would cut the connection
            log.warning("an answer on %s has %d bytes, over %d", subject, len(answer), most)
            return
        task = asyncio.ensure_future(self._connection.send(reply, answer))
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

    async def ask_all(self, subject: str, data: bytes, wait_s: float) -> list[bytes]:
        """See `Broker.ask_all`."""
        connection = self._connection
        if not connection.up.is_set():
            raise connection.gone()
        answers: list[bytes] = []
        room = ANSWERS_BYTES_MAX
        ended = asyncio.Event()

        def heard(_: str, __: str, answer: bytes, head: bytes | None) -> None:
            nonlocal room
            if headers.status(head)[0] == NO_RESPONDERS:
                ended.set()
            elif len(answers) < ANSWERS_MAX and room >= len(answer):
                room -= len(answer)
                answers.append(answer)

        inbox = connection.nc.new_inbox()
        subscription = await connection.subscribe(inbox, heard)
        try:
            await connection.send(subject, data, inbox)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await ended.wait()
        finally:
            with contextlib.suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()
        if not answers and not ended.is_set() and not connection.up.is_set():
            raise connection.gone()
        return answers
