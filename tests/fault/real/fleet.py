"""Role processes as a process manager keeps them: started again when they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from broker_pipeline.runtime.lifecycle import SUPERVISED

ROOT = Path(__file__).parents[3]
TARGET = "tests.fault.real.pipeline:pipeline"
RESTART_MIN_S = 0.3
RESTART_MAX_S = 3.0
STEADY_S = 5.0
READ_S = 0.02
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Cost:
    """What a process takes of the machine."""

    rss_mb: float
    fds: int
    cpu_s: float


def cost_of(pid: int) -> Cost | None:
    """Of a process; None where there is none."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        fds = len(os.listdir(f"/proc/{pid}/fd"))
    except (OSError, IndexError):
        return None
    return Cost(pages * PAGE / 2**20, fds, (int(fields[11]) + int(fields[12])) / TICKS)


class Role:
    """One role that is kept running.

    Attributes:
        said: `(time, line)` of each line on its standard output, over all its processes.
        ends: `(time, exit code)` of each process; `asked` of them were our doing.
    """

    def __init__(self, name: str, arguments: tuple[str, ...], directory: Path) -> None:
        self.name = name
        self.said: list[tuple[float, str]] = []
        self.ends: list[tuple[float, int]] = []
        self.pid = 0
        self.ready = asyncio.Event()
        self._arguments = arguments
        self._errors = directory / f"{name}.stderr"
        self._process: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._ending = False

    def start(self) -> None:
        """Keep it running from now on."""
        self._keeping = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    async def _keep(self) -> None:
        delay = RESTART_MIN_S
        while not self._ending:
            begun = time.monotonic()
            await self._run_once()
            if self._ending:
                return
            lasted = time.monotonic() - begun
            delay = RESTART_MIN_S if lasted > STEADY_S else min(RESTART_MAX_S, delay * 2)
            await asyncio.sleep(delay)

    async def _run_once(self) -> None:
        with self._errors.open("ab") as errors:
            self._process = process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "broker_pipeline", *self._arguments),
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", SUPERVISED: "1"},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        self.pid = process.pid
        try:
            assert process.stdout is not None
            async for line in process.stdout:
                self._hear(line.decode(errors="replace").rstrip())
            code = await process.wait()
        finally:
            self.pid = 0
            self.ready.clear()
            if process.returncode is None:
                process.kill()
        self._hear(f"ended with {code}")
        self.ends.append((time.time(), code))

    def _hear(self, line: str) -> None:
        self.said.append((time.time(), line))
        with self._errors.with_suffix(".stdout").open("a") as out:
            out.write(f"{time.time():.3f} {line}\n")
        if "is ready" in line or "stands by" in line or "leads" in line:
            self.ready.set()

    @property
    def leads(self) -> bool:
        """Whether the last that it said of it was that it leads."""
        for _, line in reversed(self.said):
            if " leads " in f" {line}":
                return True
            if any(word in line for word in ("begins anew", "stands by", "ended with")):
                return False
        return False

    def send(self, number: signal.Signals) -> int:
        """Send it a signal; the process that got it, or 0."""
        pid = self.pid
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return pid

    async def pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so long."""
        pid = self.send(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        if pid and pid == self.pid:
            self.send(signal.SIGCONT)

    async def _begun(self, process: asyncio.subprocess.Process) -> None:
        """Until it is ready, or has ended."""
        waits = [asyncio.ensure_future(each) for each in (self.ready.wait(), process.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def end(self, bound_s: float) -> int | None:
        """SIGTERM; its exit code, or None where it had to be killed, or did not run."""
        self._ending = True
        process, code = self._process, None
        if process is not None and process.returncode is None:
            self.send(signal.SIGCONT)
            try:
                async with asyncio.timeout(bound_s):
                    await self._begun(process)  # before that SIGTERM ends it, as any program
                    self.send(signal.SIGTERM)
                    code = await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        elif self._keeping is not None:
            self._keeping.cancel()
        if self._keeping is not None:
            await asyncio.gather(self._keeping, return_exceptions=True)
        return code
