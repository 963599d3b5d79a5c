"""Payloads that are too large for a message: objects beside the log, and a reference to each.

The same for producers, workers, leaders and whoever reads results. Each object is written once,
under a name that nobody uses again, before any message refers to it; nobody deletes one but the
leader, which knows when nothing can refer to it any more (runtime/sweeping.py, docs/adr/0023).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.port import Broker
from broker_pipeline.core.names import payload_bucket
from broker_pipeline.errors import (
    MalformedPackageError,
    NotFoundError,
    ObjectDamagedError,
    PayloadGoneError,
    PayloadTooLargeError,
    PublishTimeoutError,
)

JOURNEY_BYTES = 64 << 10
"""What a message has room for besides its payload where no threshold is set: 100 bytes a phase, and
errors with their tracebacks. At most JOURNEY_SHARE of the broker's largest message."""
JOURNEY_SHARE = 1 / 8
TRANSFERS_MAX = 4
"""Objects that one process reads or writes at the same time; each is some 4 MiB under way."""
PUT_S = 900.0
"""From the beginning of putting a payload to the arrival of the package that refers to it. The
leader takes what is older and has no package for forgotten."""
RENEW_S = PUT_S / 3
"""A payload that was put so long ago is put again before its package is sent. What is left of PUT_S
is for the sending, and for clocks of several servers."""

Reference = pb.PayloadReference


def _new_name() -> str:
    return secrets.token_hex(8)


class LargePayloads:
    """The large payloads of a pipeline.

    Args:
        large_bytes: payloads that are larger become objects; None: those that would not leave
            JOURNEY_BYTES of the broker's largest message to what is added on the way.
        new_name: gives names that nobody else gives.
    """

    def __init__(
        self,
        broker: Broker,
        pipeline: str,
        large_bytes: int | None = None,
        *,
        new_name: Callable[[], str] = _new_name,
    ) -> None:
        self._broker = broker
        self._bucket = payload_bucket(pipeline)
        self._large_bytes = large_bytes
        self._new_name = new_name
        self._turn = asyncio.Semaphore(TRANSFERS_MAX)

    def is_large(self, size: int) -> bool:
        """Whether a payload of that size is to travel by reference."""
        most = self._broker.max_payload
        fits = most - min(JOURNEY_BYTES, int(most * JOURNEY_SHARE))
        return size > (fits if self._large_bytes is None else min(self._large_bytes, fits))

    async def load(self, envelope: pb.DataPackage) -> Reference:
        """Put the payload back into an envelope that has a reference; returns the reference.

        Raises:
            PayloadGoneError: it is not there any more, or is not what was put.
            MalformedPackageError: the reference is none of this pipeline.
            BrokerError: the broker does not answer.
        """
        reference = Reference()
        reference.CopyFrom(envelope.reference)
        self._check(envelope)
        try:
            async with self._turn:
                found = await self._broker.object_get(reference.bucket, reference.object)
        except (NotFoundError, ObjectDamagedError) as error:
            raise _gone(reference, str(error)) from error
        if found is None:
            raise _gone(reference, "there is no such object (any more)")
        if len(found) != reference.size:
            raise _gone(reference, f"it has {len(found)} bytes")
        envelope.data = found
        envelope.ClearField("reference")
        return reference

    async def put(self, data: bytes, name: str = "") -> Reference:
        """Store a payload; when this returns it is there, for any message to refer to.

        Args:
            name: the beginning of the object's name, for people.

        Raises:
            PayloadTooLargeError: there is no place for it.
            BrokerError: it is not stored, or not known to be.
        """
        unique = f"{name}.{self._new_name()}" if name else self._new_name()
        try:
            async with self._turn:
                await self._broker.object_put(self._bucket, unique, data)
        except NotFoundError as error:
            raise PayloadTooLargeError(
                f"a payload of {len(data)} bytes is to be kept as an object, and there is no "
                f"bucket {self._bucket!r}; deploy the pipeline again to have it made, or make the "
                f"payload smaller",
                size=len(data),
                bucket=self._bucket,
            ) from error
        return Reference(bucket=self._bucket, object=unique, size=len(data))

    def _check(self, envelope: pb.DataPackage) -> None:
        """A producer may have written anything; nobody reads for him what is not the pipeline's."""
        bucket = envelope.reference.bucket
        if bucket != self._bucket:
            raise MalformedPackageError(
                f"the package refers to a payload in bucket {bucket[:80]!r}; expected "
                f"{self._bucket!r}, that of its pipeline: put the payload there",
                bucket=bucket,
            )
        if envelope.data:
            raise MalformedPackageError(
                f"the package has a payload of {len(envelope.data)} bytes and a reference to one; "
                f"expected one of the two: leave `data` empty",
                size=len(envelope.data),
            )


class Upload:
    """A package on its way to the pipeline whose payload is an object.

    Args:
        envelope: with its payload in place.
    """

    def __init__(self, payloads: LargePayloads, envelope: pb.DataPackage) -> None:
        self._payloads = payloads
        self._envelope = envelope
        self._data = envelope.data
        self._message = b""
        self._begun = 0.0

    async def message(self) -> bytes:
        """The bytes of the package, to be sent at once: whenever this returns the payload is there,
        and will be until the package has arrived.

        Raises:
            PublishTimeoutError: putting takes so long that it would be forgotten meanwhile.
            PayloadTooLargeError, BrokerError: as `LargePayloads.put`.
        """
        now = asyncio.get_running_loop().time
        if not self._message or now() - self._begun > RENEW_S:
            self._begun = now()
            refer(self._envelope, await self._payloads.put(self._data))
            if now() - self._begun > RENEW_S:
                raise PublishTimeoutError(
                    f"storing a payload of {len(self._data)} bytes took "
                    f"{now() - self._begun:.0f} s; expected at most {RENEW_S:g}; its package was "
                    f"not sent; make it smaller, or come nearer to the broker"
                )
            self._message = self._envelope.SerializeToString()
        return self._message


def refer(envelope: pb.DataPackage, reference: Reference) -> None:
    """Let an envelope refer to its payload."""
    envelope.data = b""
    envelope.reference.CopyFrom(reference)


def _gone(reference: Reference, why: str) -> PayloadGoneError:
    return PayloadGoneError(
        f"the payload of {reference.size} bytes is not in object {reference.object[:80]!r} of "
        f"bucket {reference.bucket!r}: {why}; it is kept for as long as its package is inside and "
        f"for replay_window_s after that; send it again",
        bucket=reference.bucket,
        object=reference.object,
    )
