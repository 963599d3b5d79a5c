"""How a role says how it is doing, to whoever asks over the broker."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from broker_pipeline import __version__
from broker_pipeline.observe.meter import Meter
from broker_pipeline.observe.status import Reporter, Role, Status


def process_name() -> str:
    """This process as it is called in journeys."""
    return f"{socket.gethostname()}-{os.getpid()}"


def reporter(
    role: Role,
    *,
    meter: Meter | None,
    pipeline: str = "",
    phases: Sequence[str] = (),
    holder: str = "",
    address: str = "",
) -> Reporter:
    """What answers for a role of this process that begins now; see `Status`."""
    who = Status(
        role=role,
        name=process_name(),
        pipeline=pipeline,
        phases=tuple(phases),
        holder=holder,
        address=address,
        version=__version__,
    )
    return Reporter(who, meter)
