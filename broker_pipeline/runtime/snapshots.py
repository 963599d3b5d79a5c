"""Where snapshots are kept: parts in a stream, and one head that is compared and swapped.

The order of writing makes a half-written snapshot invisible: the new parts first, then the head
that names them and the older ones that it still needs, and only then are parts purged that it does
not need. A head replaces just the one that its store has loaded or stored before: so a stale leader
can neither put an older head over a newer one, nor a head whose parts another has purged meanwhile.
"""

from __future__ import annotations

import asyncio

import msgspec

from broker_pipeline.broker.port import Broker
from broker_pipeline.core import snapshot
from broker_pipeline.core.machine import Machine
from broker_pipeline.core.names import (
    STATE_BUCKET,
    snapshot_key,
    snapshot_stream,
    snapshot_subject,
)
from broker_pipeline.errors import LeadershipLostError, NotFoundError, SnapshotError


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    """The head as it is stored: with the places of its parts."""

    applied: int
    head: bytes
    parts: list[int]


class SnapshotStore:
    """The snapshots of one shard, over one connection.

    Attributes:
        stored: the head of the snapshot that was loaded or saved last; None before the first.
    """

    def __init__(self, broker: Broker, pipeline: str, shard: int) -> None:
        self._broker = broker
        self._stream = snapshot_stream(pipeline, shard)
        self._subject = snapshot_subject(pipeline, shard)
        self._key = snapshot_key(pipeline, shard)
        self._chain = snapshot.Chain()
        self.stored: snapshot.Head | None = None
        self._places: list[int] = []
        self._revision: int | None = None
        self._purged_below = 0

    async def load(self) -> Machine:
        """The newest snapshot's machine; a new one where there is none.

        Raises:
            SnapshotError: it is of another version, or damaged.
        """
        entry = await self._broker.kv_get(STATE_BUCKET, self._key)
        while entry is not None:
            stored = self._read(entry.value)
            try:
                parts = [
                    (await self._broker.get_message(self._stream, seq)).data for seq in stored.parts
                ]
            except NotFoundError as error:
                read, entry = entry, await self._broker.kv_get(STATE_BUCKET, self._key)
                if entry is not None and entry.revision == read.revision:
                    raise self._damaged(f"a part is missing: {error}") from error
                continue  # a newer one has been stored while this one was read
            try:
                # In a thread: it may take longer than the lease waits for its renewal.
                head = snapshot.read_head(stored.head)
                machine, self._chain = await asyncio.to_thread(snapshot.restore, head, parts)
            except SnapshotError as error:
                if "version" in error.values:
                    raise
                raise self._damaged(str(error)) from error
            self._places, self._revision = stored.parts, entry.revision
            # An older program did not count what module states need, nor what is inside.
            source, inside = (each or machine.applied + 1 for each in machine.oldest())
            self.stored = msgspec.structs.replace(head, oldest_source=source, oldest_inside=inside)
            return machine
        return Machine()

    async def head(self) -> snapshot.Head | None:
        """What the newest snapshot claims, without loading it; None where there is none. Raises
        SnapshotError."""
        entry = await self._broker.kv_get(STATE_BUCKET, self._key)
        return None if entry is None else snapshot.read_head(self._read(entry.value).head)

    def take(self, machine: Machine) -> snapshot.Taken:
        """A snapshot of the machine that was loaded, to be saved before the next is taken. What it
        holds counts as stored from here on: where saving fails, there is nothing more to take."""
        return self._chain.take(machine)

    async def save(self, taken: snapshot.Taken) -> None:
        """Store a snapshot on top of what was loaded or saved before.

        Raises:
            LeadershipLostError: another leader has stored one meanwhile.
        """
        broker = self._broker
        places = self._places[len(self._places) - taken.kept :]
        for part in taken.parts:
            places.append((await broker.publish(self._subject, part)).stream_seq)
        value = msgspec.msgpack.encode(_Stored(taken.applied, taken.head, places))
        if self._revision is None:
            revision = await broker.kv_create(STATE_BUCKET, self._key, value)
        else:
            revision = await broker.kv_update(STATE_BUCKET, self._key, value, self._revision)
        if revision is None:
            raise LeadershipLostError(
                f"another leader has stored the snapshot {self._key!r} meanwhile; this one stops"
            )
        self._places, self._revision = places, revision
        self.stored = snapshot.read_head(taken.head)
        if places[0] > self._purged_below:
            await broker.purge(self._stream, below=places[0])
            self._purged_below = places[0]

    def _read(self, raw: bytes) -> _Stored:
        try:
            return msgspec.msgpack.decode(raw, type=_Stored)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, how: str) -> SnapshotError:
        return SnapshotError(
            f"the snapshot {self._key!r} in bucket {STATE_BUCKET!r} is unreadable ({how}); where "
            "nothing of the log was purged, delete the key to compute the state again; else delete "
            "the stream and deploy again",
            key=self._key,
        )
