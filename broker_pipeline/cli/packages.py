"""Commands about packages: publish, results."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from broker_pipeline.cli.options import DEFAULT_URL, Target, Url, note, say
from broker_pipeline.errors import LogFullError
from broker_pipeline.journey import Outcome

INTERRUPTED = 130
"""What shells give for Ctrl-C."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (publish, results):
        app.command()(command)


def publish(
    target: Target,
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Files; '-' is standard input.", show_default=False),
    ],
    instance: Annotated[
        str, typer.Option(metavar="NAME", help="The stream that they go to.", show_default=False)
    ],
    chunk_ms: Annotated[
        int | None,
        typer.Option(
            help="Read every file as audio, so many milliseconds a package; "
            "standard input is then PCM.",
            show_default="100 for audio files",
        ),
    ] = None,
    chunk_bytes: Annotated[
        int | None,
        typer.Option(
            help="Send every file as it is, so many bytes a package.",
            show_default="32768 for other files",
        ),
    ] = None,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="As fast as it was spoken, not as fast as it goes.")
    ] = False,
    rate: Annotated[int, typer.Option(help="Samples a second that audio is sent with.")] = 16_000,
    close: Annotated[
        bool, typer.Option("--close", help="End the instance after the last package.")
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Publish files to an instance, chunk by chunk: audio as mono 16-bit PCM, the rest as bytes.

    Example: broker-pipeline publish my.app:pipeline --instance room-1 --realtime talk.wav

    A microphone: arecord -t raw -f S16_LE -r 16000 | broker-pipeline publish my.app:pipeline
    --instance mic --chunk-ms 100 -
    """
    from broker_pipeline.cli.bars import progress_bar
    from broker_pipeline.client import files as publishing
    from broker_pipeline.client.client import connect
    from broker_pipeline.core.names import escape_instance
    from broker_pipeline.runtime.lifecycle import run_until_signal
    from broker_pipeline.target import load_target

    pipeline = load_target(target)
    escape_instance(instance)  # a bad name is refused before anything is connected
    sources = publishing.sources(
        files, chunk_ms=chunk_ms, chunk_bytes=chunk_bytes, rate=rate, realtime=realtime
    )

    async def run(stop: asyncio.Event) -> bool:
        async with (
            connect(url, name="broker-pipeline publish") as client,
            client.instance(pipeline, instance, wait_full_s=math.inf, on_full=_once(note)) as room,
        ):
            with progress_bar(sources) as advance:
                done = await publishing.publish(
                    room, sources, realtime=realtime, stop=stop, progress=advance
                )
            if close and not stop.is_set():
                await room.close()
        note(str(done))
        return stop.is_set()

    if run_until_signal(run):
        raise typer.Exit(INTERRUPTED)


def results(
    target: Target,
    instance: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this one.", show_default="all")
    ] = None,
    outcome: Annotated[
        Outcome | None,
        typer.Option(case_sensitive=False, help="Only these.", show_default="all"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line: the whole package.")
    ] = False,
    count: Annotated[
        int | None, typer.Option(min=1, help="End after so many.", show_default="Ctrl-C")
    ] = None,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Everything that the log has, not from now on.")
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Print what leaves a pipeline, as it leaves. Takes nothing away from other readers.

    Example: broker-pipeline results examples.shout:pipeline --instance room-1 --json --count 10
    """
    from broker_pipeline.cli.lines import short_line
    from broker_pipeline.cli.until import until
    from broker_pipeline.client.client import connect
    from broker_pipeline.core.names import escape_instance
    from broker_pipeline.runtime.lifecycle import run_until_signal
    from broker_pipeline.target import load_target

    pipeline = load_target(target)
    if instance is not None:
        escape_instance(instance)
    _speak_utf8()

    async def run(stop: asyncio.Event) -> None:
        left = count
        async with connect(url, name="broker-pipeline results") as client:
            start = "beginning" if from_start else "now"
            async for package in until(stop, client.results(pipeline, instance, outcome, start)):
                if as_json:
                    say(json.dumps(package.to_json(), ensure_ascii=False))
                else:
                    say(short_line(package))
                left = None if left is None else left - 1
                if left == 0:
                    return

    run_until_signal(run)


def _once(tell: Callable[[str], None]) -> Callable[[LogFullError], None]:
    """Says that it waits for room, the first time."""
    told: list[LogFullError] = []

    def on_full(full: LogFullError) -> None:
        if not told:
            tell(f"waiting for room: {full}")
        told[:] = [full]

    return on_full


def _speak_utf8() -> None:
    """Text is written as it is, whatever the terminal's language; what is no text, escaped."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(encoding="utf-8", errors="backslashreplace")
