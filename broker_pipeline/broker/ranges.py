"""Waiting for the end of a range that is read: it is there, or what is left of it was purged."""

from __future__ import annotations

import asyncio
from typing import Any

from broker_pipeline.broker.api import JetStreamApi
from broker_pipeline.broker.port import Message
from broker_pipeline.broker.pull import Reader
from broker_pipeline.errors import BrokerUnavailableError, NotFoundError

RANGE_STALL_S = 15.0
"""Reading a range gives up when nothing has come for so long."""
RANGE_LOOK_S = 1.0
"""After a silence of so long the broker is asked whether anything is still to come."""


async def until_done(
    api: JetStreamApi,
    done: asyncio.Event,
    reader: Reader,
    found: list[Message],
    *,
    stream: str,
    filter: str,
    start_seq: int,
    end: int,
) -> None:
    """Return when the range is read.

    Raises:
        BrokerUnavailableError: nothing comes, though there is something.
    """
    waiting: asyncio.Task[Any] = asyncio.ensure_future(done.wait())
    loop = asyncio.get_running_loop()
    before, since = 0, loop.time()
    try:
        while not done.is_set():
            await asyncio.wait(
                [waiting, reader.failed],
                timeout=RANGE_LOOK_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if reader.failed.done():
                reader.failed.result()
            if done.is_set():
                return
            if len(found) > before:
                before, since = len(found), loop.time()
                continue
            next_seq = found[-1].stream_seq + 1 if found else start_seq
            if not await _is_there(api, stream, filter, next_seq, end):
                return
            if loop.time() - since >= RANGE_STALL_S:
                raise BrokerUnavailableError(
                    f"reading stream {stream!r} has stalled for {RANGE_STALL_S:g} s; expected "
                    "the broker to deliver; try again when it is up",
                    stream=stream,
                )
    finally:
        waiting.cancel()


async def _is_there(api: JetStreamApi, stream: str, filter: str, next_seq: int, end: int) -> bool:
    """Whether the range has a message more: the last may be purged while it is read."""
    try:
        body = {"seq": next_seq, "next_by_subj": filter}
        return (await api.stored_message(stream, body)).stream_seq <= end
    except NotFoundError:
        return False
