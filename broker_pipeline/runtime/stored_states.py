"""States of a phase's modules as they are stored: with the input that they are after.

What is stored is only ever replaced by what is newer. The log before a stored state may be purged,
so neither a worker that was slow nor one that died half-way may leave less than there was.
"""

from __future__ import annotations

import logging

import msgspec

from broker_pipeline.broker.port import Broker, Entry
from broker_pipeline.runtime.large_states import LargeStates, Reference

log = logging.getLogger(__name__)


class Stored(msgspec.Struct, frozen=True, array_like=True):
    """States after the input `sequence`, which is message `stream_seq`."""

    epoch: int
    sequence: int
    stream_seq: int
    states: dict[str, bytes]


class ToStore(msgspec.Struct, frozen=True):
    """The bytes of a `Stored`, and which it is."""

    epoch: int
    sequence: int
    stream_seq: int
    raw: bytes


class _Which(msgspec.Struct, frozen=True, array_like=True):
    epoch: int
    sequence: int


def before_the_first(epoch: int) -> Stored:
    """No state: those that the modules begin with."""
    return Stored(epoch, 0, epoch - 1, {})


def pack(stored: Stored) -> ToStore:
    """As bytes."""
    raw = msgspec.msgpack.encode(stored)
    return ToStore(stored.epoch, stored.sequence, stored.stream_seq, raw)


class StateStore:
    """The stored states of one phase."""

    def __init__(self, broker: Broker, bucket: str, large: LargeStates, limit: int) -> None:
        self._broker = broker
        self._bucket = bucket
        self._large = large
        self._limit = limit

    def is_large(self, new: ToStore) -> bool:
        """Whether it does not fit into a message."""
        return len(new.raw) > self._limit

    async def put(self, key: str, new: ToStore) -> bool:
        """Store one; False where one that is newer is stored, or another worker was just storing
        one, too."""
        entry = await self._broker.kv_get(self._bucket, key)
        old = _read(entry)
        # By number, not by stream sequence: an input may be in the log twice.
        if old is not None and (old.epoch, old.sequence) >= (new.epoch, new.sequence):
            return False
        value, name = new.raw, ""
        if self.is_large(new):
            # Each has a name of its own: what the key refers to is never written over.
            name = f"{key}.{new.epoch}.{new.sequence}"
            await self._large.put(name, new.raw)
            value = msgspec.msgpack.encode(Reference(name, new.epoch, new.sequence))
        if entry is None:
            revision = await self._broker.kv_create(self._bucket, key, value)
        else:
            revision = await self._broker.kv_update(self._bucket, key, value, entry.revision)
        if revision is not None and isinstance(old, Reference) and old.object != name:
            await self._large.delete(old.object)
        return revision is not None

    async def get(self, key: str) -> Stored | None:
        """The newest that is stored; None where there is none that can be read."""
        before = -1
        while (entry := await self._broker.kv_get(self._bucket, key)) is not None:
            reference = _reference(entry.value)
            if reference is None:
                return _decoded(key, entry.value)
            found = await self._large.get(reference.object)
            if found is not None or entry.revision == before:
                return None if found is None else _decoded(key, found)
            before = entry.revision  # a newer one may have taken its place meanwhile
        return None


def _reference(value: bytes) -> Reference | None:
    try:
        return msgspec.msgpack.decode(value, type=Reference)
    except (ValueError, RecursionError):
        return None


def _read(entry: Entry | None) -> Reference | _Which | None:
    """Which state a key's value is; None where that cannot be read."""
    if entry is None:
        return None
    reference = _reference(entry.value)
    if reference is not None:
        return reference
    try:
        return msgspec.msgpack.decode(entry.value, type=_Which)
    except (ValueError, RecursionError):
        return None


def _decoded(key: str, raw: bytes) -> Stored | None:
    try:
        return msgspec.msgpack.decode(raw, type=Stored)
    except (ValueError, RecursionError):
        log.warning("the stored state %s is unreadable; computing it from the log", key)
        return None
