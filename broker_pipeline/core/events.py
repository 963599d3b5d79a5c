"""What happened: the messages of a shard's log, as the machine sees them.

Payloads stay outside: an event says where in the log the bytes are. `time` is when the stream
stored the message (ns since the Unix epoch), and the only time that decisions know.
"""

from __future__ import annotations

import msgspec

from broker_pipeline.core.plan import Plan
from broker_pipeline.journey import Outcome


class Arrived(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="in"):
    """A producer's package is in the log.

    Attributes:
        instance: the instance's token.
        producer: who numbered it; '' for raw producers.
        number: its number with that producer, from 1.
        malformed: why its bytes cannot be read; '' where they can.
    """

    stream_seq: int
    time: int
    instance: str
    producer: str = ""
    number: int = 0
    malformed: str = ""


class Opened(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="open"):
    """A client opened an instance before its first package."""

    stream_seq: int
    time: int
    instance: str


class Closed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="close"):
    """A client closed an instance: what arrives from here on belongs to its next life."""

    stream_seq: int
    time: int
    instance: str


class Completed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="done"):
    """A worker gave a package back to a controller.

    Attributes:
        id: the package: the stream sequence of its arrival.
        sequence: its sequence id in this controller.
        outcome: SUCCESS, or the early leaver's EXIT or ERROR; OUTDATED where a worker did not run
            it because it was too old.
        phases: how many of the controller's phases it reached.
        arrived: when the package arrived at the pipeline, ns; 0 where that is not known.
        states: for each phase the input after which its state is known to be stored; 0: none.
    """

    stream_seq: int
    time: int
    instance: str
    epoch: int
    id: int
    controller: str
    sequence: int
    outcome: Outcome
    phases: int
    arrived: int = 0
    states: tuple[int, ...] = ()


class Ticked(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="tick"):
    """Time passed; a deadline may be over.

    Attributes:
        paused: whether gaps have time to wait for from here on: True: no time passes for them;
            False: each has its whole time again; None: as before.
    """

    stream_seq: int
    time: int
    paused: bool | None = None


class Deployed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="plan"):
    """A plan was deployed; every leader changes over at this place in the log."""

    stream_seq: int
    time: int
    plan: Plan


Event = Arrived | Opened | Closed | Completed | Ticked | Deployed
