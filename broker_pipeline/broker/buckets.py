"""Key-value buckets on JetStream streams, every read answered by the stream's leader."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from broker_pipeline.broker.api import (
    SEQUENCE_IN_FLIGHT,
    WRONG_LAST_SEQUENCE,
    Answer,
    JetStreamApi,
    StreamInfo,
)
from broker_pipeline.broker.port import Entry, Message, PubAck
from broker_pipeline.broker.provision import bucket_stream
from broker_pipeline.errors import PublishRefusedError

_OPERATION = "KV-Operation"
_EXPECTED = "Nats-Expected-Last-Subject-Sequence"

Publish = Callable[[str, bytes, dict[str, str] | None], Awaitable[PubAck]]


class Buckets:
    """Reads and compare-and-set writes. A removed key leaves a marker, as in every NATS client."""

    def __init__(self, api: JetStreamApi, publish: Publish) -> None:
        self._api = api
        self._publish = publish

    async def get(self, bucket: str, key: str) -> Entry | None:
        """The key's value and revision."""
        last = await self._last(bucket, key)
        if last is None or is_marker(last):
            return None
        return Entry(last.data, last.stream_seq)

    async def put(self, bucket: str, key: str, value: bytes) -> int:
        """Set it."""
        return (await self._publish(subject_of(bucket, key), value, None)).stream_seq

    async def create(self, bucket: str, key: str, value: bytes) -> int | None:
        """Set it if it has no value."""
        revision = await self.update(bucket, key, value, 0)
        if revision is None:
            last = await self._last(bucket, key)
            if last is not None and is_marker(last):
                revision = await self.update(bucket, key, value, last.stream_seq)
        return revision

    async def update(self, bucket: str, key: str, value: bytes, revision: int) -> int | None:
        """Set it if its revision is `revision`."""
        return await self._write(bucket, key, value, {_EXPECTED: str(revision)})

    async def delete(self, bucket: str, key: str, revision: int | None) -> bool:
        """Remove it, if its revision is `revision`."""
        headers = {_OPERATION: "DEL"}
        if revision is not None:
            headers[_EXPECTED] = str(revision)
        return await self._write(bucket, key, b"", headers) is not None

    async def listed(self, bucket: str, prefix: str) -> list[str]:
        """The keys below a prefix: the stream's subjects, without reading a message."""
        base = subject_of(bucket, "")
        body = {"subjects_filter": f"{base}{prefix}>"}
        path = f"STREAM.INFO.{bucket_stream(bucket)}"
        info = await self._api.request(path, body, StreamInfo)
        return [subject[len(base) :] for subject in info.state.subjects or {}]

    async def erase(self, bucket: str, key: str) -> None:
        """Remove it without a marker."""
        body = {"filter": subject_of(bucket, key)}
        await self._api.request(f"STREAM.PURGE.{bucket_stream(bucket)}", body, Answer)

    async def _write(
        self, bucket: str, key: str, value: bytes, headers: dict[str, str]
    ) -> int | None:
        try:
            return (await self._publish(subject_of(bucket, key), value, headers)).stream_seq
        except PublishRefusedError as error:
            # Somebody else has written, or is just writing (the answer on several replicas).
            if error.err_code in (WRONG_LAST_SEQUENCE, SEQUENCE_IN_FLIGHT):
                return None
            raise

    async def _last(self, bucket: str, key: str) -> Message | None:
        return await self._api.last_message(bucket_stream(bucket), subject_of(bucket, key))


def subject_of(bucket: str, key: str) -> str:
    """The subject that holds a key."""
    return f"$KV.{bucket}.{key}"


def is_marker(message: Message) -> bool:
    """Whether it says that the key was removed."""
    return _OPERATION in message.headers
