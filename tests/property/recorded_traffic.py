"""Logs as leaders and workers make them, from chance, written into recordings: a pipeline that
can do everything, its arrivals, lives, deadlines and repeats."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import strategies as st

from broker_pipeline import Controller, ExecutionModule, Mode, Phase, Pipeline, StatefulModule
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.core.commands import Command, Dispatch
from broker_pipeline.core.names import (
    CONTROL_CLOSE,
    CONTROL_OPEN,
    HEADER_CONTROL,
    HEADER_NUMBER,
    HEADER_PRODUCER,
)
from broker_pipeline.core.plan import compile_plan
from broker_pipeline.debug.recordings.recorded import RecordedEvent, RecordedOutcome, RecordingMeta
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.journey import NS, Status
from broker_pipeline.package import DataPackage
from broker_pipeline.runtime.ages import pass_over
from broker_pipeline.runtime.inline_pipeline import InlineLeader, InlineModules

START = 1_700_000_000 * NS
TOKENS = ("a", "b")
IDLE_S, GAP_S, AGE_S = 30.0, 2.0, 3.0


class Seen(msgspec.Struct):
    """What an instance has had."""

    payloads: list[bytes] = []


class Remember(StatefulModule[bytes, Seen]):
    """Says the last three; '!' is an ERROR, '?' an EXIT."""

    def initial_state(self) -> Seen:
        """Nothing."""
        return Seen()

    def execute(self, package: Any, run: Any, state: Seen) -> Seen:
        """One package."""
        state.payloads.append(package.data)
        if b"!" in package.data:
            raise ValueError(f"a bang after {len(state.payloads)}")
        if b"?" in package.data:
            run.exit(f"a question after {len(state.payloads)}")
        package.data = b"+".join(state.payloads[-3:])
        return state


class Mark(ExecutionModule[bytes]):
    """Says that it was here; '#' is an EXIT."""

    def execute(self, package: Any, run: Any) -> None:
        """One package."""
        run.message = f"{len(package.data)} bytes"
        if b"#" in package.data:
            run.exit("a hash")
        package.attributes["marks"] = package.attributes.get("marks", "") + "x"


Rule = tuple[Mode, int | None, int | None, float | None]
"""`(mode, max_workers, queue_size, max_age_s)`."""


def pipeline_of(rules: list[Rule]) -> Pipeline:
    """A controller with two phases for each rule; states where they may be."""
    controllers = []
    for index, (mode, workers, queue, age) in enumerate(rules):
        alone = mode is Mode.NOT_PARALLEL
        phases = [Phase("p0", [Remember() if alone else Mark()]), Phase("p1", [Mark()])]
        bounds: dict[str, Any] = {"queue_size": queue if alone or workers else None}
        if not alone:
            bounds["max_workers"] = workers
        controllers.append(Controller(f"c{index}", phases, mode=mode, max_age_s=age, **bounds))
    return Pipeline("demo", controllers, instance_idle_s=IDLE_S, producer_gap_s=GAP_S)


rule_lists = st.lists(
    st.tuples(
        st.sampled_from(list(Mode)),
        st.sampled_from([None, 1, 2, 3]),
        st.sampled_from([None, 0, 1, 2]),
        st.sampled_from([None, None, AGE_S]),
    ),
    min_size=1,
    max_size=3,
)
payloads = st.sampled_from([b"", b"one", b"two", b"bad!", b"why?", b"#"])
actions = st.one_of(
    st.tuples(st.just("arrive"), st.sampled_from(TOKENS), payloads),
    st.tuples(st.just("arrive"), st.sampled_from(TOKENS), payloads),
    st.tuples(st.just("number"), st.sampled_from(TOKENS), st.integers(0, 6)),
    st.tuples(st.just("finish"), st.integers(0, 5), st.booleans()),
    st.tuples(st.just("finish"), st.integers(0, 5), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([0.001, 0.5, 2.5, 4.0, 40.0]), st.booleans()),
    st.tuples(st.just("open"), st.sampled_from(TOKENS), st.none()),
    st.tuples(st.just("close"), st.sampled_from(TOKENS), st.none()),
    st.tuples(st.just("deploy"), st.none(), st.none()),
)


@dataclass
class Work:
    """A package that a worker has."""

    controller: int
    token: str
    raw: bytes
    phase: int = 0


@dataclass
class Traffic:
    """A log that grows; every message of it gets a number, also those that no recording keeps."""

    pipeline: Pipeline
    modules: InlineModules
    recording: Recording
    seq: int = 0
    now: int = START
    works: list[Work] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.leader = InlineLeader(compile_plan(self.pipeline))
        self.subjects = self.leader.subjects
        self.deploy()

    def deploy(self, *_: object) -> None:
        """Once more the same."""
        self._append("plan", "", self.subjects.plan, data=self.leader.plan.to_bytes())

    def arrive(self, token: str, data: bytes) -> None:
        """A raw package."""
        self._append("in", token, self.subjects.arrival(token), data=data)

    def number(self, token: str, ahead: int) -> None:
        """A numbered package: the next, a repeat, or one that comes too early."""
        following = self.numbers.get(token, 0) + 1
        number = max(1, following - 1) if ahead == 0 else following + max(0, ahead - 4)
        self.numbers[token] = max(self.numbers.get(token, 0), number)
        headers = {HEADER_PRODUCER: "p", HEADER_NUMBER: str(number)}
        data = b"number %d" % number
        self._append("in", token, self.subjects.arrival(token), headers, data)

    def open(self, token: str, _: object) -> None:
        """A client opens an instance."""
        self._append("open", token, self.subjects.arrival(token), {HEADER_CONTROL: CONTROL_OPEN})

    def close(self, token: str, _: object) -> None:
        """A client closes it."""
        self.numbers.pop(token, None)
        self._append("close", token, self.subjects.arrival(token), {HEADER_CONTROL: CONTROL_CLOSE})

    def wait(self, seconds: float, ticks: bool) -> None:
        """Time passes; the leader ticks, or was too slow to."""
        self.now += int(seconds * NS)
        deadline = self.leader.machine.next_deadline()
        if ticks and deadline is not None and deadline <= self.now:
            self._append("tick", "", self.subjects.tick)

    def finish(self, which: int, quick: bool) -> None:
        """A worker is done with a package's phase."""
        if not self.works:
            return
        work = self.works.pop(which % len(self.works))
        self.now += 1_000 if quick else 300_000_000
        controller = self.leader.plan.controllers[work.controller]
        phase = controller.phases[work.phase]
        age, package = controller.max_age_ns, pb.DataPackage.FromString(work.raw)
        if age is not None and package.start_time_ns + age <= self.now:
            pass_over(package, phase.name, "w", self.now)
            status = Status.OUTDATED
        else:
            place = (work.controller, work.phase)
            package, status = self.modules.run(place, work.token, work.raw, self.now)
        work.raw = package.SerializeToString()
        if status is Status.SUCCESS and work.phase + 1 < len(controller.phases):
            self.seq += 1
            work.phase += 1
            self.works.append(work)
            return
        subject = self.subjects.completion(controller.name, work.token)
        self._append("done", work.token, subject, data=work.raw, of=(package.id, controller.name))

    def finish_all(self) -> None:
        """Until nothing is inside."""
        while True:
            while self.works:
                self.finish(0, True)
            if all(each.drained for each in self.leader.machine.instances.values()):
                return
            self.wait(GAP_S, True)

    def _append(
        self,
        kind: str,
        token: str,
        subject: str,
        headers: dict[str, str] | None = None,
        data: bytes = b"",
        of: tuple[int, str] = (0, ""),
    ) -> None:
        self.seq += 1
        self.now += 1_000
        kept = b"" if kind == "done" else data
        self.recording.add_event(
            RecordedEvent(self.seq, self.now, kind, token, subject, headers or {}, kept, *of)
        )
        for command, raw in self.leader.apply(subject, headers or {}, data, self.seq, self.now):
            self.seq += 1
            self._publish(command, raw)

    def _publish(self, command: Command, raw: bytes) -> None:
        if isinstance(command, Dispatch):
            self.works.append(Work(command.controller, command.instance, raw))
            return
        package = DataPackage.from_bytes(raw)
        assert package.outcome is not None
        self.left.append(command.package.id)
        who = (command.package.id, command.instance, package.epoch, package.sequence)
        self.recording.add_outcome(RecordedOutcome(*who, package.outcome, self.seq, self.now, raw))


def record(
    path: Path, rules: list[Rule], schedule: list[tuple[Any, ...]], *, to_the_end: bool
) -> tuple[Pipeline, list[int]]:
    """A recording of what a schedule leads to: the pipeline, and the ids of what left, in order."""
    pipeline = pipeline_of(rules)
    meta = RecordingMeta(pipeline="demo", plan=compile_plan(pipeline).to_bytes().decode())
    with (
        InlineModules(pipeline, {}) as modules,
        Recording.create(path, meta, overwrite=True) as recording,
    ):
        traffic = Traffic(pipeline, modules, recording)
        for what, first, second in schedule:
            getattr(traffic, what)(first, second)
        if to_the_end:
            traffic.finish_all()
    return pipeline_of(rules), traffic.left
