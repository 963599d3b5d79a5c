"""Which recorded arrivals count, in which order and in which life of their instance. Pure.

The machine of the controllers decides that, from the producers' numbers and by log time. A replay
whose clock is not the log's cannot have it decide again: it asks one here that gets the recorded
events with their times, and has a controller that holds nobody up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from msgspec import structs

from broker_pipeline.core.commands import Command, Dispatch
from broker_pipeline.core.envelope import Ignored
from broker_pipeline.core.events import Arrived, Completed, Deployed, Event, Opened, Ticked
from broker_pipeline.core.machine import Machine
from broker_pipeline.core.plan import ControllerPlan, Plan
from broker_pipeline.debug.recordings.recorded import COMPLETION, PLAN, RecordedEvent
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.errors import ReplayError
from broker_pipeline.journey import Mode, Outcome

LIVES_MAX = 100_000
"""Lives that are known to be cut; of the others producers' gaps are waited for."""


class Cuts:
    """The lives of which packages are missing in a recording: a producer's next number there is the
    next that the recording has.

    Attributes:
        lives: those that are not whole.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self.lives = [
            life
            for life in recording.cut_lives(LIVES_MAX)
            if life.last - life.outcomes > recording.overtaken(life.instance, life.epoch)
        ]
        self._cut = {(life.instance, life.epoch) for life in self.lives}

    def before(self, machine: Machine, event: Event) -> Iterator[Event]:
        """What the machine is to be given before an event, one after the other, so that it waits
        for no number that the recording does not have."""
        if not self._cut or not isinstance(event, Arrived) or not event.producer:
            return
        outcome = self._recording.recorded_outcome(event.stream_seq)
        if outcome is None or (outcome.instance, outcome.epoch) not in self._cut:
            return
        yield Ticked(event.stream_seq, event.time)  # a life that is over by then has ended
        if event.instance not in machine.instances:
            yield Opened(event.stream_seq, event.time, event.instance)
        instance = machine.instances[event.instance]
        if not instance.closing:
            instance.producer(event.producer).skip_to(event.number)


def arrival_in(recording: Recording, package_id: int) -> RecordedEvent:
    """An arrival that was read from the recording before. Raises ReplayError where it says now that
    it was something else."""
    event = recording.arrival_of(package_id)
    if event is None:
        raise ReplayError(
            f"event {package_id} of the recording {str(recording.path)!r} is a package, and is "
            f"said to be none; expected an arrival: take another copy of it, or record again",
            path=str(recording.path),
        )
    return event


@dataclass(frozen=True, slots=True)
class Admitted:
    """A package that arrives."""

    package_id: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The life of an instance is over: what arrives from here on is of the next one."""

    token: str


class Admission:
    """Takes recorded events in the order of the log."""

    def __init__(self, recording: Recording, plan: Plan) -> None:
        self._cuts = Cuts(recording)
        self._subjects = recording.subjects
        self._machine = Machine()
        self._lives: dict[str, int] = {}  # by token, their epochs
        first = plan.controllers[0]
        open_door = ControllerPlan(first.name, Mode.NO_ORDER, first.phases)
        self._controller = first.name
        plan = structs.replace(plan, pipeline=self._subjects.pipeline, controllers=(open_door,))
        self._machine.step(Deployed(0, 0, plan))

    def take(self, event: RecordedEvent) -> Iterator[Admitted | Ended]:
        """What an event means."""
        while (deadline := self._machine.next_deadline()) is not None:
            if deadline >= event.time_ns:
                break
            yield from self._step(Ticked(event.stream_seq, deadline))
        read = self._read(event)
        if read is not None:
            for before in self._cuts.before(self._machine, read):
                yield from self._step(before)
            yield from self._step(read)

    def rest(self) -> Iterator[Admitted | Ended]:
        """What waits for a producer's missing package at the end, and the end of every life."""
        machine = self._machine
        yield from self._step(Ticked(machine.applied, machine.time, paused=False))
        while (deadline := machine.next_deadline()) is not None:
            yield from self._step(Ticked(machine.applied, deadline))

    def _read(self, event: RecordedEvent) -> Event | None:
        time = event.time_ns
        if event.kind == PLAN:  # the pipeline is that of today from the beginning
            return Ticked(event.stream_seq, time)
        if event.kind == COMPLETION:  # a sign of life of an instance that is there
            if event.instance in self._machine.instances:
                return Opened(event.stream_seq, time, event.instance)
            return Ticked(event.stream_seq, time)
        try:
            return event.read(self._subjects)[0]
        except Ignored:
            return None

    def _step(self, event: Event) -> Iterator[Admitted | Ended]:
        """Nobody is ever inside: a package is done when it comes."""
        machine = self._machine
        pending: deque[Command] = deque(machine.step(event))
        yield from self._ended()
        while pending:
            command = pending.popleft()
            if isinstance(command, Dispatch):
                yield Admitted(command.package.id)
                pending.extend(machine.step(self._done(command, machine.time)))
                yield from self._ended()
            elif command.malformed:
                yield Admitted(command.package.id)

    def _ended(self) -> Iterator[Ended]:
        """The lives that the last step has ended. One may have begun in the same step."""
        machine = self._machine
        for token in machine.changed:
            instance = machine.instances.get(token)
            epoch = instance.epoch if instance is not None else None
            if token in self._lives and self._lives[token] != epoch:
                del self._lives[token]
                yield Ended(token)
            if epoch is not None:
                self._lives[token] = epoch
        machine.changed.clear()

    def _done(self, command: Dispatch, time: int) -> Completed:
        package = command.package
        sequence = command.stamps[-1].sequence  # type: ignore[union-attr]
        return Completed(
            package.id, time, command.instance, command.epoch, package.id, self._controller,
            sequence, Outcome.SUCCESS, 1,
        )  # fmt: skip
