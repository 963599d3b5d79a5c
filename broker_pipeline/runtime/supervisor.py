"""All roles on one machine: an embedded broker, and the others as child processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from broker_pipeline.broker import jetstream
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.client.deploy import deploy
from broker_pipeline.errors import ChildFailedError
from broker_pipeline.observe.metering import NOT_EXPOSED, Exposure
from broker_pipeline.pipeline import Pipeline
from broker_pipeline.runtime.lifecycle import SUPERVISED, unless_stopped
from broker_pipeline.runtime.roles import READY, STANDS_BY, Announce
from broker_pipeline.target import load_target

DRAIN_S = 30.0
"""Children that have not ended so long after SIGTERM are killed: what they held is redelivered."""
RESTART_MIN_S = 0.1
RESTART_MAX_S = 5.0
"""Before a child that died is started again, doubling while it dies within RESTART_MAX_S."""
LAST_LINES_S = 1.0
"""How long the last lines of a child that has ended may take to be read."""


@dataclass(frozen=True)
class Child:
    """A role as a process: `arguments` follow `python -m broker_pipeline`."""

    name: str
    arguments: tuple[str, ...]


def plan_children(
    pipelines: Sequence[tuple[str, Pipeline]],
    *,
    workers: int,
    slots: int | None,
    exposure: Exposure = NOT_EXPOSED,
) -> list[Child]:
    """Which processes to start for `(target, pipeline)` pairs.

    Every pipeline gets a controller, `workers` workers where anything runs in them, and a bridge
    where it has external phases. `slots` are those of the workers. Metrics are served by each on a
    port of its own, in the order of the children.
    """
    children: list[Child] = []

    def add(name: str, *arguments: str) -> None:
        children.append(Child(name, (*arguments, *exposure.arguments(len(children)))))

    for target, pipeline in pipelines:
        add(f"controller of {pipeline.name}", "controller", target)
        options = () if slots is None else ("--slots", str(slots))
        phases = [phase for each in pipeline.controllers for phase in each.phases]
        if any(phase.external for phase in phases):
            add(f"bridge of {pipeline.name}", "bridge", target)
        if all(phase.external for phase in phases):
            continue
        for number in range(1, workers + 1):
            add(f"worker {number} of {pipeline.name}", "worker", target, *options)
    return children


async def run_up(
    targets: Sequence[str],
    *,
    port: int,
    store: Path | None,
    workers: int,
    slots: int | None,
    exposure: Exposure = NOT_EXPOSED,
    stop: asyncio.Event,
    announce: Announce,
) -> None:
    """Run everything until `stop` is set, then drain.

    Announces `broker: URL` when the broker answers, and `ready` when every role does.

    Raises:
        TargetError, ServerStartError, PlanError: it cannot begin.
        ServerEndedError: the broker has ended by itself.
        ChildFailedError: a role cannot begin; its own line says why.
    """
    pipelines = [(target, load_target(target)) for target in targets]
    async with EmbeddedServer(port, store) as server:
        announce(f"broker: {server.url}")
        broker = await jetstream.connect(server.url, reconnect=False, name="bp up")
        try:
            for _, pipeline in pipelines:
                await deploy(broker, pipeline)
        finally:
            await broker.close()
        children = plan_children(pipelines, workers=workers, slots=slots, exposure=exposure)
        supervisor = Supervisor(children, server.url, announce)
        ending = asyncio.Event()

        async def watch() -> None:
            try:
                await unless_stopped(stop, server.ended())
            finally:
                ending.set()

        watching = asyncio.create_task(watch(), name="watch the broker")
        try:
            await supervisor.run(ending)
        finally:
            if not watching.done():
                watching.cancel()
            await asyncio.wait((watching,))
        if not watching.cancelled():
            watching.result()


class Supervisor:
    """Keeps children running; a child says on its standard output that it is ready.

    Args:
        url: the broker's, for children that need one.
    """

    def __init__(self, children: Sequence[Child], url: str | None, announce: Announce) -> None:
        self._children = children
        self._url = url
        self._announce = announce
        self._ready: set[str] = set()
        self._failed: ChildFailedError | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Run all until `stop` is set. Raises ChildFailedError."""
        ending = asyncio.Event()
        watchers = [
            asyncio.create_task(self._keep(child, ending), name=child.name)
            for child in self._children
        ]
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait((stopping, *watchers), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            ending.set()
            ended = await asyncio.gather(*watchers, return_exceptions=True)
        for error in (self._failed, *ended):
            if error is not None:
                raise error

    async def _keep(self, child: Child, ending: asyncio.Event) -> None:
        """Run a child, and again when it dies, until `ending` is set or it cannot begin."""
        loop = asyncio.get_running_loop()
        delay = RESTART_MIN_S
        while not ending.is_set():
            begun = loop.time()
            code = await self._run_once(child, ending)
            if ending.is_set():
                return
            if child.name not in self._ready:
                # It could not even begin: starting it again would end the same way.
                self._failed = ChildFailedError(
                    f"{child.name} cannot begin ({_how(code)}); its lines above say why"
                )
                return
            delay = RESTART_MIN_S if loop.time() - begun > RESTART_MAX_S else delay * 2
            delay = min(delay, RESTART_MAX_S)
            self._announce(f"{child.name} ended ({_how(code)}); it starts again in {delay:.1f} s")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await ending.wait()

    async def _run_once(self, child: Child, ending: asyncio.Event) -> int:
        """Run a child to its end; when `ending` is set it is asked to drain, and killed at last."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "broker_pipeline",
            *child.arguments,
            *(() if self._url is None else ("--url", self._url)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Ctrl-C goes to the terminal's whole group; the children drain when we say so.
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", SUPERVISED: "1"},
        )
        reading = asyncio.create_task(self._read(child, process), name=f"read {child.name}")
        ended = asyncio.create_task(process.wait(), name=f"wait {child.name}")
        asked = asyncio.create_task(ending.wait(), name=f"end {child.name}")
        try:
            await asyncio.wait((ended, asked), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                process.terminate()
                await asyncio.wait((ended,), timeout=DRAIN_S)
            if not ended.done():
                process.kill()
            return await ended
        finally:
            asked.cancel()
            if process.returncode is None:
                process.kill()
            # What a child has left behind may hold its standard output open.
            await asyncio.wait((reading,), timeout=LAST_LINES_S)
            reading.cancel()

    async def _read(self, child: Child, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                raw = await process.stdout.readline()
            except ValueError:
                continue  # a line of more than 64 KiB, which modules may print, is not shown
            if not raw:
                return
            line = raw.decode(errors="replace").rstrip()
            self._announce(f"{child.name}: {line}")
            # Modules may print too, while they are set up.
            if child.name not in self._ready and (READY in line or STANDS_BY in line):
                self._ready.add(child.name)
                if len(self._ready) == len(self._children):
                    self._announce("ready")


def _how(code: int) -> str:
    if code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
