"""Retention: what of the log may go, and when producers are refused. Pure.

History - what everything has passed that needs it - is a cache: it is purged when it is older than
the replay window, or as soon as the log is under pressure (ADR 11). What is needed is never purged.
`log_bytes_max` is the size above which nothing new is taken; while producers are refused the stream
is larger, so that what is inside comes to its end (ADR 12).
"""

from __future__ import annotations

from collections.abc import Iterable

from broker_pipeline.core.plan import Plan
from broker_pipeline.core.snapshot import Head

PRESSURE = 0.5
"""From this share of the log's size on, history goes whatever its age."""
REOPEN = 0.6
CLOSE = 0.7
"""Ingress is closed from this share on, and opened below the other: well apart, so that it does not
flap. Purging begins below both, so that it is closed for what is needed only."""
MESSAGES_MIN = 4
"""A log holds at least so many of the broker's largest messages: then whoever was refused, was so
above CLOSE, and the leader's next look makes room."""
GROWTH = 2
"""How much larger than what it came from a message may be: results, and the journey."""


def room_factor(plan: Plan) -> int:
    """By how much an arrival may grow the log until it has left: one message for the arrival, for
    each controller one for each phase and a completion, and one for the emission."""
    messages = 2 + sum(len(controller.phases) + 1 for controller in plan.controllers)
    return messages * GROWTH


def max_bytes(plan: Plan, level: int, is_open: bool) -> int | None:
    """What the broker is to take, at this level.

    While ingress is closed: room for what is inside, though not one byte of it could be purged.
    Many small packages may take more, for a journey has a size of its own. So there is always as
    much room again as is used; they come to an end, for nothing new is let in.
    """
    size = plan.log_bytes_max
    if size is None or is_open:
        return size
    room = size * room_factor(plan)
    while room < level * GROWTH:
        room *= GROWTH
    return room


def is_pressed(log_bytes_max: int | None, level: int) -> bool:
    """Whether history must go whatever its age."""
    return log_bytes_max is not None and level >= log_bytes_max * PRESSURE


def should_be_open(log_bytes_max: int | None, level: int, is_open: bool) -> bool:
    """Whether producers are to be let in, at this level and as it is now."""
    if log_bytes_max is None:
        return True
    return level < log_bytes_max * (CLOSE if is_open else REOPEN)


def should_pause_gaps(is_open: bool, inside: int) -> bool:
    """Whether no time is to pass for what producers have not sent: they are kept out, and room will
    come of the packages inside. Where there are none, those that wait fill the log (ADR 31)."""
    return not is_open and inside > 0


def purge_below(
    head: Head, consumers: Iterable[int], first_seq: int, first_young: int | None
) -> int | None:
    """Below which stream sequence the log may be purged; None where there is nothing to purge.

    Args:
        head: of the newest stored snapshot: a new leader reads what follows it, and what it refers
            to.
        consumers: for each durable consumer the lowest sequence that it needs.
        first_young: the first message that is younger than the replay window; None: its age does
            not count, for the log is under pressure.
    """
    floors = [head.applied + 1, head.oldest_source, *consumers]
    if first_young is not None:
        floors.append(first_young)
    below = min(floors)
    return below if below > first_seq else None
