"""Snapshots: the machine's state at one place in the log, as bytes.

References only, no payloads: those stay in the log. A snapshot is a head and parts of a bounded
size, so that it fits the broker's message limit however many instances there are.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import msgspec

from broker_pipeline.core.events import Event
from broker_pipeline.core.instance import InstanceSnapshot, InstanceState
from broker_pipeline.core.machine import Machine
from broker_pipeline.core.plan import Plan
from broker_pipeline.errors import PlanError, SnapshotError

VERSION = 1
PART_BYTES = 512 * 1024
"""Well below the broker's usual limit of 1 MiB a message."""


class Head(msgspec.Struct, frozen=True, array_like=True):
    """What a snapshot claims: everything up to `applied` is in it, and its output is stored.

    Attributes:
        checksum: CRC-32 of the parts together: parts of another snapshot are not taken for its own.
    """

    version: int
    applied: int
    time: int
    plan: bytes
    parts: int
    checksum: int
    oldest_source: int


class Body(msgspec.Struct, frozen=True, array_like=True):
    """What grows with the instances; it is cut into parts."""

    instances: list[InstanceSnapshot]
    gaps: list[tuple[str, str, int]]
    unplanned: list[Event]


_pack = msgspec.msgpack.Encoder().encode
_head = msgspec.msgpack.Decoder(Head).decode
_body = msgspec.msgpack.Decoder(Body).decode
_CHECKSUM_BYTES = 4


def take(machine: Machine) -> tuple[bytes, list[bytes]]:
    """The machine's state as `(head, parts)`. A head ends with its own checksum."""
    body = _pack(
        Body(
            instances=[instance.dump() for instance in machine.instances.values()],
            gaps=[(token, name, deadline) for (token, name), deadline in machine.gaps.items()],
            unplanned=machine.unplanned,
        )
    )
    parts = [body[start : start + PART_BYTES] for start in range(0, len(body), PART_BYTES)]
    head = Head(
        version=VERSION,
        applied=machine.applied,
        time=machine.time,
        plan=machine.plan.to_bytes() if machine.plan else b"",
        parts=len(parts),
        checksum=zlib.crc32(body),
        oldest_source=machine.oldest_source() or machine.applied + 1,
    )
    packed = _pack(head)
    return packed + zlib.crc32(packed).to_bytes(_CHECKSUM_BYTES, "big"), parts


def read_head(raw: bytes) -> Head:
    """Read a snapshot's head. Raises SnapshotError where it is not one of this version."""
    packed, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    if zlib.crc32(packed).to_bytes(_CHECKSUM_BYTES, "big") != checksum:
        raise SnapshotError(f"{len(raw)} bytes are not a snapshot's head: its checksum is wrong")
    try:
        version = msgspec.msgpack.decode(packed)[0]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise SnapshotError(f"{len(raw)} bytes are not a snapshot's head ({error})") from error
    if version != VERSION:
        raise SnapshotError(
            f"the snapshot has version {version!r}; this program reads version {VERSION}: run the "
            f"program that wrote it",
            version=version,
        )
    try:
        return _head(packed)
    except ValueError as error:  # what msgspec raises, text that is no UTF-8 included
        raise SnapshotError(f"the head of a snapshot cannot be read ({error})") from error


def restore(head: Head, parts: Iterable[bytes]) -> Machine:
    """The machine as it was. Raises SnapshotError where a part is missing or cannot be read."""
    body = b"".join(parts)
    if zlib.crc32(body) != head.checksum:
        raise SnapshotError(
            f"the {len(body)} bytes of a snapshot's parts are not those it speaks of"
        )
    machine = Machine()
    machine.applied, machine.time = head.applied, head.time
    try:
        stored = _body(body)
        if head.plan:
            machine.plan = plan = Plan.from_bytes(head.plan)
            machine.instances.update(
                (i.token, InstanceState.load(i, plan)) for i in stored.instances
            )
        machine.gaps.update(((token, name), due) for token, name, due in stored.gaps)
        machine.unplanned = stored.unplanned
    except (ValueError, RecursionError, PlanError) as error:
        raise SnapshotError(f"a snapshot cannot be read ({error})") from error
    return machine
