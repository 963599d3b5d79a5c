"""Whether a role counts, and where that can be read: what the commands' options ask for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker_pipeline.errors import MetricsError

if TYPE_CHECKING:
    from broker_pipeline.observe.meter import Meter

SWITCH = "BROKER_PIPELINE_METER"
"""`off` in the environment: nothing is counted. For measuring what counting costs."""
DEFAULT_HOST = "127.0.0.1"
"""Whoever can read the metrics learns the names of pipelines and instances."""


@dataclass(frozen=True)
class Exposure:
    """Where a role's metrics can be scraped.

    Args:
        port: None: nowhere; 0 takes a free one.
        host: the address to listen at.
        instances: how many are counted apart, by a controller.
    """

    port: int | None = None
    host: str = DEFAULT_HOST
    instances: int = 0

    def arguments(self, number: int = 0) -> tuple[str, ...]:
        """Options for a child that gets a port of its own: the one so many after the first."""
        if self.port is None:
            return ()
        port = self.port and self.port + number
        return ("--metrics-port", str(port), "--metrics-host", self.host)


NOT_EXPOSED = Exposure()


@contextlib.asynccontextmanager
async def metering(
    exposure: Exposure,
    *,
    role: str,
    announce: Callable[[str], None],
    environment: Mapping[str, str] = os.environ,
) -> AsyncIterator[Meter | None]:
    """What a role counts with, and scrapers read for as long as the context lasts; None: it does
    not count.

    Raises:
        MetricsError: it is not to count and to be scraped, or it cannot listen there.
    """
    switch = environment.get(SWITCH, "")
    if switch not in ("", "on", "off"):
        raise MetricsError(f"{SWITCH} is {switch!r}; expected 'off', 'on' or nothing: unset it")
    if switch == "off":
        if exposure.port is not None or exposure.instances:
            asked = "--metrics-instances" if exposure.port is None else "--metrics-port"
            raise MetricsError(
                f"{SWITCH} is 'off', so that nothing is counted, and {asked} was given; expected "
                f"one of the two: unset {SWITCH}, or leave {asked} out"
            )
        yield None
        return
    from broker_pipeline.observe.meter import Meter

    meter = Meter()
    if exposure.port is None:
        yield meter
        return
    from broker_pipeline.observe.exposition import exposed

    async with exposed(meter, host=exposure.host, port=exposure.port, role=role) as url:
        announce(f"metrics: {url}")
        yield meter
