"""`DataPackage`: a payload and its journey."""

from __future__ import annotations

import base64
from collections.abc import Mapping, MutableMapping
from typing import Any, Generic, TypeVar, cast

from google.protobuf.message import DecodeError

from broker_pipeline import codecs
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.errors import MalformedPackageError, PayloadGoneError
from broker_pipeline.journey import (
    NS,
    ControllerRecord,
    ErrorRecord,
    Outcome,
    last_message,
    outcome_of,
)

CONTENT_TYPE = "application/vnd.broker-pipeline.package.v1+protobuf"
"""The NATS `Content-Type` of a message that is a DataPackage rather than a raw payload."""

T = TypeVar("T")
_MISSING = object()
_UNCHANGING = (bytes, str, int, float, bool, type(None))
"""Payloads that cannot be changed in place: what was only read is not encoded again."""


class DataPackage(Generic[T]):
    """A payload of type `T` and its journey.

    `data` is decoded when it is first read and encoded when the package is written, by the content
    type (see `codecs`). Whatever is assigned to `data` must be bytes, str, a msgspec.Struct, plain
    data or a protobuf message.

    Args:
        data: the payload.
        content_type: what it is; derived from `data` where it is empty. With bytes it is taken
            as it stands: the bytes are that already.
        attributes: text that travels along.
    """

    __slots__ = ("_assigned", "_expected", "_types", "_value", "envelope")

    envelope: pb.DataPackage
    """The protobuf message behind it; `data` in it may lag behind until `to_bytes` or `encode`."""

    def __init__(
        self,
        data: T | bytes = b"",
        *,
        content_type: str = "",
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        self.envelope = pb.DataPackage(content_type=content_type, attributes=attributes)
        self._types: codecs.Types = {}
        self._expected: type | None = None
        self._value: object = _MISSING
        self._assigned = False
        if isinstance(data, bytes):
            self.envelope.data = data
        else:
            self.data = data
            self.encode()

    @classmethod
    def wrap(cls, envelope: pb.DataPackage, types: codecs.Types | None = None) -> DataPackage[Any]:
        """A package around an envelope that is at hand; `types` are payload types by name."""
        package = cls.__new__(cls)
        package.envelope = envelope
        package._types = types or {}
        package._expected = None
        package._value = _MISSING
        package._assigned = False
        return package

    @classmethod
    def from_bytes(cls, raw: bytes, types: codecs.Types | None = None) -> DataPackage[Any]:
        """Read a package.

        Raises:
            MalformedPackageError: the bytes are not a DataPackage.
        """
        return cls.wrap(parse_envelope(raw), types)

    def to_bytes(self) -> bytes:
        """The package as bytes. Raises PayloadError where `data` cannot be encoded."""
        self.encode()
        return self.envelope.SerializeToString()

    # -- the payload ----------------------------------------------------------------------------
    @property
    def data(self) -> T:
        """The payload.

        Raises:
            PayloadError: the bytes are not what they are said to be.
            PayloadGoneError: it was kept as an object, which could not be read.
        """
        if self._value is _MISSING or not codecs.matches(self._value, self._expected):
            if self._value is not _MISSING:
                self.encode()
            envelope = self.envelope
            self.require_payload()
            self._value = codecs.decode(
                envelope.data, envelope.content_type, self._expected, self._types
            )
            self._assigned = False
        return cast(T, self._value)

    @data.setter
    def data(self, value: Any) -> None:
        self._value = value
        self._assigned = True

    def require_payload(self) -> None:
        """Raises PayloadGoneError where there is a reference in the place of the payload still:
        whoever handed the package out could not read it."""
        if self.envelope.HasField("reference"):
            kept = self.envelope.reference
            raise PayloadGoneError(
                f"the payload of package {self.id} is not here: its {kept.size} bytes were to be "
                f"in object {kept.object[:80]!r} of bucket {kept.bucket[:80]!r}, and could not be "
                f"read; the log of who read it says why",
                bucket=kept.bucket,
                object=kept.object,
            )

    def decode(self, expected: type[T]) -> T:
        """The payload as `expected`. Raises PayloadError where it is something else."""
        self._expected = expected
        return self.data

    def expect(self, expected: type | None) -> None:
        """From now on `data` is read as `expected`; None leaves it to the content type."""
        self._expected = expected

    def encode(self) -> None:
        """Bring the envelope up to date with `data`."""
        read_only = not self._assigned and isinstance(self._value, _UNCHANGING)
        if self._value is _MISSING or read_only:
            return
        envelope = self.envelope
        envelope.ClearField("reference")
        said = envelope.content_type
        envelope.data, content_type = codecs.encode(self._value, said)
        # Reading a payload does not rename it: a reader may know less of its type than the writer.
        if self._assigned or codecs.format_of(content_type) is not codecs.format_of(said):
            envelope.content_type = content_type

    def set_raw(self, raw: bytes, content_type: str = "") -> None:
        """Set the payload to bytes that are encoded already."""
        self._value = _MISSING
        self.envelope.data = raw
        self.envelope.ClearField("reference")
        self.envelope.content_type = content_type

    @property
    def content_type(self) -> str:
        """What the payload is; '' for bytes of which nobody said anything."""
        return self.envelope.content_type

    @content_type.setter
    def content_type(self, value: str) -> None:
        kept = self.envelope.HasField("reference")
        empty = self._value is _MISSING and not self.envelope.data and not kept
        if empty or isinstance(self.data, bytes):  # the bytes are that already
            self.set_raw(b"" if empty else cast(bytes, self.data), value)
            return
        self._assigned = True  # the old content type said what the value is; the new one, how
        self.envelope.content_type = value

    @property
    def attributes(self) -> MutableMapping[str, str]:
        """Text that travels along; change it freely."""
        return self.envelope.attributes

    # -- who it is ------------------------------------------------------------------------------
    @property
    def id(self) -> str:
        """Its address, `pipeline/shard/stream sequence of its arrival`; the same for ever."""
        envelope = self.envelope
        return f"{envelope.pipeline}/{envelope.shard}/{envelope.id}"

    @property
    def pipeline(self) -> str:
        """The pipeline's name."""
        return self.envelope.pipeline

    @property
    def instance(self) -> str:
        """The instance's name, as the user gave it."""
        return self.envelope.instance

    @property
    def epoch(self) -> int:
        """Which life of the instance: the stream sequence of the message that began it."""
        return self.envelope.epoch

    @property
    def sequence(self) -> int:
        """Its arrival number in the instance, from 1 in each epoch."""
        return self.envelope.sequence

    # -- what happened to it --------------------------------------------------------------------
    @property
    def outcome(self) -> Outcome | None:
        """How it left; None while it is inside."""
        return outcome_of(self.envelope.outcome)

    @property
    def start_time_ns(self) -> int:
        """When it arrived, ns since the Unix epoch, by the broker's clock."""
        return self.envelope.start_time_ns

    @property
    def end_time_ns(self) -> int:
        """When it left, ns since the Unix epoch, by the broker's clock; 0 while it is inside."""
        return self.envelope.end_time_ns

    @property
    def reason(self) -> str:
        """Why it left as it did, in the words of the module that ended its journey: the error's
        text, the reason of an exit, or the message of the last module; '' where nobody said."""
        if self.envelope.errors:
            return self.envelope.errors[-1].message
        for controller in reversed(self.envelope.controllers):
            for phase in reversed(controller.phases):
                return last_message(phase.modules)
        return ""

    @property
    def errors(self) -> tuple[ErrorRecord, ...]:
        """What went wrong on the way."""
        return tuple(ErrorRecord.read(error) for error in self.envelope.errors)

    @property
    def controllers(self) -> tuple[ControllerRecord, ...]:
        """The controllers it went through, with their phases and modules."""
        errors = self.errors
        return tuple(ControllerRecord.read(c, errors) for c in self.envelope.controllers)

    def to_json(self) -> dict[str, Any]:
        """The whole as plain data that a person can read: times in seconds, text as text."""
        self.encode()
        envelope = self.envelope
        end = envelope.end_time_ns
        return {
            "id": self.id,
            "pipeline": envelope.pipeline,
            "instance": envelope.instance,
            "epoch": envelope.epoch,
            "sequence": envelope.sequence,
            "outcome": self.outcome and self.outcome.value,
            "content_type": envelope.content_type,
            "data": _readable(envelope.data, envelope.content_type),
            **_kept(envelope),
            "attributes": dict(sorted(envelope.attributes.items())),
            "start_time": envelope.start_time_ns / NS,
            "end_time": end / NS if end else None,
            "total_time": (end - envelope.start_time_ns) / NS if end else None,
            "errors": [error.to_json() for error in self.errors],
            "controllers": [controller.to_json() for controller in self.controllers],
        }

    def __repr__(self) -> str:
        outcome = self.outcome
        return (
            f"<DataPackage {self.id} instance={self.instance!r} sequence={self.sequence} "
            f"{outcome.value if outcome else 'inside'}>"
        )


def parse_envelope(raw: bytes) -> pb.DataPackage:
    """Read the protobuf message. Raises MalformedPackageError where the bytes are not one."""
    try:
        return pb.DataPackage.FromString(raw)
    except DecodeError as error:
        raise MalformedPackageError(
            f"{len(raw)} bytes claim to be a DataPackage and are not ({error}); expected the "
            f"protobuf message broker_pipeline.v1.DataPackage: publish raw bytes without the "
            f"Content-Type {CONTENT_TYPE!r}, or the message that proto/ describes",
            size=len(raw),
        ) from error


def _kept(envelope: pb.DataPackage) -> dict[str, Any]:
    """Where the payload is that is not in the package."""
    if not envelope.HasField("reference"):
        return {}
    kept = envelope.reference
    return {"reference": {"bucket": kept.bucket, "object": kept.object, "size": kept.size}}


def _readable(raw: bytes, content_type: str) -> str:
    if codecs.format_of(content_type) in (codecs.Format.TEXT, codecs.Format.JSON):
        return raw.decode(errors="replace")
    return base64.b64encode(raw).decode()
