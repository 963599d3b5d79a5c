"""The command `inspect`: what happened to one package."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker_pipeline.cli.options import DEFAULT_URL, Target, Url, note, say
from broker_pipeline.cli.selecting import Epoch, Last, NthError, OfInstance, PackageId, Sequence

if TYPE_CHECKING:
    from broker_pipeline.debug.inspection.history import PackageHistory
    from broker_pipeline.debug.inspection.wanted import Wanted
    from broker_pipeline.pipeline import Pipeline

INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(inspect)


def inspect(
    target: Target,
    package_id: PackageId = None,
    instance: OfInstance = None,
    sequence: Sequence = None,
    epoch: Epoch = None,
    error: NthError = None,
    last: Last = False,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Look into a recording, not into the log."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the payload there: sound as a WAV file."),
    ] = None,
    at: Annotated[
        str,
        typer.Option(
            metavar="PLACE",
            help="With --save: which payload: 'arrival', a CONTROLLER.PHASE that got it, or 'end'.",
        ),
    ] = "end",
    lines: Annotated[int, typer.Option(min=0, help="Show so many lines of a payload.")] = 12,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object: the package and all about it.")
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show what happened to a package: where it waited, what ran and where, what was said, what
    went wrong, and its payload wherever that changed. Also of one that is inside still.

    Reads the log beside live traffic and changes nothing.

    Example: broker-pipeline inspect examples.shout:pipeline shout/0/852

    The newest ERROR: broker-pipeline inspect examples.shout:pipeline --error -1
    """
    from broker_pipeline.debug.inspection.saving import save_payload
    from broker_pipeline.debug.inspection.wanted import Wanted
    from broker_pipeline.target import load_target

    wanted = Wanted(package_id, instance, sequence, epoch, error, last)
    pipeline = load_target(target)
    if source is None:
        history = _from_log(url, pipeline, wanted)
    else:
        history = _from_file(source, pipeline, wanted)
    if as_json:
        say(json.dumps(history.to_json(), ensure_ascii=False))
    else:
        _draw(history, pipeline, lines)
    if save is not None:
        note(f"saved {save_payload(history, at, save)}")


def _from_log(url: str, pipeline: Pipeline, wanted: Wanted) -> PackageHistory:
    from broker_pipeline.cli.until import or_stop
    from broker_pipeline.client.client import connect
    from broker_pipeline.debug.inspection.finding import Finder
    from broker_pipeline.runtime.lifecycle import run_until_signal

    async def look() -> PackageHistory:
        async with connect(url, name="broker-pipeline inspect") as client:
            finder = Finder(client.broker, pipeline.name)
            return await finder.loaded(await finder.history(await wanted.in_log(finder)))

    async def run(stop: asyncio.Event) -> PackageHistory | None:
        return await or_stop(stop, look())

    history = run_until_signal(run)
    if history is None:
        raise typer.Exit(INTERRUPTED)
    return history


def _from_file(source: Path, pipeline: Pipeline, wanted: Wanted) -> PackageHistory:
    from broker_pipeline.debug.inspection.history import recorded_history
    from broker_pipeline.debug.recordings.recording import Recording

    with Recording.open(source, pipeline.payload_types) as recording:
        return recorded_history(recording, wanted.in_recording(recording))


def _draw(history: PackageHistory, pipeline: Pipeline, lines: int) -> None:
    from broker_pipeline.cli.screen import print_lines, width
    from broker_pipeline.debug.inspection.waterfall import waterfall

    print_lines(
        waterfall(
            history,
            pipeline.payload_types,
            now_ns=time.time_ns(),
            width=width(),
            payload_lines=lines,
        )
    )
