"""The processes behind the demo: a broker, controllers and workers, by `broker-pipeline up`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

START_S = 60.0
"""Until every worker has loaded its model."""
STOP_S = 40.0


class StageError(RuntimeError):
    """The processes did not start."""


@asynccontextmanager
async def everything_up(targets: Sequence[str], note: Callable[[str], None]) -> AsyncIterator[str]:
    """Start everything for the pipelines, give the broker's address, and end it all.

    Args:
        note: takes what is said from then on, such as that a worker died and starts again.

    Raises:
        StageError: with what was said last.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "broker_pipeline", "up", *targets, "--port", "0"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # Ctrl-C comes to us alone: we say when it is over
    )
    lines: deque[str] = deque(maxlen=20)
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    reading = asyncio.create_task(_read(process, lines, address, note), name="read up")
    try:
        try:
            yield await asyncio.wait_for(asyncio.shield(address), START_S)
        except TimeoutError as error:
            if address.done():
                raise
            said = "\n".join(lines)
            raise StageError(f"nothing was ready after {START_S:g} s:\n{said}") from error
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            process.kill()
        await reading


async def _read(
    process: asyncio.subprocess.Process,
    lines: deque[str],
    address: asyncio.Future[str],
    note: Callable[[str], None],
) -> None:
    """Read what `up` says to its end, so that it is never held up; find `broker:` and `ready`."""
    assert process.stdout is not None
    url = ""
    async for raw in process.stdout:
        line = raw.decode(errors="replace").rstrip()
        lines.append(line)
        if line.startswith("broker: "):
            url = line.removeprefix("broker: ")
        elif address.done():
            note(line)
        elif line == "ready":
            address.set_result(url)
    if not address.done():
        code = await process.wait()
        said = "\n".join(lines)
        address.set_exception(StageError(f"`up` ended with exit code {code}:\n{said}"))
