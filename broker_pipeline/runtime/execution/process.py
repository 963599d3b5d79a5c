"""Modules in processes of their own, which may be killed and may crash without the worker."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, Any

import msgspec

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.errors import ModuleProcessError, SetupError
from broker_pipeline.journey import NS
from broker_pipeline.modules import KEEP_STATE, PackageExit, Run
from broker_pipeline.package import DataPackage
from broker_pipeline.runtime.execution import frames
from broker_pipeline.runtime.execution.failure import RemoteFailure
from broker_pipeline.runtime.execution.interpreter import Walk
from broker_pipeline.runtime.execution.pool import DaemonPool
from broker_pipeline.runtime.execution.program import Kind, Program, Step

# Before a process is started again: nothing after the first death, then doubling up to the bound,
# so that one which always dies neither eats the machine nor holds a package for long.
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
_END_S = 2.0

_log = logging.getLogger(__name__)


class Child:
    """One process, serving one package at a time."""

    def __init__(self, step: Step, command: list[str]) -> None:
        self._step = step
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,  # ^C in a terminal is for the worker, which drains first
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests: IO[bytes] = self._process.stdin
        self._replies: IO[bytes] = self._process.stdout
        self.started = False

    def ready(self) -> None:
        """Wait for the module's setup. Raises RemoteFailure where it failed."""
        if not self.started:
            self._read()
            self.started = True

    def ask(self, request: frames.Request) -> frames.Reply:
        """Have a package run. Raises RemoteFailure, or ModuleProcessError where it dies."""
        try:
            frames.write(self._requests, request)
        except OSError:
            raise self._death() from None
        return self._read()

    def kill(self) -> None:
        """End it now, from any thread; who reads from it sees its end."""
        self._process.kill()

    def close(self) -> None:
        """Let it go: it ends by itself at the end of its input, or is killed after a while."""
        try:
            self._requests.close()
        except OSError:
            _log.debug("the process of %s was gone already", self._step.label)
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._replies.close()

    def _read(self) -> frames.Reply:
        raw = frames.read(self._replies)
        if raw is None:
            raise self._death()
        reply = msgspec.msgpack.decode(raw, type=frames.Reply)
        if reply.kind == "error":
            raise RemoteFailure(pb.Error.FromString(reply.error))
        return reply

    def _death(self) -> ModuleProcessError:
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return ModuleProcessError(
                f"the process of module {self._step.name!r} has closed its output and "
                f"does not end; it was killed: module code must not touch descriptors of others",
                module=self._step.label,
            )
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        return ModuleProcessError(
            f"the process of module {self._step.name!r} {how} while it ran a package; expected an "
            f"answer: see its standard error above; it is started again for the next package",
            module=self._step.label,
            exit_code=code,
        )


class ChildPool:
    """The processes of one module, at most one for each slot."""

    def __init__(self, step: Step, command: list[str]) -> None:
        self._step = step
        self._command = command
        self._lock = threading.Lock()
        self._free: list[Child] = []
        self._all: set[Child] = set()
        self._deaths = 0
        self._closed = threading.Event()

    def add(self) -> None:
        """Start one and wait until it is ready. Raises what its setup raised."""
        child = self._take()
        try:
            child.ready()
        except BaseException:
            self._discard(child)
            raise
        self._give_back(child)

    def call(self, walk: Walk, package: DataPackage[Any], run: Run, *states: object) -> object:
        """Run the module on a package, as if it were here; the state after it is returned."""
        called_off = threading.Event()
        before = walk.interrupt
        walk.interruptible(lambda: _each(called_off.set, before))
        self._back_off(called_off)
        child = self._take()
        try:
            walk.interruptible(lambda: _each(called_off.set, child.kill, before))
            child.ready()
            left = None if run.deadline is None else run.deadline - time.monotonic()
            reply = child.ask(
                frames.Request(
                    package.to_bytes(),
                    None if left is None else round(left * NS),
                    frames.pack_state(states[0]) if states else None,
                    "" if walk.span is None else walk.span.traceparent,
                )
            )
            walk.interruptible(before)
        except RemoteFailure:
            if child.started:
                self._give_back(child)
            else:
                self._discard(child, died=True)
            raise
        except BaseException:
            # Not a death of its own where the timeout killed it: that needs no backing off.
            self._discard(child, died=not called_off.is_set())
            raise
        self._give_back(child)
        return self._apply(reply, package, run)

    def close(self) -> None:
        """End all of them; packages that run there fail."""
        self._closed.set()
        with self._lock:
            children, busy = list(self._free), self._all - set(self._free)
            self._free.clear()
        for child in busy:
            child.kill()
        for child in children:
            self._discard(child)

    def _apply(self, reply: frames.Reply, package: DataPackage[Any], run: Run) -> object:
        if (reply.data, reply.content_type) != (package.envelope.data, package.content_type):
            package.set_raw(reply.data, reply.content_type)
        if reply.attributes != dict(package.attributes):
            package.attributes.clear()
            package.attributes.update(reply.attributes)
        run.message = reply.message
        state: object = KEEP_STATE
        if reply.state is not None:
            state = frames.unpack_state(reply.state, self._step.state_type)
        if reply.kind == "exit":
            raise PackageExit(reply.reason, state)
        return state

    def _back_off(self, called_off: threading.Event) -> None:
        if self._deaths > 1:
            called_off.wait(min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(self._deaths - 2, 16)))

    def _take(self) -> Child:
        with self._lock:
            if self._closed.is_set():
                raise ModuleProcessError(
                    f"the processes of module {self._step.name!r} are closed; the worker is ending"
                )
            if self._free:
                return self._free.pop()
        child = Child(self._step, self._command)
        with self._lock:
            self._all.add(child)
        return child

    def _give_back(self, child: Child) -> None:
        with self._lock:
            self._deaths = 0
            if not self._closed.is_set():
                self._free.append(child)
                return
        self._discard(child)

    def _discard(self, child: Child, *, died: bool = False) -> None:
        with self._lock:
            self._all.discard(child)
            self._deaths += died
        child.kill()
        child.close()


class Processes:
    """All modules of a phase that are isolated in processes."""

    def __init__(self, program: Program, target: str | None, slots: int) -> None:
        self._program = program
        self._target = target
        self._slots = slots
        self._pools: list[tuple[Step, ChildPool]] = []

    def check(self) -> None:
        """Raises SetupError where isolation was asked for and cannot be given."""
        for step in self._program.walk():
            if not step.isolated:
                continue
            if step.kind in (Kind.CONDITION, Kind.COMBINATION):
                raise SetupError(
                    f"module {step.label!r} has isolation='process' and holds other modules; "
                    f"expected it on modules without branches: set it on those inside",
                    module=step.label,
                )
            if self._target is None:
                raise SetupError(
                    f"module {step.label!r} has isolation='process', and its process "
                    f"needs a TARGET to import; give the worker one, such as 'my_code:pipeline'",
                    module=step.label,
                )

    async def start(self) -> None:
        """Start a process for each slot and module, all at once. Raises SetupError."""
        starter = DaemonPool("processes")
        try:
            for step in self._program.walk():
                if step.isolated and self._target is not None:
                    await self._start(step, self._target, starter)
        finally:
            starter.close()

    async def close(self) -> None:
        """End them all."""
        ender = DaemonPool("processes-end")
        for _, pool in self._pools:
            await asyncio.wrap_future(ender.submit(pool.close))
        ender.close()

    async def _start(self, step: Step, target: str, starter: DaemonPool) -> None:
        program = self._program
        command = [sys.executable, "-m", "broker_pipeline.runtime.execution.child"]
        pool = ChildPool(step, [*command, target, program.controller, program.phase, step.key])
        self._pools.append((step, pool))
        step.remote = pool.call
        starts = [asyncio.wrap_future(starter.submit(pool.add)) for _ in range(self._slots)]
        for result in await asyncio.gather(*starts, return_exceptions=True):
            if isinstance(result, RemoteFailure):
                raise SetupError(
                    f"setup of module {step.label!r} failed in its process: {result.error.type}: "
                    f"{result.error.message}; the worker takes no package: mend the module, or "
                    f"what it needs, and start again\n{result.error.traceback}",
                    module=step.label,
                )
            if isinstance(result, BaseException):
                raise SetupError(
                    f"the process of module {step.label!r} did not start: {result}; the worker "
                    f"takes no package",
                    module=step.label,
                ) from result


def _each(*calls: Callable[[], object] | None) -> None:
    for call in calls:
        if call is not None:
            call()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
