"""How a relay says that its servers stand."""

from __future__ import annotations

from typing import Any

from broker_pipeline.external.picking import BACKOFF_MAX_NS, Health, Standing
from broker_pipeline.external.sessions import state_of


class Sent:
    """A call, as far as it is looked at."""

    def __init__(self, *servers: str) -> None:
        self.sent = dict.fromkeys(servers, 0)


def standing(credit: int, outstanding: int = 0, health: Health = Health.GOOD) -> Standing:
    """What is known of one server."""
    made = Standing()
    made.credit, made.outstanding, made.health = credit, outstanding, health
    return made


def test_each_server_is_in_one_state_and_credit_is_of_those_that_get_packages() -> None:
    """A replicated call counts once, however many servers have it."""
    servers = [
        standing(4, 1),
        standing(4, 4),
        standing(4, 5),  # its credit was lowered
        standing(0),
        standing(-1),
        standing(8, health=Health.EJECTED),
        standing(8, 1, health=Health.PROBING),
    ]
    calls: Any = [Sent("a", "b"), Sent("a"), Sent()]
    state = state_of(servers, calls, 3, 5)
    assert state.servers == {"good": 1, "full": 2, "away": 2, "ejected": 1, "probing": 1}
    assert (state.calls, state.sent, state.credit) == (3, 2, 12)
    assert (state.repeats, state.ejections) == (3, 5)


def test_looking_changes_nothing() -> None:
    """A server whose backoff is over is tried by who has a package, not by who looks."""
    ejected = standing(4)
    ejected.eject(0, 0.5)
    assert ejected.until_ns < BACKOFF_MAX_NS
    assert state_of([ejected], [], 0, 0).servers["ejected"] == 1
    assert ejected.health is Health.EJECTED
