"""Work that ends when somebody says stop."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from broker_pipeline.cli.until import or_stop
from broker_pipeline.debug.recordings.recorded import RecordingMeta
from broker_pipeline.debug.recordings.recording import Recording


async def test_what_ends_by_itself_gives_its_result() -> None:
    """Or what it raises."""
    stop = asyncio.Event()

    async def give() -> int:
        return 7

    async def fail() -> int:
        raise ValueError("as asked")

    assert await or_stop(stop, give()) == 7
    with pytest.raises(ValueError, match="as asked"):
        await or_stop(stop, fail())


async def test_what_is_stopped_is_cancelled_before_anything_else_is_done(tmp_path: Path) -> None:
    """A recording that is interrupted so leaves no file."""
    stop = asyncio.Event()
    ended: list[str] = []

    async def write() -> int:
        try:
            with Recording.create(tmp_path / "a.bprec", RecordingMeta()):
                stop.set()
                await asyncio.Event().wait()
        finally:
            ended.append("cancelled")
        return 7

    assert await or_stop(stop, write()) is None
    assert ended == ["cancelled"]
    assert os.listdir(tmp_path) == []
