"""Planted bugs about packages that get too old; see `mutations`."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from broker_pipeline.core import ages as core_ages
from broker_pipeline.core import envelope
from broker_pipeline.core.machine import Machine
from broker_pipeline.journey import NS, Outcome
from broker_pipeline.runtime import ages as runtime_ages
from tests.fault.loop import PROCESS
from tests.fault.mutations import Patches, mutation
from tests.fault.network import EPOCH_NS


@mutation
def what_waits_never_grows_old() -> Patches:
    """Its age is looked at when it comes and when it comes back only."""
    yield Machine, "_pass_ages", lambda self, commands: None


@mutation
def a_result_is_never_too_late() -> Patches:
    """When a package arrived is forgotten on its way through the workers."""
    real = Machine._completed

    def completed(self: Any, event: Any, commands: Any) -> None:
        real(self, msgspec.structs.replace(event, arrived=0), commands)

    yield Machine, "_completed", completed


@mutation
def a_new_leader_forgets_who_grows_old() -> Patches:
    """What waited when the snapshot was taken is not watched."""

    def rebuild(self: Any, plan: Any, instances: Any) -> None:
        self._plan, self._instances = plan, instances
        self._heap.clear()

    yield core_ages.Ages, "rebuild", rebuild


@mutation
def a_worker_trusts_its_own_clock() -> Patches:
    """And so leaves out packages that are not too old."""

    async def read(self: Any) -> None:
        self._read_at = asyncio.get_running_loop().time()
        self._read_ns = EPOCH_NS + int(self._read_at * NS) + PROCESS.get().clock_skew_ns

    yield runtime_ages.Ages, "_read", read


@mutation
def what_was_left_out_never_comes_back() -> Patches:
    """The leader overlooks the completion of a package that was not run."""
    kept = tuple(each for each in envelope._COMPLETIONS if each is not Outcome.OUTDATED)
    yield envelope, "_COMPLETIONS", kept
