"""What a recording holds, as plain values: what was recorded, its events and outcomes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.codecs import Types
from broker_pipeline.core.envelope import read_event
from broker_pipeline.core.events import Event
from broker_pipeline.core.names import Subjects
from broker_pipeline.journey import Outcome
from broker_pipeline.package import DataPackage

ARRIVAL, OPENING, CLOSING, COMPLETION, TICK, PLAN = "in", "open", "close", "done", "tick", "plan"
KINDS = (ARRIVAL, OPENING, CLOSING, COMPLETION, TICK, PLAN)
"""The kinds of events: the messages under `ctl.` that the controllers decide by."""


class RecordingMeta(msgspec.Struct, frozen=True):
    """What was recorded, when and how.

    Attributes:
        pipeline, shard: of which log.
        plan: the plan in force at the first event, as JSON; '' where it was not known any more.
        target: the TARGET that the pipeline was named by, where one was.
        selection: what was selected, in words.
        recorded_at_ns: when recording began, ns since the epoch.
        version: of broker_pipeline.
        first_seq, last_seq: what of the log was looked at.
        notes: what a reader should know: what was gone, what was left out.
    """

    pipeline: str = ""
    shard: int = 0
    plan: str = ""
    target: str = ""
    selection: str = ""
    recorded_at_ns: int = 0
    version: str = ""
    first_seq: int = 0
    last_seq: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """A message under `ctl.` of the log.

    Attributes:
        time_ns: when the stream stored it, ns since the epoch.
        kind: one of KINDS.
        instance: its token, as `canonical_token` gives it; '' for ticks and plans.
        subject: as it was in the log.
        headers: of arrivals, openings and closings; of the others none are kept.
        data: its bytes as they were, but for a payload that was an object: that is in its place.
            Nothing of a completion.
        package_id: of a completion, which package came back to `controller`.
        gone: why the payload is not here, where it was an object that could not be read any more;
            then `data` has the reference to it.
    """

    stream_seq: int
    time_ns: int
    kind: str
    instance: str = ""
    subject: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    data: bytes = b""
    package_id: int = 0
    controller: str = ""
    gone: str = ""

    def read(self, subjects: Subjects) -> tuple[Event, pb.DataPackage | None]:
        """As the controllers see it; not of a completion, of which there are no bytes. Raises as
        `core.envelope.read_event`."""
        return read_event(
            subjects, self.subject, self.headers, self.data, self.stream_seq, self.time_ns
        )


@dataclass(frozen=True, slots=True)
class RecordedOutcome:
    """How a package left.

    Attributes:
        package_id: the stream sequence of its arrival.
        instance: its token, as `canonical_token` gives it.
        stream_seq, time_ns: where it stands in the log, and when the stream stored it.
        data: the DataPackage, its payload in place.
        gone: as in RecordedEvent.
    """

    package_id: int
    instance: str
    epoch: int
    sequence: int
    outcome: Outcome
    stream_seq: int
    time_ns: int
    data: bytes
    gone: str = ""

    def package(self, types: Types | None = None) -> DataPackage[Any]:
        """The package; `types` are payload types by name. Raises MalformedPackageError."""
        return DataPackage.from_bytes(self.data, types)


class Counts(NamedTuple):
    """What a recording holds.

    Attributes:
        events: by kind: `in`, `open`, `close`, `done`, `tick`, `plan`.
        outcomes: by outcome.
        instances: how many have an arrival.
        payloads: how many different ones, `payload_bytes` long; `stored_bytes` in the file.
        gone: events and outcomes whose payload was not there any more.
    """

    events: dict[str, int]
    outcomes: dict[str, int]
    instances: int
    payloads: int
    payload_bytes: int
    stored_bytes: int
    gone: int


class CutLife(NamedTuple):
    """A life of an instance of which packages are missing: states and windows of a replay are not
    those that were. `first` and `last` are sequence ids, `outcomes` how many there are."""

    instance: str
    epoch: int
    first: int
    last: int
    outcomes: int


def headers_text(headers: Mapping[str, str]) -> str | None:
    """Headers as they are stored: JSON in ASCII, whatever is in them; None for none."""
    return json.dumps(dict(headers)) if headers else None


def read_headers(text: str | None) -> dict[str, str]:
    """What `headers_text` gave. Raises ValueError where it is something else."""
    found = {} if text is None else json.loads(text)
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise ValueError(f"{text!r} are no headers")
    return found
