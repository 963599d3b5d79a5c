"""A leader and the workers of a pipeline without a broker, in one thread, one thing at a time.

For the runner in memory (`testing.run_in_memory`) and for replays (`debug`). Whoever uses it holds
the clock, and decides when a result is in the log.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import msgspec

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.core.commands import Command
from broker_pipeline.core.envelope import read_event, write
from broker_pipeline.core.events import Arrived, Event
from broker_pipeline.core.machine import Machine
from broker_pipeline.core.names import Subjects
from broker_pipeline.core.plan import Plan
from broker_pipeline.errors import ClientError, SetupError, StateError
from broker_pipeline.journey import Status
from broker_pipeline.modules import Module, walk
from broker_pipeline.package import DataPackage
from broker_pipeline.pipeline import Pipeline
from broker_pipeline.runtime.execution.inline import run_inline
from broker_pipeline.runtime.execution.program import Program, compile_phase
from broker_pipeline.runtime.execution.stand_in import use_stand_ins
from broker_pipeline.runtime.execution.threads import coroutine_of

WORKER = "in-memory"
"""The worker and the host in the journeys, unless somebody says otherwise."""


class InlineLeader:
    """Decides as the leader of a shard does, and writes what it would publish.

    Args:
        again: reads the envelope of an arrival once more, by its stream sequence: arrivals that
            wait are then not kept here. None: they are.
    """

    def __init__(
        self,
        plan: Plan,
        shard: int = 0,
        *,
        again: Callable[[int], pb.DataPackage] | None = None,
    ) -> None:
        self.machine = Machine()
        self.plan = plan
        self.subjects = Subjects(plan.pipeline, shard)
        self._shard = shard
        self._again = again
        self._kept: dict[int, pb.DataPackage] = {}  # by stream sequence, until they are used

    def apply(
        self, subject: str, headers: Mapping[str, str], data: bytes, stream_seq: int, time: int
    ) -> Iterator[tuple[Command, bytes]]:
        """Decide on a message under `ctl.`; see `decide`. Raises as `read_event` does."""
        event, envelope = read_event(self.subjects, subject, headers, data, stream_seq, time)
        return self.decide(event, envelope)

    def decide(
        self, event: Event, envelope: pb.DataPackage | None
    ) -> Iterator[tuple[Command, bytes]]:
        """Decide on an event: the commands with their bytes, in order. To be iterated to the end.

        Args:
            envelope: what `read_event` gave with it.
        """
        commands = self.machine.step(event)
        if envelope is not None and (self._again is None or not isinstance(event, Arrived)):
            self._kept[event.stream_seq] = envelope
            envelope = None
        for command in commands:
            source = command.package.source
            found = self._kept.pop(source, None)
            if found is None and source == event.stream_seq:
                found = envelope
            if found is None:
                assert self._again is not None  # all others are kept
                found = self._again(source)
            yield command, write(self.plan, self._shard, command, found)


class InlineModules:
    """The modules of a pipeline, set up; and the states that the stateful ones left.

    Args:
        stand_ins: what runs in the place of external modules, by name.
        caller: who is blamed where an event loop runs that must not.
        worker: the worker and the host in journeys and errors.
        monotonic_ns: the clock of durations; None: that of the caller of `run`, which stands still
            meanwhile.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        stand_ins: Mapping[str, Module[Any]],
        *,
        caller: str = "run_in_memory",
        worker: str = WORKER,
        monotonic_ns: Callable[[], int] | None = None,
    ) -> None:
        self.programs: dict[tuple[int, int], Program] = {
            (c, p): compile_phase(controller, phase)
            for c, controller in enumerate(pipeline.controllers)
            for p, phase in enumerate(controller.phases)
        }
        self._types = pipeline.payload_types
        self._caller = caller
        self._worker = worker
        self._states: dict[tuple[str, int], dict[tuple[int, int], _Stored]] = {}
        self._runner: asyncio.Runner | None = None
        self._ready = ExitStack()
        self._all = {
            id(module): module
            for controller in pipeline.controllers
            for phase in controller.phases
            for _, module in walk(phase.modules)
        }
        self._now = 0
        self._clock = monotonic_ns or (lambda: self._now)
        used = use_stand_ins(self.programs.values(), stand_ins, self._types, self._clock)
        self._all |= {id(inner): inner for _, inner in walk(used)}

    def __enter__(self) -> InlineModules:
        """Run every `setup`. Raises SetupError, and what has been set up is torn down again."""
        with self._ready:
            self._ready.callback(self._close_loop)
            steps = (step for program in self.programs.values() for step in program.walk())
            if any(step.is_async for step in steps):
                self._loop()
            for module in self._all.values():
                self._set_up(module)
            self._ready = self._ready.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Run every `teardown`."""
        self._ready.close()

    def _set_up(self, module: Module[Any]) -> None:
        try:
            self._settle(module.setup())
        except ClientError:
            raise
        except Exception as error:  # user code
            raise SetupError(
                f"setup of module {module.name!r} failed: {type(error).__name__}: {error}",
                module=module.name,
            ) from error
        self._ready.callback(lambda: self._settle(module.teardown()))

    def run(
        self, work: tuple[int, int], token: str, raw: bytes, now: int
    ) -> tuple[pb.DataPackage, Status]:
        """Run a phase on a package; the record and how it ended.

        Args:
            work: the positions of the controller and the phase.
            token: the instance's.
            now: when it begins, ns since the Unix epoch.
        """
        self._now = now
        package = DataPackage.from_bytes(raw, self._types)
        life = (token, package.epoch)
        kept = self._states.get(life, {}).get(work, {})
        record, status, states = run_inline(
            self.programs[work],
            package,
            {path: _load(kind, stored) for path, (kind, stored) in kept.items()},
            worker=self._worker,
            host=self._worker,
            now_ns=lambda: now,
            monotonic_ns=self._clock,
            runner=self._runner,
        )
        if states:  # none after an ERROR: what was kept before stands
            stored = {path: _store(path, state) for path, state in states.items()}
            self._states.setdefault(life, {})[work] = stored
        return record, status

    def forget(self, token: str, epoch: int) -> None:
        """Drop the states of a life that has ended."""
        self._states.pop((token, epoch), None)

    def _settle(self, result: Awaitable[None] | None) -> None:
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result) and _loop_runs():
                result.close()
            self._loop().run(coroutine_of(result))

    def _loop(self) -> asyncio.Runner:
        """One loop for all modules: what a `setup` binds to it serves `execute`."""
        if _loop_runs():
            raise ClientError(
                f"{self._caller} was called where an event loop runs, and the pipeline has `async` "
                "modules; call it from a plain function, or by `await asyncio.to_thread(...)`"
            )
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner

    def _close_loop(self) -> None:
        if self._runner is not None:
            self._runner.close()


_Stored = dict[str, tuple[type, bytes]]
"""The states of a phase, by module path."""


def _store(path: str, state: object) -> tuple[type, bytes]:
    """A state as it is kept: bytes, so that nobody goes on changing it, and any worker reads it."""
    if isinstance(state, bytes):
        return bytes, state
    try:
        stored = msgspec.msgpack.encode(state)
        _load(type(state), stored)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
        raise StateError(
            f"the state of module {path!r}, a {type(state).__name__}, cannot be stored and read "
            f"back: {error}; expected a msgspec.Struct or bytes",
            module=path,
        ) from error
    return type(state), stored


def _load(kind: type, stored: bytes) -> object:
    return stored if kind is bytes else msgspec.msgpack.decode(stored, type=kind)


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
