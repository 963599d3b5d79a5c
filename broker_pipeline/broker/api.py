"""The JetStream API as requests and typed answers. Errors become those of this package."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Awaitable
from datetime import datetime
from typing import Any, TypeVar

import msgspec
import nats.errors
from nats.aio.msg import Msg

from broker_pipeline.broker import headers
from broker_pipeline.broker.connection import Connection, cancellable
from broker_pipeline.broker.port import Message, StreamState, StreamStatus
from broker_pipeline.broker.storage import storage_full
from broker_pipeline.errors import (
    BrokerError,
    BrokerTooOldError,
    BrokerUnavailableError,
    NotFoundError,
)
from broker_pipeline.journey import NS

REQUEST_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 1.0
ASK_AGAIN_S = 1.0
"""Without an answer for so long a request that may be repeated is sent again: one that comes while
a stream of three replicas elects its leader is answered by nobody. Seen with one request for 5 s:
two controllers waited twice for it, and nothing left for 11 s after a server was killed."""
_REPEATABLE = ("INFO", "STREAM.INFO.", "STREAM.MSG.GET.", "CONSUMER.INFO.", "CONSUMER.CREATE.")
"""Reads, and what the broker takes twice where it is the same."""
RETRY_MIN_S = 0.05
RETRY_MAX_S = 2.0
API_LEVEL_MIN = 4

WRONG_LAST_SEQUENCE = 10071
STREAM_NAME_IN_USE = 10058
# Fast ingest and pipelined writes of one subject on several replicas: another one is in flight.
SEQUENCE_IN_FLIGHT = 10164
CONSUMER_EXISTS = 10148
NO_MESSAGE = 10037


# What msgspec raises on bytes that are not what they should be; text that is no UTF-8 included.
UNREADABLE = (ValueError, RecursionError)


class ApiError(msgspec.Struct, frozen=True):
    """The `error` of any answer."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class Answer(msgspec.Struct, frozen=True):
    """What every answer may hold."""

    error: ApiError | None = None


class AccountApi(msgspec.Struct, frozen=True):
    """What the account may use."""

    level: int = 0


class AccountInfo(Answer, frozen=True):
    """The answer to `INFO`."""

    api: AccountApi = AccountApi()


class StreamExtent(msgspec.Struct, frozen=True):
    """The `state` of a stream."""

    first_seq: int = 0
    last_seq: int = 0
    messages: int = 0
    bytes: int = 0
    subjects: dict[str, int] | None = None


class StreamInfo(Answer, frozen=True):
    """The answer about a stream; its leader gives it, at the time `ts` (RFC 3339)."""

    config: dict[str, Any] = {}
    state: StreamExtent = StreamExtent()
    ts: str = ""


class ConsumerInfo(Answer, frozen=True):
    """The answer about a consumer."""

    config: dict[str, Any] = {}
    num_pending: int = 0


class StoredMessage(msgspec.Struct, frozen=True):
    """A message as the API shows it: headers and data in base64, the time in RFC 3339."""

    subject: str
    seq: int
    time: str
    hdrs: str = ""
    data: str = ""


class MessageAnswer(Answer, frozen=True):
    """The answer to `STREAM.MSG.GET`."""

    message: StoredMessage | None = None


A = TypeVar("A", bound=Answer)


class JetStreamApi:
    """Requests to `$JS.API`, each bounded by REQUEST_TIMEOUT_S."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def _answer(self, subject: str, payload: bytes) -> Msg:
        """The answer, asked for again where that does no harm, until REQUEST_TIMEOUT_S is over."""
        if not subject.removeprefix("$JS.API.").startswith(_REPEATABLE):
            return await self.ask(subject, payload, REQUEST_TIMEOUT_S)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + REQUEST_TIMEOUT_S
        while (left_s := deadline - loop.time()) > ASK_AGAIN_S:
            with contextlib.suppress(nats.errors.TimeoutError):
                return await self.ask(subject, payload, ASK_AGAIN_S)
            if self._connection.nc.is_closed:
                raise self._connection.gone()
        return await self.ask(subject, payload, max(left_s, RETRY_MIN_S))

    async def ask(self, subject: str, payload: bytes, timeout_s: float) -> Msg:
        """nats-py's request."""
        return await cancellable(self._connection.nc.request(subject, payload, timeout=timeout_s))

    async def request(self, path: str, body: dict[str, Any] | None, answer: type[A]) -> A:
        """Ask `$JS.API.<path>`.

        Raises:
            NotFoundError: the stream, consumer or message does not exist.
            BrokerError: refused for another reason; `values["err_code"]` says which.
            BrokerUnavailableError: no answer in time.
            ConnectionLostError: the connection is gone.
        """
        payload = b"" if body is None else msgspec.json.encode(body)
        subject = f"$JS.API.{path}"
        try:
            reply = await self._answer(subject, payload)
        except nats.errors.NoRespondersError as error:
            raise BrokerUnavailableError(
                f"the broker has nobody to answer {subject!r}; expected JetStream to be enabled "
                "and started; enable it, or try again when the broker has started",
                subject=subject,
            ) from error
        except nats.errors.TimeoutError as error:
            if self._connection.nc.is_closed:
                raise self._connection.gone() from error
            raise BrokerUnavailableError(
                f"the broker did not answer {subject!r} within {REQUEST_TIMEOUT_S:g} s; try again "
                "when it is up",
                subject=subject,
            ) from error
        except (nats.errors.ConnectionClosedError, nats.errors.OutboundBufferLimitError) as error:
            raise self._connection.gone() from error
        try:
            result = msgspec.json.decode(reply.data, type=answer)
        except UNREADABLE as error:
            raise BrokerError(
                f"the answer to {subject!r} cannot be read ({error}): {reply.data[:80]!r}; "
                "expected that of a JetStream server; look at who else answers on this subject",
                subject=subject,
            ) from error
        if result.error is not None:
            raise _error(subject, result.error)
        return result

    async def answers(self) -> bool:
        """Whether JetStream answers within ANSWER_TIMEOUT_S."""
        try:
            await self.ask("$JS.API.INFO", b"", ANSWER_TIMEOUT_S)
        except (nats.errors.Error, OSError):
            return False
        return True

    async def check_level(self) -> None:
        """Raise BrokerTooOldError unless the broker has what this package needs."""
        try:
            info = await self.request("INFO", None, AccountInfo)
        except BrokerUnavailableError as error:
            raise BrokerTooOldError(
                f"the broker at {self._connection.url!r} does not offer JetStream; expected "
                "nats-server 2.14.5 or later with JetStream enabled; start it with -js",
                url=self._connection.url,
            ) from error
        except BrokerError as error:
            if self._connection.nc.is_closed:
                raise
            raise BrokerTooOldError(
                f"the broker at {self._connection.url!r} does not offer JetStream to this account "
                f"({error}); expected nats-server 2.14.5 or later with JetStream enabled",
                url=self._connection.url,
            ) from error
        if info.api.level < API_LEVEL_MIN:
            raise BrokerTooOldError(
                f"the broker at {self._connection.url!r} has JetStream API level "
                f"{info.api.level!r}; expected {API_LEVEL_MIN} or higher; upgrade it to "
                "nats-server 2.14.5 or later",
                url=self._connection.url,
                level=info.api.level,
            )

    async def stream_state(self, stream: str) -> StreamState:
        """The stream's extent, from its leader."""
        return state_of((await self.stream_info(stream)).state)

    async def stream_info(self, stream: str) -> StreamInfo:
        """All about a stream, from its leader."""
        return await self.request(f"STREAM.INFO.{stream}", None, StreamInfo)

    async def stream_status(self, stream: str) -> StreamStatus:
        """The stream's extent and what it takes."""
        info = await self.stream_info(stream)
        max_bytes = info.config.get("max_bytes", -1)
        subjects = tuple(info.config.get("subjects") or ())
        return StreamStatus(state_of(info.state), subjects, max_bytes if max_bytes >= 0 else None)

    async def time_ns(self, stream: str) -> int:
        """The clock of the stream's leader."""
        info = await self.request(f"STREAM.INFO.{stream}", None, StreamInfo)
        return _nanoseconds(info.ts)

    async def stored_message(self, stream: str, body: dict[str, Any]) -> Message:
        """One message, from the stream's leader (not a direct get, which any replica answers)."""
        answer = await self.request(f"STREAM.MSG.GET.{stream}", body, MessageAnswer)
        if answer.message is None:
            raise BrokerError(f"the answer about {body!r} of stream {stream!r} holds no message")
        stored = answer.message
        try:
            return Message(
                stored.subject,
                base64.b64decode(stored.data),
                headers.parse(base64.b64decode(stored.hdrs)),
                stored.seq,
                _nanoseconds(stored.time),
            )
        except (ValueError, OverflowError) as error:
            raise BrokerError(
                f"the answer about {body!r} of stream {stream!r} cannot be read ({error}); "
                "expected a message as JetStream shows it"
            ) from error

    async def last_message(self, stream: str, subject: str) -> Message | None:
        """The newest message of a subject. Raises NotFoundError when there is no such stream."""
        return await message_or_none(self.stored_message(stream, {"last_by_subj": subject}))


async def message_or_none(asking: Awaitable[Message]) -> Message | None:
    """A stored message, or None where the stream has no such one. Raises NotFoundError where there
    is no stream."""
    try:
        return await asking
    except NotFoundError as error:
        if error.values.get("err_code") == NO_MESSAGE:
            return None
        raise


def state_of(extent: StreamExtent) -> StreamState:
    """The extent as the port has it."""
    # An empty stream reports its first sequence as 0 until it has held a message.
    first = extent.first_seq if extent.messages else extent.last_seq + 1
    return StreamState(first, extent.last_seq, extent.messages, extent.bytes)


async def pause_before_retry(attempt: int) -> None:
    """Wait RETRY_MIN_S, doubled for each attempt, at most RETRY_MAX_S."""
    await asyncio.sleep(min(RETRY_MAX_S, RETRY_MIN_S * 2 ** min(attempt, 10)))


def _error(subject: str, error: ApiError) -> BrokerError:
    if (full := storage_full(subject, error.err_code, error.description)) is not None:
        return full
    kind = NotFoundError if error.code == 404 else BrokerError
    return kind(
        f"the broker refused {subject!r}: {error.description} (code {error.err_code})",
        subject=subject,
        err_code=error.err_code,
        description=error.description,
    )


def _nanoseconds(text: str) -> int:
    """RFC 3339 with up to nine decimals (datetime keeps only six) as ns since the epoch."""
    whole, _, rest = text.partition(".")
    if not rest:
        return int(datetime.fromisoformat(text).timestamp()) * NS
    digits = rest.rstrip("Z")
    zone = ""
    for sign in "+-":
        digits, found, offset = digits.partition(sign)
        zone = found + offset if found else zone
    seconds = int(datetime.fromisoformat(f"{whole}{zone or '+00:00'}").timestamp())
    return seconds * NS + int(digits.ljust(9, "0"))
