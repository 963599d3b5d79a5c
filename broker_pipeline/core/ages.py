"""When packages get too old for a controller (`max_age_s`): by log time, from their arrival.

Those that wait are watched in one heap over all instances. It may hold entries of packages that no
longer wait; they are passed over. What comes out follows from the packages that do, and never from
how the heap came about: a leader that builds it anew from a snapshot decides the same.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from broker_pipeline.core.commands import PackageRef
from broker_pipeline.core.instance import InstanceState
from broker_pipeline.core.plan import ControllerPlan, Plan

NEVER = 1 << 63
"""Later than any log time, which is ns in 63 bits."""
STALE_MIN = 64
"""Entries below which the heap is not worth tidying up."""

Watched = tuple[int, str, int, int]
"""`(deadline, token, controller, sequence)`."""


def deadline_of(rules: ControllerPlan, package: PackageRef) -> int:
    """From when on the package is too old for the controller, ns of log time.

    One whose arrival is not known never is: it comes from a snapshot that did not keep it.
    """
    if rules.max_age_ns is None or not package.arrived:
        return NEVER
    return package.arrived + rules.max_age_ns


class Ages:
    """The deadlines of packages that wait. False where there are none to look after."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._instances: Mapping[str, InstanceState] = {}
        self._heap: list[Watched] = []
        self._size_max = STALE_MIN

    def __len__(self) -> int:
        return len(self._heap)

    def rebuild(self, plan: Plan, instances: Mapping[str, InstanceState]) -> None:
        """Watch what waits in these instances, now and from now on."""
        self._plan, self._instances = plan, instances
        self._heap.clear()
        self._size_max = STALE_MIN
        for index, rules in enumerate(plan.controllers):
            if rules.max_age_ns is None:
                continue
            for instance in instances.values():
                for sequence, package in instance.controllers[index].waiting_packages():
                    self.watch(instance, index, sequence, package)

    def watch(
        self, instance: InstanceState, index: int, sequence: int, package: PackageRef
    ) -> None:
        """Look after a package that waits.

        Tidies up when the heap has doubled since it last did: so at most half of it, or STALE_MIN
        entries, are of packages that waited no longer by then.
        """
        assert self._plan is not None  # it was built for one
        deadline = deadline_of(self._plan.controllers[index], package)
        if deadline == NEVER:
            return
        heapq.heappush(self._heap, (deadline, instance.token, index, sequence))
        if len(self._heap) > self._size_max:
            self._heap = [each for each in self._heap if self._waits(each)]
            heapq.heapify(self._heap)
            self._size_max = max(STALE_MIN, 2 * len(self._heap))

    def soonest(self) -> Watched | None:
        """The one of those that still wait which is too old first; None where none waits."""
        heap = self._heap
        while heap and not self._waits(heap[0]):
            heapq.heappop(heap)
        return heap[0] if heap else None

    def _waits(self, watched: Watched) -> bool:
        """Whether it is of a package that waits: the number may be another's, of a later life."""
        deadline, token, index, sequence = watched
        instance = self._instances.get(token)
        if instance is None:
            return False
        assert self._plan is not None
        package = instance.controllers[index].waiting_package(sequence)
        rules = self._plan.controllers[index]
        return package is not None and deadline_of(rules, package) == deadline
