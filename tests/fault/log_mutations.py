"""Planted bugs of retention and of the full log."""

from __future__ import annotations

from typing import Any

import msgspec

from broker_pipeline.client import producer
from broker_pipeline.core import retention
from broker_pipeline.core.controller import ControllerState
from broker_pipeline.core.names import TICK_PAUSE
from broker_pipeline.runtime.holding import Holding
from broker_pipeline.runtime.retention import Retention
from broker_pipeline.runtime.states import StateKeeper
from tests.fault.mutations import Patches, mutation

_ALL = 1 << 60


@mutation
def a_purge_ignores_what_states_need() -> Patches:
    """The inputs since a stored state go with the rest of history."""
    yield ControllerState, "oldest_state_input", lambda self, epoch: None


def _purge(change: Any) -> Patches:
    real = retention.purge_below
    yield retention, "purge_below", lambda *given: real(*change(*given))


@mutation
def a_purge_ignores_what_consumers_need() -> Patches:
    """What the workers have not got yet goes."""
    yield from _purge(lambda head, consumers, first, young: (head, [], first, young))


@mutation
def a_purge_ignores_what_the_snapshot_refers_to() -> Patches:
    """Everything that was applied goes, the bytes of waiting packages too."""

    def change(head: Any, *rest: Any) -> Any:
        return msgspec.structs.replace(head, oldest_source=_ALL), *rest

    yield from _purge(change)


@mutation
def ingress_never_opens_again() -> Patches:
    """Once the log was full, producers wait for ever."""
    real = retention.should_be_open
    yield retention, "should_be_open", lambda *given: given[2] and real(*given)


@mutation
def a_gap_is_waited_for_though_it_fills_the_log() -> Patches:
    """What is missing gets no room, and makes none."""
    real = Retention._pause_gaps

    async def pause(self: Any, is_open: bool, *, opened: bool) -> bool:
        machine = self._machine()
        if is_open or machine.plan is None or machine.gaps.paused:
            return await real(self, is_open, opened=opened) if is_open else False
        await self._broker.publish(self._subjects.tick, TICK_PAUSE)
        return True

    yield Retention, "_pause_gaps", pause


@mutation
def one_that_may_be_stored_is_taken_for_refused() -> Patches:
    """Its number is given again, and it is repeated for longer than its id is remembered."""
    yield producer._Message, "is_surely_not_stored", property(lambda self: True)


@mutation
def a_closed_log_has_no_more_room_than_an_open_one() -> Patches:
    """What is inside cannot come to its end."""
    yield retention, "max_bytes", lambda plan, level, is_open: plan.log_bytes_max


@mutation
def a_state_is_said_to_be_stored_before_it_is() -> Patches:
    """The log is purged up to a state that may never be stored."""
    real = StateKeeper.keep

    def keep(self: Any, token: str, envelope: Any, stream_seq: int, after: Any) -> Any:
        to_store = real(self, token, envelope, stream_seq, after)
        if after is not None:
            envelope.controllers[-1].phases[-1].state_stream_seq = stream_seq
        return to_store

    yield StateKeeper, "keep", keep


@mutation
def a_result_that_was_refused_is_forgotten() -> Patches:
    """And its message stays with the worker that no longer works on it."""
    yield Holding, "hold", lambda self, error, send, ended: True
