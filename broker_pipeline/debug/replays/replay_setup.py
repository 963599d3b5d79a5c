"""In what a replay runs, and what stands for the module servers that it must not call."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker_pipeline.debug.replays.diff import Kind
from broker_pipeline.debug.replays.replaying import On
from broker_pipeline.errors import RecordingError, ReplayError
from broker_pipeline.modules import ExternalModule, Module, walk
from broker_pipeline.pipeline import Pipeline
from broker_pipeline.target import load_module


@dataclass(frozen=True)
class Setup:
    """In what to replay, and with what.

    Args:
        pipeline: today's.
        on: in memory; in an embedded server; or in a pipeline of its own on the broker `url`.
        target: the pipeline's TARGET, for modules that are isolated in processes.
        external: what runs in the place of external modules, by name.
        external_live: call the real module servers for those that have no stand-in.
        workers: in an embedded server: so many worker processes; 0: all roles in this process.
        save: write what was replayed into this file, which is not there yet.
    """

    pipeline: Pipeline
    on: On = On.MEMORY
    url: str = ""
    target: str | None = None
    external: Mapping[str, Module[Any]] = field(default_factory=dict)
    external_live: bool = False
    workers: int = 0
    save: Path | None = None

    def check(self) -> None:
        """Raises ReplayError where that cannot be, RecordingError where `save` is there."""
        if self.save is not None and self.save.exists():
            raise RecordingError(
                f"{str(self.save)!r} is there already; expected a new file for --save: choose "
                f"another name, or remove it first",
                path=str(self.save),
            )
        names = external_names(self.pipeline)
        unknown = [name for name in self.external if name not in names]
        if unknown:
            raise ReplayError(
                f"external names {', '.join(map(repr, unknown))}, and pipeline "
                f"{self.pipeline.name!r} has {', '.join(map(repr, names)) or 'none'}; expected the "
                f"name of an ExternalModule",
                modules=unknown,
            )
        if not self.external_live:
            require_stand_ins(self.pipeline, self.external)
        elif self.on is On.MEMORY:
            raise ReplayError(
                "a replay in memory calls no module servers; expected --external-live with "
                "--on broker, or with --on embedded: choose one, or give a stand-in with --external"
            )
        if self.workers and self.on is not On.EMBEDDED:
            raise ReplayError(
                f"worker processes were asked for on {self.on.value}; expected --workers with "
                f"--on embedded: elsewhere modules run in this process, to end with it"
            )
        if self.workers and (self.external or self.target is None):
            raise ReplayError(
                "worker processes import the pipeline and know no stand-ins; expected a TARGET "
                "without --external: leave --workers out"
            )
        if self.external_live and self.on is On.EMBEDDED:
            _require_addresses(self.pipeline, self.external)


def _external(pipeline: Pipeline) -> Iterator[ExternalModule]:
    for controller in pipeline.controllers:
        for phase in controller.phases:
            for _, module in walk(phase.modules):
                if isinstance(module, ExternalModule):
                    yield module


def external_names(pipeline: Pipeline) -> list[str]:
    """The names of the modules that run in servers."""
    return list(dict.fromkeys(module.name for module in _external(pipeline)))


def require_stand_ins(pipeline: Pipeline, given: Mapping[str, object]) -> None:
    """Raises ReplayError where an external module has no stand-in."""
    missing = [name for name in external_names(pipeline) if name not in given]
    if missing:
        options = " ".join(f"--external {name}=package.module:Class" for name in missing)
        raise ReplayError(
            f"modules of pipeline {pipeline.name!r} run in module servers, and a replay calls none "
            f"by itself: {', '.join(map(repr, missing))}; say what runs in their place, {options}, "
            f"or have the real servers called: --external-live",
            modules=missing,
        )


def _require_addresses(pipeline: Pipeline, stand_ins: Mapping[str, object]) -> None:
    found = [
        module.name
        for module in _external(pipeline)
        if module.name not in stand_ins and module.target.startswith("registry:")
    ]
    if found:
        raise ReplayError(
            f"the servers of {', '.join(map(repr, found))} announce themselves in the live broker, "
            f"and an embedded one does not know them; expected host:port as their target, or "
            f"--on broker",
            modules=found,
        )


def parse_stand_ins(given: Sequence[str]) -> dict[str, Module[Any]]:
    """`name=package.module:Class`, each, loaded.

    Raises:
        ReplayError: one is not of that form.
        TargetError: one leads to no module.
    """
    found: dict[str, Module[Any]] = {}
    for text in given:
        name, equals, target = text.partition("=")
        if not (name and equals and target):
            raise ReplayError(
                f"--external {text!r} cannot be read; expected NAME=package.module:Class, the name "
                f"of an ExternalModule and what runs in its place"
            )
        found[name] = load_module(target)
    return found


def parse_speed(text: str) -> float | None:
    """How many times as fast as it was recorded; None, for `max`: flat out. Raises ReplayError."""
    if text.strip().lower() == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not 0 < speed < math.inf:
        raise ReplayError(
            f"the speed {text!r} cannot be; expected 'max', or how many times as fast as it was "
            f"recorded: 1, 10, 0.5",
            speed=text,
        )
    return speed


def parse_kinds(text: str) -> frozenset[Kind]:
    """Kinds of differences, with commas between them. Raises ReplayError."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in set(Kind)]
    if unknown:
        raise ReplayError(
            f"there are no differences of kind {', '.join(map(repr, unknown))}; expected some of "
            f"{', '.join(Kind)}",
            kinds=unknown,
        )
    return frozenset(Kind(name) for name in names)
