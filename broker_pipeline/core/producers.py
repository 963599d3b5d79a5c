"""Idempotent producers: what they number is taken once, and in their order.

A producer numbers its packages 1, 2, 3, ... A repeat is dropped; one that comes too early is held
until those before it are there, or a bounded time has passed. One that comes after that time has
lost its place, but is not lost: it is taken when it comes.
"""

from __future__ import annotations

import msgspec

HELD_MAX = 1_000
"""Packages that are held for one producer; with one more, the gap is given up at once."""


SKIPPED_MAX = 64
"""Gaps that are remembered for one producer; what comes from one before them counts as a repeat."""


class Held(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """An arrival that waits for one before it."""

    stream_seq: int
    time: int
    malformed: str


class Producer(msgspec.Struct, array_like=True):
    """What is known of one producer.

    Attributes:
        next_number: what it is expected to send next.
        held: arrivals that came ahead, by number.
        gap_since: since when something is missing, ns of log time; 0 where nothing is.
        skipped: `(first, last)` of the gaps that were given up, oldest first.
    """

    next_number: int = 1
    held: dict[int, Held] = {}
    gap_since: int = 0
    skipped: list[tuple[int, int]] = []

    def take(self, number: int, arrival: Held, now: int) -> list[Held]:
        """A numbered arrival; returns those that are to be taken now.

        Args:
            now: log time. Not the arrival's: one that was parked arrived long before.
        """
        if number < self.next_number:
            return [arrival] if self._was_skipped(number) else []
        if number in self.held:
            return []
        self.held[number] = arrival
        if number == self.next_number:
            return self._in_order(now)
        if len(self.held) > HELD_MAX:
            return self.give_up(now)
        if not self.gap_since:
            self.gap_since = now
        return []

    def give_up(self, now: int) -> list[Held]:
        """Go on without what is missing. Something is held."""
        first = min(self.held)
        self.skipped.append((self.next_number, first - 1))
        del self.skipped[:-SKIPPED_MAX]
        self.next_number = first
        return self._in_order(now)

    def skip_to(self, number: int) -> None:
        """Wait for nothing before this number: it is known not to be in this log, as in a replay of
        a part of one. Where something is held already, that gap is waited for as always."""
        if number > self.next_number and not self.held:
            self.skipped.append((self.next_number, number - 1))
            del self.skipped[:-SKIPPED_MAX]
            self.next_number = number

    def _was_skipped(self, number: int) -> bool:
        """Whether the number is of a gap that was given up, which it is not from now on."""
        for index, (first, last) in enumerate(self.skipped):
            if first <= number <= last:
                rest = [(first, number - 1), (number + 1, last)]
                self.skipped[index : index + 1] = [gap for gap in rest if gap[0] <= gap[1]]
                del self.skipped[:-SKIPPED_MAX]
                return True
        return False

    def _in_order(self, now: int) -> list[Held]:
        ready = []
        while self.next_number in self.held:
            ready.append(self.held.pop(self.next_number))
            self.next_number += 1
        self.gap_since = now if self.held else 0
        return ready
