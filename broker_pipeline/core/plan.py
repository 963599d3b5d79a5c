"""The plan: what a pipeline needs of the broker, compiled from it by a pure function.

Equal pipelines give equal plans. The plan is what `deploy` publishes, what leaders follow, and what
`broker-pipeline graph` prints; it holds no code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import msgspec

from broker_pipeline.core.lanes import LANES
from broker_pipeline.core.names import Subjects, stream_name
from broker_pipeline.errors import NewerVersionError, PlanError, UnknownPhaseError
from broker_pipeline.journey import NS, Mode
from broker_pipeline.modules import (
    CombinationModule,
    ConditionModule,
    ExternalModule,
    Module,
    StatefulModule,
)
from broker_pipeline.pipeline import Controller, Phase, Pipeline

VERSION = 1
"""The rules that a plan asks for which uses nothing newer. Each change of what a leader decides
is a new version, which only plans that need it have (docs/adr/0018-upgrades.md)."""
LANES_AND_AGES = 2
"""With lanes or a `max_age_s`: a program that does not know them would lose what it publishes, or
let go what is too old."""
VERSION_MAX = LANES_AND_AGES
"""The newest rules that this program knows; it follows all before them too."""

# What a deployed plan must hold, whoever wrote it: one that the machine could not follow would
# stop every leader of its log. The names are those of `pipeline.NAME`.
_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,48}\Z")]
_Positive = Annotated[int, msgspec.Meta(ge=1, le=2**62)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
LANES_MAX = 1000
"""A stream has no more consumers by default."""


class ModulePlan(msgspec.Struct, frozen=True, omit_defaults=True):
    """A module by name and kind, with the modules inside it. Of an external one: where its servers
    are, and whether it has a state. No leader decides anything by it."""

    name: str
    kind: str
    modules: tuple[ModulePlan, ...] = ()
    target: str = ""
    stateful: bool = False


class PhasePlan(msgspec.Struct, frozen=True, omit_defaults=True):
    """A phase: its queue's consumer and what runs in it. `lanes` 0: its queue is not cut."""

    name: _Name
    modules: tuple[ModulePlan, ...]
    ack_wait_s: Annotated[float, msgspec.Meta(gt=0)]
    max_deliver: _Positive
    stateful: bool = False
    lanes: Annotated[int, msgspec.Meta(ge=0, le=LANES_MAX)] = 0

    @property
    def external(self) -> bool:
        """See `Phase.external`."""
        kinds = {module.kind for each in self.modules for module in _all(each)}
        return "external" in kinds and kinds <= {"external", "combination"}


class ControllerPlan(msgspec.Struct, frozen=True, omit_defaults=True):
    """A controller: its rules and phases. `window` None: no bound on packages in flight;
    `max_age_ns` None: none is ever too old."""

    name: _Name
    mode: Mode
    phases: Annotated[tuple[PhasePlan, ...], msgspec.Meta(min_length=1)]
    window: _Positive | None = None
    queue_size: _Count | None = None
    max_age_ns: _Positive | None = None


class Plan(msgspec.Struct, frozen=True):
    """A compiled pipeline."""

    pipeline: _Name
    controllers: Annotated[tuple[ControllerPlan, ...], msgspec.Meta(min_length=1)]
    instance_idle_ns: _Positive
    producer_gap_ns: _Positive
    replay_window_ns: _Positive = 3600 * NS
    log_bytes_max: _Positive | None = None
    version: _Positive = VERSION

    def to_bytes(self) -> bytes:
        """The plan as JSON, the same bytes for equal plans."""
        return msgspec.json.encode(self)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Plan:
        """Read a plan.

        Raises:
            PlanError: the bytes are not one.
            NewerVersionError: they are one of a version that this program does not know.
        """
        try:
            stated = msgspec.json.decode(raw, type=_Stated)
            if stated.version > VERSION_MAX:
                raise NewerVersionError(
                    f"the plan of pipeline {stated.pipeline!r} has version {stated.version}; this "
                    f"program knows versions up to {VERSION_MAX}: run the program that deployed "
                    f"it, or a later one",
                    pipeline=stated.pipeline,
                    version=stated.version,
                )
            plan = msgspec.json.decode(raw, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise PlanError(
                f"{len(raw)} bytes are not a plan ({error}); deploy the pipeline again"
            ) from error
        faults = list(_faults(plan))
        if faults:
            raise PlanError(
                f"a plan of pipeline {plan.pipeline!r} is none that a pipeline gives: "
                f"{'; '.join(faults)}; deploy the pipeline again",
                pipeline=plan.pipeline,
                faults=faults,
            )
        return plan

    def controller_index(self, name: str) -> int:
        """The position of a controller; -1 where there is none of that name."""
        for index, controller in enumerate(self.controllers):
            if controller.name == name:
                return index
        return -1

    def phase(self, controller: str, phase: str) -> PhasePlan:
        """A phase by name. Raises UnknownPhaseError."""
        for candidate in self.controllers:
            for found in candidate.phases:
                if (candidate.name, found.name) == (controller, phase):
                    return found
        raise unknown_phase(self, f"{controller}.{phase}")

    def phase_names(self) -> list[str]:
        """All phases as CONTROLLER.PHASE."""
        return [f"{c.name}.{p.name}" for c in self.controllers for p in c.phases]


class _Stated(msgspec.Struct, frozen=True):
    """What a plan of any version says first; the rest of a newer one may look like anything."""

    pipeline: _Name
    version: _Positive


def _faults(plan: Plan) -> Iterator[str]:
    """What no declared pipeline can hold, and the machine relies on."""
    names = [controller.name for controller in plan.controllers]
    if len(set(names)) < len(names):
        yield f"two of its controllers {names} have the same name"
    for controller in plan.controllers:
        phases = [phase.name for phase in controller.phases]
        if len(set(phases)) < len(phases):
            yield f"two of the phases {phases} of {controller.name!r} have the same name"


def unknown_phase(plan: Plan, asked: str) -> UnknownPhaseError:
    """The error for a phase that the plan does not have."""
    names = ", ".join(repr(name) for name in plan.phase_names())
    return UnknownPhaseError(
        f"phase {asked!r} of pipeline {plan.pipeline!r} is not in the plan; it has: {names}; "
        f"start the worker with one of these",
        phase=asked,
    )


def compile_plan(pipeline: Pipeline) -> Plan:
    """Compile a pipeline. Pure: equal pipelines give equal plans."""
    controllers = tuple(_controller(controller) for controller in pipeline.controllers)
    newer = any(
        each.max_age_ns is not None or any(phase.lanes for phase in each.phases)
        for each in controllers
    )
    return Plan(
        pipeline=pipeline.name,
        controllers=controllers,
        instance_idle_ns=int(pipeline.instance_idle_s * NS),
        producer_gap_ns=int(pipeline.producer_gap_s * NS),
        replay_window_ns=int(pipeline.replay_window_s * NS),
        log_bytes_max=pipeline.log_bytes_max,
        version=LANES_AND_AGES if newer else VERSION,
    )


def _controller(controller: Controller) -> ControllerPlan:
    return ControllerPlan(
        name=controller.name,
        mode=controller.mode,
        phases=tuple(_phase(phase) for phase in controller.phases),
        window=controller.window,
        queue_size=controller.queue_size,
        max_age_ns=max_age_ns(controller),
    )


def max_age_ns(controller: Controller) -> int | None:
    """The age at which packages are too old for a controller; None where none is."""
    return None if controller.max_age_s is None else int(controller.max_age_s * NS)


def _phase(phase: Phase) -> PhasePlan:
    return PhasePlan(
        name=phase.name,
        modules=tuple(_module(module) for module in phase.modules),
        ack_wait_s=float(phase.ack_wait_s),
        max_deliver=phase.max_deliver,
        stateful=phase.stateful,
        lanes=lanes_in(phase),
    )


def lanes_in(phase: Phase) -> int:
    """Into how many lanes the queue of a phase is cut; 0: not at all."""
    return LANES if phase.stateful else 0


def _module(module: Module[Any]) -> ModulePlan:
    kinds = ((StatefulModule, "stateful"), (ConditionModule, "condition"))
    kind = next((label for base, label in kinds if isinstance(module, base)), "execution")
    if isinstance(module, CombinationModule):
        kind = "combination"
    if isinstance(module, ExternalModule):
        return ModulePlan(
            module.name, "external", target=module.target, stateful=bool(module.stateful)
        )
    return ModulePlan(module.name, kind, tuple(_module(child) for child in module.children))


def unfollowable(old: Plan, new: Plan) -> list[str]:
    """Why packages that run under `old` cannot go on under `new`; empty where they can.

    Bounds, ages, timeouts and the modules inside a phase may change. Controllers, their modes and
    phases may not: packages are on their way between them. Nor may the modules that have a state,
    or their places: one that comes into the middle of an instance has not seen what came before.
    Nor may the lanes of a phase: what is in its queue would be found by nobody.
    """
    faults = []
    before, after = ([c.name for c in plan.controllers] for plan in (old, new))
    if before != after:
        faults.append(f"the controllers were {before} and would be {after}")
    for was, will in zip(old.controllers, new.controllers, strict=False):
        if was.name != will.name:
            continue
        if was.mode is not will.mode:
            faults.append(f"the mode of {was.name!r} was {was.mode} and would be {will.mode}")
        before, after = [p.name for p in was.phases], [p.name for p in will.phases]
        if before != after:
            faults.append(f"the phases of {was.name!r} were {before} and would be {after}")
            continue
        for old_phase, new_phase in zip(was.phases, will.phases, strict=True):
            before, after = _with_state(old_phase.modules), _with_state(new_phase.modules)
            if before != after:
                where = f"{was.name}.{old_phase.name}"
                faults.append(f"what has a state in {where!r} was {before} and would be {after}")
    return faults + moved_queues(old, new)


def moved_queues(old: Plan, new: Plan) -> list[str]:
    """The phases of both whose packages are not looked for where the other plan has them."""
    before, after = (
        {f"{c.name}.{p.name}": p.lanes for c in plan.controllers for p in c.phases}
        for plan in (old, new)
    )
    return [
        f"the queue of {name!r} had {_lanes(before[name])} and would have {_lanes(after[name])}"
        for name in before
        if name in after and before[name] != after[name]
    ]


def _lanes(count: int) -> str:
    return f"{count} lanes, as that of a stateful phase" if count else "no lanes"


def _all(module: ModulePlan) -> Iterator[ModulePlan]:
    """A module and those at any depth inside it."""
    yield module
    for inner in module.modules:
        yield from _all(inner)


def _with_state(modules: Iterable[ModulePlan], inside: str = "") -> list[str]:
    """The modules that have a state, each with its place: under that it is stored."""
    found = []
    for position, module in enumerate(modules):
        place = f"{inside}{position}"
        if module.kind == "stateful":
            found.append(f"{module.name} at {place}")
        elif module.stateful:  # only its servers can read that state
            found.append(f"external {module.name} at {place}")
        found += _with_state(module.modules, f"{place}.")
    return found


def differences(old: Plan, new: Plan) -> list[str]:
    """What changed between two plans, a line each, as `deploy` says it."""
    was, will = msgspec.to_builtins(old), msgspec.to_builtins(new)
    return list(_differences("", was, will))


def _differences(path: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys((*old, *new))
        return [
            line
            for key in keys
            for line in _differences(f"{path}.{key}" if path else key, old.get(key), new.get(key))
        ]
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        return [
            line
            for index, (a, b) in enumerate(zip(old, new, strict=True))
            for line in _differences(f"{path}[{_label(a, index)}]", a, b)
        ]
    return [] if old == new else [f"{path}: {_short(old)} -> {_short(new)}"]


def _label(value: Any, index: int) -> str:
    return str(value.get("name", index)) if isinstance(value, dict) else str(index)


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return str([_label(item, index) for index, item in enumerate(value)])
    return repr(value)


def topology(plan: Plan, shard: int = 0) -> list[tuple[str, str, str]]:
    """Who reads what: `(reader, consumer, filter subject)` for every consumer of a shard."""
    prefix = f"bp.{plan.pipeline}.{shard}"
    rows = [("leader", f"{stream_name(plan.pipeline, shard)} (ephemeral)", f"{prefix}.ctl.>")]
    subjects = Subjects(plan.pipeline, shard)
    for controller in plan.controllers:
        for phase in controller.phases:
            found = subjects.consumers(controller.name, phase.name, phase.lanes)
            consumer, filter = found[0]
            if len(found) > 1:
                queue = f"{subjects.work}{controller.name}.{phase.name}"
                consumer, filter = f"{consumer} to {phase.lanes - 1}", f"{queue}.<lane>.>"
            reader = "bridge" if phase.external else "worker"
            rows.append((f"{reader} {controller.name}.{phase.name}", consumer, filter))
    return rows
