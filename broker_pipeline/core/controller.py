"""One instance's packages in one controller: admission by window and queue, release by mode."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from operator import attrgetter

import msgspec

from broker_pipeline.core.commands import PackageRef, Stamp
from broker_pipeline.core.plan import ControllerPlan
from broker_pipeline.core.release import RULES, AnyRelease, InOrder, Leaving
from broker_pipeline.journey import Mode, Outcome

_sequence = attrgetter("sequence")
STATELESS = -1
"""In `ControllerState.stored`: the phase has no state."""


class Ticket(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A package that was admitted and has not been dispatched.

    Attributes:
        sequence: its sequence id in this controller.
        admitted: when, ns of log time.
        stamps: what its journey gained since its bytes were last written.
    """

    package: PackageRef
    sequence: int
    admitted: int
    stamps: tuple[Stamp, ...]


class ControllerSnapshot(msgspec.Struct, frozen=True, array_like=True):
    """A `ControllerState` as it is stored."""

    next_sequence: int
    in_flight: dict[int, int]
    waiting: list[Ticket]
    release: AnyRelease
    reached: list[int]
    stored: list[int] = []


class ControllerState:
    """What a controller knows of one instance.

    Attributes:
        next_sequence: the sequence id of the next arrival.
        in_flight: packages that are with the workers: sequence id -> package id.
        waiting: admitted, for a free place in the window, oldest first. None until it is needed:
            an empty deque takes 600 bytes, and most instances never wait.
        release: the mode's rule, with what it holds back.
        reached: for each phase the last sequence id that went through it, and did not end there
            as ERROR or OUTDATED: those leave no trace in a state (NOT_PARALLEL only).
        stored: for each phase the stream sequence of the input after which its state is known to
            be stored, 0 for none, STATELESS where it has no state (NOT_PARALLEL only).
    """

    __slots__ = ("in_flight", "next_sequence", "reached", "release", "stored", "waiting")

    def __init__(self, rules: ControllerPlan) -> None:
        self.next_sequence = 1
        self.in_flight: dict[int, int] = {}
        self.waiting: deque[Ticket] | None = None
        self.release: AnyRelease = RULES[rules.mode]()
        stateful = rules.mode is Mode.NOT_PARALLEL
        self.reached = [0] * len(rules.phases) if stateful else []
        self.stored = _none_stored(rules)

    @property
    def inside(self) -> int:
        """How many packages are in the controller."""
        return len(self.in_flight) + len(self.waiting or ()) + self.release.holding

    def admit(
        self, rules: ControllerPlan, package: PackageRef, time: int, stamps: tuple[Stamp, ...]
    ) -> tuple[Ticket | None, list[Ticket]]:
        """Take an arrival in.

        Returns:
            `(start, overflow)`: the package to dispatch now, and those that leave as OVERFLOW: more
            than one only after a deploy with a smaller queue.
        """
        ticket = Ticket(package, self.next_sequence, time, stamps)
        self.next_sequence += 1
        window, queue_size = rules.window, rules.queue_size
        if window is None or len(self.in_flight) < window:
            self.in_flight[ticket.sequence] = package.id
            return ticket, []
        if queue_size == 0 and not self.waiting:
            return None, [ticket]
        if self.waiting is None:
            self.waiting = deque()
        self.waiting.append(ticket)
        overflow: list[Ticket] = []
        while queue_size is not None and len(self.waiting) > queue_size:
            overflow.append(self.waiting.popleft())
        return None, overflow

    def complete(
        self, sequence: int, package_id: int, phases: int, states: tuple[int, ...] = ()
    ) -> bool:
        """A package came back; False where none of that number is in flight (a repeat).

        Args:
            phases: how many phases it went through, but for one that ended as ERROR or OUTDATED:
                their states changed.
            states: for each phase the input after which its state is known to be stored.
        """
        if self.in_flight.get(sequence) != package_id:
            return False
        del self.in_flight[sequence]
        for index in range(min(phases, len(self.reached))):
            self.reached[index] = sequence
        for index, stream_seq in enumerate(states[: len(self.stored)]):
            if stream_seq > self.stored[index] >= 0:
                self.stored[index] = stream_seq
        return True

    def refuse(self, package: PackageRef, time: int, stamps: tuple[Stamp, ...]) -> Ticket:
        """Give an arrival its number only: it leaves at once."""
        ticket = Ticket(package, self.next_sequence, time, stamps)
        self.next_sequence += 1
        return ticket

    def start_waiting(self, rules: ControllerPlan) -> list[Ticket]:
        """Those waiting for which the window has room now, oldest first; and, after a deploy
        with a smaller queue, none is thrown away: the bound holds from the next arrival on."""
        started: list[Ticket] = []
        window = rules.window
        while self.waiting and (window is None or len(self.in_flight) < window):
            ticket = self.waiting.popleft()
            self.in_flight[ticket.sequence] = ticket.package.id
            started.append(ticket)
        return started

    def let_go(self, sequence: int, package: PackageRef, outcome: Outcome) -> list[Leaving]:
        """What leaves the controller now that this package is done, in this order."""
        if outcome is Outcome.SUCCESS:
            return self.release.succeeded(sequence, package)
        return [(sequence, package, outcome), *self.release.left_early(sequence)]

    def waiting_packages(self) -> Iterator[tuple[int, PackageRef]]:
        """Those that wait, for a place in the window or for their turn, with their numbers."""
        for ticket in self.waiting or ():
            yield ticket.sequence, ticket.package
        if isinstance(self.release, InOrder):
            for sequence, package in self.release.held.items():
                if package is not None:
                    yield sequence, package

    def waiting_package(self, sequence: int) -> PackageRef | None:
        """The one of that number, if it waits."""
        ticket = self._queued(sequence)
        if ticket is not None:
            return ticket.package
        return self.release.held.get(sequence) if isinstance(self.release, InOrder) else None

    def withdraw(self, sequence: int) -> Ticket | None:
        """Take the one of that number out of the queue; None where it is not in it."""
        ticket = self._queued(sequence)
        if ticket is not None and self.waiting is not None:
            self.waiting.remove(ticket)  # mostly the first
        return ticket

    def _queued(self, sequence: int) -> Ticket | None:
        waiting = self.waiting or ()
        place = bisect_left(waiting, sequence, key=_sequence)
        if place < len(waiting) and waiting[place].sequence == sequence:
            return waiting[place]
        return None

    def oldest_source(self) -> int | None:
        """The lowest stream sequence whose bytes are needed again; None where none is."""
        return min((package.source for _, package in self.waiting_packages()), default=None)

    def ids_inside(self) -> list[int]:
        """The ids of the packages in it."""
        ids = list(self.in_flight.values())
        if self.waiting or self.release.holding:
            ids += [package.id for _, package in self.waiting_packages()]
        return ids

    def oldest_state_input(self, epoch: int) -> int | None:
        """From which stream sequence on the log is needed to compute the states again, in the life
        that began with `epoch`; None where there are none."""
        floors = [
            stream_seq + 1 if stream_seq else epoch
            for stream_seq, reached in zip(self.stored, self.reached, strict=True)
            if stream_seq != STATELESS and (reached or self.in_flight)
        ]
        return min(floors, default=None)

    def dump(self) -> ControllerSnapshot:
        """As it is stored."""
        return ControllerSnapshot(
            self.next_sequence,
            self.in_flight,
            list(self.waiting or ()),
            self.release,
            self.reached,
            self.stored,
        )

    @classmethod
    def load(cls, rules: ControllerPlan, stored: ControllerSnapshot) -> ControllerState:
        """From what was stored."""
        state = cls.__new__(cls)
        state.next_sequence = stored.next_sequence
        state.in_flight = stored.in_flight
        state.waiting = deque(stored.waiting) if stored.waiting else None
        state.release = stored.release
        state.reached = stored.reached
        # A snapshot of an older version says nothing of it: then all is needed.
        state.stored = stored.stored or _none_stored(rules)
        return state


def _none_stored(rules: ControllerPlan) -> list[int]:
    """No state of any phase is known to be stored."""
    if rules.mode is not Mode.NOT_PARALLEL:
        return []
    return [0 if phase.stateful else STATELESS for phase in rules.phases]
