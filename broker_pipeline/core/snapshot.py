"""Snapshots: the machine's state at one place in the log, as bytes.

References only, no payloads: those stay in the log. A snapshot is a head and a chain of slices.
Taking one adds a slice with what has changed since the one before, so that it costs what has
changed and not what there is; see docs/adr/0010. Slices are cut into parts of a bounded size, so
that they fit the broker's message limit.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable

import msgspec

from broker_pipeline.core.events import Event
from broker_pipeline.core.instance import InstanceSnapshot, InstanceState
from broker_pipeline.core.machine import Machine
from broker_pipeline.core.plan import Plan
from broker_pipeline.core.tallies import Tally
from broker_pipeline.errors import PlanError, SnapshotError

VERSION = 2
"""1: always whole. Still read, as the first slice of a chain."""
PART_BYTES = 512 * 1024
"""Well below the broker's usual limit of 1 MiB a message."""
WHOLE_MAX = 1_000
"""Up to so many instances a slice holds all, about 10 ms: such chains have one slice."""
SLICES = 64
"""A chain longer than this is shortened from its old end by 1/64 of the instances a snapshot: with
100,000 that is 1,563, about 15 ms."""
SLICES_MAX = 2 * SLICES
"""No chain is longer. A head names each slice in some 20 bytes, its place included."""
LOOKS = 8
"""For each instance that is moved on, at most so many tokens are looked at whose slice has none any
more: what is left of a slice of 100,000 is looked through in 8 snapshots."""
CHANGED_MAX = 1_500
"""So many changed instances, about 15 ms, are worth a snapshot before it is time for one."""


class Slice(msgspec.Struct, frozen=True, array_like=True):
    """One slice, as the head names it.

    Attributes:
        version: how its bytes are to be read: the version of the snapshot that it came with.
        parts: how many parts it was cut into.
        checksum: CRC-32 of them together: parts of another slice are not taken for its own.
    """

    version: int
    parts: int
    checksum: int


class Head(msgspec.Struct, frozen=True, array_like=True):
    """What a snapshot claims: everything up to `applied` is in it, and its output is stored.

    Attributes:
        slices: oldest first; what a later one says of an instance is what counts.
        oldest_inside: every package up to `applied` with a lower id has left; 0: not said, by an
            older program.
        tallies: how many packages came and left; empty: not said, by an older program.
        gaps_paused: whether no time passes for producers' gaps.
    """

    version: int
    applied: int
    time: int
    plan: bytes
    oldest_source: int
    slices: list[Slice]
    oldest_inside: int = 0
    tallies: list[Tally] = []
    gaps_paused: bool = False


class Body(msgspec.Struct, frozen=True, array_like=True):
    """A slice: instances by token, and the tokens of those that ended. `gaps` and `unplanned` are
    whole in each, and those of the last slice count."""

    instances: dict[str, msgspec.Raw]
    ended: list[str]
    gaps: list[tuple[str, str, int]]
    unplanned: list[Event]


class _HeadV1(msgspec.Struct, frozen=True, array_like=True):
    version: int
    applied: int
    time: int
    plan: bytes
    parts: int
    checksum: int
    oldest_source: int


class _BodyV1(msgspec.Struct, frozen=True, array_like=True):
    instances: list[msgspec.Raw]
    gaps: list[tuple[str, str, int]]
    unplanned: list[Event]


class Taken(msgspec.Struct, frozen=True):
    """A snapshot to store.

    Attributes:
        parts: of its newest slice.
        kept: how many of the parts before them, the last ones, it still needs.
    """

    applied: int
    head: bytes
    parts: list[bytes]
    kept: int


class _Held(msgspec.Struct):
    """A slice of the chain, with the tokens that it may be needed for."""

    number: int
    slice: Slice
    tokens: list[str]


_pack = msgspec.msgpack.Encoder().encode
_head = msgspec.msgpack.Decoder(Head).decode
_head_v1 = msgspec.msgpack.Decoder(_HeadV1).decode
_body = msgspec.msgpack.Decoder(Body).decode
_body_v1 = msgspec.msgpack.Decoder(_BodyV1).decode
_instance = msgspec.msgpack.Decoder(InstanceSnapshot).decode
_CHECKSUM_BYTES = 4


class Chain:
    """The slices that hold a machine's state, for one machine from its beginning or restoring on.

    Each instance knows the number of the slice that holds it as it is; one that changed is held by
    none, and is in the next.
    """

    def __init__(self) -> None:
        self._held: deque[_Held] = deque()
        self._next = 0

    def take(self, machine: Machine) -> Taken:
        """Add a slice: what changed since the last, and what the oldest slices alone hold, if the
        chain gets long."""
        source, inside = machine.oldest()
        tokens, ended = self._due(machine)
        if len(tokens) == len(machine.instances):
            self._held.clear()
            ended = []
        instances = machine.instances
        body = _pack(
            Body(
                # One by one: what a dump is made of is gone before the next.
                instances={t: msgspec.Raw(_pack(instances[t].dump())) for t in tokens},
                ended=ended,
                gaps=[(token, name, deadline) for (token, name), deadline in machine.gaps.items()],
                unplanned=machine.unplanned,
            )
        )
        parts = [body[start : start + PART_BYTES] for start in range(0, len(body), PART_BYTES)]
        kept = sum(held.slice.parts for held in self._held)
        self._add(machine, Slice(VERSION, len(parts), zlib.crc32(body)), tokens)
        machine.changed.clear()
        head = Head(
            version=VERSION,
            applied=machine.applied,
            time=machine.time,
            plan=machine.plan.to_bytes() if machine.plan else b"",
            oldest_source=source or machine.applied + 1,
            slices=[held.slice for held in self._held],
            oldest_inside=inside or machine.applied + 1,
            tallies=machine.tallies.dump(),
            gaps_paused=machine.gaps.paused,
        )
        packed = _pack(head)
        checksum = zlib.crc32(packed).to_bytes(_CHECKSUM_BYTES, "big")
        return Taken(machine.applied, packed + checksum, parts, kept)

    def _due(self, machine: Machine) -> tuple[list[str], list[str]]:
        """`(tokens, ended)`: what goes into the next slice. Drops the slices that this empties."""
        instances = machine.instances
        if len(instances) <= WHOLE_MAX or not self._held:
            return list(instances), []
        tokens = [token for token in machine.changed if token in instances]
        ended = [token for token in machine.changed if token not in instances]
        move = -(-len(instances) // SLICES)
        looks = LOOKS * move
        while len(self._held) >= SLICES_MAX or (len(self._held) >= SLICES and move and looks):
            oldest = self._held[0]
            if not oldest.tokens:
                self._held.popleft()
                continue
            token = oldest.tokens.pop()
            looks -= looks > 0
            held = token in instances and instances[token].held_by == oldest.number
            if held and token not in machine.changed:
                tokens.append(token)
                move -= move > 0
        return tokens, ended

    def _add(self, machine: Machine, added: Slice, tokens: list[str]) -> None:
        for token in tokens:
            machine.instances[token].held_by = self._next
        self._held.append(_Held(self._next, added, tokens))
        self._next += 1

    @classmethod
    def restored(cls, machine: Machine, slices: list[tuple[Slice, list[str]]]) -> Chain:
        """The chain that a machine was restored from."""
        chain = cls()
        for stored, tokens in slices:
            chain._add(machine, stored, [token for token in tokens if token in machine.instances])
        return chain


def read_head(raw: bytes) -> Head:
    """Read a snapshot's head. Raises SnapshotError where it is of no version that is known."""
    packed, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    if zlib.crc32(packed).to_bytes(_CHECKSUM_BYTES, "big") != checksum:
        raise SnapshotError(f"{len(raw)} bytes are not a snapshot's head: its checksum is wrong")
    try:
        version = msgspec.msgpack.decode(packed)[0]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise SnapshotError(f"{len(raw)} bytes are not a snapshot's head ({error})") from error
    if version not in (1, VERSION):
        raise SnapshotError(
            f"the snapshot has version {version!r}; this program reads versions up to {VERSION}: "
            f"run the program that wrote it",
            version=version,
        )
    try:
        if version == VERSION:
            return _head(packed)
        v1 = _head_v1(packed)
    except ValueError as error:  # what msgspec raises, text that is no UTF-8 included
        raise SnapshotError(f"the head of a snapshot cannot be read ({error})") from error
    whole = Slice(1, v1.parts, v1.checksum)
    return Head(1, v1.applied, v1.time, v1.plan, v1.oldest_source, [whole])


def restore(head: Head, parts: Iterable[bytes]) -> tuple[Machine, Chain]:
    """The machine as it was, and its chain.

    Args:
        parts: those of all slices, in order.

    Raises:
        SnapshotError: a part is missing or cannot be read.
    """
    machine = Machine()
    machine.applied, machine.time = head.applied, head.time
    left = list(parts)
    found: dict[str, msgspec.Raw] = {}
    slices: list[tuple[Slice, list[str]]] = []
    gaps: list[tuple[str, str, int]] = []
    try:
        for stored in head.slices:
            body = _read_slice(stored, left)
            for token in body.ended:
                found.pop(token, None)
            found.update(body.instances)
            slices.append((stored, list(body.instances)))
            gaps = body.gaps
            machine.unplanned = body.unplanned
        machine.gaps.update(((token, name), due) for token, name, due in gaps)
        machine.gaps.paused = head.gaps_paused
        if left:
            raise ValueError(f"{len(left)} parts are of none of its slices")
        if head.plan:
            machine.plan = plan = Plan.from_bytes(head.plan)
            machine.fill([InstanceState.load(_instance(raw), plan) for raw in found.values()])
            machine.tallies.load(head.tallies, plan, machine.instances.values())
            machine.rebuild_ages()
    except (ValueError, RecursionError, PlanError) as error:
        raise SnapshotError(f"a snapshot cannot be read ({error})") from error
    return machine, Chain.restored(machine, slices)


def _read_slice(stored: Slice, left: list[bytes]) -> Body:
    """A slice from its parts, which are taken from the beginning of `left`."""
    raw = b"".join(left[: stored.parts])
    del left[: stored.parts]
    if zlib.crc32(raw) != stored.checksum:
        raise SnapshotError(
            f"the {len(raw)} bytes of a snapshot's parts are not those it speaks of"
        )
    if stored.version != 1:
        return _body(raw)
    v1 = _body_v1(raw)
    return Body({_instance(i).token: i for i in v1.instances}, [], v1.gaps, v1.unplanned)
