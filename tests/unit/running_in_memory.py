"""What tests of `run_in_memory` share."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from broker_pipeline import (
    Controller,
    DataPackage,
    ExecutionModule,
    Mode,
    Phase,
    Pipeline,
    Run,
    StatefulModule,
)


class Upper(ExecutionModule[str]):
    """Empty text leaves as EXIT, 'bad' as ERROR."""

    def execute(self, package: DataPackage[str], run: Run) -> None:
        if not package.data:
            run.exit("empty")
        if package.data == "bad":
            package.data = "half done"
            raise ValueError("bad text")
        package.data = package.data.upper()


class Count(msgspec.Struct):
    seen: list[str] = []


class Remember(StatefulModule[str, Count]):
    """Changes its state in place, and fails after that."""

    def initial_state(self) -> Count:
        return Count()

    def execute(self, package: DataPackage[str], run: Run, state: Count) -> Count:
        state.seen.append(package.data)
        if package.data == "bad":
            raise ValueError("bad text")
        package.data = "+".join(state.seen)
        return state


def pipeline(mode: Mode, *modules: Any, **bounds: Any) -> Pipeline:
    phase = Phase("work", modules or [Upper()])
    return Pipeline("test", [Controller("only", [phase], mode=mode, **bounds)])


class Life(ExecutionModule[str]):
    """Tells what was called, async."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    async def setup(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.calls.append("setup")

    async def execute(self, package: DataPackage[str], run: Run) -> None:
        assert self.loop is asyncio.get_running_loop()
        self.calls.append(package.data)

    async def teardown(self) -> None:
        self.calls.append("teardown")
