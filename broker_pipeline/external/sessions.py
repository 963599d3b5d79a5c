"""What a relay has with each of its servers: a session, and how all of them stand."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import grpc

from broker_pipeline.external.calls import Call
from broker_pipeline.external.endpoints import Endpoint, Session
from broker_pipeline.external.links import StreamSession
from broker_pipeline.external.picking import Health, Standing
from broker_pipeline.external.port import RelayState
from broker_pipeline.external.unary import UnarySession

GOOD, FULL, AWAY = "good", "full", "away"


def open_session(endpoint: Endpoint, channel: grpc.aio.Channel, unary: bool) -> Session:
    """A stream, or with `unary` a call for each package."""
    return UnarySession(endpoint, channel) if unary else StreamSession(endpoint, channel)


def state_of(
    standings: Iterable[Standing], calls: Collection[Call], repeats: int, ejections: int
) -> RelayState:
    """How a relay stands; see `RelayState`."""
    servers = dict.fromkeys((GOOD, FULL, AWAY, *_UNFIT.values()), 0)
    credit = 0
    for each in standings:
        servers[_state(each)] += 1
        credit += max(0, each.credit) if each.health is Health.GOOD else 0
    sent = sum(bool(call.sent) for call in calls)
    return RelayState(servers, len(calls), sent, credit, repeats, ejections)


_UNFIT = {Health.EJECTED: "ejected", Health.PROBING: "probing"}


def _state(standing: Standing) -> str:
    """Of one server. What it takes is not asked by `room`, which has an ejected one tried again."""
    if standing.health is not Health.GOOD:
        return _UNFIT[standing.health]
    if standing.credit <= 0:
        return AWAY
    return GOOD if standing.outstanding < standing.credit else FULL
