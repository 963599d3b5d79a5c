"""A module that gets several packages at once, as a GPU wants them.

python -m examples.batches 1 2 x 4 5
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence

from broker_pipeline import (
    Controller,
    DataPackage,
    ExecutionModule,
    Mode,
    ModuleOptions,
    Phase,
    Pipeline,
    Run,
    connect,
)


class Square(ExecutionModule[str]):
    """Stands for a model on a GPU: a call takes its time, for one as for many."""

    options = ModuleOptions(max_batch=32)

    def execute_batch(self, packages: Sequence[DataPackage[str]], runs: Sequence[Run]) -> None:
        """One call for all of them."""
        time.sleep(0.01)
        for package, run in zip(packages, runs, strict=True):
            if package.data == "0":
                run.leave("nothing to do")  # as run.exit, for this one only
            package.data = str(int(package.data) ** 2)  # raises for one: only that one fails
            run.message = f"one of {len(packages)}"


pipeline = Pipeline(
    "squares",
    [
        Controller(
            "square",
            mode=Mode.ORDER_BY_SEQUENCE,
            phases=[Phase("square", [Square()])],
        ),
    ],
)


async def main(*numbers: str) -> None:
    """Send numbers and print what leaves."""
    async with connect() as client:
        await client.deploy(pipeline)
        async with client.instance(pipeline, "room-1") as room:
            await room.send_many(numbers)
            await room.close()
            async for package in room.results():
                print(package.sequence, package.outcome, repr(package.data), package.reason)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
