"""What a package had in one phase: its input, the states before it, and what came of it.

All of it is read from the log and from the stored states, and nothing is written: no consumer of
the phase, no ack and no state is touched.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any, cast

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.port import Broker, Message
from broker_pipeline.debug.inspection.finding import Finder
from broker_pipeline.debug.inspection.history import (
    Completion,
    PackageHistory,
    PhaseInput,
    parse_package_id,
)
from broker_pipeline.debug.inspection.wanted import Wanted
from broker_pipeline.debug.recordings.log_reading import read_log
from broker_pipeline.errors import (
    MalformedPackageError,
    PayloadGoneError,
    StateError,
    StepError,
    StepStateError,
)
from broker_pipeline.pipeline import Controller, Phase, Pipeline
from broker_pipeline.runtime.states import StateKeeper, States
from broker_pipeline.runtime.worker import choose


@dataclass(slots=True)
class Before:
    """The states before a package, as far as they are known without running anything.

    Attributes:
        states: those that were stored, by the path of their module; none: the initial ones.
        sequence: the input after which they were stored; 0: they are the initial ones.
        inputs: those since, in order, to be run again.
    """

    states: States = field(default_factory=dict)
    sequence: int = 0
    inputs: list[pb.DataPackage] = field(default_factory=list)


@dataclass(slots=True)
class Given:
    """What a package had in a phase.

    Attributes:
        pipeline, controller, phase: as they are declared now.
        stream_seq: of the message in the phase's queue.
        time: when the log took it, ns since the epoch.
        raw: the message as it is, which may refer to a large payload.
        envelope: the same with the payload in its place.
        recorded: the package as it came out of the phase; None: it has not.
        before: None in a phase without states.
    """

    pipeline: Pipeline
    controller: Controller
    phase: Phase
    stream_seq: int
    time: int
    raw: bytes
    envelope: pb.DataPackage
    recorded: pb.DataPackage | None = None
    before: Before | None = None


async def look_up(
    broker: Broker,
    pipeline: Pipeline,
    wanted: Wanted,
    phase: str | None = None,
    *,
    initial_state: bool = False,
) -> Given:
    """Read what a package had in a phase.

    Args:
        phase: CONTROLLER.PHASE; None: the last that it went into.
        initial_state: take the states that an instance begins with, whatever came before.

    Raises:
        PlanError: the pipeline is not deployed.
        UnknownPackageError: there is no such package, or it did not go into the phase, as far as
            the log goes back.
        StepError: it went into no phase at all.
        UnknownPhaseError: the pipeline has no such phase.
        StepStateError: the states cannot be had.
        PayloadGoneError: a large payload is not there any more.
    """
    chosen = choose(pipeline, [phase]) if phase else []  # refused before anything is read
    shard, _ = parse_package_id(wanted.package_id or "1", pipeline.name)
    finder = Finder(broker, pipeline.name, shard)
    history = await finder.history(await wanted.in_log(finder))
    if not chosen:
        chosen = choose(pipeline, [_last_phase(history)])
    controller, its_phase = chosen[0]
    here = history.input_of(controller.name, its_phase.name)
    if not here.envelope.controllers:
        raise StepError(
            f"message {here.message.stream_seq} of the log is no package as a controller gives it "
            f"to a phase: somebody else wrote it; workers leave it out, too",
            package=history.package_id,
        )
    envelope = _copy(here.envelope)
    await finder.load(envelope)
    given = Given(
        pipeline,
        controller,
        its_phase,
        here.message.stream_seq,
        here.message.time,
        here.message.data,
        envelope,
    )
    recorded = _came_out(history, here)
    if recorded is not None:
        given.recorded = _copy(recorded)
        with contextlib.suppress(PayloadGoneError, MalformedPackageError):
            await finder.load(given.recorded)  # without it the rest can be compared
    if its_phase.stateful:
        until = cast(Broker, _Until(broker, here.message.stream_seq))
        keeper = StateKeeper(until, pipeline.name, history.shard, controller, its_phase)
        token = history.token
        given.before = Before() if initial_state else await _before(keeper, token, envelope, finder)
    return given


def _last_phase(history: PackageHistory) -> str:
    if not history.inputs:
        why = f" ({'; '.join(history.notes)})" if history.notes else ""
        raise StepError(
            f"package {history.package_id!r} went into no phase{why}: it left before that, or "
            f"waits for it; `inspect` shows its way",
            package=history.package_id,
        )
    return f"{history.inputs[-1].controller}.{history.inputs[-1].phase}"


def _came_out(history: PackageHistory, here: PhaseInput) -> pb.DataPackage | None:
    """The package as it came out of a phase: what the next one got, or the completion."""
    ways: list[PhaseInput | Completion] = [*history.inputs, *history.completions]
    later = [
        each.envelope
        for each in ways
        if each.controller == here.controller and each.message.stream_seq > here.message.stream_seq
    ]
    return later[0] if later else None


def _copy(envelope: pb.DataPackage) -> pb.DataPackage:
    copied = pb.DataPackage()
    copied.CopyFrom(envelope)
    return copied


class _Until:
    """A broker whose log ends with a message: what came later changes no state before that."""

    def __init__(self, broker: Broker, end_seq: int) -> None:
        self._broker = broker
        self._end_seq = end_seq

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    async def read_range(
        self, stream: str, filter: str, *, start_seq: int, headers_only: bool = False
    ) -> list[Message]:
        """See `Broker.read_range`."""
        reading = read_log(
            self._broker,
            stream,
            filter,
            start_seq=start_seq,
            end_seq=self._end_seq,
            headers_only=headers_only,
        )
        async with contextlib.aclosing(reading) as batches:
            return [message async for batch in batches for message in batch]


async def _before(
    keeper: StateKeeper, token: str, envelope: pb.DataPackage, finder: Finder
) -> Before:
    """What the states before a package follow from. Raises StepStateError."""
    if keeper.previous(envelope) == 0:
        return Before()
    inputs: list[pb.DataPackage] = []

    async def note(recorded: pb.DataPackage, states: States) -> States:
        await finder.load(recorded)
        inputs.append(recorded)
        return states

    try:
        states = await keeper.catch_up(token, envelope, note)
    except (StateError, PayloadGoneError, MalformedPackageError) as error:
        raise StepStateError(
            f"the state that package {envelope.id} found cannot be had: {error}; go on without it "
            f"by --initial-state",
            package=envelope.id,
        ) from error
    first = inputs[0] if inputs else envelope
    return Before(states, keeper.previous(first), inputs)
