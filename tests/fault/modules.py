"""What the simulated pipelines run, and what must come of it: a payload says what happens to it.

A payload is `<text>;<place>=<what>;...|<marks>`: at `place` (controller.phase) the package exits
(`x`), fails (`e`) or kills its worker (`p`). Every phase leaves a mark; a stateful one leaves what
it has counted and a digest of all that it has seen.
"""

from __future__ import annotations

import zlib
from typing import Any

import msgspec

from broker_pipeline import ExecutionModule, StatefulModule

EXIT, ERROR, POISON = "x", "e", "p"


class ToldToFail(Exception):
    """The payload asked for it."""


class Tally(msgspec.Struct):
    """A state."""

    count: int = 0
    digest: int = 0


def orders(data: bytes) -> dict[str, str]:
    """What a payload says, by place."""
    head = data.partition(b"|")[0].decode()
    return dict(part.split("=") for part in head.split(";")[1:])


def mark(data: bytes, place: str) -> bytes:
    """What a `Mark` makes of a payload."""
    return data + f"|{place}".encode()


def tally(data: bytes, place: str, state: Tally) -> bytes:
    """What a `Count` makes of a payload; the state is changed."""
    state.count += 1
    state.digest = zlib.crc32(data, state.digest)
    return data + f"|{place}:{state.count}:{state.digest:08x}".encode()


class Mark(ExecutionModule[bytes]):
    """Leaves a mark, and then does what the payload says if it is the last of its phase."""

    def __init__(self, place: str, *, obeys: bool) -> None:
        super().__init__(name="mark")
        self.place = place
        self.obeys = obeys

    def execute(self, package: Any, run: Any) -> None:
        """See the class."""
        data = package.data
        order = orders(data).get(self.place) if self.obeys else None
        package.data = mark(data, self.place)
        if order == EXIT:
            run.exit("told to")
        if order == ERROR:
            raise ToldToFail(self.place)


class Count(StatefulModule[bytes, Tally]):
    """Counts. An exit keeps the new state; an error comes when the state is changed already."""

    def __init__(self, place: str) -> None:
        super().__init__(name="count")
        self.place = place

    def initial_state(self) -> Tally:
        """Nothing seen."""
        return Tally()

    def execute(self, package: Any, run: Any, state: Tally) -> Tally:
        """See the class."""
        data = package.data
        order = orders(data).get(self.place)
        package.data = tally(data, self.place, state)
        if order == EXIT:
            run.exit("told to")
        if order == ERROR:
            raise ToldToFail(self.place)
        return state


class Expected:
    """What a phase must make of its inputs, one after the other."""

    def __init__(self, place: str, kinds: tuple[str, ...]) -> None:
        self.place = place
        self.kinds = kinds
        self.state = Tally()

    def run(self, data: bytes) -> tuple[bytes, str]:
        """The payload after it, and how it ends: '', EXIT or ERROR."""
        order = orders(data).get(self.place, "")
        for position, kind in enumerate(self.kinds):
            obeys = position == len(self.kinds) - 1
            state = Tally(self.state.count, self.state.digest)
            after = mark(data, self.place) if kind == "mark" else tally(data, self.place, state)
            if obeys and order == ERROR:
                return data, ERROR
            data = after
            self.state = state
            if obeys and order == EXIT:
                return data, EXIT
        return data, ""


def build(place: str, kinds: tuple[str, ...]) -> list[Any]:
    """The modules of a phase."""
    last = len(kinds) - 1
    return [
        Count(place) if kind == "count" else Mark(place, obeys=position == last)
        for position, kind in enumerate(kinds)
    ]
