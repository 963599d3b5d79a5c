"""How many packages a server lets its callers have with it. Pure."""

from __future__ import annotations

NOTABLE = 4
"""A window is granted anew when it has changed by more than one part in so many: it follows the
module's speed, which is never quite the same."""


def share(window: int, streams: int) -> int:
    """What one of so many streams may have outstanding of a server's window: at least 1, or the
    packages of its caller would never come; but nothing where the server can run nothing."""
    return max(1, window // max(1, streams)) if window else 0


def is_notable(granted: int, wanted: int) -> bool:
    """Whether a caller needs to know of a change now rather than with the next heartbeat."""
    return abs(wanted - granted) * NOTABLE > granted
