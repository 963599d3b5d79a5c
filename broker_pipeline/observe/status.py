"""What a role answers when somebody asks how it is doing.

Roles answer on a subject that no stream stores, so that asking costs the log nothing, and a role
that nobody asks pays nothing. However many ask, readings take at most 1/READ_COST of the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated

import msgspec

from broker_pipeline.observe.meter import Meter, Sample

REREAD_S = 0.1
"""Whoever asks sooner gets the reading before."""
READ_COST = 200
"""Readings may take 1/200 of the time. One takes some 100 us of the event loop, and about 4 us more
for each package that a worker has."""
TEXT_MAX = 256
"""The longest name in a status; anybody may answer one."""
PHASES_MAX = 1_000

_Text = Annotated[str, msgspec.Meta(max_length=TEXT_MAX)]


class Role(StrEnum):
    """What a process does."""

    CONTROLLER = "controller"
    WORKER = "worker"
    BRIDGE = "bridge"
    SERVER = "server"


class Status(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A role at one moment.

    Attributes:
        name: host and process, as workers have it in journeys.
        pipeline: whose it is; of a module server ''.
        phases: what it runs, CONTROLLER.PHASE each; of a module server the module.
        holder: of a controller its name as a shard's leader.
        address: of a module server where it is called.
        since: when it began, ns since the epoch, by its own clock.
        at: when this was read, by the same clock.
        version: of the program.
        samples: what it has counted; see `catalogue`.
    """

    role: Role
    name: _Text
    pipeline: _Text = ""
    phases: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=PHASES_MAX)] = ()
    holder: _Text = ""
    address: _Text = ""
    since: int = 0
    at: int = 0
    version: _Text = ""
    samples: tuple[Sample, ...] = ()


def read_status(raw: bytes) -> Status | None:
    """A status; None where the bytes are none: anybody may answer."""
    try:
        return msgspec.msgpack.decode(raw, type=Status)
    except (ValueError, RecursionError):
        return None


class Reporter:
    """Answers for one role: `reporter.answer` is an `Answerer`.

    Args:
        who: the role, without what changes.
        meter: what it counts; None: nothing.
        now_ns: the wall clock.
    """

    def __init__(
        self, who: Status, meter: Meter | None, *, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._who = msgspec.structs.replace(who, since=now_ns())
        self._meter = meter
        self._now_ns = now_ns
        self._answer = b""
        self._next_s = float("-inf")

    def answer(self, question: bytes) -> bytes:
        """The status as it is now, or was at the reading before; on the event loop."""
        begun_s = time.perf_counter()
        if begun_s >= self._next_s:
            samples: Sequence[Sample] = () if self._meter is None else self._meter.read()
            status = msgspec.structs.replace(self._who, at=self._now_ns(), samples=tuple(samples))
            self._answer = msgspec.msgpack.encode(status)
            took_s = time.perf_counter() - begun_s
            self._next_s = begun_s + max(REREAD_S, took_s * READ_COST)
        return self._answer
