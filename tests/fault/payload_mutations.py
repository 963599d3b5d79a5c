"""Planted bugs around large payloads; see `mutations`."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import msgspec

from broker_pipeline.broker import large_payloads
from broker_pipeline.core.instance import InstanceState
from broker_pipeline.runtime.loading import Loading
from broker_pipeline.runtime.sweeping import Sweeper
from tests.fault.link import Link
from tests.fault.mutations import Patches, mutation


@mutation
def a_sweep_ignores_what_is_inside() -> Patches:
    """As if every package had left that has arrived."""
    yield InstanceState, "oldest_inside", lambda self, by_controller: None


def _marks(**wrong: int) -> Patches:
    real = Sweeper._note

    async def note(self: Any, mark: Any) -> Any:
        return await real(self, msgspec.structs.replace(mark, **wrong) if mark.end else mark)

    yield Sweeper, "_note", note


@mutation
def a_sweep_does_not_wait_for_the_log() -> Patches:
    """What can be read still refers to what is gone."""
    yield from _marks(end=-1)


@mutation
def a_sweep_does_not_wait_for_the_window() -> Patches:
    """A log that is full keeps less than a window, and takes the payloads along."""
    yield from _marks(end_time=0)


@mutation
def a_sweep_forgets_that_payloads_come_before_their_packages() -> Patches:
    """One that was put just before the mark goes with those of packages that have left."""
    real = Link.objects_purge

    async def purge(self: Any, bucket: str, *, before: int) -> None:
        await real(self, bucket, before=self.network.now_ns())

    yield Link, "objects_purge", purge


@mutation
def nobody_sweeps() -> Patches:
    """Payloads stay for ever."""

    async def purge(self: Any, bucket: str, *, before: int) -> None:
        return None

    yield Link, "objects_purge", purge


@mutation
def a_package_goes_on_before_its_payload_is_stored() -> Patches:
    """Whoever dies meanwhile leaves a reference to nothing."""
    real = large_payloads.LargePayloads.put

    class Behind:
        """A broker that answers first."""

        def __init__(self, broker: Any) -> None:
            self._broker = broker

        async def object_put(self, *args: Any) -> None:
            task = asyncio.create_task(self._soon(*args))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

        async def _soon(self, *args: Any) -> None:
            await asyncio.sleep(0.01)
            await self._broker.object_put(*args)

    async def put(self: Any, data: bytes, name: str = "") -> Any:
        broker, self._broker = self._broker, Behind(self._broker)
        try:
            return await real(self, data, name)
        finally:
            self._broker = broker

    yield large_payloads.LargePayloads, "put", put


@mutation
def a_payload_is_never_put_again() -> Patches:
    """However long its package waits to be sent."""
    real = large_payloads.Upload.message

    async def message(self: Any) -> bytes:
        if self._message:
            self._begun = math.inf
        return await real(self)

    yield large_payloads.Upload, "message", message


@mutation
def a_recorded_input_is_run_again_without_its_payload() -> Patches:
    """A state is computed from what was not there."""

    async def fetch_again(self: Any, envelope: Any) -> None:
        envelope.ClearField("reference")

    yield Loading, "fetch_again", fetch_again
