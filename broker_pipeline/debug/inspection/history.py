"""The history of one package: everything that the log, or a recording, has of it.

    finder = Finder(broker, "transcribe")
    history = await finder.history(await finder.by_sequence("room-1", 17))

The log is read by headers where they say enough, a stretch at a time, beside live traffic; nothing
is left behind at the broker.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.port import Message
from broker_pipeline.codecs import Types
from broker_pipeline.core.envelope import Ignored, read_event
from broker_pipeline.core.events import Arrived
from broker_pipeline.core.names import Subjects, readable_instance, unescape_instance
from broker_pipeline.debug.recordings.recorded_rows import RecordedRows
from broker_pipeline.errors import UnknownPackageError
from broker_pipeline.journey import NS
from broker_pipeline.package import DataPackage


@dataclass(frozen=True, slots=True)
class PhaseInput:
    """What a package was when it came to a phase.

    Attributes:
        message: of the phase's queue, as it is in the log.
        envelope: what is in it; a large payload is a reference in it until somebody loads it.
        begun: how often workers recorded that they began it, beyond the first two deliveries, of
            which there are no records (docs/adr/0013); 0: there is no record.
    """

    controller: str
    phase: str
    message: Message
    envelope: pb.DataPackage
    begun: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """How a package came back to a controller from its phases."""

    controller: str
    message: Message
    envelope: pb.DataPackage


@dataclass(frozen=True, slots=True)
class PackageHistory:
    """Everything that there is of a package, in the order in which it happened.

    Attributes:
        id: the stream sequence of its arrival.
        token: of its instance.
        arrival: the producer's message; None where it is gone.
        arrived: what was in that; None where it is gone or unreadable.
        inputs: what each phase got, of those that it came to.
        completions: how it came back to each controller.
        left: the message with which it left; None while it is inside.
        outcome: what was in that.
        notes: what is gone, and why.
    """

    pipeline: str
    shard: int
    id: int
    token: str
    arrival: Message | None = None
    arrived: pb.DataPackage | None = None
    inputs: tuple[PhaseInput, ...] = ()
    completions: tuple[Completion, ...] = ()
    left: Message | None = None
    outcome: pb.DataPackage | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def package_id(self) -> str:
        """Its address."""
        return f"{self.pipeline}/{self.shard}/{self.id}"

    @property
    def instance(self) -> str:
        """The name of its instance."""
        return unescape_instance(self.token)

    @property
    def latest(self) -> pb.DataPackage:
        """The latest that is known of it: how it left, or what was last written of it."""
        if self.outcome is not None:
            return self.outcome
        if self._steps:
            return self._steps[-1].envelope
        latest = pb.DataPackage()
        if self.arrived is not None:
            latest.CopyFrom(self.arrived)
        latest.id, latest.pipeline, latest.shard = self.id, self.pipeline, self.shard
        latest.instance = readable_instance(self.token)
        latest.start_time_ns = self.arrival.time if self.arrival else 0
        return latest

    @property
    def _steps(self) -> list[PhaseInput | Completion]:
        steps: list[PhaseInput | Completion] = [*self.inputs, *self.completions]
        return sorted(steps, key=lambda step: step.message.stream_seq)

    def package(self, types: Types | None = None) -> DataPackage[Any]:
        """`latest`, as a package."""
        return DataPackage.wrap(self.latest, types)

    def input_of(self, controller: str, phase: str) -> PhaseInput:
        """What a phase got. Raises UnknownPackageError where it never came there, or where that
        is gone."""
        for each in self.inputs:
            if (each.controller, each.phase) == (controller, phase):
                return each
        came = ", ".join(repr(f"{each.controller}.{each.phase}") for each in self.inputs)
        why = f"; {'; '.join(self.notes)}" if self.notes else ""
        raise UnknownPackageError(
            f"the log has no input of phase '{controller}.{phase}' for package "
            f"{self.package_id!r}; expected one of those that it has: {came or 'none'}{why}",
            package=self.package_id,
        )

    def standing(self) -> tuple[str, int]:
        """Where a package stands that is inside, in words, and since when, ns since the epoch."""
        if not self._steps:
            since = self.arrival.time if self.arrival else 0
            return "waits to be admitted: no worker is free for it, or no controller runs", since
        last = self._steps[-1]
        if isinstance(last, PhaseInput):
            where = f"{last.controller}.{last.phase}"
            return f"is in the queue of {where}, or being run there", last.message.time
        waits = "waits for its turn to leave it, or to enter the next"
        return f"is through with the phases of {last.controller}, and {waits}", last.message.time

    def to_json(self) -> dict[str, Any]:
        """As plain data: the package as it is, and every message about it."""
        return {
            **self.package().to_json(),
            "id": self.package_id,
            "instance": readable_instance(self.token),
            "inside": None if self.outcome else self.standing()[0],
            "arrival": self.arrival and _message_json(self.arrival, self.arrived),
            "inputs": [
                {
                    "controller": each.controller,
                    "phase": each.phase,
                    "begun": each.begun,
                    **_message_json(each.message, each.envelope),
                }
                for each in self.inputs
            ],
            "completions": [
                {"controller": each.controller, **_message_json(each.message, None)}
                for each in self.completions
            ],
            "left": self.left and _message_json(self.left, None),
            "notes": list(self.notes),
        }


def _message_json(message: Message, envelope: pb.DataPackage | None) -> dict[str, Any]:
    place = {"stream_seq": message.stream_seq, "time": message.time / NS}
    if envelope is None:
        return place
    told = DataPackage.wrap(envelope).to_json()
    kept = ("content_type", "data", "reference", "attributes")
    return {**place, **{key: told[key] for key in kept if key in told}}


def recorded_history(recording: RecordedRows, number: int) -> PackageHistory:
    """What a recording has of a package: its arrival and how it left, and nothing between.

    Raises:
        UnknownPackageError: it is not in the recording.
        RecordingError: the file is damaged.
    """
    event, left = recording.arrival_of(number), recording.recorded_outcome(number)
    meta = recording.meta
    if event is None and left is None:
        raise UnknownPackageError(
            f"the recording {str(recording.path)!r} has no package "
            f"'{meta.pipeline}/{meta.shard}/{number}'; expected one of those that "
            f"`broker-pipeline recording` lists",
            package=number,
        )
    notes = ["it is read from a recording, which has no inputs of phases"]
    notes += [f"its payload is gone: {each.gone}" for each in (event, left) if each and each.gone]
    arrival = arrived = left_as = outcome = None
    if event is not None:
        arrival = Message(event.subject, event.data, event.headers, event.stream_seq, event.time_ns)
        found = arrived_as(recording.subjects, arrival)
        arrived = found[1] if found else None
    if left is not None:
        subject = recording.subjects.outcome(left.outcome, left.instance)
        left_as = Message(subject, left.data, {}, left.stream_seq, left.time_ns)
        package = recording.outcome_of(number)
        outcome = package.envelope if package else None
    token = event.instance if event is not None else left.instance if left is not None else ""
    return PackageHistory(
        meta.pipeline, meta.shard, number, token, arrival, arrived, (), (), left_as, outcome,
        tuple(notes),
    )  # fmt: skip


def parse_package_id(text: str, pipeline: str) -> tuple[int, int]:
    """The shard and the number in a package's id, `pipeline/shard/number`; the number alone is one
    of shard 0. Raises UnknownPackageError."""
    parts = text.strip().split("/")
    if len(parts) == 1:
        parts = [pipeline, "0", *parts]
    numbers = [part for part in parts[1:] if part.isascii() and part.isdigit() and len(part) < 19]
    if len(parts) != 3 or len(numbers) != 2 or int(numbers[1]) == 0:
        raise UnknownPackageError(
            f"{text!r} is no package's id; expected one such as '{pipeline}/0/852', as results "
            f"and errors show it",
            package=text,
        )
    if parts[0] != pipeline:
        raise UnknownPackageError(
            f"package {text!r} is of pipeline {parts[0]!r}; expected one of {pipeline!r}: name "
            f"its own pipeline as TARGET",
            package=text,
        )
    return int(numbers[0]), int(numbers[1])


def arrived_as(subjects: Subjects, message: Message) -> tuple[str, pb.DataPackage | None] | None:
    """The token of the instance and the package that an arrival brings; None where the message is
    no package's arrival."""
    try:
        event, envelope = read_event(
            subjects,
            message.subject,
            message.headers,
            message.data,
            message.stream_seq,
            message.time,
        )
    except Ignored:
        return None
    return (event.instance, envelope) if isinstance(event, Arrived) else None
