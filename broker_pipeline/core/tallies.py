"""How many packages came, left and are inside: in the pipeline and each controller, by the machine.

They follow from the log like everything else in it, and are part of the snapshot: a leader that
takes over goes on with the counts of the one before, and counts nothing twice. At any time as many
came as have left and are inside.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import msgspec

from broker_pipeline.core.instance import InstanceState
from broker_pipeline.core.plan import Plan
from broker_pipeline.journey import Outcome

OUTCOMES = tuple(Outcome)
"""The order of `Tally.left`; part of the snapshot's format."""
_PLACE = {outcome: place for place, outcome in enumerate(OUTCOMES)}


class Tally(msgspec.Struct, array_like=True):
    """The counts of one controller, or of the pipeline.

    Attributes:
        came: packages that were taken in; held, parked and repeated ones are not.
        left: how many left, for each outcome in the order of OUTCOMES.
        processing: are with the workers; of the pipeline: are inside.
        waiting_in: wait for a place in the window.
        waiting_out: are done, and wait for their turn.
    """

    came: int = 0
    left: list[int] = msgspec.field(default_factory=lambda: [0] * len(OUTCOMES))
    processing: int = 0
    waiting_in: int = 0
    waiting_out: int = 0

    @property
    def inside(self) -> int:
        """How many are in it."""
        return self.processing + self.waiting_in + self.waiting_out

    def leave(self, outcome: Outcome) -> None:
        """One leaves; where it was counts elsewhere."""
        self.left[0 if outcome is Outcome.SUCCESS else _PLACE[outcome]] += 1


class Tallies:
    """The counts of a shard; what the machine does is told by it as it does it.

    Attributes:
        pipeline: of all that is inside.
        controllers: in the order of the plan.
    """

    def __init__(self) -> None:
        self.pipeline = Tally()
        self.controllers: list[Tally] = []
        self._names: list[str] = []

    def follow(self, plan: Plan) -> None:
        """Count for this plan from now on: a controller that it had before goes on."""
        known = dict(zip(self._names, self.controllers, strict=True))
        self._names = [controller.name for controller in plan.controllers]
        self.controllers = [known.get(name) or Tally() for name in self._names]

    # -- what happens ---------------------------------------------------------------------------
    def came(self) -> None:
        """A package comes into the pipeline."""
        self.pipeline.came += 1
        self.pipeline.processing += 1

    def gone(self, outcome: Outcome) -> None:
        """It leaves the pipeline."""
        self.pipeline.processing -= 1
        self.pipeline.leave(outcome)

    def admitted(self, index: int, starts: bool, overflow: int) -> None:
        """A package comes into a controller, and so many that wait are pushed out for it."""
        tally = self.controllers[index]
        tally.came += 1
        if starts:
            tally.processing += 1
        else:
            tally.waiting_in += 1 - overflow

    def refused(self, index: int) -> None:
        """A package comes into a controller, and is not to stay."""
        self.controllers[index].came += 1

    def started(self, index: int) -> None:
        """One that waited goes to the workers."""
        tally = self.controllers[index]
        tally.waiting_in -= 1
        tally.processing += 1

    def withdrawn(self, index: int) -> None:
        """One that waited for a place waits no more, and is not to stay."""
        self.controllers[index].waiting_in -= 1

    def came_back(self, index: int, leaving: int) -> None:
        """One comes back from the workers; so many leave, itself and those that waited for it,
        or none, where it waits for its turn."""
        tally = self.controllers[index]
        tally.processing -= 1
        tally.waiting_out += 1 - leaving

    def released(self, index: int, waited: int) -> None:
        """So many leave that waited for their turn."""
        self.controllers[index].waiting_out -= waited

    # -- snapshots ------------------------------------------------------------------------------
    def dump(self) -> list[Tally]:
        """As they are stored: the pipeline's first."""
        return [self.pipeline, *self.controllers]

    def load(self, stored: list[Tally], plan: Plan, instances: Iterable[InstanceState]) -> None:
        """Go on from what was stored. Where an older program has not counted, counting begins with
        what is inside."""
        self.follow(plan)
        if len(stored) == 1 + len(self.controllers):
            self.pipeline, *self.controllers = copy.deepcopy(stored)  # of a head that is kept
            return
        for instance in instances:
            for tally, state in zip(self.controllers, instance.controllers, strict=True):
                tally.processing += len(state.in_flight)
                tally.waiting_in += len(state.waiting or ())
                tally.waiting_out += state.release.holding
        for tally in self.controllers:
            tally.came = tally.inside
        self.pipeline.came = self.pipeline.processing = sum(t.inside for t in self.controllers)
