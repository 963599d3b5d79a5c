"""States of stateful modules: held in memory, stored now and then, and caught up with.

The state after package n is a fold over the inputs 1..n of the phase, and the log has them. The
envelope says which input was the one before (`previous_sequences`): a worker that holds the state
after just that one goes on from it, and any other loads the last stored state and runs the phase
again over the inputs since, throwing the results away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.port import Broker
from broker_pipeline.core.names import Subjects, module_bucket, module_key, stream_name
from broker_pipeline.core.plan import lanes_in
from broker_pipeline.errors import BrokerPipelineError, MalformedPackageError, StateError
from broker_pipeline.journey import STATUS_TO_PB, Status
from broker_pipeline.modules import is_stateful, state_type, walk
from broker_pipeline.observe.about import in_phase
from broker_pipeline.package import parse_envelope
from broker_pipeline.pipeline import Controller, Phase
from broker_pipeline.runtime.large_states import LargeStates
from broker_pipeline.runtime.stored_states import (
    StateStore,
    Stored,
    ToStore,
    before_the_first,
    pack,
)

log = logging.getLogger(__name__)

States = dict[str, Any]
"""States by the path of their module in the phase."""

STORE_EVERY_S = 1.0
"""Between two stored states of an instance: what another worker has to run again at most."""
CONFIRM_S = 1.0
"""How long a package waits for the broker's word on the result before it. That is mostly on its
way: the leader reads a result as soon as it is stored, and may be quicker than the ack."""
HELD_MAX = 10_000
"""Instances whose states a worker holds; the one silent longest is let go, and caught up with."""
HEADROOM_BYTES = 1024
"""What a message's subject and headers may take of the broker's limit."""
_APPLIED = (STATUS_TO_PB[Status.SUCCESS], STATUS_TO_PB[Status.EXIT])


class Held:
    """The states of an instance after the input `sequence`, which is message `stream_seq`.

    Attributes:
        counts: whether the result that they belong to is the one that the log has. Another one may
            be there first: of another worker, or the ERROR of a package that was tried too often.
        decided: is set once that is known; None: nobody waits for it.
        large: whether it was larger than a message may be when it was encoded last.
        to_store: as they are to be stored once the next package says that they count; None where
            it is not time for that.
        stored: the input after which states are known to be stored; 0: none is.
    """

    __slots__ = (
        "counts",
        "decided",
        "encoded_at",
        "epoch",
        "large",
        "sequence",
        "states",
        "stored",
        "stream_seq",
        "to_store",
    )

    def __init__(self, epoch: int, sequence: int, stream_seq: int, states: States) -> None:
        self.epoch = epoch
        self.sequence = sequence
        self.stream_seq = stream_seq
        self.states = states
        self.counts = False
        self.decided: asyncio.Event | None = None
        self.large = False
        self.encoded_at = 0.0
        self.to_store: ToStore | None = None
        self.stored = 0


Rerun = Callable[[pb.DataPackage, States], Awaitable[States | None]]
"""Runs the phase on a recorded input; gives the states after it, None where it failed."""


class StateKeeper:
    """The states of one phase's instances in one worker process.

    Attributes:
        caught_up: how many inputs were run again.
        stored: how many states were stored.
    """

    def __init__(
        self, broker: Broker, pipeline: str, shard: int, controller: Controller, phase: Phase
    ) -> None:
        self._broker = broker
        self._stream = stream_name(pipeline, shard)
        self._shard = shard
        self._controller = controller.name
        self._phase = phase.name
        self._lanes = lanes_in(phase)
        self._phase_index = [p.name for p in controller.phases].index(phase.name)
        self._subjects = Subjects(pipeline, shard)
        self._types = {
            path: state_type(module) for path, module in walk(phase.modules) if is_stateful(module)
        }
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._large = LargeStates(broker, pipeline)
        self._store = StateStore(
            broker, module_bucket(pipeline), self._large, broker.max_payload - HEADROOM_BYTES
        )
        self._unstorable_said = False
        self.caught_up = 0
        self.stored = 0

    @property
    def held(self) -> int:
        """Of how many instances it has the states in memory."""
        return len(self._held)

    def previous(self, envelope: pb.DataPackage) -> int:
        """The sequence id of the input before this one; 0 where it is the first."""
        previous = envelope.controllers[-1].previous_sequences
        return previous[self._phase_index] if self._phase_index < len(previous) else 0

    def at_hand(self, token: str, envelope: pb.DataPackage) -> States | None:
        """The states before this package, if they are here; None: `catch_up` gets them."""
        if self.previous(envelope) == 0:
            return {}
        held = self._before(token, envelope)
        return held.states if held is not None and held.counts else None

    def _before(self, token: str, envelope: pb.DataPackage) -> Held | None:
        """What is held after the input before this package, whether it counts or not."""
        held = self._held.get(token)
        before = (envelope.epoch, self.previous(envelope))
        return held if held is not None and (held.epoch, held.sequence) == before else None

    async def confirmed(self, token: str, envelope: pb.DataPackage) -> States | None:
        """The states before this package, if they are here and their result is about to count."""
        held = self._before(token, envelope)
        if held is not None and not held.counts:
            held.decided = held.decided or asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CONFIRM_S):
                    await held.decided.wait()
        return held.states if held is not None and held.counts else None

    async def catch_up(self, token: str, envelope: pb.DataPackage, rerun: Rerun) -> States:
        """The states before this package, by running again what came since they were stored.

        Raises:
            StateError: the log does not have the inputs any more, or one that went well once
                fails now.
        """
        previous = self.previous(envelope)
        stored = await self._load(token, envelope.epoch, previous)
        applied = await self._applied_sequences(token, envelope.epoch, stored.stream_seq + 1)
        states = self._decode(stored)
        inputs = await self._inputs(token, envelope, stored)
        chain = [sequence for sequence in sorted(inputs) if sequence in applied]
        befores = [*(self.previous(inputs[sequence][1]) for sequence in chain), previous]
        if befores != [stored.sequence, *chain]:  # each names the one before it
            raise StateError(
                f"the state of {self._phase!r} for instance {envelope.instance!r} before package "
                f"{envelope.id} needs inputs that the log does not have any more: of those after "
                f"{stored.sequence} it has {chain[:10]}, up to {previous}; keep the log for longer "
                f"than the state is needed, or close the instance to begin anew",
                instance=envelope.instance,
            )
        for sequence in chain:
            after = await rerun(inputs[sequence][1], states)
            if after is None:
                raise StateError(
                    f"running the recorded input {sequence} of instance {envelope.instance!r} "
                    f"again failed in phase {self._phase!r}, though it went well before: a "
                    f"stateful module must depend on nothing but its arguments",
                    instance=envelope.instance,
                )
            states = after
            self.caught_up += 1
        stream_seq = inputs[previous][0] if chain else stored.stream_seq
        held = Held(envelope.epoch, previous, stream_seq, states)
        held.counts = True
        held.stored = stored.stream_seq if stored.sequence else 0
        if chain:
            self._encode_if_due(held)
        self._hold(token, held)
        return states

    def keep(
        self, token: str, envelope: pb.DataPackage, stream_seq: int, states: States | None
    ) -> ToStore | None:
        """Hold the states after a package; None: they are unknown, as after an ERROR.

        To be called before the package's completion is published: until then no other package of
        the instance can be running, so nothing changes the states while they are encoded.

        Whether these states count is for the instance's next package to say, and what does not
        count must not take the place of what does: the log before it may be gone. So they are
        stored one package late. The package's record says which are stored (ADR 11).

        Returns:
            What is to be stored: the states before this package. None where it is not time yet.
        """
        held = self._held.pop(token, None)
        if states is None:
            return None
        now = Held(envelope.epoch, envelope.controllers[-1].sequence, stream_seq, states)
        to_store = None
        if held is not None and held.epoch == now.epoch:
            now.encoded_at, now.large, now.stored = held.encoded_at, held.large, held.stored
            if held.counts and held.sequence == self.previous(envelope):
                to_store = held.to_store
        envelope.controllers[-1].phases[-1].state_stream_seq = now.stored
        self._hold(token, now)
        self._encode_if_due(now)
        return to_store

    def _encode_if_due(self, held: Held) -> None:
        clock = asyncio.get_running_loop().time()
        if clock - held.encoded_at >= STORE_EVERY_S and (not held.large or self._large.is_due):
            held.encoded_at = clock
            held.to_store = self._encode(held)

    def _hold(self, token: str, held: Held) -> None:
        self._held[token] = held
        if len(self._held) > HELD_MAX:
            self._held.popitem(last=False)

    def confirm(self, token: str, stream_seq: int) -> None:
        """The result for the input `stream_seq` is stored, as the first: its states count."""
        held = self._held.get(token)
        if held is not None and held.stream_seq == stream_seq:
            held.counts = True
            if held.decided is not None:
                held.decided.set()

    def forget(self, token: str) -> None:
        """Hold nothing of the instance: the next package catches up."""
        held = self._held.pop(token, None)
        if held is not None and held.decided is not None:
            held.decided.set()

    def tokens(self) -> list[str]:
        """The instances whose states are held."""
        return list(self._held)

    async def hand_over(self, token: str) -> None:
        """Let an instance go, its states stored; for when nothing of it is running."""
        held = self._held.pop(token, None)
        if held is None or not held.counts or held.stored == held.stream_seq:
            return
        # No package comes here that would say whether they count, so the log is asked.
        if held.sequence in await self._applied_sequences(token, held.epoch, held.stream_seq + 1):
            new = self._encode(held)
            if new is not None:
                await self.store(token, new)

    async def store(self, token: str, new: ToStore) -> None:
        """Store what `keep` gave, unless a newer one is stored: by a worker that was faster."""
        if await self._store.put(self._key(token), new):
            self.stored += 1
            held = self._held.get(token)
            if held is not None and held.epoch == new.epoch:
                held.stored = max(held.stored, new.stream_seq)

    def is_large(self, new: ToStore) -> bool:
        """Whether it takes long to store: it does not fit into a message."""
        return self._store.is_large(new)

    async def store_all(self, timeout_s: float) -> None:
        """Store what is not stored yet; for a drain, when nothing is running. None takes longer
        than `timeout_s`, or the rest is left to whoever catches up."""
        try:
            for token in self.tokens():
                async with asyncio.timeout(timeout_s):
                    await self.hand_over(token)
        except (BrokerPipelineError, TimeoutError) as error:
            log.warning(
                "states of %s were not stored, others catch up: %s",
                self._phase,
                error,
                extra=in_phase(f"{self._controller}.{self._phase}"),
            )

    def _key(self, token: str) -> str:
        return module_key(self._shard, self._controller, self._phase, token)

    def _encode(self, held: Held) -> ToStore | None:
        begun = time.monotonic()
        try:
            states = {path: msgspec.msgpack.encode(state) for path, state in held.states.items()}
        except Exception as error:  # a state is the user's, and so may be what encodes it
            if not self._unstorable_said:
                self._unstorable_said = True
                log.warning(
                    "a state of phase %s cannot be encoded (%s: %s): it is not stored, and a "
                    "worker that needs it computes it from the log, which is kept for that from "
                    "the instance's beginning on",
                    self._phase,
                    type(error).__name__,
                    error,
                    extra=in_phase(f"{self._controller}.{self._phase}"),
                )
            return None
        new = pack(Stored(held.epoch, held.sequence, held.stream_seq, states))
        held.large = self.is_large(new)
        if held.large:
            self._large.spent(time.monotonic() - begun)
        return new

    # -- loading --------------------------------------------------------------------------------
    async def _load(self, token: str, epoch: int, previous: int) -> Stored:
        """The stored states if they help; else those before the first package."""
        stored = await self._store.get(self._key(token))
        usable = stored is not None and stored.epoch == epoch and stored.sequence <= previous
        return stored if stored is not None and usable else before_the_first(epoch)

    def _decode(self, stored: Stored) -> States:
        states: States = {}
        for path, raw in stored.states.items():
            kind = self._types.get(path)
            try:
                states[path] = msgspec.msgpack.decode(raw, type=kind or Any)
            except (ValueError, RecursionError) as error:
                raise StateError(
                    f"the stored state of module {path} in phase {self._phase!r} does not decode "
                    f"to {kind.__name__ if kind else 'plain data'} ({error}); deploy under a new "
                    f"name when a state's type changes"
                ) from error
        return states

    # -- the log --------------------------------------------------------------------------------
    async def _inputs(
        self, token: str, envelope: pb.DataPackage, stored: Stored
    ) -> dict[int, tuple[int, pb.DataPackage]]:
        """The phase's inputs after the stored state and before this package, by sequence id, each
        with its stream sequence."""
        found: dict[int, tuple[int, pb.DataPackage]] = {}
        previous = self.previous(envelope)
        for message in await self._broker.read_range(
            self._stream,
            self._subjects.queue(self._controller, self._phase, token, self._lanes),
            start_seq=stored.stream_seq + 1,
        ):
            recorded = _envelope(message.data)
            if recorded is None or recorded.epoch != envelope.epoch or not recorded.controllers:
                continue
            sequence = recorded.controllers[-1].sequence
            if stored.sequence < sequence <= previous:
                found.setdefault(sequence, (message.stream_seq, recorded))
        return found

    async def _applied_sequences(self, token: str, epoch: int, start_seq: int) -> set[int]:
        """The inputs that changed the state: those whose first completion is no ERROR here."""
        applied: dict[int, bool] = {}
        for message in await self._broker.read_range(
            self._stream,
            self._subjects.completion(self._controller, token),
            start_seq=start_seq,
        ):
            done = _envelope(message.data)
            if done is None or done.epoch != epoch or not done.controllers:
                continue
            record = done.controllers[-1]
            came_here = self._phase_index < len(record.phases)
            went_well = came_here and record.phases[self._phase_index].status in _APPLIED
            applied.setdefault(record.sequence, went_well)
        return {sequence for sequence, ok in applied.items() if ok}


def _envelope(data: bytes) -> pb.DataPackage | None:
    try:
        return parse_envelope(data)
    except MalformedPackageError:
        return None
