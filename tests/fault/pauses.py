"""When no time passed for producers' gaps, by what a log says."""

from __future__ import annotations

from broker_pipeline.broker.port import Message
from broker_pipeline.core.names import TICK_PAUSE, TICK_RESUME, Subjects


def paused_ns(log: list[Message], subjects: Subjects, begin: int, end: int) -> int:
    """How much of the time from `begin` to `end` they were paused, ns of log time."""
    paused, since = 0, None
    for message in log:
        if message.subject != subjects.tick:
            continue
        if message.data == TICK_PAUSE and since is None:
            since = message.time
        elif message.data == TICK_RESUME and since is not None:
            paused += max(0, min(message.time, end) - max(since, begin))
            since = None
    if since is not None:
        paused += max(0, end - max(since, begin))
    return paused
