"""What `doctor` finds, and what it looks at. The checks are pure: they see these values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from broker_pipeline.broker.introspection import BrokerFacts, BucketSpec, Presence, StreamSurvey
from broker_pipeline.broker.monitoring import ServerSettings
from broker_pipeline.broker.port import StreamSpec
from broker_pipeline.core.plan import Plan
from broker_pipeline.debug.operation.reading import Reading


class Severity(StrEnum):
    """How bad it is, the worst first."""

    TROUBLE = "trouble"
    """Something does not work, or will lose what it promises."""
    WARNING = "warning"
    """It works, and will not for long, or not when something else fails."""
    NOTE = "note"
    """Good to know."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that is not as it should be.

    Attributes:
        name: what was found, the same for ever, such as `no-leader`.
        what: what it is here.
        remedy: what to do about it.
    """

    severity: Severity
    name: str
    what: str
    remedy: str


def trouble(name: str, what: str, remedy: str) -> Finding:
    """Something that does not work."""
    return Finding(Severity.TROUBLE, name, what, remedy)


def warning(name: str, what: str, remedy: str) -> Finding:
    """Something that will not for long."""
    return Finding(Severity.WARNING, name, what, remedy)


def note(name: str, what: str, remedy: str) -> Finding:
    """Something that is good to know."""
    return Finding(Severity.NOTE, name, what, remedy)


@dataclass(frozen=True, slots=True)
class Clock:
    """The broker's clock against the one here.

    Attributes:
        ahead_s: by how much the broker's is ahead; negative: behind.
        bound_s: how wrong that may be.
    """

    ahead_s: float
    bound_s: float


@dataclass(frozen=True, slots=True)
class Attempted:
    """A package that came more than twice to the workers of a phase and is not done.

    Attributes:
        phase: CONTROLLER.PHASE.
        package: its id, PIPELINE/SHARD/NUMBER.
        begun: runs of it that were recorded before they began.
        begun_max: after so many it is not run again.
    """

    phase: str
    instance: str
    package: str
    begun: int
    begun_max: int


@dataclass(frozen=True, slots=True)
class Leftover:
    """A pipeline that a replay has made.

    Attributes:
        streams: what there is of it.
        alive: whether a role of it answers, or somebody leads it.
    """

    pipeline: str
    streams: tuple[str, ...]
    alive: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that was gathered about one pipeline and its broker.

    Attributes:
        target: what the person called it by.
        plan: as the code says it.
        deployed: as it is in force; None where none is.
        unreadable: why the deployed plan cannot be read; '' where it can.
        settings: from the monitoring port; None where it was not asked.
        clock: None where nothing is deployed.
        surveys: what the plan in force needs, and what is there of it.
        log: the same for its log: with ingress closed where that is so on purpose.
        looks: two readings, some time apart; none where there is no log.
        holder: whether the holder of the lease is there, after the second look; None: nobody is.
    """

    target: str
    plan: Plan
    deployed: Plan | None
    unreadable: str
    broker: BrokerFacts
    settings: ServerSettings | None
    clock: Clock | None
    surveys: Sequence[tuple[StreamSpec | BucketSpec, StreamSurvey | None]]
    log: StreamSurvey | None
    looks: tuple[Reading, Reading] | None
    holder: Presence | None
    attempted: Sequence[Attempted]
    leftovers: Sequence[Leftover]

    @property
    def in_force(self) -> Plan:
        """The deployed plan, or what would be."""
        return self.deployed if self.deployed is not None else self.plan
