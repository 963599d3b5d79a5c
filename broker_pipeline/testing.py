"""Run a pipeline in memory: the same core, no broker, no threads, the same result every time.

    packages = run_in_memory(pipeline, [b"one", b"two"])
    assert [package.data for package in packages] == ["ONE", "TWO"]

Time is virtual: it passes between arrivals (`interval_s`) and in phases (`duration_s`), and nowhere
else. So a test says how long things take, and sees what overflows, overtakes or waits.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker_pipeline import codecs
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.core.commands import Dispatch
from broker_pipeline.core.names import (
    CONTROL_CLOSE,
    HEADER_CONTENT_TYPE,
    HEADER_CONTROL,
    escape_instance,
)
from broker_pipeline.core.plan import compile_plan
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.debug.replays.diff import compare as compare
from broker_pipeline.debug.replays.replay_memory import replay_in_memory
from broker_pipeline.errors import ClientError
from broker_pipeline.journey import NS, Status
from broker_pipeline.modules import Module
from broker_pipeline.package import CONTENT_TYPE, DataPackage
from broker_pipeline.pipeline import Pipeline
from broker_pipeline.runtime.ages import pass_over
from broker_pipeline.runtime.inline_pipeline import WORKER, InlineLeader, InlineModules

START_NS = 1_000_000_000 * NS
"""When every run begins: a round time, and not 0, which means "not yet" in an envelope."""

Duration = float | Callable[[str, DataPackage[Any]], float]
"""Seconds that a package takes in a phase; or `f("controller.phase", package)` that tells them."""

# Of what happens at the same time, work that ends comes first: its place is free for an arrival.
_ENDS, _ARRIVES = 0, 1


def run_in_memory(
    pipeline: Pipeline,
    chunks: Iterable[object],
    *,
    instance: str = "test",
    interval_s: float = 0.0,
    duration_s: Duration = 0.0,
    close: bool = True,
    external: Mapping[str, Module[Any]] | None = None,
) -> list[DataPackage[Any]]:
    """Send chunks through a pipeline and return every package, in the order in which they left.

    Modules run as they do in a worker, `setup` and `teardown` included; there are as many workers
    as the pipeline's bounds allow. What needs a second thread is left out: `timeout_s`, `use_mutex`
    and `isolation` change nothing here, and batches are of one.

    Args:
        pipeline: what to run.
        chunks: payloads (whatever `DataPackage` takes), DataPackages, or pairs
            `(instance, either of them)`; a tuple is always a pair.
        instance: where chunks go that do not name one.
        interval_s: virtual time between two arrivals.
        duration_s: virtual time that a package takes in a phase, a number or a function; the
            package that the function is shown is as the phase gets it. The phase's `total_time`
            shows it; the modules in it are charged nothing.
        close: end every instance after its last chunk, as a client does that is done.
        external: for each `ExternalModule`, by name, what runs in the place of its servers: the
            module that they host, or another. Its record stands inside the external one's.

    Raises:
        ClientError: an external module without a stand-in, a negative time, an unusable instance
            name, or `async def` modules while an event loop runs in this thread.
        PayloadError: a chunk that cannot be encoded.
        SetupError: a module's `setup` failed.
        StateError: a module returned a state that cannot be stored.
    """
    _check_seconds("interval_s", interval_s)
    if not callable(duration_s):
        _check_seconds("duration_s", duration_s)
    run = _Run(pipeline, duration_s)
    run.send(chunks, instance, round(interval_s * NS), close)
    with InlineModules(pipeline, external or {}) as modules:
        run.to_the_end(modules)
    return run.left


def replay(
    recording: str | Path,
    pipeline: Pipeline,
    *,
    external: Mapping[str, Module[Any]] | None = None,
) -> Iterator[tuple[DataPackage[Any] | None, DataPackage[Any]]]:
    """Run a recorded log through a pipeline in memory: a recording is a golden test.

        for recorded, replayed in replay("tests/talk.bprec", pipeline):
            assert recorded is None or compare(recorded, replayed) == []

    Every decision is made at the place in the log where it was made then, so that unchanged code
    gives what was recorded, on any machine; see docs/replaying.md. `timeout_s`, `use_mutex` and
    `isolation` change nothing, and batches are of one.

    Args:
        recording: a file that `broker-pipeline record` has made.
        pipeline: what to run.
        external: as for `run_in_memory`.

    Returns:
        In the order in which they leave now: each package as it left then (None where it was still
        inside), and as it leaves now.

    Raises:
        RecordingError: the file is no recording, or is damaged.
        ReplayError: an external module without a stand-in.
        ClientError, SetupError, StateError: as `run_in_memory`.
    """
    with Recording.open(recording, pipeline.payload_types) as opened:
        for replayed in replay_in_memory(opened, pipeline, external=external):
            yield opened.outcome_of(replayed.package_id), replayed.package


@dataclass(frozen=True, slots=True)
class _Work:
    """A phase's result, on its way into the log."""

    controller: int
    phase: int
    token: str
    status: Status
    raw: bytes


_Message = tuple[str, dict[str, str], bytes]
_Event = _Message | _Work


class _Run:
    """A log, its leader and its workers, on one virtual clock."""

    def __init__(self, pipeline: Pipeline, duration_s: Duration) -> None:
        self.left: list[DataPackage[Any]] = []
        self._leader = InlineLeader(compile_plan(pipeline))
        self._plan = self._leader.plan
        self._subjects = self._leader.subjects
        self._types = pipeline.payload_types
        self._duration_s = duration_s
        self._stream_seq = 0
        self._now = START_NS
        self._due: list[tuple[int, int, int, _Event]] = []
        self._count = 0

    def send(self, chunks: Iterable[object], instance: str, interval: int, close: bool) -> None:
        """Put the chunks on the timetable, one every `interval`."""
        self._at(START_NS, _ENDS, (self._subjects.plan, {}, self._plan.to_bytes()))
        when, tokens = START_NS, dict[str, None]()
        for count, chunk in enumerate(chunks):
            name, payload = _pair(chunk) if isinstance(chunk, tuple) else (instance, chunk)
            token = escape_instance(name)
            tokens[token] = None
            when = START_NS + count * interval
            self._at(when, _ARRIVES, (self._subjects.arrival(token), *_message(payload)))
        for token in tokens if close else ():
            goodbye = {HEADER_CONTROL: CONTROL_CLOSE}
            self._at(when, _ARRIVES, (self._subjects.arrival(token), goodbye, b""))

    def to_the_end(self, modules: InlineModules) -> None:
        """Let everything happen that is due, in order of time."""
        while self._due:
            deadline = self._leader.machine.next_deadline()
            if deadline is not None and deadline < self._due[0][0]:
                self._now = max(self._now, deadline)
                self._append(self._subjects.tick, {}, b"", modules)
                continue
            self._now, _, _, event = heapq.heappop(self._due)
            if isinstance(event, _Work):
                self._finish(event, modules)
            else:
                self._append(*event, modules)

    def _at(self, when: int, rank: int, event: _Event) -> None:
        self._count += 1
        heapq.heappush(self._due, (when, rank, self._count, event))

    def _append(
        self, subject: str, headers: dict[str, str], data: bytes, modules: InlineModules
    ) -> None:
        """A message under `ctl.`: the leader reads it, and its decisions are stored in turn."""
        self._stream_seq += 1
        for command, raw in self._leader.apply(subject, headers, data, self._stream_seq, self._now):
            self._stream_seq += 1
            if isinstance(command, Dispatch):
                self._begin((command.controller, 0), command.instance, raw, modules)
            else:
                self.left.append(DataPackage.from_bytes(raw, self._types))

    def _begin(self, work: tuple[int, int], token: str, raw: bytes, modules: InlineModules) -> None:
        """A worker takes a package; what it makes of it is in the log when its time is over."""
        controller = self._plan.controllers[work[0]]
        phase = controller.phases[work[1]]
        if self._too_old(work, raw):
            skipped = pb.DataPackage.FromString(raw)
            pass_over(skipped, phase.name, WORKER, self._now)
            done = _Work(*work, token, Status.OUTDATED, skipped.SerializeToString())
            self._at(self._now, _ENDS, done)
            return
        seconds = self._duration_s
        if callable(seconds):
            label = f"{controller.name}.{phase.name}"
            seconds = seconds(label, DataPackage.from_bytes(raw, self._types))
            _check_seconds(f"duration_s of phase {label!r}", seconds)
        duration = round(seconds * NS)
        record, status = modules.run(work, token, raw, self._now)
        record.controllers[-1].phases[-1].total_time_ns = duration
        done = _Work(*work, token, status, record.SerializeToString())
        self._at(self._now + duration, _ENDS, done)

    def _too_old(self, work: tuple[int, int], raw: bytes) -> bool:
        """Whether a worker would leave it out."""
        age = self._plan.controllers[work[0]].max_age_ns
        return age is not None and DataPackage.from_bytes(raw).start_time_ns + age <= self._now

    def _finish(self, done: _Work, modules: InlineModules) -> None:
        controller = self._plan.controllers[done.controller]
        if done.status is Status.SUCCESS and done.phase + 1 < len(controller.phases):
            self._stream_seq += 1
            self._begin((done.controller, done.phase + 1), done.token, done.raw, modules)
            return
        subject = self._subjects.completion(controller.name, done.token)
        self._append(subject, {}, done.raw, modules)


def _pair(chunk: tuple[object, ...]) -> tuple[str, object]:
    if len(chunk) == 2 and isinstance(chunk[0], str):
        return chunk[0], chunk[1]
    raise ClientError(f"a chunk is the tuple {chunk!r:.80}; expected a pair (instance, payload)")


def _message(payload: object) -> tuple[dict[str, str], bytes]:
    """The headers and bytes of a chunk, as a client publishes it."""
    if isinstance(payload, DataPackage):
        return {HEADER_CONTENT_TYPE: CONTENT_TYPE}, payload.to_bytes()
    if isinstance(payload, bytes):
        return {}, payload
    raw, content_type = codecs.encode(payload)
    return {HEADER_CONTENT_TYPE: content_type}, raw


def _check_seconds(what: str, seconds: float) -> None:
    if not 0 <= seconds < float("inf"):
        raise ClientError(f"{what} is {seconds!r}; expected seconds, 0 or more")
