"""A phase laid out for the interpreter: all that can be known before the first package."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from broker_pipeline.journey import NS
from broker_pipeline.modules import (
    CombinationModule,
    ConditionModule,
    ExecutionModule,
    Module,
    StatefulModule,
    state_type,
)
from broker_pipeline.pipeline import Controller, Phase
from broker_pipeline.runtime.execution.failure import NAME_BYTES_MAX, bounded
from broker_pipeline.runtime.execution.mutex import Mutex, mutex_of


class Kind(Enum):
    """What the interpreter does with a module."""

    EXECUTION = auto()
    STATEFUL = auto()
    CONDITION = auto()
    COMBINATION = auto()


@dataclass(slots=True, eq=False)
class Step:
    """One module at one place of the tree.

    Attributes:
        key: its positions joined by '.', the name of its state.
        label: controller, phase and module names joined by '/', as errors tell it.
        call: its own code: `execute`, or `condition`; None for a combination.
        remote: set by the executor for a module that is isolated in a process.
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

    @property
    def isolated(self) -> bool:
        """Whether it asks for a process of its own."""
        return self.module.options.isolation == "process"

    def walk(self) -> Iterator[Step]:
        """This step and all inside it, in the order of the tree."""
        yield self
        for child in self.children:
            if child is not None:
                yield from child.walk()


@dataclass(slots=True, eq=False)
class Program:
    """A phase, laid out.

    Attributes:
        on_loop: whether a module is `async def`, so that packages run on the module loop.
        timeout_min_ns: the shortest timeout of all; None where there is none.
    """

    controller: str
    phase: str
    steps: tuple[Step, ...]
    on_loop: bool
    timeout_min_ns: int | None

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
        on_loop=any(step.is_async and not step.isolated for step in every),
        timeout_min_ns=min(timeouts, default=None),
    )


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
        kind, call = Kind.EXECUTION, module.execute
    else:
        raise TypeError(
            f"module {label!r} is a {type(module).__name__}, which a worker cannot run; expected "
            f"an ExecutionModule, StatefulModule, ConditionModule or CombinationModule"
        )
    options = module.options
    return Step(
        module=module,
        kind=kind,
        key=key,
        name=name,
        label=label,
        call=call,
        is_async=_is_async(call, module),
        payload_type=module.payload_type,
        state_type=state_type(module) if isinstance(module, StatefulModule) else None,
        timeout_ns=None if options.timeout_s is None else max(1, round(options.timeout_s * NS)),
        mutex=mutex_of(module) if options.use_mutex else None,
        children=children,
    )


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
