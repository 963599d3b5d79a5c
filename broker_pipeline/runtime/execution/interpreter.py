"""The one place that walks a module tree over a package and writes its journey.

The modules get the package that was handed in; the record is a copy, and the walk brings it up to
date when a module has ended well. So an ERROR has nothing to take back, and after a timeout the
late module holds an object that nobody reads any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.errors import ModuleTimeoutError
from broker_pipeline.external.port import WithdrawnError
from broker_pipeline.journey import NS, STATUS_TO_PB, Status
from broker_pipeline.modules import KEEP_STATE, PackageExit, Run
from broker_pipeline.observe import current
from broker_pipeline.observe.context import TraceContext, module_span
from broker_pipeline.package import DataPackage
from broker_pipeline.runtime.execution import relaying
from broker_pipeline.runtime.execution.anew import anew
from broker_pipeline.runtime.execution.entered import Entered
from broker_pipeline.runtime.execution.failure import MESSAGE_BYTES_MAX, bounded, describe, stack_of
from broker_pipeline.runtime.execution.mutex import Interrupt, Mutex
from broker_pipeline.runtime.execution.package_log import run_for
from broker_pipeline.runtime.execution.payload_fields import bring_up, changed_fields
from broker_pipeline.runtime.execution.program import Kind, Program, Step
from broker_pipeline.runtime.execution.setting import Place, Setting

States = dict[str, object]
"""The states of an instance's stateful modules, by the module's path such as '0.1'."""

_RUNNING = STATUS_TO_PB[Status.RUNNING]
_SUCCESS = STATUS_TO_PB[Status.SUCCESS]


class Abandoned(BaseException):
    """The walk is over, a timeout ended it: unwind and touch nothing."""


class Walk:
    """One package's way through one phase.

    `run` is driven by one thread or task. `expire` may be called from another thread: whichever of
    the two comes first ends the walk, and the other changes nothing.

    Attributes:
        envelope: the record: payload, content type and attributes as of the last module that ended
            well, and the journey.
        record: the phase in it; it does not change any more when the walk has ended.
        status: how it ended; RUNNING before.
        begun: whether a module has run in it, here or in a server.
        states: after the package; None after an ERROR: they may have been changed in place.
        deadline_ns: the tightest one of the modules entered, on `monotonic_ns`; None: no bound.
        dead: a timeout ended it.
        span: of the module that runs, or what its span will hang below; None: it is not traced.
    """

    __slots__ = (
        "_lock", "_once", "_package", "_program", "_setting", "_stack", "begun", "dead",
        "deadline_ns", "envelope", "interrupt", "record", "span", "start_ns", "states", "status",
        "thread",
    )  # fmt: skip

    def __init__(
        self,
        program: Program,
        package: DataPackage[Any],
        states: Mapping[str, object] | None,
        setting: Setting,
        span: TraceContext | None = None,
    ) -> None:
        self._program = program
        self._package = package
        self._setting = setting
        self._lock = threading.Lock()
        self._stack: list[Entered] = []
        self.states: States | None = dict(states) if states else {}
        self.status = Status.RUNNING
        self.span = span
        self.deadline_ns: int | None = None
        self.begun = self.dead = False
        self._once = False  # whether a server has run it that may not do so twice
        self.interrupt: Interrupt | None = None
        self.thread: int | None = None
        self.envelope = envelope = pb.DataPackage()
        envelope.CopyFrom(package.envelope)
        if not envelope.controllers:  # the controller puts it there; a foreign package may lack it
            envelope.controllers.add(name=program.controller)
        self.start_ns = setting.monotonic_ns()
        self.record = envelope.controllers[-1].phases.add(
            name=program.phase,
            status=_RUNNING,
            worker=setting.worker,
            start_time_ns=setting.now_ns(),
        )

    async def run(self) -> Status:
        """Walk to the end. Raises Abandoned, or what unwound it, where a timeout was first."""
        status = Status.SUCCESS
        modules = self.record.modules
        for step in self._program.steps:
            status = await self._step(step, modules)
            if status is not Status.SUCCESS:
                break
        with self._lock:
            if self.dead:
                raise Abandoned
            self._end(status)
        return status

    def expire(self, now_ns: int) -> bool:
        """End it as ERROR if a deadline has passed; whether this call did. From any thread.

        The caller then calls `interrupt`, if there is one.
        """
        with self._lock:
            deadline_ns = self.deadline_ns
            if self.dead or deadline_ns is None or deadline_ns > now_ns:
                return False
            self.dead = True
            blamed = next(frame for frame in self._stack if frame.deadline_ns == deadline_ns)
            seconds = (blamed.step.timeout_ns or 0) / NS
            error = ModuleTimeoutError(
                f"module {blamed.step.name!r} did not finish within its timeout_s of {seconds:g}; "
                f"make it faster, give it more time, or isolate it in a process that can be killed",
                module=blamed.step.name,
                timeout_s=seconds,
            )
            told = self._described(error, blamed.step)
            told.traceback = stack_of(self.thread)
            self.envelope.errors.append(told)
            for frame in self._stack:
                self._write(frame, Status.ERROR, now_ns, "")
            blamed.record.error = len(self.envelope.errors)
            self._stack.clear()
            self.deadline_ns = None
            self._end(Status.ERROR)
        return True

    def abandon(self) -> None:
        """End it without a result: the worker ends, and the broker gives the package to another."""
        with self._lock:
            self.dead = True

    def look(self, read: Callable[[Iterable[pb.ModuleRecord]], None]) -> None:
        """Have the records of the modules read as they are at one moment; from any thread."""
        with self._lock:
            read(self.record.modules)

    def interruptible(self, interrupt: Interrupt | None) -> None:
        """What `expire` calls from now on. Raises Abandoned where it is too late for that."""
        with self._lock:
            if self.dead:
                raise Abandoned
            self.interrupt = interrupt

    # -- one module -----------------------------------------------------------------------------
    async def _step(self, step: Step, siblings: Any) -> Status:
        frame = self._enter(step, siblings)
        reason = ""
        try:
            if step.mutex is None or self._setting.place is None:
                status = await self._body(frame)
            else:
                status = await self._alone(frame, step.mutex, self._setting.place)
        except PackageExit as exit_:
            reason = bounded(exit_.reason, MESSAGE_BYTES_MAX)
            try:
                self._exit_state(step, exit_)
                self._commit()
            except BaseException as error:
                return self._fail(frame, error)
            status = Status.EXIT
        except BaseException as error:  # user code: SystemExit too ends the package only
            return self._fail(frame, error)
        now_ns = self._setting.monotonic_ns()
        with self._lock:
            if self.dead:
                raise Abandoned
            self._write(frame, status, now_ns, reason)
            self._leave(frame)
        return status

    def _enter(self, step: Step, siblings: Any) -> Entered:
        now_ns = self._setting.monotonic_ns()
        with self._lock:
            if self.dead:
                raise Abandoned
            record = siblings.add(
                name=step.name, status=_RUNNING, start_offset_ns=max(0, now_ns - self.start_ns)
            )
            frame = Entered(step, record, now_ns)
            frame.outer_ns, frame.outer_span = self.deadline_ns, self.span
            if self.span is not None:
                self.span = module_span(self.span, len(siblings) - 1, step.name)
            if step.timeout_ns is not None:
                frame.deadline_ns = now_ns + step.timeout_ns
                if self.deadline_ns is None or frame.deadline_ns < self.deadline_ns:
                    self.deadline_ns = frame.deadline_ns
            self._stack.append(frame)
        return frame

    async def _alone(self, frame: Entered, mutex: Mutex, place: Place) -> Status:
        queued = mutex.enter()
        if queued is not None:
            await place.wait(self, mutex, queued)
        try:
            self.waited(frame)
            return await self._body(frame)
        finally:
            mutex.release()

    def waited(self, frame: Entered) -> None:
        """What the module has waited for is there. Raises Abandoned where it is too late."""
        waited_ns = self._setting.monotonic_ns() - frame.start_ns
        with self._lock:
            if self.dead:
                raise Abandoned
            frame.record.waiting_time_ns = max(0, waited_ns)

    async def _body(self, frame: Entered) -> Status:
        """What the module does. User code may raise anything here."""
        step = frame.step
        kind = step.kind
        if kind is Kind.COMBINATION:
            for child in step.children:
                assert child is not None  # only a condition's branches may be missing
                status = await self._step(child, frame.record.sub_modules)
                if status is not Status.SUCCESS:
                    return status
            return Status.SUCCESS
        package = self._package
        package.expect(step.payload_type)
        if kind is Kind.CONDITION:
            answer = await self._call(step, package)
            branch = step.children[0 if answer else 1]
            self._commit()
            if branch is None:
                return Status.SUCCESS
            return await self._step(branch, frame.record.sub_modules)
        if kind is Kind.EXTERNAL:
            return await self._relay(frame, package)
        frame.run = run = run_for(package, step.label, self.deadline_ns, self.span)
        if kind is Kind.STATEFUL:
            await self._fold(step, package, run)
        elif step.gather is not None:
            again = partial(self.again, frame)
            begin = partial(self.waited, frame)
            run = await step.gather(package, run, begin, again, self.span)
        else:
            await self._call(step, package, run)
        if run.verdict is not None:
            raise run.verdict
        self._commit()
        return Status.SUCCESS

    async def _relay(self, frame: Entered, package: DataPackage[Any]) -> Status:
        """Have a module server run it; its answer counts as a whole, or not at all."""
        step, states = frame.step, self.states
        state: Any = states.get(step.key) if states else None
        stays = self._once or (self.begun and self._program.once)
        try:
            answer = await relaying.ask(
                step, package, state, self.deadline_ns, stays=stays, span=self.span
            )
        except WithdrawnError:
            with self._lock:
                if self.dead:
                    raise Abandoned from None
                self.dead = True  # without a result: it may begin elsewhere
            raise
        status = relaying.status_of(answer)
        self._once = self._once or not relaying.may_repeat(step)
        if status is not Status.ERROR:
            if step.state_type is not None and states is not None:
                states[step.key] = relaying.state_of(answer)
            relaying.take_payload(answer, package)
            self._commit()
        with self._lock:
            if self.dead:
                raise Abandoned
            relaying.write(answer, step, frame.record, self.envelope, self.start_ns)
        return status

    def again(self, frame: Entered) -> tuple[DataPackage[Any], Run]:
        """What the module was given, anew: a batch that fails is run again."""
        self._package = package = anew(self._package, self.envelope)
        frame.run = run = run_for(package, frame.step.label, self.deadline_ns, self.span)
        return package, run

    async def _fold(self, step: Step, package: DataPackage[Any], run: Run) -> None:
        states = self.states
        if states is None:
            raise Abandoned
        if step.key not in states and step.remote is None:  # a process makes its own
            states[step.key] = step.module.initial_state()  # type: ignore[attr-defined]
        given = (states[step.key],) if step.key in states else ()
        state = await self._call(step, package, run, *given)
        step.check_state(state)
        states[step.key] = state

    async def _call(self, step: Step, *args: Any) -> Any:
        place = self._setting.place
        function: Callable[..., Any] | None = step.call
        assert function is not None  # a combination has no code of its own
        if step.remote is not None:
            function, args = step.remote, (self, *args)
        elif self.span is not None:
            function, args = current.called, (self.span, function, *args)
        if place is None or place.blocking or (step.is_async and step.remote is None):
            result = function(*args)
        else:
            result = await place.call(self, function, *args)
        if result is None or not hasattr(type(result), "__await__"):
            return result
        return await result if place is None else await place.settle(self, result)

    def _exit_state(self, step: Step, exit_: PackageExit) -> None:
        if exit_.state is KEEP_STATE:
            return
        if step.kind is not Kind.STATEFUL or self.states is None:
            raise TypeError(
                f"exit(state=...) was called in {step.name!r}, which has no state; expected "
                f"it in a StatefulModule only: leave state out"
            )
        step.check_state(exit_.state)
        self.states[step.key] = exit_.state

    def _commit(self) -> None:
        """Bring the record up to date with what the module left. Raises PayloadError."""
        self.begun = True
        package = self._package
        package.encode()
        theirs, record = package.envelope, self.envelope
        # Assigning copies and grows the message's memory: only where something has changed.
        fields = changed_fields(theirs, record)
        if fields:
            with self._lock:
                if self.dead:
                    raise Abandoned
                bring_up(theirs, record, fields)

    # -- how it ends ----------------------------------------------------------------------------
    def _fail(self, frame: Entered, error: BaseException) -> Status:
        if self.dead:  # it is only being unwound: a cancellation, or the late code's own failure
            raise error
        told = self._described(error, frame.step)
        now_ns = self._setting.monotonic_ns()
        with self._lock:
            if self.dead:
                raise Abandoned
            self.envelope.errors.append(told)
            frame.record.error = len(self.envelope.errors)
            self._write(frame, Status.ERROR, now_ns, "")
            self._leave(frame)
        return Status.ERROR

    def _leave(self, frame: Entered) -> None:
        self._stack.pop()
        self.deadline_ns, self.span = frame.outer_ns, frame.outer_span

    def _write(self, frame: Entered, status: Status, now_ns: int, reason: str) -> None:
        record = frame.record
        record.status = _number(status)
        record.total_time_ns = max(0, now_ns - frame.start_ns)
        message = reason or (frame.run is not None and frame.run.message)
        if message:
            record.message = bounded(message, MESSAGE_BYTES_MAX)

    def _end(self, status: Status) -> None:
        """Close the phase; the caller holds the lock."""
        self.status = status
        if status is Status.ERROR:
            self.states = None
        self.record.status = _number(status)
        self.record.total_time_ns = max(0, self._setting.monotonic_ns() - self.start_ns)

    def _described(self, error: BaseException, step: Step) -> pb.Error:
        return describe(
            error, host=self._setting.host, worker=self._setting.worker, path=step.label
        )


def _number(status: Status) -> Any:
    """The protobuf number. Hashing an enum member for the usual one costs more than asking."""
    return _SUCCESS if status is Status.SUCCESS else STATUS_TO_PB[status]
