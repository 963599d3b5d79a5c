"""In which order packages leave a controller: one rule a mode, one table.

A rule is told which packages finished with SUCCESS (`succeeded`) or left with another outcome
(`left_early`), and answers with those that leave now, in order. `holding` counts those that are
done and wait for their turn.
"""

from __future__ import annotations

import msgspec

from broker_pipeline.core.commands import PackageRef
from broker_pipeline.journey import Mode, Outcome

Leaving = tuple[int, PackageRef, Outcome]
"""`(sequence, package, outcome)`."""


class AtOnce(msgspec.Struct, array_like=True, tag="any"):
    """NOT_PARALLEL and NO_ORDER: a package leaves when it finishes."""

    @property
    def holding(self) -> int:
        """None ever waits."""
        return 0

    def succeeded(self, sequence: int, package: PackageRef) -> list[Leaving]:
        """It leaves."""
        return [(sequence, package, Outcome.SUCCESS)]

    def left_early(self, sequence: int) -> list[Leaving]:
        """Nobody waited for it."""
        return []


class InOrder(msgspec.Struct, array_like=True, tag="seq"):
    """ORDER_BY_SEQUENCE: a package leaves when all before it have left.

    Attributes:
        turn: the sequence id that leaves next.
        held: what came back ahead of its turn; None for one that left early.
    """

    turn: int = 1
    held: dict[int, PackageRef | None] = {}

    @property
    def holding(self) -> int:
        """Those that are done; the places of early leavers are no packages."""
        return sum(1 for package in self.held.values() if package is not None)

    def succeeded(self, sequence: int, package: PackageRef) -> list[Leaving]:
        """It leaves if it is its turn, with all behind it that were waiting for it."""
        if sequence != self.turn:
            self.held[sequence] = package
            return []
        self.turn += 1
        if not self.held:
            return [(sequence, package, Outcome.SUCCESS)]
        return [(sequence, package, Outcome.SUCCESS), *self._next()]

    def left_early(self, sequence: int) -> list[Leaving]:
        """Its place in the order is given up."""
        if sequence != self.turn:
            self.held[sequence] = None
            return []
        self.turn += 1
        return self._next()

    def _next(self) -> list[Leaving]:
        leaving: list[Leaving] = []
        while self.turn in self.held:
            package = self.held.pop(self.turn)
            if package is not None:
                leaving.append((self.turn, package, Outcome.SUCCESS))
            self.turn += 1
        return leaving


class FirstWins(msgspec.Struct, array_like=True, tag="first"):
    """FIRST_WINS: a package leaves when it finishes, and is OUTDATED if it was overtaken.

    Attributes:
        newest: the highest sequence id that has left with SUCCESS. One that left early took no
            one's place: it overtakes nobody.
    """

    newest: int = 0

    @property
    def holding(self) -> int:
        """None ever waits."""
        return 0

    def succeeded(self, sequence: int, package: PackageRef) -> list[Leaving]:
        """It leaves, with the outcome that its place gives it."""
        if sequence < self.newest:
            return [(sequence, package, Outcome.OUTDATED)]
        self.newest = sequence
        return [(sequence, package, Outcome.SUCCESS)]

    def left_early(self, sequence: int) -> list[Leaving]:
        """Nobody waited for it."""
        return []


AnyRelease = AtOnce | InOrder | FirstWins
RULES: dict[Mode, type[AnyRelease]] = {
    Mode.NOT_PARALLEL: AtOnce,
    Mode.NO_ORDER: AtOnce,
    Mode.ORDER_BY_SEQUENCE: InOrder,
    Mode.FIRST_WINS: FirstWins,
}
