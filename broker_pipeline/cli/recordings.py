"""Commands about recordings: record, recording."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker_pipeline.cli.options import DEFAULT_URL, Target, Url, note, say
from broker_pipeline.cli.selecting import (
    Errors,
    Instances,
    Outcomes,
    Sequences,
    Since,
    Until,
    selection,
)

if TYPE_CHECKING:
    from broker_pipeline.debug.recordings.recorded import RecordingMeta
    from broker_pipeline.debug.recordings.selection import Selection
    from broker_pipeline.debug.recordings.taking import Summary

INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (record, recording):
        app.command()(command)


def record(
    target: Target,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The recording to make.", show_default=False)
    ],
    instances: Instances = None,
    sequences: Sequences = "",
    since: Since = "",
    until: Until = "",
    outcomes: Outcomes = None,
    errors: Errors = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with what comes, until Ctrl-C.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Record what arrived and how it left into one file, which replays with no broker: for bug
    reports, for tests, and to keep what the log will not.

    Reads the log beside live traffic and changes nothing. The file gets its name
    when all is in it: Ctrl-C leaves none, but with --follow, where it is how to end.

    Example: broker-pipeline record examples.shout:pipeline talk.bprec --instance room-1

    What went wrong since two: broker-pipeline record examples.shout:pipeline errors.bprec
    --errors --since 14:00
    """
    from broker_pipeline import __version__
    from broker_pipeline.debug.recordings.recorded import RecordingMeta
    from broker_pipeline.target import load_target

    chosen = selection(instances, sequences, since, until, outcomes, errors)
    pipeline = load_target(target)
    meta = RecordingMeta(
        pipeline=pipeline.name,
        target=target,
        recorded_at_ns=time.time_ns(),
        version=__version__,
    )
    summary = _record(url, pipeline.name, file, meta, chosen, follow=follow, force=force)
    if summary is None:
        note("interrupted: nothing was kept; with --follow Ctrl-C keeps what there is")
        raise typer.Exit(INTERRUPTED)
    note(
        f"recorded {summary.arrivals:,} package{'' if summary.arrivals == 1 else 's'}, "
        f"{summary.outcomes:,} of them with their outcome, into {str(file)!r}: "
        f"{file.stat().st_size:,} bytes"
    )
    for line in summary.notes():
        note(f"note: {line}")


def _record(
    url: str,
    pipeline: str,
    file: Path,
    meta: RecordingMeta,
    chosen: Selection,
    *,
    follow: bool,
    force: bool,
) -> Summary | None:
    """What was recorded; None where Ctrl-C came before the end."""
    from broker_pipeline.cli.bars import share_bar
    from broker_pipeline.cli.until import or_stop
    from broker_pipeline.client.client import connect
    from broker_pipeline.debug.recordings.recorder import record_log
    from broker_pipeline.debug.recordings.recording import Recording
    from broker_pipeline.runtime.lifecycle import run_until_signal

    async def run(stop: asyncio.Event) -> Summary | None:
        following = stop if follow else None
        async with connect(url, name="broker-pipeline record") as client:
            try:
                with (
                    Recording.create(file, meta, overwrite=force) as new,
                    share_bar("recording") as progress,
                ):
                    work = record_log(
                        client.broker, pipeline, chosen, new, progress, follow=following
                    )
                    if follow:
                        return await work
                    summary = await or_stop(stop, work)
                    if summary is None:
                        raise _Interrupted
                    return summary
            except _Interrupted:
                return None

    return run_until_signal(run)


class _Interrupted(Exception):
    """Ctrl-C: the recording is not whole."""


def recording(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A recording.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say what a recording holds. Needs no broker and no pipeline; safe with a stranger's file.

    Example: broker-pipeline recording talk.bprec
    """
    from broker_pipeline.debug.recordings.recording import Recording
    from broker_pipeline.debug.recordings.recording_report import as_lines, report

    with Recording.open(file) as opened:
        found = report(opened)
    if as_json:
        say(json.dumps(found, ensure_ascii=False))
        return
    for line in as_lines(found):
        say(line)
