"""Planted bugs of the lanes of stateful phases."""

from __future__ import annotations

from typing import Any

from broker_pipeline.runtime import lanes, phase_worker
from tests.fault.mutations import Patches, mutation


@mutation
def a_lane_is_nobodys() -> Patches:
    """Every worker thinks that another has it."""
    real = lanes.lanes_of
    yield lanes, "lanes_of", lambda name, others, count: real(name, others, count) - {0}


@mutation
def what_a_lost_lane_leaves_is_acked() -> Patches:
    """Instead of being given back to the next owner."""
    real = phase_worker.PhaseWorker._give_back

    async def give_back(self: Any, gone: Any) -> None:
        for here in [each for each in self._here.values() if gone(each.token)]:
            self._broker._tell("ack", here.message)
        await real(self, gone)

    yield phase_worker.PhaseWorker, "_give_back", give_back
