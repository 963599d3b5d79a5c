"""The processes behind the demo: `broker-pipeline up` and `broker-pipeline serve`."""

from __future__ import annotations

import asyncio
import os
import signal
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


class Servers:
    """Module servers as processes, each with a port of its own."""

    def __init__(self, url: str, module: str, note: Callable[[str], None]) -> None:
        self._url = url
        self._module = module
        self._note = note
        self.processes: list[asyncio.subprocess.Process] = []

    async def start(self, count: int) -> None:
        """Start so many more, and return when all have their model. Raises StageError."""
        command = ("-m", "broker_pipeline", "serve", self._module)
        options = ("--port", "0", "--announce", self._url, "--slots", "1")
        begun = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, *command, *options),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
            for _ in range(count)
        ]
        self.processes += begun
        try:
            async with asyncio.timeout(START_S):
                for process in begun:
                    await self._ready(process)
        except TimeoutError as error:
            raise StageError(f"no module server was ready after {START_S:g} s") from error

    async def _ready(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode(errors="replace").rstrip()
        if not line:
            code = await process.wait()
            raise StageError(f"a module server ended with exit code {code}; see its lines above")
        self._note(line)

    def harm(self) -> None:
        """Kill the first one and pause the second, as they are."""
        killed, paused = self.processes[:2]
        killed.send_signal(signal.SIGKILL)
        paused.send_signal(signal.SIGSTOP)
        self._note(f"module server {killed.pid} was killed, {paused.pid} stopped in its tracks")

    async def end(self) -> None:
        """End all of them, however they are."""
        for process in self.processes:
            if process.returncode is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.processes:
            try:
                await asyncio.wait_for(process.wait(), STOP_S)
            except TimeoutError:
                process.kill()


@asynccontextmanager
async def servers_up(
    url: str, module: str, count: int, note: Callable[[str], None]
) -> AsyncIterator[Servers]:
    """So many module servers that announce themselves at the broker. Raises StageError."""
    servers = Servers(url, module, note)
    try:
        await servers.start(count)
        yield servers
    finally:
        await servers.end()


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
