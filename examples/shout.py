"""The smallest pipeline: text comes in, upper-case text goes out.

    python -m examples.shout hello "" world

Without an address `connect` starts a broker of its own, and runs what is deployed in this process.
"""

from __future__ import annotations

import asyncio
import sys

from broker_pipeline import (
    Controller,
    DataPackage,
    ExecutionModule,
    ExternalModule,
    Mode,
    Phase,
    Pipeline,
    Run,
    connect,
)


class Upper(ExecutionModule[str]):
    """Text in upper case; empty text leaves as EXIT."""

    def execute(self, package: DataPackage[str], run: Run) -> None:
        """Shout one text."""
        if not package.data:
            run.exit("empty")
        package.data = package.data.upper()
        run.message = "upper-cased"


pipeline = Pipeline(
    "shout",
    [
        Controller(
            "tidy",
            mode=Mode.ORDER_BY_SEQUENCE,
            max_workers=4,
            queue_size=16,
            phases=[Phase("upper", [Upper()])],
        ),
    ],
)


# The same with its module elsewhere: `broker-pipeline serve examples.shout:Upper --announce URL`.
remote = Pipeline(
    "shout",
    [
        Controller(
            "tidy",
            mode=Mode.ORDER_BY_SEQUENCE,
            max_workers=4,
            queue_size=16,
            phases=[Phase("upper", [ExternalModule("upper", target="registry:///Upper")])],
        ),
    ],
)


async def main(*texts: str) -> None:
    """Send texts and print what leaves."""
    async with connect() as client:
        print(await client.deploy(pipeline))
        async with client.instance(pipeline, "room-1") as room:
            await room.send_many(texts)
            await room.close()
            async for package in room.results():
                print(package.sequence, package.outcome, repr(package.data), package.reason)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
