"""A replay in memory: no broker, no threads, and every decision at the place where it was recorded.

The machine of the controllers gets the recorded events in the recorded order, with their stream
sequences and times. Where it dispatches a package, the modules of today run at once; the result
waits, and comes back to its controller at the place where the log has that package's completion.
So with unchanged code everything is decided as it was, whatever the modules' speed here, and what
differs is what was changed (docs/adr/0028).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from msgspec import structs

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.core.commands import Dispatch
from broker_pipeline.core.envelope import Ignored, read_event
from broker_pipeline.core.events import Deployed, Event, Ticked
from broker_pipeline.core.names import unescape_instance
from broker_pipeline.core.plan import ControllerPlan, compile_plan
from broker_pipeline.debug.recordings.recorded import (
    ARRIVAL,
    COMPLETION,
    PLAN,
    RecordedEvent,
    RecordedOutcome,
)
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.debug.replays.admission import Cuts, arrival_in
from broker_pipeline.debug.replays.replay_setup import require_stand_ins
from broker_pipeline.debug.replays.replaying import WORKER, Replayed, Watch
from broker_pipeline.journey import Status
from broker_pipeline.modules import Module
from broker_pipeline.package import DataPackage
from broker_pipeline.pipeline import Pipeline
from broker_pipeline.runtime.ages import pass_over
from broker_pipeline.runtime.inline_pipeline import InlineLeader, InlineModules

VIRTUAL_SEQ = 1 << 62
"""Stream sequences of results that come back where the recorded log has none: above all that a
stream gives."""


class Sink(Protocol):
    """Takes what was replayed, as a `Recording` that is being written does."""

    def add_event(self, event: RecordedEvent) -> None:
        """An event that a controller was given."""

    def add_outcome(self, outcome: RecordedOutcome) -> None:
        """A package that left."""


def replay_in_memory(
    recording: Recording,
    pipeline: Pipeline,
    *,
    external: Mapping[str, Module[Any]] | None = None,
    watch: Watch | None = None,
    sink: Sink | None = None,
) -> Iterator[Replayed]:
    """Replay a recording; what leaves, in order. Its packages have the ids that they had.

    Modules run in this thread, which must have no event loop, `setup` and `teardown` included.
    `timeout_s`, `use_mutex` and `isolation` change nothing, and batches are of one: nothing depends
    on how long a module takes. `run.deadline` is told, but not enforced: a module that hangs,
    hangs. How long modules take is measured, for comparing.

    Args:
        recording: open in this thread.
        pipeline: today's; from the first event on its plan is in force.
        external: what runs in the place of `ExternalModule`s, by name.
        watch: how fast, and how to stop it; what is inside then does not leave.
        sink: gets what happened, as another recording.

    Raises:
        ReplayError: an external module has no stand-in.
        ClientError: a stand-in is for none.
        SetupError: a module's `setup` failed.
        StateError: a module returned a state that cannot be stored.
        RecordingError: the recording is damaged.
    """
    stand_ins = external or {}
    require_stand_ins(pipeline, stand_ins)
    modules = InlineModules(
        pipeline, stand_ins, caller="a replay in memory", worker=WORKER,
        monotonic_ns=time.monotonic_ns,
    )  # fmt: skip
    with modules:
        yield from _Replay(recording, pipeline, modules, watch or Watch(), sink).run()


@dataclass(slots=True)
class _Result:
    """What a controller's phases made of a package, on its way back."""

    package_id: int
    controller: str
    token: str
    raw: bytes


class _Replay:
    def __init__(
        self,
        recording: Recording,
        pipeline: Pipeline,
        modules: InlineModules,
        watch: Watch,
        sink: Sink | None,
    ) -> None:
        self._recording, self._modules, self._watch, self._sink = recording, modules, watch, sink
        self._types = pipeline.payload_types
        self._subjects = recording.subjects
        plan = structs.replace(compile_plan(pipeline), pipeline=self._subjects.pipeline)
        self._plan, self._plan_bytes = plan, plan.to_bytes()
        self._leader = InlineLeader(plan, self._subjects.shard, again=self._again)
        self._machine = self._leader.machine
        self._cuts = Cuts(recording)
        self._lives: dict[str, int] = {}  # by token, the epochs of those that have states
        self._waiting: dict[tuple[int, str], _Result] = {}  # for their place in the log
        self._ready: deque[_Result] = deque()  # there is no place for them: now
        self._place = 0  # in the recorded log
        self._virtual = VIRTUAL_SEQ
        self._left_at = 0

    def run(self) -> Iterator[Replayed]:
        """The whole of it."""
        watch = self._watch
        yield from self._decide(Deployed(0, 0, self._plan))
        for event in self._recording.events():
            if not watch.stopped:
                watch.wait(watch.seen(event.time_ns, arrival=event.kind == ARRIVAL))
            if watch.stopped:
                return
            self._place = event.stream_seq
            yield from self._take(event)
        yield from self._to_the_end()

    def _take(self, event: RecordedEvent) -> Iterator[Replayed]:
        """An event of the recording."""
        place, time_ns = event.stream_seq, event.time_ns
        if event.kind == PLAN:
            event = replace(event, data=self._plan_bytes)
            yield from self._decide(Deployed(place, time_ns, self._plan))
        elif event.kind == COMPLETION:
            key = event.package_id, event.controller
            if key not in self._waiting:
                yield from self._pass_deadlines(time_ns)
            result = self._waiting.pop(key, None)
            if result is None:  # it did not get there now: only the time passes
                yield from self._decide(Ticked(place, time_ns))
                return
            yield from self._decide(*self._returned(result, place, time_ns))
        else:
            try:
                read, envelope = event.read(self._subjects)
            except Ignored:
                return
            for before in self._cuts.before(self._machine, read):
                yield from self._decide(before)
            yield from self._decide(read, envelope)
        if self._sink is not None:
            self._sink.add_event(event)

    def _returned(
        self, result: _Result, stream_seq: int, time_ns: int
    ) -> tuple[Event, pb.DataPackage | None]:
        subject = self._subjects.completion(result.controller, result.token)
        return read_event(self._subjects, subject, {}, result.raw, stream_seq, time_ns)

    def _decide(self, event: Event, envelope: pb.DataPackage | None = None) -> Iterator[Replayed]:
        """An event, what it leads to, and what comes back at once."""
        while True:
            for command, raw in self._leader.decide(event, envelope):
                if isinstance(command, Dispatch):
                    self._begin(command, raw)
                else:
                    yield self._leave(command.package.id, command.instance, raw)
            self._forget_ended()
            if not self._ready:
                return
            self._virtual += 1
            event, envelope = self._returned(
                self._ready.popleft(), self._virtual, self._machine.time
            )

    def _leave(self, package_id: int, token: str, raw: bytes) -> Replayed:
        self._watch.left += 1
        package = DataPackage.from_bytes(raw, self._types)
        if self._sink is not None:
            outcome = package.outcome
            assert outcome is not None
            self._left_at = max(self._left_at + 1, self._place)
            place, ended_ns = self._left_at, package.end_time_ns
            who = (package_id, token, package.epoch, package.sequence)
            self._sink.add_outcome(RecordedOutcome(*who, outcome, place, ended_ns, raw))
        return Replayed(package_id, token, package)

    # -- the phases -----------------------------------------------------------------------------
    def _begin(self, command: Dispatch, raw: bytes) -> None:
        """Run the phases of a controller on a package, and keep the result for its time."""
        controller = self._plan.controllers[command.controller]
        package_id, token = command.package.id, command.instance
        done_seq = self._recording.done_seq(package_id, controller.name)
        skipped = self._skipped(controller, command) if done_seq is not None else None
        now = self._machine.time
        for index, phase in enumerate(controller.phases):
            if phase.name == skipped:
                envelope = pb.DataPackage.FromString(raw)
                pass_over(envelope, phase.name, WORKER, now)
                raw = envelope.SerializeToString()
                break
            where = f"{controller.name}.{phase.name}"
            what = f"package {package_id} of {unescape_instance(token)!r} in {where}"
            self._watch.running = (what, self._watch.now())
            envelope, status = self._modules.run((command.controller, index), token, raw, now)
            self._watch.running = None
            raw = envelope.SerializeToString()
            if status is not Status.SUCCESS:
                break
        result = _Result(package_id, controller.name, token, raw)
        if done_seq is not None:
            comes_later = done_seq > self._place
        else:  # it was inside when the recording ended, or had left without it
            comes_later = self._recording.recorded_outcome(package_id) is None
        if comes_later:
            self._waiting[package_id, controller.name] = result
        else:
            self._ready.append(result)

    def _skipped(self, controller: ControllerPlan, command: Dispatch) -> str | None:
        """The phase that was not run because the package was too old for it, and is so today, at
        the recorded time at which it came back."""
        age, package = controller.max_age_ns, command.package
        if age is None:
            return None
        recorded = self._recording.outcome_of(package.id)
        skipped = [
            phase.name
            for record in (recorded.controllers if recorded is not None else ())
            for phase in record.phases
            if record.name == controller.name and phase.status is Status.OUTDATED
        ]
        for done in self._recording.completions(package.id) if skipped else ():
            if done.controller == controller.name and package.arrived + age <= done.time_ns:
                return skipped[0]
        return None

    # -- time, and what can be forgotten --------------------------------------------------------
    def _pass_deadlines(self, until_ns: int) -> Iterator[Replayed]:
        """Ticks for what is due: the log's leader had the events of all instances to tell the time
        by, and a recording may have those of a few."""
        machine = self._machine
        while (deadline := machine.next_deadline()) is not None and deadline < until_ns:
            yield from self._decide(Ticked(machine.applied, deadline))

    def _to_the_end(self) -> Iterator[Replayed]:
        """What was inside when the recording ended comes back, and what waits for time gets it."""
        yield from self._decide(Ticked(self._machine.applied, self._machine.time, paused=False))
        while not self._watch.stopped:
            while self._waiting and not self._watch.stopped:
                result = self._waiting.pop(next(iter(self._waiting)))
                self._place += 1
                time_ns = self._machine.time
                yield from self._decide(*self._returned(result, self._place, time_ns))
                if self._sink is not None:
                    self._sink.add_event(self._completion(result, time_ns))
            inside = any(not each.drained for each in self._machine.instances.values())
            deadline = self._machine.next_deadline() if inside else None
            if deadline is None:
                return
            yield from self._decide(Ticked(self._machine.applied, deadline))

    def _completion(self, result: _Result, time_ns: int) -> RecordedEvent:
        return RecordedEvent(
            self._place, time_ns, COMPLETION, result.token,
            package_id=result.package_id, controller=result.controller,
        )  # fmt: skip

    def _forget_ended(self) -> None:
        """Drop the states of lives that have ended."""
        machine = self._machine
        for token in machine.changed:
            instance = machine.instances.get(token)
            epoch = instance.epoch if instance is not None else None
            before = self._lives.get(token)
            if before is not None and before != epoch:
                self._modules.forget(token, before)
                del self._lives[token]
            if epoch is not None:
                self._lives[token] = epoch
        machine.changed.clear()

    def _again(self, stream_seq: int) -> pb.DataPackage:
        """An arrival that has waited: from the recording, so that none waits in memory."""
        _, envelope = arrival_in(self._recording, stream_seq).read(self._subjects)
        assert envelope is not None  # the machine was told of a package
        return envelope
