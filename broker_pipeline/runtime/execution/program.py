"""A phase laid out for the interpreter: all that can be known before the first package."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from broker_pipeline.journey import NS
from broker_pipeline.modules import (
    CombinationModule,
    ConditionModule,
    ExecutionModule,
    ExternalModule,
    Module,
    Run,
    StatefulModule,
    defines_batches,
    is_stateful,
    state_type,
)
from broker_pipeline.package import DataPackage
from broker_pipeline.pipeline import Controller, Phase
from broker_pipeline.runtime.execution.failure import NAME_BYTES_MAX, bounded
from broker_pipeline.runtime.execution.mutex import Mutex, mutex_of


class Kind(Enum):
    """What the interpreter does with a module."""

    EXECUTION = auto()
    STATEFUL = auto()
    CONDITION = auto()
    COMBINATION = auto()
    EXTERNAL = auto()


@dataclass(slots=True, eq=False)
class Step:
    """One module at one place of the tree.

    Attributes:
        key: its positions joined by '.', the name of its state.
        label: controller, phase and module names joined by '/', as errors tell it.
        call: its own code: `execute`, or `condition`; None where it has none here.
        remote: set by the executor for a module that is isolated in a process or external.
        gather: set by the executor for a module that gets batches: has a package run in one.
        children: of a condition exactly two, either of which may be None; otherwise in order.
    """

    module: Module[Any]
    kind: Kind
    key: str
    name: str
    label: str
    call: Callable[..., Any] | None
    is_async: bool
    payload_type: type | None
    state_type: type | None
    timeout_ns: int | None
    mutex: Mutex | None
    children: tuple[Step | None, ...]
    remote: Callable[..., Any] | None = None
    gather: Callable[..., Awaitable[Run]] | None = None

    @property
    def isolated(self) -> bool:
        """Whether it asks for a process of its own."""
        return self.module.options.isolation == "process"

    @property
    def batches(self) -> bool:
        """Whether it gets several packages at once."""
        return self.module.options.max_batch > 1

    def walk(self) -> Iterator[Step]:
        """This step and all inside it, in the order of the tree."""
        yield self
        for child in self.children:
            if child is not None:
                yield from child.walk()

    def check_state(self, state: object) -> None:
        """A state that cannot be stored is the module's fault, and found here, not later."""
        expected = self.state_type
        if isinstance(state, expected or object) and state is not None:
            return
        wanted = expected.__name__ if expected else "a msgspec.Struct or bytes"
        raise TypeError(
            f"the state after a package in {self.name!r} is a {type(state).__name__}; expected "
            f"{wanted}: return it from execute"
        )


@dataclass(slots=True, eq=False)
class Program:
    """A phase, laid out.

    Attributes:
        on_loop: whether a module is `async def` or external, or packages wait for others: they run
            on a loop.
        external: see `Phase.external`; the loop is then the worker's own.
        once: whether a package may never begin a second time.
        timeout_min_ns: the shortest timeout of all; None where there is none.
    """

    controller: str
    phase: str
    steps: tuple[Step, ...]
    on_loop: bool
    external: bool
    once: bool
    timeout_min_ns: int | None

    @property
    def name(self) -> str:
        """CONTROLLER.PHASE, for logs."""
        return f"{self.controller}.{self.phase}"

    def walk(self) -> Iterator[Step]:
        """Every step at any depth."""
        for step in self.steps:
            yield from step.walk()


def compile_phase(controller: Controller | str, phase: Phase) -> Program:
    """Lay a phase out. Raises TypeError for a module of a kind that workers do not run."""
    name = controller if isinstance(controller, str) else controller.name
    steps = _steps(phase.modules, "", f"{name}/{phase.name}/")
    every = [inner for step in steps for inner in step.walk()]
    timeouts = [step.timeout_ns for step in every if step.timeout_ns is not None]
    return Program(
        controller=name,
        phase=phase.name,
        steps=steps,
        on_loop=any((step.is_async and not step.isolated) or step.batches for step in every),
        external=phase.external,
        once=phase.max_deliver == 1,
        timeout_min_ns=min(timeouts, default=None),
    )


def in_servers(controller: Controller, phase: Phase) -> list[str]:
    """The labels of what runs in module servers and nowhere else."""
    steps = compile_phase(controller, phase).walk()
    return [step.label for step in steps if phase.external or step.kind is Kind.EXTERNAL]


def _steps(modules: Sequence[Module[Any]], key: str, label: str) -> tuple[Step, ...]:
    return tuple(
        _step(module, f"{key}{position}", label) for position, module in enumerate(modules)
    )


def _step(module: Module[Any], key: str, label: str) -> Step:
    name = bounded(module.name, NAME_BYTES_MAX) or type(module).__name__
    label = f"{label}{name}"
    children: tuple[Step | None, ...] = ()
    call: Callable[..., Any] | None = None
    if isinstance(module, ConditionModule):
        kind, call = Kind.CONDITION, module.condition
        children = _branches(module, key, f"{label}/")
    elif isinstance(module, CombinationModule):
        kind, children = Kind.COMBINATION, _steps(module.modules, f"{key}.", f"{label}/")
    elif isinstance(module, StatefulModule):
        kind, call = Kind.STATEFUL, module.execute
    elif isinstance(module, ExecutionModule):
        kind, call = Kind.EXECUTION, _execute_of(module)
    elif isinstance(module, ExternalModule):
        kind = Kind.EXTERNAL
    else:
        raise TypeError(
            f"module {label!r} is a {type(module).__name__}, which a worker cannot run; expected "
            f"an ExecutionModule, StatefulModule, ConditionModule, CombinationModule or "
            f"ExternalModule"
        )
    options = module.options
    return Step(
        module=module,
        kind=kind,
        key=key,
        name=name,
        label=label,
        call=call,
        is_async=kind is Kind.EXTERNAL or _is_async(call, module),
        payload_type=module.payload_type,
        state_type=state_type(module) if is_stateful(module) else None,
        timeout_ns=None if options.timeout_s is None else max(1, round(options.timeout_s * NS)),
        mutex=mutex_of(module) if options.use_mutex else None,
        children=children,
    )


def _execute_of(module: ExecutionModule[Any]) -> Callable[..., Any]:
    """What runs a single package: `execute`, or a batch of one."""
    one_by_one = type(module).execute is not ExecutionModule.execute
    if not defines_batches(module) or (one_by_one and module.options.max_batch == 1):
        return module.execute
    batch: Callable[..., Any] = module.execute_batch
    if not inspect.iscoroutinefunction(batch):
        return lambda package, run: batch((package,), (run,))

    async def alone(package: DataPackage[Any], run: Run) -> None:
        await batch((package,), (run,))

    return alone


def _branches(module: ConditionModule[Any], key: str, label: str) -> tuple[Step | None, ...]:
    """True branch, then false. Positions count the branches that there are, as `walk` does."""
    branches: list[Step | None] = []
    position = 0
    for branch in (module.true, module.false):
        branches.append(None if branch is None else _step(branch, f"{key}.{position}", label))
        position += branch is not None
    return tuple(branches)


def _is_async(call: Callable[..., Any] | None, module: Module[Any]) -> bool:
    passed = getattr(module, "_condition", None)  # a condition may be a function that was passed
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(passed)
