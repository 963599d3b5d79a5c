"""A pipeline in which everything happens that is counted, and what a module server runs for it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from broker_pipeline import (
    CombinationModule,
    Controller,
    ExecutionModule,
    ExternalModule,
    Mode,
    ModuleOptions,
    Phase,
    Pipeline,
    StatefulModule,
)

BURST = 12
"""More than one that runs and QUEUE that wait: some overflow."""
QUEUE = 8


class Count(msgspec.Struct):
    """A state."""

    count: int = 0


class Number(StatefulModule[bytes, Count]):
    """Says how many there were before."""

    def initial_state(self) -> Count:
        """None."""
        return Count()

    def execute(self, package: Any, run: Any, state: Count) -> Count:
        """One package."""
        state.count += 1
        package.data = b"%d" % state.count
        return state


class Judge(ExecutionModule[bytes]):
    """One at a time: some leave here, and some never come back in time."""

    options = ModuleOptions(use_mutex=True, timeout_s=0.1)

    async def execute(self, package: Any, run: Any) -> None:
        """One package."""
        number = int(package.data) % 40
        if number == 7:
            run.exit("seven")
        if number == 9:
            raise ValueError("nine")
        if number == 13:
            await asyncio.Event().wait()


class Gather(ExecutionModule[bytes]):
    """Many at once."""

    options = ModuleOptions(max_batch=8)

    def execute_batch(self, packages: Any, runs: Any) -> None:
        """Nothing to do."""


class Shout(ExecutionModule[bytes]):
    """What the module server runs. Every third package takes a while: others overtake it."""

    async def execute(self, package: Any, run: Any) -> None:
        """One package."""
        if int(package.data) % 3 == 0:
            try:
                await asyncio.wait_for(asyncio.Event().wait(), 0.05)
            except TimeoutError:
                package.data += b" at last"


pipeline = Pipeline(
    "monitored",
    [
        Controller(
            "number",
            mode=Mode.NOT_PARALLEL,
            queue_size=QUEUE,
            phases=[Phase("add", [Number()])],
        ),
        Controller(
            "race",
            mode=Mode.FIRST_WINS,
            max_workers=8,
            phases=[
                Phase("judge", [CombinationModule([Judge(), Gather()], name="both")]),
                Phase("shout", [ExternalModule("Shout", target="registry:///Shout")]),
            ],
        ),
    ],
    log_bytes_max=64 << 20,
)
