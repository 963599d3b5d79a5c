"""One package in one phase again, in this thread: today's code on what the log has.

    given = await look_up(broker, pipeline, Wanted("transcribe/0/852"), "listen.segment")
    stepped = run_step(given)

Modules are set up, run and torn down by the thread that calls, in which no event loop runs: so a
debugger works as it does anywhere. Nothing of it reaches the log.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.debug.steps.step_debugger import Watch
from broker_pipeline.debug.steps.step_modules import PhaseModules, interruptible
from broker_pipeline.debug.steps.step_source import Given
from broker_pipeline.errors import StepError, StepStateError
from broker_pipeline.journey import Status
from broker_pipeline.modules import Module, StatefulModule
from broker_pipeline.package import parse_envelope
from broker_pipeline.runtime.execution.program import Kind, Program, Step, compile_phase
from broker_pipeline.runtime.execution.stand_in import StandIn, use_stand_ins

States = dict[str, Any]


def _quiet(line: str) -> None:
    """Says nothing."""


@dataclass(frozen=True, slots=True)
class How:
    """How to run it.

    Args:
        stop_at_start: open pdb on the first line of a module's code.
        stop_at_error: open pdb where module code raises.
        module: the name of the module to stop in; None: the first that has code.
        external: for each `ExternalModule` of the phase, by name, what runs in its place.
        servers: the address of the broker by which the servers of external modules are found; they
            are then called, and `external` is empty. None: no server is called.
        timeouts: let `timeout_s` end a module, as a worker does; otherwise nothing does.
        note: takes a line for the person who waits.
    """

    stop_at_start: bool = False
    stop_at_error: bool = False
    module: str | None = None
    external: Mapping[str, Module[Any]] = field(default_factory=dict)
    servers: str | None = None
    timeouts: bool = False
    note: Callable[[str], None] = _quiet


@dataclass(slots=True)
class Stepped:
    """What came of it.

    Attributes:
        envelope: the package as the phase leaves it now.
        status: how the phase ends now.
        before: the states before the package, by the path of their module.
        after: those after it; None after an ERROR.
        left: the person has left it in a debugger: the rest says nothing.
        raised: whether module code has raised.
    """

    envelope: pb.DataPackage
    status: Status
    before: States
    after: States | None
    left: bool
    raised: bool


def run_step(given: Given, how: How | None = None) -> Stepped:
    """Run a package in a phase again, with the states that it found. Call it in the main thread.

    Raises:
        StepError: there is no module of that name to stop in; or an external module with nothing in
            its place, and no servers to call.
        ClientError: `external` names a module that is none of the phase.
        SetupError: a module's `setup` failed.
        StepStateError: an input that has to be run again for the state fails today.
        KeyboardInterrupt: Ctrl-C.
    """
    how, pipeline = how or How(), given.pipeline
    program = compile_phase(given.controller, given.phase)
    used: list[Module[Any]] = []
    if how.servers is None:
        _check_external(program, how.external)
        used = use_stand_ins([program], how.external, pipeline.payload_types, time.time_ns)
    steps = _with_code(program)
    stop_at = _to_stop_in(steps, program, how.module) if how.stop_at_start else None
    if not how.timeouts:
        for step in {*program.walk(), *steps}:
            step.timeout_ns = None
    with interruptible() as interrupted, PhaseModules(pipeline, program, used, how.servers) as run:
        states = _states_before(run, program, given, how, interrupted)
        before = copy.deepcopy(states)
        watch = Watch(stop_at, at_error=how.stop_at_error)
        watch.attach(steps)
        by_reference = how.servers is not None and given.phase.external
        envelope = parse_envelope(given.raw) if by_reference else given.envelope
        try:
            walk = run.walk(envelope, states, timeouts=how.timeouts)
        finally:
            watch.end()
        if interrupted.is_set():  # the module may have caught it, and the walk has
            raise KeyboardInterrupt
        if not watch.left:
            run.load(walk.envelope)
    return Stepped(walk.envelope, walk.status, before, walk.states, watch.left, watch.raised)


def _check_external(program: Program, given: Mapping[str, Module[Any]]) -> None:
    for step in program.walk():
        if step.kind is Kind.EXTERNAL and step.name not in given:
            raise StepError(
                f"module {step.label!r} runs in module servers; expected --external "
                f"{step.name}=package.module:Class, the module that they host, or --external-live "
                f"to call them",
                module=step.name,
            )


def _with_code(program: Program) -> list[Step]:
    """The steps that run code here; of external modules those of what stands in for them."""
    return [inner for step in program.steps for inner in _code_of(step)]


def _code_of(step: Step) -> list[Step]:
    """The same for one step and all inside it."""
    found: list[Step] = []
    for inner in step.walk():
        stand_in = getattr(inner.remote, "__self__", None)
        found += stand_in.program.walk() if isinstance(stand_in, StandIn) else [inner]
    return [each for each in found if each.call is not None]


def _to_stop_in(steps: Sequence[Step], program: Program, name: str | None) -> Step:
    """The step on whose first line to stop. Raises StepError."""
    where = f"phase {program.controller}.{program.phase}"
    if not steps:
        raise StepError(f"{where} has no module that runs code here: there is nothing to stop in")
    if name is None:
        return steps[0]
    named = [step for step in (*program.walk(), *steps) if step.name == name]
    inside = [inner for step in named for inner in _code_of(step)]
    if inside:
        return inside[0]
    known = ", ".join(dict.fromkeys(repr(step.name) for step in steps))
    raise StepError(
        f"no module {name!r} runs code here in {where}; expected one of {known}", module=name
    )


def _states_before(
    run: PhaseModules, program: Program, given: Given, how: How, interrupted: threading.Event
) -> States:
    """The states that the package found; what was not stored is computed again."""
    if given.before is None:
        return {}
    states, inputs = dict(given.before.states), given.before.inputs
    if inputs:
        what = "input is" if len(inputs) == 1 else "inputs are"
        how.note(f"{len(inputs):,} recorded {what} run again for the state")
    with _without_breakpoints():
        for recorded in inputs:
            again = run.walk(recorded, states)
            if interrupted.is_set():
                raise KeyboardInterrupt
            if again.states is None:
                raise _fails_today(recorded, again.envelope)
            states = again.states
    for step in program.walk():
        if step.kind is Kind.STATEFUL and step.key not in states:
            assert isinstance(step.module, StatefulModule)
            with contextlib.suppress(Exception):  # the user's: the package will meet it
                states[step.key] = step.module.initial_state()
    return states


def _fails_today(recorded: pb.DataPackage, now: pb.DataPackage) -> StepStateError:
    error = now.errors[-1]
    return StepStateError(
        f"package {recorded.id}, which went well when it was recorded, fails today when it is run "
        f"again for the state: {error.type}: {error.message} in {error.path}; step into that one, "
        f"or go on without the state by --initial-state",
        package_id=recorded.id,
    )


@contextmanager
def _without_breakpoints() -> Iterator[None]:
    """`breakpoint()` in a module stops for the package that it is about, not for those before."""
    hook = sys.breakpointhook
    sys.breakpointhook = lambda *args, **kwargs: None
    try:
        yield
    finally:
        sys.breakpointhook = hook
