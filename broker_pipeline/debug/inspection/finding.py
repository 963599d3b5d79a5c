"""Finding packages in a log: by id, by place, by how they left; and all that there is of one."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import msgspec

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.large_payloads import LargePayloads
from broker_pipeline.broker.port import Broker, Message, StreamState
from broker_pipeline.client.deploy import SHARD, deployed_plan, require_deployed
from broker_pipeline.core.names import (
    HEADER_MSG_ID,
    Subjects,
    attempts_bucket,
    attempts_key,
    completion_id,
    dispatch_id,
    emission_id,
    stream_name,
    unescape_instance,
)
from broker_pipeline.debug.inspection.history import (
    Completion,
    PackageHistory,
    PhaseInput,
    arrived_as,
    parse_package_id,
)
from broker_pipeline.debug.recordings.log_reading import read_log
from broker_pipeline.errors import (
    MalformedPackageError,
    NewerVersionError,
    NotFoundError,
    PayloadGoneError,
    PlanError,
    UnknownPackageError,
)
from broker_pipeline.journey import Outcome
from broker_pipeline.package import parse_envelope
from broker_pipeline.runtime.suspects import Record

log = logging.getLogger(__name__)

KEEP = "keep more: replay_window_s, log_bytes_max; or record what is to last"
"""What keeps history, in the words of errors and notes."""


class Finder:
    """Finds packages of a pipeline in its log.

    Raises of all its methods: PlanError where nothing is deployed, BrokerError where the broker
    does not answer.
    """

    def __init__(self, broker: Broker, pipeline: str, shard: int = SHARD) -> None:
        self.pipeline = pipeline
        self.shard = shard
        self._broker = broker
        self._stream = stream_name(pipeline, shard)
        self._subjects = Subjects(pipeline, shard)
        self._payloads = LargePayloads(broker, pipeline)

    # -- which package --------------------------------------------------------------------------
    def by_id(self, text: str) -> int:
        """The number of a package, from its id. Raises UnknownPackageError."""
        shard, number = parse_package_id(text, self.pipeline)
        if shard != self.shard:
            raise UnknownPackageError(
                f"package {text!r} is of shard {shard}; expected one of {self.shard}", package=text
            )
        return number

    async def by_sequence(self, token: str, sequence: int, epoch: int | None = None) -> int:
        """The package with a sequence id of an instance.

        Args:
            token: of the instance, as `escape_instance` gives it.
            epoch: which life of it; None: the newest that has such a package.

        Raises:
            UnknownPackageError: the log has none, or has it no longer; or it waits inside and was
                not given to a worker yet: until then the log does not say its sequence id.
        """
        state = await self._state()
        best: tuple[int, int] | None = None
        for filter in (f"{self._subjects.out}*.{token}", *await self._first_queues(token)):
            async for message in self._read(filter, state.first_seq, state):
                envelope = _envelope(message)
                if envelope is None or envelope.sequence != sequence:
                    continue
                if epoch is None or envelope.epoch == epoch:
                    best = max(best or (0, 0), (envelope.epoch, envelope.id))
            if best is not None and epoch is not None:
                break
        if best is None:
            life = "" if epoch is None else f" in its life {epoch}"
            raise UnknownPackageError(
                f"the log of {self.pipeline!r} has no package {sequence} of instance "
                f"{unescape_instance(token)!r}{life}; it goes back to {state.first_seq}: what is "
                f"older was purged ({KEEP}), and what waits inside has no number yet",
                sequence=sequence,
            )
        return best[1]

    async def nth(self, outcome: Outcome | None, n: int, token: str | None = None) -> int:
        """The n-th package that left: 1 is the oldest that the log has, -1 the newest.

        Args:
            outcome: count those only that left so; None: all.
            token: count those of this instance only; None: of all.

        Raises:
            UnknownPackageError: the log has not so many.
            ValueError: `n` is 0.
        """
        if n == 0:
            raise ValueError("n counts from 1, the oldest, or from -1, the newest")
        state = await self._state()
        filter = f"{self._subjects.out}{outcome.value.lower() if outcome else '*'}.{token or '*'}"
        newest = await self._broker.last_message(self._stream, filter) if n == -1 else None
        if newest is not None:
            return self._id_of(newest)
        found: deque[int] = deque(maxlen=abs(n))
        count = 0
        reading = self._read(filter, state.first_seq, state, headers_only=True)
        async with aclosing(reading) as messages:
            async for message in messages:
                found.append(message.stream_seq)
                count += 1
                if count == n:
                    break
        if count < abs(n):
            of = f" of instance {unescape_instance(token)!r}" if token else ""
            raise UnknownPackageError(
                f"the log of {self.pipeline!r} has {count} packages{of} that left"
                f"{f' as {outcome.value}' if outcome else ''}; expected at least {abs(n)}: what is "
                f"older than {state.first_seq} was purged ({KEEP})",
                count=count,
            )
        place = found[-1] if n > 0 else found[0]
        return self._id_of(await self._broker.get_message(self._stream, place))

    def _id_of(self, left: Message) -> int:
        envelope = _envelope(left)
        if envelope is None:
            raise UnknownPackageError(
                f"message {left.stream_seq} of the log of {self.pipeline!r} left as a package and "
                f"is none: somebody else wrote it; expected a DataPackage: take another",
                stream_seq=left.stream_seq,
            )
        return envelope.id

    # -- all of it ------------------------------------------------------------------------------
    async def history(self, number: int) -> PackageHistory:
        """All that the log has of a package. Large payloads stay references: see `load`.

        Raises:
            UnknownPackageError: there is no such package, or nothing is left of it.
        """
        state = await self._state()
        arrival, token, arrived = await self._arrival(number, state)
        notes = []
        if arrival is None:
            notes.append(
                f"its arrival was purged: the log begins at {state.first_seq} ({KEEP})",
            )
        start = max(number, state.first_seq)
        left = await self._outcome(number, token, start, state)
        end = StreamState(state.first_seq, left.stream_seq if left else state.last_seq, 0, 0)
        inputs = [
            step
            for filter in self._queues(token or "*")
            async for step in self._inputs(number, filter, start, end)
        ]
        completions = [step async for step in self._completions(number, token, start, end)]
        found = [step.message for step in inputs] + [step.message for step in completions]
        found += [left] if left else []
        if arrival is None and not found:
            raise UnknownPackageError(
                f"nothing is left of package '{self.pipeline}/{self.shard}/{number}': the log "
                f"begins at {state.first_seq}, and what is older was purged; {KEEP}",
                package=number,
            )
        outcome = _envelope(left) if left else None
        if not token:
            token = found[0].subject.rpartition(".")[2]
        missing = _missing(outcome, inputs)
        if missing:
            notes.append(f"the inputs of {', '.join(missing)} were purged ({KEEP})")
        return PackageHistory(
            self.pipeline,
            self.shard,
            number,
            token,
            arrival,
            arrived,
            tuple(sorted(inputs, key=lambda step: step.message.stream_seq)),
            tuple(completions),
            left,
            outcome,
            tuple(notes),
        )

    async def load(self, envelope: pb.DataPackage) -> None:
        """Put a large payload into its place; where there is none, nothing is done.

        Raises:
            PayloadGoneError: it is not there any more.
            MalformedPackageError: the reference is none of this pipeline.
        """
        if envelope.HasField("reference"):
            await self._payloads.load(envelope)

    async def loaded(self, history: PackageHistory) -> PackageHistory:
        """The same with all large payloads in their places, each loaded once; notes say which are
        gone."""
        envelopes = [each.envelope for each in history.inputs]
        envelopes += [each for each in (history.arrived, history.outcome) if each is not None]
        found: dict[str, bytes] = {}
        notes: dict[str, None] = {}
        for envelope in envelopes:
            if not envelope.HasField("reference"):
                continue
            name = envelope.reference.object
            if name in found:
                envelope.ClearField("reference")
                envelope.data = found[name]
                continue
            try:
                await self.load(envelope)
                found[name] = envelope.data
            except (PayloadGoneError, MalformedPackageError) as error:
                notes[str(error)] = None
        return replace(history, notes=(*history.notes, *notes))

    async def _arrival(
        self, number: int, state: StreamState
    ) -> tuple[Message | None, str, pb.DataPackage | None]:
        """The producer's message, the instance's token and the package; nothing where purged."""
        name = f"{self.pipeline}/{self.shard}/{number}"
        if number > state.last_seq:
            raise UnknownPackageError(
                f"there is no package {name!r} yet: the log ends at {state.last_seq}; expected a "
                f"lower number",
                package=name,
            )
        try:
            message = await self._broker.get_message(self._stream, number)
        except NotFoundError:
            return None, "", None
        try:
            found = arrived_as(self._subjects, message)
        except NewerVersionError:  # a plan, whatever it says
            found = None
        if found is None:
            raise UnknownPackageError(
                f"there is no package {name!r}: that place in the log holds {message.subject!r}; "
                f"expected the id of a package, as results and errors show it",
                package=name,
            )
        return message, *found

    async def _outcome(
        self, number: int, token: str, start: int, state: StreamState
    ) -> Message | None:
        filter = f"{self._subjects.out}*.{token or '*'}"
        async for message in self._of(number, emission_id(number), filter, start, state):
            return message
        return None

    async def _inputs(
        self, number: int, filter: str, start: int, state: StreamState
    ) -> AsyncGenerator[PhaseInput, None]:
        """What phases got, each once."""
        seen = set()
        begins = dispatch_id(number, "", "").rstrip(".")
        async for message in self._of(number, begins, filter, start, state):
            controller, phase = message.subject[len(self._subjects.work) :].split(".")[:2]
            envelope = _envelope(message)
            if envelope is None or (controller, phase) in seen:
                continue
            seen.add((controller, phase))
            begun = await self._begun(controller, phase, message.stream_seq)
            yield PhaseInput(controller, phase, message, envelope, begun)

    async def _completions(
        self, number: int, token: str, start: int, state: StreamState
    ) -> AsyncGenerator[Completion, None]:
        """How it came back, to each controller once."""
        seen = set()
        begins = completion_id(number, "").rstrip(".")
        filter = f"{self._subjects.ctl_done}*.{token or '*'}"
        async for message in self._of(number, begins, filter, start, state):
            controller = message.subject[len(self._subjects.ctl_done) :].partition(".")[0]
            envelope = _envelope(message)
            if envelope is None or controller in seen:
                continue
            seen.add(controller)
            yield Completion(controller, message, envelope)

    async def _begun(self, controller: str, phase: str, stream_seq: int) -> int:
        key = attempts_key(self.shard, controller, phase, stream_seq)
        try:
            entry = await self._broker.kv_get(attempts_bucket(self.pipeline), key)
            return msgspec.msgpack.decode(entry.value, type=Record).begun if entry else 0
        except (NotFoundError, msgspec.MsgspecError, ValueError):
            return 0

    # -- reading --------------------------------------------------------------------------------
    async def _state(self) -> StreamState:
        return await require_deployed(self._broker, self.pipeline)

    def _queues(self, token: str) -> tuple[str, str]:
        """The filters of an instance's inputs: of phases without lanes and with them."""
        work = self._subjects.work
        return f"{work}*.*.{token}", f"{work}*.*.*.{token}"

    async def _first_queues(self, token: str) -> tuple[str, ...]:
        """Where packages of an instance come first that are inside now."""
        try:
            plan = await deployed_plan(self._broker, self.pipeline)
        except (PlanError, NewerVersionError):
            plan = None
        if plan is None:
            return self._queues(token)
        first = plan.controllers[0]
        phase = first.phases[0]
        return (self._subjects.queue(first.name, phase.name, token, phase.lanes),)

    async def _of(
        self, number: int, begins: str, filter: str, start: int, state: StreamState
    ) -> AsyncGenerator[Message, None]:
        """The messages about a package, whole: found by their ids, and one without by its bytes."""
        async with aclosing(self._read(filter, start, state, headers_only=True)) as messages:
            async for message in messages:
                said = message.headers.get(HEADER_MSG_ID, "")
                if said and said != begins and not said.startswith(f"{begins}."):
                    continue
                try:
                    whole = await self._broker.get_message(self._stream, message.stream_seq)
                except NotFoundError:
                    continue  # purged meanwhile
                envelope = _envelope(whole)
                if envelope is not None and envelope.id == number:
                    yield whole

    async def _read(
        self, filter: str, start: int, state: StreamState, *, headers_only: bool = False
    ) -> AsyncGenerator[Message, None]:
        reading = read_log(
            self._broker,
            self._stream,
            filter,
            start_seq=start,
            end_seq=state.last_seq,
            headers_only=headers_only,
        )
        async with aclosing(reading) as batches:
            async for batch in batches:
                for message in batch:
                    yield message


def _envelope(message: Message) -> pb.DataPackage | None:
    try:
        return parse_envelope(message.data)
    except MalformedPackageError:
        return None


def _missing(outcome: pb.DataPackage | None, inputs: list[PhaseInput]) -> list[str]:
    """The phases that the journey has, and whose input is not there."""
    if outcome is None:
        return []
    there = {(step.controller, step.phase) for step in inputs}
    return [
        f"{controller.name}.{phase.name}"
        for controller in outcome.controllers
        for phase in controller.phases
        if (controller.name, phase.name) not in there
    ]
