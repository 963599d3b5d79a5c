"""Watching a pipeline: reading after reading, as views."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from broker_pipeline.broker.port import Broker
from broker_pipeline.client.deploy import deployed_plan
from broker_pipeline.debug.operation.reading import Reading, read
from broker_pipeline.debug.operation.top import View, view
from broker_pipeline.errors import NotFoundError, PlanError

WINDOW_S = 5.0
"""Rates and quantiles are over so long: over less they jump, over more they come late."""
READINGS_MAX = 100
FIRST_S = 1.0
"""Until there is a first view; it is over so long, or over one interval where that is less."""


async def views(
    broker: Broker, pipeline: str, *, interval_s: float, window_s: float = WINDOW_S
) -> AsyncGenerator[View, None]:
    """A view every `interval_s`, the first one after FIRST_S at most; without an end.

    Raises:
        PlanError: the pipeline is not deployed, or not any more.
        ConnectionLostError, BrokerUnavailableError: the broker does not answer.
    """
    loop = asyncio.get_running_loop()
    readings: deque[tuple[float, Reading]] = deque(maxlen=READINGS_MAX)
    wait_s = min(FIRST_S, interval_s)
    while True:
        begun = loop.time()
        reading = await _read(broker, pipeline)
        if readings and readings[0][1].plan != reading.plan:
            readings.clear()  # deployed anew: its phases may be others
        readings.append((begun, reading))
        while len(readings) > 2 and readings[1][0] <= begun - window_s:
            readings.popleft()
        if len(readings) > 1:
            yield view(readings[0][1], reading)
            wait_s = interval_s
        await asyncio.sleep(max(0.0, begun + wait_s - loop.time()))


async def _read(broker: Broker, pipeline: str) -> Reading:
    plan = await deployed_plan(broker, pipeline)
    try:
        if plan is not None:
            return await read(broker, plan)
    except NotFoundError:
        pass  # removed just now
    raise PlanError(
        f"pipeline {pipeline!r} is not deployed on this broker; there is nothing to watch; run "
        "`broker-pipeline deploy TARGET`",
        pipeline=pipeline,
    )
