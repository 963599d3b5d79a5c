"""Objects on JetStream streams, laid out as the NATS clients and the `nats` tool do.

An object is a run of chunks on a subject of its own, and a meta message by its name that says where
they are, how many, and their digest. A writer replaces a meta that it has seen, and removes the
chunks of just that one: of two writers the later meta wins, and nobody touches its chunks. What a
writer leaves behind that dies in between goes with the bucket's TTL.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import msgspec

from broker_pipeline.broker.api import (
    NO_MESSAGE,
    SEQUENCE_IN_FLIGHT,
    WRONG_LAST_SEQUENCE,
    Answer,
    JetStreamApi,
    pause_before_retry,
)
from broker_pipeline.broker.port import Message, PubAck
from broker_pipeline.broker.provision import object_stream
from broker_pipeline.errors import (
    BrokerError,
    NotFoundError,
    ObjectDamagedError,
    PayloadTooLargeError,
    PublishRefusedError,
)

CHUNK_BYTES = 128 << 10
"""What the other clients take."""
HEADER_ROOM_BYTES = 512
"""What a chunk leaves of the broker's limit."""
UNACKED_CHUNKS_MAX = 32
"""Chunks under way at a time: 4 MiB."""
ATTEMPTS = 10
"""How often a meta is tried while others write the same name, and an object read that changes."""
_ROLLUP = "Nats-Rollup"
_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_DIGEST = "SHA-256="

Publish = Callable[[str, bytes, dict[str, str] | None], Awaitable[PubAck]]
StartPublish = Callable[[str, bytes], Awaitable[asyncio.Future[PubAck]]]


class _Options(msgspec.Struct, omit_defaults=True):
    max_chunk_size: int = 0
    link: dict[str, str] | None = None


class _Meta(msgspec.Struct):
    """The meta message. Those of other clients may say more; it is not needed here.

    Sizes of 0 are written out: nats-py waits for ever for the chunks of an object without them.
    """

    name: str
    bucket: str
    nuid: str
    size: int | None = 0
    mtime: str | None = ""
    chunks: int | None = 0
    digest: str | None = ""
    deleted: bool | None = False
    options: _Options | None = None


class Objects:
    """Puts, gets and deletes. What is put or got is in memory as a whole, once more in chunks."""

    def __init__(
        self,
        api: JetStreamApi,
        *,
        publish: Publish,
        start_publish: StartPublish,
        max_payload: Callable[[], int],
    ) -> None:
        self._api = api
        self._publish = publish
        self._start_publish = start_publish
        self._max_payload = max_payload

    async def put(self, bucket: str, name: str, data: bytes) -> None:
        """See `Broker.object_put`."""
        size = min(CHUNK_BYTES, self._max_payload() - HEADER_ROOM_BYTES)
        if size < 1:
            raise PayloadTooLargeError(
                f"the broker takes messages of {self._max_payload()} bytes; expected more than "
                f"{HEADER_ROOM_BYTES}, so that a chunk of an object fits; raise its max_payload",
                bytes_max=self._max_payload(),
            )
        await self._last(bucket, name)  # a bucket that is missing is told before all the chunks
        nuid = secrets.token_hex(11)
        subject = chunk_subject(bucket, nuid)
        options = _Options(max_chunk_size=size)
        try:
            digest, chunks = await self._put_chunks(subject, data, size)
            meta = _Meta(name, bucket, nuid, len(data), _now(), chunks, digest, options=options)
            await self._replace(bucket, name, meta)
        except PublishRefusedError:
            await self._purge(bucket, nuid)  # no meta will ever speak of them
            raise

    async def _put_chunks(self, subject: str, data: bytes, size: int) -> tuple[str, int]:
        """Pipelined, and hashed on the way, so that nothing else waits for long."""
        digest = hashlib.sha256()
        unacked: list[asyncio.Future[PubAck]] = []
        chunks = 0
        try:
            for start in range(0, len(data), size):
                chunk = data[start : start + size]
                digest.update(chunk)
                unacked.append(await self._start_publish(subject, chunk))
                chunks += 1
                if len(unacked) >= UNACKED_CHUNKS_MAX:
                    await unacked.pop(0)
                await asyncio.sleep(0)
            for ack in unacked:
                await ack
        except PublishRefusedError:
            await asyncio.wait(unacked)  # what is stored yet of it is removed after that
            raise
        finally:
            for ack in unacked:  # after a failure nobody asks for the others
                ack.add_done_callback(lambda done: done.cancelled() or done.exception())
        return _DIGEST + base64.urlsafe_b64encode(digest.digest()).decode(), chunks

    async def _replace(self, bucket: str, name: str, meta: _Meta) -> None:
        """Put a meta in the place of the present one, and remove that one's chunks."""
        data = msgspec.json.encode(meta)
        for attempt in range(ATTEMPTS):
            last = await self._last(bucket, name)
            headers = {_ROLLUP: "sub", _EXPECTED: str(last.stream_seq if last else 0)}
            try:
                await self._publish(meta_subject(bucket, name), data, headers)
            except PublishRefusedError as error:
                if error.err_code not in (WRONG_LAST_SEQUENCE, SEQUENCE_IN_FLIGHT):
                    raise
                await pause_before_retry(attempt)
                continue
            before = None if last is None else _decode(last.data)
            if before is not None and not before.deleted:
                await self._purge(bucket, before.nuid)
            return
        raise PublishRefusedError(
            f"object {name!r} of bucket {bucket!r} was written by others {ATTEMPTS} times while it "
            "was being stored; expected to come between; try again",
            err_code=WRONG_LAST_SEQUENCE,
            bucket=bucket,
        )

    async def get(self, bucket: str, name: str) -> bytes | None:
        """See `Broker.object_get`."""
        seen = 0
        for _ in range(ATTEMPTS):
            last = await self._last(bucket, name)
            meta = _decode(last.data) if last else None
            if last is None or (meta is not None and meta.deleted):
                return None
            if meta is None or last.stream_seq == seen:
                break  # nobody has replaced it: it is damaged
            seen = last.stream_seq
            if meta.options is not None and meta.options.link is not None:
                raise BrokerError(f"object {name!r} of bucket {bucket!r} is a link; put it as data")
            data = await self._chunks(bucket, meta)
            if data is not None:
                return data
        raise ObjectDamagedError(
            f"object {name!r} of bucket {bucket!r} is damaged: its chunks are not what its meta "
            "message says; expected their number, size and digest to agree; put it again",
            bucket=bucket,
            name=name,
        )

    async def _chunks(self, bucket: str, meta: _Meta) -> bytes | None:
        """The data; None where it is not whole."""
        chunks: list[bytes] = []
        digest = hashlib.sha256()
        at = 0
        for _ in range(meta.chunks or 0):
            # One by one, from the leader: a consumer would wait for what is purged meanwhile.
            body = {"seq": at + 1, "next_by_subj": chunk_subject(bucket, meta.nuid)}
            try:
                message = await self._api.stored_message(object_stream(bucket), body)
            except NotFoundError:
                return None
            at = message.stream_seq
            chunks.append(message.data)
            digest.update(message.data)
        data = b"".join(chunks)
        encoded = (meta.digest or "").partition("=")[2]
        if len(data) != (meta.size or 0):
            return None
        # Some clients leave the padding out.
        found = base64.urlsafe_b64encode(digest.digest()).decode()
        return data if found.rstrip("=") == encoded.rstrip("=") else None

    async def delete(self, bucket: str, name: str) -> None:
        """See `Broker.object_delete`."""
        last = await self._last(bucket, name)
        meta = _decode(last.data) if last else None
        if last is not None and (meta is None or not meta.deleted):
            nuid = meta.nuid if meta else secrets.token_hex(11)
            gone = _Meta(name, bucket, nuid, 0, _now(), 0, "", deleted=True)
            await self._replace(bucket, name, gone)

    async def oldest(self, bucket: str) -> int | None:
        """See `Broker.oldest_object`."""
        first = await self._first_from(bucket, 1)
        return None if first is None else first.time

    async def purge(self, bucket: str, before: int) -> None:
        """See `Broker.objects_purge`: times never go back in a stream, and a meta comes behind its
        chunks. So an object goes with its first message, or stays as a whole."""
        state = await self._api.stream_state(object_stream(bucket))
        low, high = state.first_seq, state.last_seq + 1
        while low < high:  # the first message that is to stay is one of low to high
            middle = (low + high) // 2
            found = await self._first_from(bucket, middle)
            if found is None or found.time >= before:
                high = middle
            else:
                low = found.stream_seq + 1
        if low > state.first_seq:
            await self._api.request(f"STREAM.PURGE.{object_stream(bucket)}", {"seq": low}, Answer)

    async def _first_from(self, bucket: str, stream_seq: int) -> Message | None:
        """The first message at that place or behind it; some in between may be gone."""
        body = {"seq": stream_seq, "next_by_subj": f"$O.{bucket}.>"}
        try:
            return await self._api.stored_message(object_stream(bucket), body)
        except NotFoundError as error:
            if error.values.get("err_code") == NO_MESSAGE:
                return None
            raise

    async def _last(self, bucket: str, name: str) -> Message | None:
        """The present meta message. Raises NotFoundError where there is no such bucket."""
        return await self._api.last_message(object_stream(bucket), meta_subject(bucket, name))

    async def _purge(self, bucket: str, nuid: str) -> None:
        """Remove chunks that nothing speaks of; where it fails they go with the bucket's TTL."""
        body = {"filter": chunk_subject(bucket, nuid)}
        with contextlib.suppress(BrokerError):
            await self._api.request(f"STREAM.PURGE.{object_stream(bucket)}", body, Answer)


def chunk_subject(bucket: str, nuid: str) -> str:
    """Where the chunks of one version of an object are."""
    return f"$O.{bucket}.C.{nuid}"


def meta_subject(bucket: str, name: str) -> str:
    """Where an object's meta is."""
    return f"$O.{bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


def _decode(data: bytes) -> _Meta | None:
    """A meta message; None where it is unreadable."""
    try:
        return msgspec.json.decode(data, type=_Meta)
    except (msgspec.MsgspecError, ValueError):
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
