"""The modules of one phase in the calling thread: set up, run on packages, torn down."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
import socket
import threading
import time
from bdb import BdbQuit
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from types import FrameType, TracebackType
from typing import Any

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker import jetstream
from broker_pipeline.broker.large_payloads import LargePayloads
from broker_pipeline.errors import SetupError
from broker_pipeline.modules import Module
from broker_pipeline.modules import walk as modules_in
from broker_pipeline.package import DataPackage
from broker_pipeline.pipeline import Pipeline
from broker_pipeline.runtime.execution.interpreter import Abandoned, Walk
from broker_pipeline.runtime.execution.program import Program
from broker_pipeline.runtime.execution.relays import Relays
from broker_pipeline.runtime.execution.setting import Setting
from broker_pipeline.runtime.execution.threads import InThread, coroutine_of, drive

log = logging.getLogger(__name__)

WORKER = "replay step"
"""The worker in the journey of what is run here."""
LOOK_S = 0.01
"""How often it is looked whether a module is over its time, where that counts."""
AGAIN_S = 1.0
"""A module that swallows the end of its time is ended again after so long."""


class PhaseModules:
    """What a phase runs, made ready; a context.

    `async` modules share one loop, which runs only while they do.

    Args:
        more: modules that run besides those of the phase: stand-ins.
        servers: the broker's address, to call the servers of external modules; None: none is.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        program: Program,
        more: Sequence[Module[Any]],
        servers: str | None,
    ) -> None:
        self._pipeline = pipeline
        self._program = program
        self._servers = servers
        self._on_loop = any(step.is_async for step in program.walk())
        own = [step.module for step in program.walk()]
        inner = [module for _, module in modules_in(more)]
        self._modules = list({id(module): module for module in [*own, *inner]}.values())
        place = None if self._on_loop else InThread()
        self._setting = Setting(WORKER, socket.gethostname(), place=place)
        self._payloads: LargePayloads | None = None
        self._runner = asyncio.Runner()
        self._ready = ExitStack()

    def __enter__(self) -> PhaseModules:
        """Run every `setup`. Raises SetupError, and what a relay or the broker raises."""
        with self._ready:
            self._ready.callback(self._runner.close)
            for module in self._modules:
                self._set_up(module)
            if self._servers is not None:
                self._call_servers(self._servers)
            self._ready = self._ready.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Run every `teardown`."""
        self._ready.close()

    def walk(
        self, envelope: pb.DataPackage, states: Mapping[str, object], *, timeouts: bool = False
    ) -> Walk:
        """Run the phase on a package, which is not changed; the walk, at its end.

        Args:
            timeouts: whether `timeout_s` ends a module.
        """
        given = pb.DataPackage()
        given.CopyFrom(envelope)
        package = DataPackage.wrap(given, self._pipeline.payload_types)
        walk = Walk(self._program, package, states, self._setting)
        walk.thread = threading.get_ident()
        with _ending(walk) if timeouts else nullcontext():
            try:
                if self._on_loop:
                    self._runner.run(walk.run())
                else:
                    drive(walk)
            except (Abandoned, BdbQuit):
                pass  # a timeout is in the record, and who has left wants nothing
        return walk

    def load(self, envelope: pb.DataPackage) -> None:
        """Put a large payload into its place that a server has answered with."""
        if self._payloads is not None and envelope.HasField("reference"):
            self._runner.run(self._load(envelope))

    def _set_up(self, module: Module[Any]) -> None:
        try:
            self._settle(module.setup())
        except Exception as error:  # user code
            raise SetupError(
                f"setup of module {module.name!r} failed: {type(error).__name__}: {error}; mend "
                f"the module, or what it needs",
                module=module.name,
            ) from error
        self._ready.callback(lambda: self._tear_down(module))

    def _tear_down(self, module: Module[Any]) -> None:
        try:
            self._settle(module.teardown())
        except Exception:  # user code: the result is there
            log.exception("teardown of module %r failed", module.name)

    def _settle(self, result: Awaitable[None] | None) -> None:
        if inspect.isawaitable(result):
            self._runner.run(coroutine_of(result))

    # -- module servers -------------------------------------------------------------------------
    def _call_servers(self, url: str) -> None:
        from broker_pipeline.external.caller import relay_factory  # it loads gRPC

        run = self._runner.run
        broker = run(jetstream.connect(url, reconnect=True, name="broker-pipeline replay step"))
        self._ready.callback(lambda: run(broker.close()))
        pipeline = self._pipeline
        self._payloads = LargePayloads(broker, pipeline.name, pipeline.large_payload_bytes)
        factory = relay_factory(broker, caller=f"{socket.gethostname()}-{os.getpid()}")
        relays = Relays(self._program, factory, lambda: None, self._load)
        relays.check()
        self._ready.callback(lambda: run(relays.close()))
        run(relays.start())

    async def _load(self, envelope: pb.DataPackage) -> None:
        assert self._payloads is not None
        await self._payloads.load(envelope)


@contextmanager
def _ending(walk: Walk) -> Iterator[None]:
    """End a walk of this thread as soon as a module in it is over its time."""
    over = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        if walk.dead and not over.is_set():
            raise Abandoned

    def watch(thread: int) -> None:
        while not over.wait(LOOK_S):
            if walk.expire(time.monotonic_ns()):
                break
        # Code that swallows everything, as a bare `except` does, is told again.
        while not over.is_set():
            signal.pthread_kill(thread, signal.SIGALRM)
            over.wait(AGAIN_S)

    before = signal.signal(signal.SIGALRM, end)
    watching = threading.Thread(
        target=watch, args=(threading.get_ident(),), name="timeouts", daemon=True
    )
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()
        signal.signal(signal.SIGALRM, before)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Ctrl-C raises KeyboardInterrupt, and sets what is given: a module may catch the one, as the
    walk does."""
    interrupted = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
