"""What users declare: a pipeline of controllers, a controller of phases, a phase of modules.

These are values: building one does nothing but check it. All faults are found at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import msgspec
from google.protobuf.message import Message

from broker_pipeline.batch_checks import batch_faults, neighbour_faults
from broker_pipeline.errors import DeclarationError
from broker_pipeline.journey import Mode
from broker_pipeline.modules import (
    CombinationModule,
    ExternalModule,
    ExternalOptions,
    Method,
    Module,
    Tls,
    is_stateful,
    walk,
)
from broker_pipeline.target_address import parse_target

# Names become subject tokens, parts of stream and consumer names, metric labels and file names.
NAME = re.compile(r"[A-Za-z0-9_-]{1,48}")
SECONDS_MIN, SECONDS_MAX = 1e-9, 1e9
"""Log time is counted in whole nanoseconds, in 64 bits; 1e9 seconds are 31 years."""
REPLAY_WINDOW_S_MIN = 120.0
"""The broker's dedup window: when it starts it learns message ids again from what is stored."""
LOG_BYTES_MIN = 1 << 20
"""A message may have 1 MiB by the broker's default; a smaller log could not hold one."""
LARGE_PAYLOAD_BYTES_MIN = 1024
"""An object costs several messages and their answers: for less it is never worth it."""
DEPTH_MAX = 32
"""Levels of modules in modules. Protobuf reads 100 levels of records, a few of which are ours."""


@dataclass(frozen=True)
class Phase:
    """One stage of a controller: modules in order; the unit that is scaled by starting workers.

    Args:
        name: letters, digits, '-' and '_'; at most 48.
        modules: at least one.
        ack_wait_s: seconds after which a package whose worker has gone silent is given to another.
            Workers send a sign of life three times in it, however long a module runs.
        max_deliver: how often a package is begun before it leaves as ERROR: it may be killing its
            workers. The first two deliveries count as begun (docs/adr/0013); 1: never a second run.
    """

    name: str
    modules: Sequence[Module[Any]]
    ack_wait_s: float = 5.0
    max_deliver: int = 5

    @property
    def stateful(self) -> bool:
        """Whether a module of the phase, at any depth, has a state."""
        return any(is_stateful(module) for _, module in walk(self.modules))

    @property
    def external(self) -> bool:
        """Whether all that runs in it are `ExternalModule`s: then a bridge runs it."""
        found = [module for _, module in walk(self.modules)]
        bridged = all(isinstance(each, ExternalModule | CombinationModule) for each in found)
        return bridged and any(isinstance(each, ExternalModule) for each in found)


@dataclass(frozen=True)
class Controller:
    """Admits packages, bounds how many are in flight, and decides in which order they leave.

    Args:
        name: letters, digits, '-' and '_'; at most 48.
        phases: at least one; a package goes through them in order.
        mode: see `Mode`.
        max_workers: at most so many packages of an instance in flight; None: no bound (1 for
            NOT_PARALLEL).
        queue_size: how many more may wait; when one more arrives the oldest waiting one leaves as
            OVERFLOW (0: the new one does, if no worker is free). None: the queue is the broker,
            and nothing overflows.
        max_age_s: a package that arrived at the pipeline so long ago or longer leaves as OUTDATED:
            while it waits to be run or for its turn, or when it comes back; and where possible
            before it is run. By the broker's clock. None: none is ever too old.
    """

    name: str
    phases: Sequence[Phase]
    mode: Mode = Mode.NOT_PARALLEL
    max_workers: int | None = None
    queue_size: int | None = None
    max_age_s: float | None = None

    @property
    def window(self) -> int | None:
        """At most so many packages of an instance in flight; None: no bound."""
        return 1 if self.mode is Mode.NOT_PARALLEL else self.max_workers


class Pipeline:
    """A named chain of controllers.

    Args:
        name: letters, digits, '-' and '_'; at most 48.
        controllers: at least one; what leaves one with SUCCESS arrives at the next.
        instance_idle_s: an instance that saw nothing for so long ends: its sequence ids start at
            1 again under a new epoch.
        producer_gap_s: how long a numbered package waits for a missing one before it, log time.
        replay_window_s: how long history is kept for replay: what everything has passed that
            needs it. At least 120. A log that is more than half full keeps less.
        log_bytes_max: the size of the log above which nothing new is taken: producers are refused
            until there is room again. While they are, it may take a multiple of that for what is
            inside (ADR 12). None: no bound but the disk and the account.
        large_payload_bytes: larger payloads are kept as objects beside the log, and their packages
            travel with a reference; modules and readers notice nothing. None: those that do not
            leave room for a journey in the broker's largest message.
        payload_types: payload classes that no module names as its type argument.

    Raises:
        DeclarationError: with every fault.
    """

    def __init__(
        self,
        name: str,
        controllers: Sequence[Controller],
        *,
        instance_idle_s: float = 600.0,
        producer_gap_s: float = 2.0,
        replay_window_s: float = 3600.0,
        log_bytes_max: int | None = None,
        large_payload_bytes: int | None = None,
        payload_types: Iterable[type] = (),
    ) -> None:
        self.name = name
        self.controllers = tuple(_listed(controllers))
        self.instance_idle_s = instance_idle_s
        self.producer_gap_s = producer_gap_s
        self.replay_window_s = replay_window_s
        self.log_bytes_max = log_bytes_max
        self.large_payload_bytes = large_payload_bytes
        self.declared_types = tuple(payload_types)
        faults = list(_faults(self, controllers))
        if faults:
            raise DeclarationError(f"pipeline {name!r}", faults)

    @property
    def payload_types(self) -> dict[str, type]:
        """Payload classes by the name that content types carry."""
        found: dict[str, type] = {}
        modules = (
            module
            for controller in self.controllers
            for phase in controller.phases
            for _, module in walk(phase.modules)
        )
        for kind in (*self.declared_types, *(module.payload_type for module in modules)):
            if kind is None or not isinstance(kind, type):
                continue
            if issubclass(kind, msgspec.Struct):
                found[kind.__name__] = kind
            elif issubclass(kind, Message):
                found[kind.DESCRIPTOR.full_name] = kind
        return found

    def __repr__(self) -> str:
        return f"<Pipeline {self.name!r}: {', '.join(c.name for c in self.controllers)}>"


def _faults(pipeline: Pipeline, declared: object) -> Iterable[str]:
    yield from _name_faults("pipeline", [pipeline.name])
    if not pipeline.controllers:
        yield f"BP104 pipeline {pipeline.name!r} has no controller; it needs at least one"
    for label in ("instance_idle_s", "producer_gap_s"):
        value = getattr(pipeline, label)
        if not _is_seconds(value):
            yield f"BP103 {label} is {value!r}; expected seconds, more than 0"
    yield from _log_faults(pipeline)
    where = f"pipeline {pipeline.name!r}"
    for kind in pipeline.declared_types:
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct | Message)):
            yield (
                f"BP110 payload_types of {where} holds {kind!r}; expected msgspec.Struct classes "
                f"or protobuf messages: bytes, str and plain data need no declaration"
            )
    controllers = [c for c in pipeline.controllers if isinstance(c, Controller)]
    yield from _strangers(where, declared, Controller)
    yield from _name_faults("controller", [c.name for c in controllers])
    for controller in controllers:
        yield from _controller_faults(controller)


def _log_faults(pipeline: Pipeline) -> Iterable[str]:
    window_s, size = pipeline.replay_window_s, pipeline.log_bytes_max
    if not _is_seconds(window_s) or window_s < REPLAY_WINDOW_S_MIN:
        yield (
            f"BP103 replay_window_s is {window_s!r}; expected at least {REPLAY_WINDOW_S_MIN:g} "
            f"seconds: a broker that starts knows only the message ids of what is still stored, "
            f"and must know those of the last {REPLAY_WINDOW_S_MIN:g}"
        )
    if size is not None and (not isinstance(size, int) or not LOG_BYTES_MIN <= size <= 2**62):
        yield (
            f"BP103 log_bytes_max is {size!r}; expected at least {LOG_BYTES_MIN} bytes, or None: "
            f"no bound"
        )
    large = pipeline.large_payload_bytes
    if large is not None and (not isinstance(large, int) or large < LARGE_PAYLOAD_BYTES_MIN):
        yield (
            f"BP103 large_payload_bytes is {large!r}; expected at least {LARGE_PAYLOAD_BYTES_MIN} "
            f"bytes, or None: what does not fit into a message"
        )


def _controller_faults(controller: Controller) -> Iterable[str]:
    where = f"controller {controller.name!r}"
    if not isinstance(controller.mode, Mode):  # a str that equals one is none: `is` decides
        modes = ", ".join(Mode)
        yield f"BP107 {where} has mode {controller.mode!r}; expected one of Mode: {modes}"
    workers, queue = controller.max_workers, controller.queue_size
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        yield f"BP103 max_workers of {where} is {workers!r}; expected at least 1, or None: no bound"
    if queue is not None and (not isinstance(queue, int) or queue < 0):
        yield f"BP103 queue_size of {where} is {queue!r}; expected at least 0, or None: no bound"
    age = controller.max_age_s
    if age is not None and not _is_seconds(age):
        yield f"BP103 max_age_s of {where} is {age!r}; expected seconds, more than 0, or None"
    if controller.mode is Mode.NOT_PARALLEL:
        if workers not in (None, 1):
            yield (
                f"BP107 {where} is NOT_PARALLEL and has max_workers={workers!r}; it runs one "
                f"package at a time: leave max_workers out, or take another mode"
            )
    elif queue is not None and workers is None:
        yield (
            f"BP106 {where} has queue_size={queue!r} and no max_workers: nothing would ever wait; "
            f"give max_workers too, or leave queue_size out"
        )
    if not controller.phases:
        yield f"BP104 {where} has no phase; it needs at least one"
    yield from _strangers(where, controller.phases, Phase)
    phases = [phase for phase in _listed(controller.phases) if isinstance(phase, Phase)]
    yield from _name_faults(f"phase of {where}", [phase.name for phase in phases])
    for phase in phases:
        yield from _phase_faults(controller, phase)


def _phase_faults(controller: Controller, phase: Phase) -> Iterable[str]:
    where = f"phase {phase.name!r} of controller {controller.name!r}"
    if not phase.modules:
        yield f"BP104 {where} has no module; it needs at least one"
    if not _is_seconds(phase.ack_wait_s):
        yield f"BP103 ack_wait_s of {where} is {phase.ack_wait_s!r}; expected seconds, more than 0"
    if not isinstance(phase.max_deliver, int) or phase.max_deliver < 1:
        yield f"BP103 max_deliver of {where} is {phase.max_deliver!r}; expected at least 1"
    strangers = list(_strangers(where, phase.modules, Module))
    yield from strangers
    if strangers:
        return
    for path, module in walk(phase.modules):
        if path.count(".") == DEPTH_MAX:
            yield (
                f"BP111 {where} has modules inside one another to more than {DEPTH_MAX} levels; "
                f"their records could not be read: nest them less"
            )
        if not isinstance(module, Module):
            yield f"BP109 {where} holds {module!r} inside another module; expected a Module"
            continue
        yield from _module_faults(controller, where, module)
    yield from neighbour_faults(where, phase.modules)


def _module_faults(controller: Controller, where: str, module: Module[Any]) -> Iterable[str]:
    if is_stateful(module) and controller.mode is not Mode.NOT_PARALLEL:
        yield (
            f"BP105 {module.name!r} in {where} is stateful and the mode is {controller.mode}; "
            f"a state is a fold over packages one after the other: make the controller NOT_PARALLEL"
        )
    options = module.options
    if isinstance(module, ExternalModule) and not isinstance(options, ExternalOptions):
        kind = type(options).__name__
        yield f"BP114 options of {module.name!r} in {where} are {kind}; expected ExternalOptions"
        return
    if options.timeout_s is not None and not _is_seconds(options.timeout_s):
        yield (
            f"BP108 timeout_s of {module.name!r} in {where} is {options.timeout_s!r}; expected "
            f"seconds, more than 0, or None"
        )
    if options.isolation not in ("thread", "process"):
        yield (
            f"BP108 isolation of {module.name!r} in {where} is {options.isolation!r}; expected "
            f"'thread' or 'process'"
        )
    if isinstance(module, ExternalModule):
        yield from _external_faults(
            controller, f"external module {module.name!r} in {where}", module
        )
    yield from batch_faults(f"{module.name!r} in {where}", module)


def _external_faults(controller: Controller, who: str, module: ExternalModule) -> Iterable[str]:
    try:
        parse_target(module.target)
    except ValueError as error:
        yield f"BP112 {who} cannot be called: {error}"
    replicas = module.replicas
    if not isinstance(replicas, int) or replicas < 1:
        yield f"BP113 replicas of {who} is {replicas!r}; expected at least 1"
    elif replicas > 1 and module.stateful:
        yield (
            f"BP115 {who} is stateful and has replicas={replicas}: each server would leave a state "
            f"of its own; leave replicas out"
        )
    elif replicas > 1 and controller.mode is not Mode.FIRST_WINS:
        yield (
            f"BP113 {who} has replicas={replicas} and the mode is {controller.mode}; servers race "
            f"where the first result wins: make the controller FIRST_WINS, or leave replicas out"
        )
    if module.options.isolation == "process":
        yield (
            f"BP108 isolation of {who} is 'process'; it runs in its servers' processes: leave "
            f"isolation out"
        )
    yield from _calling_faults(who, module.options)


def _calling_faults(who: str, options: ExternalOptions) -> Iterable[str]:
    if options.method not in get_args(Method):
        yield f"BP114 method of {who} is {options.method!r}; expected 'stream' or 'run'"
    if not isinstance(options.streams, int) or options.streams < 1:
        yield f"BP114 streams of {who} is {options.streams!r}; expected at least 1"
    if not isinstance(options.tls, Tls | None):
        yield f"BP114 tls of {who} is {options.tls!r}; expected a Tls, or None: plaintext"
    if not isinstance(options.token, str | None):
        kind = type(options.token).__name__
        yield f"BP114 token of {who} is a {kind}; expected text, or None: none is shown"


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and SECONDS_MIN <= value <= SECONDS_MAX


def _listed(found: Any) -> Sequence[Any]:
    return found if isinstance(found, Sequence) else (found,)


def _strangers(where: str, found: object, kind: type) -> Iterable[str]:
    """A fault for everything that is not of the kind; what is no sequence counts as one thing."""
    if not isinstance(found, Sequence):
        yield f"BP109 {where} holds {found!r}; expected a list of {kind.__name__} objects"
        return
    for stranger in found:
        if not isinstance(stranger, kind):
            hint = (
                "an instance, not the class" if isinstance(stranger, type) else f"a {kind.__name__}"
            )
            yield f"BP109 {where} holds {stranger!r}; expected {hint}"


def _name_faults(kind: str, names: Sequence[str]) -> Iterable[str]:
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            yield (
                f"BP101 the name {name!r} of a {kind} is not usable; expected 1 to 48 letters, "
                f"digits, '-' or '_'"
            )
        elif name in seen:
            yield f"BP102 the name {name!r} of a {kind} is taken twice; give each its own"
        else:
            seen.add(name)
