"""What is to be published: the machine's decisions, as values.

A command names the log message that holds the package (`source`) and what the package's journey
gains on the way (`stamps`); the bytes are put together by `envelope.write`.
"""

from __future__ import annotations

import msgspec

from broker_pipeline.journey import Outcome


class Entered(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="e"):
    """The package was admitted to a controller, as number `sequence` of its instance."""

    controller: int
    sequence: int
    time: int
    previous: tuple[int, ...] = ()


class Left(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="l"):
    """The package left a controller."""

    controller: int
    outcome: Outcome
    time: int


Stamp = Entered | Left


class PackageRef(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A package without its bytes.

    Attributes:
        id: the stream sequence of its arrival.
        sequence: its arrival number in the instance.
        arrived: when it arrived, ns.
        source: the stream sequence of the message that holds its bytes.
    """

    id: int
    sequence: int
    arrived: int
    source: int


class Dispatch(msgspec.Struct, frozen=True, gc=False):
    """Put the package into the queue of the controller's first phase."""

    instance: str
    epoch: int
    package: PackageRef
    controller: int
    stamps: tuple[Stamp, ...]


class Emit(msgspec.Struct, frozen=True, gc=False):
    """Let the package leave the pipeline."""

    instance: str
    epoch: int
    package: PackageRef
    outcome: Outcome
    time: int
    stamps: tuple[Stamp, ...] = ()
    malformed: str = ""


Command = Dispatch | Emit
