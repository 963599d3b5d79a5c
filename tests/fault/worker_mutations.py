"""Planted bugs of workers and producers; see `mutations`."""

from __future__ import annotations

import asyncio
from typing import Any

from broker_pipeline.client import producer as client_producer
from broker_pipeline.errors import BrokerPipelineError
from broker_pipeline.runtime import phase_worker, results, states, suspects
from tests.fault.mutations import Patches, mutation


@mutation
def a_worker_acks_before_it_publishes() -> Patches:
    """What it has when it dies is lost."""
    real = phase_worker.PhaseWorker._delivered

    def delivered(self: Any, message: Any) -> None:
        real(self, message)
        self._broker._tell("ack", message)

    yield phase_worker.PhaseWorker, "_delivered", delivered


@mutation
def a_refused_result_is_acked() -> Patches:
    """A result that the broker did not take is given up."""

    def unpublished(self: Any, here: Any, error: BaseException) -> None:
        self._stored.put_nowait(here)

    yield results.Results, "unpublished", unpublished


@mutation
def poison_never_completes() -> Patches:
    """A package that kills its workers is tried for ever."""
    real = phase_worker.PhaseWorker._delivered

    def delivered(self: Any, message: Any) -> None:
        message.delivered = 1
        real(self, message)

    yield phase_worker.PhaseWorker, "_delivered", delivered


@mutation
def poison_is_told_by_deliveries() -> Patches:
    """What came more than `max_deliver` times is poison, begun or not."""

    def park(self: Any, here: Any, envelope: Any) -> None:
        if here.message.delivered > self._begun_max:
            self._fail(here, envelope, here.message.delivered - 1)
        else:
            self._begin(here, envelope)

    yield suspects.Suspects, "park", park


@mutation
def an_attempt_is_not_recorded() -> Patches:
    """A suspect begins without a trace."""

    async def admit(self: Any, here: Any) -> bool:
        return True

    yield suspects.Suspects, "admit", admit


@mutation
def suspects_are_not_serialised() -> Patches:
    """They all run at once, and one is charged for the crash of another."""

    async def serve(self: Any) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                while not self._parked:
                    self._arrived.clear()
                    await self._arrived.wait()
                here, envelope = self._parked.popleft()
                group.create_task(one(self, here, envelope))

    async def one(self: Any, here: Any, envelope: Any) -> None:
        try:
            attempt = await self._attempt(here)
        except (BrokerPipelineError, TimeoutError):
            self._leave(here)
            return
        begun = self.trusted - attempt.record.spared + attempt.record.begun
        if begun >= self._begun_max:
            self._fail(here, envelope, begun)
        else:
            here.attempt = attempt
            self._begin(here, envelope)

    yield suspects.Suspects, "serve", serve


@mutation
def a_state_is_kept_after_an_error() -> Patches:
    """What a failed module has changed stays."""
    real = states.StateKeeper.keep

    def keep(self: Any, token: str, envelope: Any, stream_seq: int, after: Any) -> Any:
        before = self._held.get(token)
        found = real(self, token, envelope, stream_seq, after)
        if after is None and before is not None:
            self._held[token] = before  # as the state before the package, which it was
        return found

    yield states.StateKeeper, "keep", keep


@mutation
def a_state_is_not_caught_up_with() -> Patches:
    """A worker goes on from whatever state was stored last."""

    async def catch_up(self: Any, token: str, envelope: Any, rerun: Any) -> Any:
        stored = await self._load(token, envelope.epoch, self.previous(envelope))
        return self._decode(stored)

    yield states.StateKeeper, "catch_up", catch_up


@mutation
def a_state_of_another_life_is_used() -> Patches:
    """The epoch of a state that is held is not looked at."""

    def at_hand(self: Any, token: str, envelope: Any) -> Any:
        held = self._held.get(token)
        if held is not None:
            return held.states
        return {} if self.previous(envelope) == 0 else None

    yield states.StateKeeper, "at_hand", at_hand


# -- the client ---------------------------------------------------------------------------------
@mutation
def a_retry_gets_a_new_number() -> Patches:
    """What was stored and not acknowledged comes out twice."""
    real = client_producer._Message._attempt

    async def attempt(self: Any, left_s: float) -> Any:
        if self._unanswered:
            self._msg_id += ".again"
            self._headers = {**self._headers, "Bp-Number": str(1000 + self.number)}
        return await real(self, left_s)

    yield client_producer._Message, "_attempt", attempt
