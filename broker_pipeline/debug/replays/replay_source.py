"""The recording that a replay is of: a file as it is, a part of it, or what a live log has."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from broker_pipeline.core.names import unescape_instance
from broker_pipeline.core.plan import compile_plan, differences
from broker_pipeline.debug.printable import printable
from broker_pipeline.debug.recordings.narrowing import narrow
from broker_pipeline.debug.recordings.recorded import ARRIVAL, RecordingMeta
from broker_pipeline.debug.recordings.recorder import Progress, record_log
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.debug.recordings.selection import Selection
from broker_pipeline.debug.replays.admission import Cuts
from broker_pipeline.errors import NewerVersionError, PlanError, ReplayError
from broker_pipeline.pipeline import Pipeline

NAMED_MAX = 3
"""Lives that are named in a warning, and differences of plans; of the others there is a count."""


@contextlib.asynccontextmanager
async def source(
    pipeline: Pipeline,
    selection: Selection,
    *,
    file: Path | None,
    url: str,
    progress: Progress = lambda what, done: None,
) -> AsyncIterator[Path]:
    """The recording to replay; one that is made for that goes at the end.

    Args:
        file: replay this, not the live log.
        url: the broker's address, for the live log.

    Raises:
        ReplayError: nothing is selected.
        RecordingError: the file is none, or there is no room for another.
        BrokerError, PlanError: the live log cannot be read.
    """
    if file is not None and selection == Selection():
        _require_packages(file, selection, f"{str(file)!r}")
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="broker-pipeline-replay-") as folder:
        path, where = Path(folder) / "selected.bprec", f"the log of {pipeline.name!r}"
        if file is None:
            await _record(url, pipeline, selection, path, progress)
        else:
            where = f"{str(file)!r}"
            with Recording.open(file) as recording:
                narrow(recording, selection, path)
        _require_packages(path, selection, where)
        yield path


def _require_packages(path: Path, selection: Selection, where: str) -> None:
    with Recording.open(path) as recording:
        if not recording.counts().events.get(ARRIVAL):
            raise ReplayError(
                f"{where} has no package of {selection}; expected at least one: select something "
                f"else; `broker-pipeline results TARGET --from-start` shows what a log has"
            )


async def _record(
    url: str, pipeline: Pipeline, selection: Selection, path: Path, progress: Progress
) -> None:
    from broker_pipeline.client.client import connect  # only here: a file needs no broker

    async with connect(url, name="broker-pipeline replay") as client:
        with Recording.create(path, RecordingMeta(pipeline=pipeline.name)) as recording:
            await record_log(client.broker, pipeline.name, selection, recording, progress)


def warnings(path: Path, pipeline: Pipeline) -> Iterator[str]:
    """What somebody should know who looks at a replay of this recording."""
    with Recording.open(path) as recording:
        yield from (f"the recording: {printable(note)}" for note in recording.meta.notes)
        name = recording.meta.pipeline
        if name != pipeline.name:
            yield f"it is a recording of pipeline {name!r}, and {pipeline.name!r} replays it"
        else:
            yield from _changed_plan(recording, pipeline)
        yield from _cut_lives(recording, pipeline)


def _changed_plan(recording: Recording, pipeline: Pipeline) -> Iterator[str]:
    try:
        plan = recording.plan
    except (PlanError, NewerVersionError) as error:
        yield f"its plan cannot be compared with today's, which is the one in force: {error}"
        return
    changes = differences(plan, compile_plan(pipeline)) if plan is not None else []
    if changes:
        more = f", and {len(changes) - NAMED_MAX} more" if changes[NAMED_MAX:] else ""
        yield printable(f"the plan has changed: {'; '.join(changes[:NAMED_MAX])}{more}")


def _cut_lives(recording: Recording, pipeline: Pipeline) -> Iterator[str]:
    cut = Cuts(recording).lives
    if not cut:
        return
    named = ", ".join(
        f"{unescape_instance(life.instance)!r} ({life.outcomes:,} of {life.last:,})"
        for life in cut[:NAMED_MAX]
    )
    more = f" and {len(cut) - NAMED_MAX:,} more" if cut[NAMED_MAX:] else ""
    stateful = any(phase.stateful for each in pipeline.controllers for phase in each.phases)
    what = "the states of modules and the queues" if stateful else "the queues of controllers"
    yield (
        f"packages are missing in the lives of {named}{more}: {what} are not what they were; "
        f"select whole instances to have them so"
    )
