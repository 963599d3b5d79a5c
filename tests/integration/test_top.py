"""`top` at a terminal: through a pseudo-terminal, on a real nats-server with real roles."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator
from typing import Any

import pytest
from rich.cells import cell_len

from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.jetstream import JetStreamBroker, connect
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.names import ingress_subject
from broker_pipeline.debug.operation.top import View
from broker_pipeline.observe.meter import Meter
from broker_pipeline.runtime.roles import run_controller, run_worker
from tests.integration import pipelines
from tests.integration.processes import ROOT, Role, until

pytestmark = pytest.mark.timeout(120)

PIPELINE = pipelines.ordered
TARGET = "tests.integration.pipelines:ordered"
HOME, ALTERNATE, BACK = "\x1b[H", "\x1b[?1049h", "\x1b[?1049l"
COMMAND = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
ECHO = 3
"""The place of the local flags in what `tcgetattr` gives."""


class Terminal:
    """A pseudo-terminal with `top` in it, and everything that was written to it."""

    def __init__(self, width: int, height: int, url: str, *options: str) -> None:
        self.width, self.height = width, height
        self.written = ""
        self.master, self.keyboard = pty.openpty()
        self.resize(width, height)
        self.before = termios.tcgetattr(self.keyboard)
        self._command = [sys.executable, "-m", "broker_pipeline", "top", TARGET, "--url", url]
        self._command += options

    def resize(self, width: int, height: int) -> None:
        """Give it another size."""
        self.width, self.height = width, height
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    async def __aenter__(self) -> Terminal:
        """Start `top`."""
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        self.process = await asyncio.create_subprocess_exec(
            *self._command, cwd=ROOT, stdin=self.keyboard, stdout=self.keyboard,
            stderr=asyncio.subprocess.PIPE, env={**environment, "TERM": "xterm-256color"},
            preexec_fn=self._own_terminal,
        )  # fmt: skip
        asyncio.get_running_loop().add_reader(self.master, self._read)
        return self

    def _own_terminal(self) -> None:
        """Ctrl-C is for whom the terminal belongs to."""
        os.setsid()
        fcntl.ioctl(self.keyboard, termios.TIOCSCTTY, 0)

    def _read(self) -> None:
        self.written += os.read(self.master, 65536).decode(errors="replace")

    def screen(self) -> list[str]:
        """The lines that were drawn last, as they were written: what was too wide would wrap."""
        drawn = self.written.split(HOME)
        last = drawn[-1] if drawn[-1].count("\n") >= self.height - 1 else drawn[-2]
        return [COMMAND.sub("", line) for line in last.split(BACK)[0].split("\r\n")]

    async def shows(self, *parts: str) -> list[str]:
        """Wait until the screen has all of this; its lines."""
        found: list[str] = []

        def there() -> bool:
            if self.process.returncode is not None:
                return True
            if self.written.count(HOME) < 3:
                return False
            found[:] = self.screen()
            return all(part in "\n".join(found) for part in parts)

        await until(there, f"{parts} in {found}")
        assert self.process.returncode is None, self.written
        return found

    def press(self, keys: bytes) -> None:
        """As a person does."""
        os.write(self.master, keys)

    async def ended(self) -> tuple[int, str]:
        """Its exit code, and what it wrote to standard error."""
        async with asyncio.timeout(30):
            _, errors = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, errors.decode()

    async def __aexit__(self, *_: object) -> None:
        """Whatever happened."""
        asyncio.get_running_loop().remove_reader(self.master)
        if self.process.returncode is None:
            self.process.kill()
            await self.process.communicate()
        os.close(self.master)
        os.close(self.keyboard)


class Site:
    """A server with the pipeline at work."""

    def __init__(self, server: EmbeddedServer, broker: JetStreamBroker) -> None:
        self.server = server
        self.broker = broker
        self.sending = True

    async def send(self) -> None:
        """Packages, until it is told to stop."""
        while self.sending:
            await self.broker.publish(ingress_subject(PIPELINE.name, "i"), b"x")


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """One controller, one worker, and packages."""
    stop = asyncio.Event()
    async with EmbeddedServer() as server:
        broker = await connect(server.url, reconnect=True, name="test")
        await deploy(broker, PIPELINE)
        site = Site(server, broker)
        ready: list[str] = []
        options: dict[str, Any] = {"announce": ready.append}
        roles = [
            run_controller(server.url, PIPELINE.name, stop, meter=Meter(), **options),
            run_worker(
                server.url, PIPELINE, stop, phases=None, slots=2, target=None, meter=Meter(),
                **options,
            ),
        ]  # fmt: skip
        tasks = [asyncio.create_task(each) for each in roles]
        await until(lambda: len(ready) >= 3, "both are ready")
        sending = asyncio.create_task(site.send())
        yield site
        site.sending = False
        stop.set()
        await asyncio.gather(*tasks, sending)
        await broker.close()


def fits(lines: list[str], width: int, height: int) -> None:
    """No line wraps, and all are there."""
    assert len(lines) <= height
    assert [line for line in lines if cell_len(line) > width] == []


@pytest.mark.parametrize(("width", "height"), [(80, 24), (132, 40)])
async def test_a_pipeline_at_work_on_a_terminal(site: Site, width: int, height: int) -> None:
    """Who leads, what flows, who works; nothing wraps; q ends it and leaves the terminal as it
    was."""
    async with Terminal(width, height, site.server.url) as terminal:
        lines = await terminal.shows("led by", "behind", "worker", "controller", "p99", "success")
        fits(lines, width, height)
        assert lines[0].startswith(" ordered") and not any("no role answers" in e for e in lines)
        assert ("lost/s" in "\n".join(lines)) is (width >= 100)
        (packages,) = [line for line in lines if line.startswith(" packages")]
        assert re.search(r"in [\d.k]+/s +out [\d.k]+/s +inside \d+ +p50 [\d.]+ .?s", packages)
        assert not termios.tcgetattr(terminal.keyboard)[ECHO] & termios.ECHO
        terminal.press(b"xq")
        assert await terminal.ended() == (0, "")
        assert terminal.written.count(ALTERNATE) == terminal.written.count(BACK) == 1
        assert termios.tcgetattr(terminal.keyboard) == terminal.before


async def test_ctrl_c_ends_it_with_0(site: Site) -> None:
    """As q does; the terminal is as it was."""
    async with Terminal(80, 24, site.server.url) as terminal:
        await terminal.shows("led by")
        terminal.press(b"\x03")
        assert await terminal.ended() == (0, "")
        assert BACK in terminal.written
        assert termios.tcgetattr(terminal.keyboard) == terminal.before


async def test_another_size_is_drawn_at_once(site: Site) -> None:
    """Long before the next look."""
    async with Terminal(132, 40, site.server.url, "--interval", "60") as terminal:
        await terminal.shows("led by", "lost/s")
        terminal.resize(80, 12)
        lines = await terminal.shows("more lines")
        fits(lines, 80, 12)
        assert "lost/s" not in "\n".join(lines)


async def test_a_broker_that_goes_away_is_said(site: Site) -> None:
    """What was seen last stays; it still ends with q."""
    async with Terminal(80, 24, site.server.url) as terminal:
        await terminal.shows("led by")
        site.sending = False
        assert site.server.pid
        os.kill(site.server.pid, signal.SIGSTOP)
        try:
            lines = await terminal.shows("does not answer", "led by")
            fits(lines, 80, 24)
        finally:
            os.kill(site.server.pid, signal.SIGCONT)

        def answers() -> bool:
            return "does not answer" not in "\n".join(terminal.screen())

        await until(answers, "it answers again")
        terminal.press(b"q")
        assert await terminal.ended() == (0, "")


async def once(url: str, *options: str) -> tuple[int, list[str]]:
    """`top` where standard output is no terminal."""
    role = await Role.start("top", TARGET, "--url", url, *options, errors=asyncio.subprocess.STDOUT)
    code = await role.ended()
    return code, role.lines


async def test_without_a_terminal_it_looks_once(site: Site) -> None:
    """With or without --once; as JSON with every key."""
    for options in ((), ("--once",)):
        code, lines = await once(site.server.url, *options)
        assert code == 0 and any("led by" in line for line in lines)
        assert "\x1b" not in "".join(lines)
        fits(lines, 80, 24)
    code, lines = await once(site.server.url, "--once", "--json")
    assert code == 0 and len(lines) == 1
    told = json.loads(lines[0])
    assert set(told) == set(View.__struct_fields__)
    assert told["total"]["flow"]["in_s"] > 0 and told["shards"][0]["answers"]
    assert {each["role"] for each in told["roles"]} == {"controller", "worker"}
    assert told["phases"][0]["running"] == 1


async def test_what_is_not_deployed_cannot_be_watched() -> None:
    """Exit code 2 and one line; also where there is no broker."""
    async with EmbeddedServer() as server:
        code, lines = await once(server.url)
        assert code == 2 and "is not deployed" in lines[0]
        broker = await connect(server.url, reconnect=True, name="test")
        await deploy(broker, PIPELINE)
        code, lines = await once(server.url)
        assert code == 0 and any("nobody leads" in line for line in lines)
        assert any("no role answers" in line for line in lines)
        await broker.close()
        url = server.url
    code, lines = await once(url)
    assert code == 2 and "BP302" in lines[0]
    assert len(lines) == 1
