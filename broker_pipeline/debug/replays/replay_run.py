"""A whole replay, whatever it runs in, compared with what was recorded as it goes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import replace
from pathlib import Path

from msgspec import structs

from broker_pipeline.core.plan import compile_plan
from broker_pipeline.debug.recordings.recorded import ARRIVAL, COMPLETION, PLAN, RecordedOutcome
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.debug.replays.diff_report import Comparison, Report
from broker_pipeline.debug.replays.private_log import broker_log, embedded_log, with_stand_ins
from broker_pipeline.debug.replays.replay_log import replay_through_log
from broker_pipeline.debug.replays.replay_memory import replay_in_memory
from broker_pipeline.debug.replays.replay_setup import Setup
from broker_pipeline.debug.replays.replaying import On, Replayed, Watch
from broker_pipeline.pipeline import Pipeline


async def replay(path: Path, setup: Setup, watch: Watch, report: Report) -> Report:
    """Replay a recording, and compare as it goes.

    Args:
        report: is filled, and returned.

    Raises:
        ReplayError, RecordingError: it cannot be.
        SetupError, TargetError, ServerStartError, BrokerError: likewise.
    """
    setup.check()
    if setup.on is On.MEMORY:
        return await asyncio.to_thread(_in_memory, path, setup, watch, report)
    pipeline = with_stand_ins(setup.pipeline, setup.external)
    with ExitStack() as stack:
        recording = stack.enter_context(Recording.open(path, pipeline.payload_types))
        saving = stack.enter_context(_saving(recording, setup))
        made = (
            embedded_log(pipeline, target=setup.target, workers=setup.workers)
            if setup.on is On.EMBEDDED
            else broker_log(setup.url, pipeline, target=setup.target)
        )
        comparison = _begin(recording, setup, watch, report)
        async with made as log, aclosing(replay_through_log(recording, log, watch)) as packages:
            async for replayed in packages:
                comparison.take(replayed)
                if saving is not None:
                    _save(saving, replayed, comparison.report)
        # The roles have ended: what follows takes its time, and would keep them from their leases.
        if saving is not None:
            _save_events(recording, saving)
        return _end(comparison, watch)


def compare_files(
    path: Path, other: Path, pipeline: Pipeline, report: Report, *, part: bool = False
) -> Report:
    """Compare a recording with another of the same packages, such as a replay that was saved.

    Args:
        part: the first may be a part of the other: what it does not have is not new.

    Raises:
        RecordingError: one of them cannot be read.
    """
    types = pipeline.payload_types
    with Recording.open(path, types) as recording, Recording.open(other, types) as replayed:
        comparison = Comparison(recording, report, types)
        for outcome in replayed.outcomes():
            if part and not recording.has_arrival(outcome.package_id):
                continue
            package = outcome.package(types)
            comparison.take(Replayed(outcome.package_id, outcome.instance, package))
        return comparison.end()


def _in_memory(path: Path, setup: Setup, watch: Watch, report: Report) -> Report:
    pipeline = setup.pipeline
    with ExitStack() as stack:
        recording = stack.enter_context(Recording.open(path, pipeline.payload_types))
        saving = stack.enter_context(_saving(recording, setup))
        comparison = _begin(recording, setup, watch, report)
        packages = replay_in_memory(
            recording,
            pipeline,
            external=setup.external,
            watch=watch,
            sink=saving,
        )
        for replayed in packages:
            comparison.take(replayed)
        return _end(comparison, watch)


def _begin(recording: Recording, setup: Setup, watch: Watch, report: Report) -> Comparison:
    watch.total = recording.counts().events.get(ARRIVAL, 0)
    report.totals = setup.on is not On.MEMORY
    return Comparison(recording, report, setup.pipeline.payload_types)


def _end(comparison: Comparison, watch: Watch) -> Report:
    if watch.stopped:
        comparison.report.stopped = True
        return comparison.report
    return comparison.end()


@contextmanager
def _saving(recording: Recording, setup: Setup) -> Iterator[Recording | None]:
    """Where the replay is written to, as a recording with the ids and places that there were."""
    if setup.save is None:
        yield None
        return
    plan = compile_plan(setup.pipeline)
    meta = structs.replace(
        recording.meta,
        plan=plan.to_bytes().decode(),
        target=setup.target or recording.meta.target,
        recorded_at_ns=time.time_ns(),
        notes=(*recording.meta.notes, f"this is a replay of it on {setup.on.value}"),
    )
    with Recording.create(setup.save, meta) as saving:
        yield saving


def _save(saving: Recording, replayed: Replayed, report: Report) -> None:
    """A package that left a log of its own. In the place of that log's stream sequences, which say
    nothing beside the recorded ones, it is counted."""
    package = replayed.package
    assert package.outcome is not None
    who = (replayed.package_id, replayed.token, package.epoch, package.sequence)
    place = report.left
    raw, ended_ns = package.to_bytes(), package.end_time_ns
    saving.add_outcome(RecordedOutcome(*who, package.outcome, place, ended_ns, raw))


def _save_events(recording: Recording, saving: Recording) -> None:
    """The events that were replayed, with today's plan. Where in the recorded log packages would
    have come back is not known."""
    for event in recording.events():
        if event.kind == PLAN:
            event = replace(event, data=saving.meta.plan.encode())
        if event.kind != COMPLETION:
            saving.add_event(event)
