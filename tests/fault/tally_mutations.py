"""Planted bugs of the counts of what came and left; see `mutations`."""

from __future__ import annotations

from typing import Any

from broker_pipeline.core.tallies import Tallies
from tests.fault.mutations import Patches, mutation


@mutation
def a_takeover_forgets_what_was_counted() -> Patches:
    """The next leader counts from what is inside."""
    real = Tallies.load
    yield Tallies, "load", lambda self, stored, *rest: real(self, [], *rest)


@mutation
def what_overflows_still_waits() -> Patches:
    """What is pushed out of a queue is counted in it for ever."""
    real = Tallies.admitted
    yield Tallies, "admitted", lambda self, index, starts, overflow: real(self, index, starts, 0)


@mutation
def what_is_applied_again_is_counted_again() -> Patches:
    """A leader that takes over adds what it reads to what the one before had counted of it."""
    from broker_pipeline.core import snapshot
    from broker_pipeline.runtime import snapshots

    last: dict[int, Any] = {}
    take, load = snapshots.SnapshotStore.take, snapshots.SnapshotStore.load

    def taking(self: Any, machine: Any) -> snapshot.Taken:
        last[0] = machine.tallies
        return take(self, machine)

    async def loading(self: Any) -> Any:
        machine = await load(self)
        if machine.applied and 0 in last:
            machine.tallies = last[0]
        return machine

    yield snapshots.SnapshotStore, "take", taking
    yield snapshots.SnapshotStore, "load", loading
