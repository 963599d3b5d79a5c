"""A pipeline that decides by time and order wherever it can, and what is recorded of it."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import msgspec

from broker_pipeline import Controller, ExecutionModule, Mode, Phase, Pipeline, StatefulModule
from broker_pipeline.broker.port import Broker
from broker_pipeline.core.names import Subjects, stream_name
from broker_pipeline.debug.recordings.recorded import RecordingMeta
from broker_pipeline.debug.recordings.recorder import record_log
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.debug.recordings.selection import Selection

BOUND_S = 60.0
POLL_S = 0.01


class Total(msgspec.Struct):
    """What went by, in one number."""

    digest: bytes = b""


class Chain(StatefulModule[bytes, Total]):
    """Each payload's digest depends on all before it; EXIT and ERROR by the payload."""

    def initial_state(self) -> Total:
        """Nothing."""
        return Total()

    def execute(self, package: Any, run: Any, state: Total) -> Total:
        """One package."""
        state.digest = hashlib.sha256(state.digest + package.data).digest()
        if package.data.endswith(b"7"):
            raise ValueError("a seven")
        if package.data.endswith(b"3"):
            run.exit("a three")
        package.attributes["chain"] = state.digest.hex()[:8]
        return state


class Race(ExecutionModule[bytes]):
    """Takes a while that differs from package to package, so that they overtake each other."""

    async def execute(self, package: Any, run: Any) -> None:
        """One package."""
        await asyncio.sleep(hashlib.sha256(package.data).digest()[0] / 255 * 0.02)
        run.message = f"{len(package.data)} bytes"
        if package.data.endswith(b"5"):
            run.exit("a five")
        package.data = package.data.upper()


def make(**last: Any) -> Pipeline:
    """A chain of every kind of controller."""
    last = {"max_age_s": 2.0, "queue_size": 8, **last}
    return Pipeline(
        "nasty",
        [
            Controller("chain", [Phase("fold", [Chain()])], mode=Mode.NOT_PARALLEL, queue_size=30),
            Controller("race", [Phase("run", [Race()]), Phase("again", [Race()])],
                       mode=Mode.FIRST_WINS, max_workers=3, queue_size=2),
            Controller("order", [Phase("run", [Race()])], mode=Mode.ORDER_BY_SEQUENCE,
                       max_workers=2, **last),
        ],
    )  # fmt: skip


pipeline = make()


async def record(broker: Broker, name: str, path: Path, selection: Selection | None = None) -> None:
    """Record what the log has."""
    with Recording.create(path, RecordingMeta(pipeline=name)) as recording:
        await record_log(broker, name, selection or Selection(), recording)


async def until_left(broker: Broker, name: str, count: int) -> None:
    """Wait until so many packages have left."""
    async with asyncio.timeout(BOUND_S):
        while len(await left(broker, name)) < count:  # noqa: ASYNC110 - other processes do it
            await asyncio.sleep(POLL_S)


async def left(broker: Broker, name: str) -> list[bytes]:
    """What has left, in order."""
    out = f"{Subjects(name).out}>"
    return [m.data for m in await broker.read_range(stream_name(name), out, start_seq=1)]
