"""Commands that run again what was recorded: replay run, replay diff, replay step."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker_pipeline.cli import replay_step
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
from broker_pipeline.debug.replays.replaying import On

if TYPE_CHECKING:
    from broker_pipeline.debug.recordings.selection import Selection
    from broker_pipeline.debug.replays.diff_report import Report
    from broker_pipeline.debug.replays.replay_setup import Setup

CHANGED, UNKNOWN, INTERRUPTED = 1, 2, 130
"""Exit codes: something differs; nobody knows whether; Ctrl-C, as shells give it."""
ENDING = "ending after what runs now; once more to stop at once"

replay = typer.Typer(
    no_args_is_help=True,
    help="Run again what a log or a recording has, and compare.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    replay.command("run")(run)
    replay.command("diff")(diff)
    replay.command("step")(replay_step.step)
    app.add_typer(replay, name="replay")


From = Annotated[
    Path | None,
    typer.Option(
        "--from", metavar="FILE", help="Replay a recording.", show_default="what the log has"
    ),
]
Where = Annotated[
    On,
    typer.Option(
        "--on",
        case_sensitive=False,
        help="memory: here, decided by the recorded order. embedded: a server and roles of its "
        "own. broker: a pipeline of its own at --url.",
    ),
]
Speed = Annotated[
    str, typer.Option(metavar="N|max", help="So many times as fast as it was; max: flat out.")
]
Save = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Keep what was replayed as a recording.", show_default=False),
]
External = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=package.module:Class",
        help="What runs in the place of a module server; may be given several times.",
        show_default=False,
    ),
]
ExternalLive = Annotated[
    bool, typer.Option("--external-live", help="Call the real module servers.")
]
Workers = Annotated[
    int,
    typer.Option(min=0, help="Worker processes, with --on embedded; 0: all in this process."),
]
With = Annotated[
    Path | None,
    typer.Option(
        "--with",
        metavar="FILE",
        help="Compare with this recording, and replay nothing.",
        show_default=False,
    ),
]
Show = Annotated[int, typer.Option(min=0, help="Show the differences of so many packages in full.")]
Ignore = Annotated[
    str,
    typer.Option(
        metavar="KIND,...",
        help="Do not count these: outcome, reason, payload, attributes, errors, journey, "
        "messages, missing, new, time.",
        show_default=False,
    ),
]
SlowerThan = Annotated[
    float | None,
    typer.Option(
        min=1.0,
        metavar="N",
        help="Count a module that takes N times as long as it did, or longer.",
        show_default="times do not count",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")]


def run(
    target: Target,
    file: From = None,
    instances: Instances = None,
    sequences: Sequences = "",
    since: Since = "",
    until: Until = "",
    outcomes: Outcomes = None,
    errors: Errors = False,
    on: Where = On.EMBEDDED,
    speed: Speed = "max",
    save: Save = None,
    external: External = None,
    external_live: ExternalLive = False,
    workers: Workers = 0,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Run recorded packages again, through TARGET as it is now; nothing live is touched.

    Says how they left, recorded beside replayed, and how long modules took.

    Example: broker-pipeline replay run examples.shout:pipeline --instance room-1 --since 10m

    At the recorded pace, from a file: broker-pipeline replay run my.app:pipeline --from talk.bprec
    --speed 1
    """
    from broker_pipeline.debug.replays.diff_report import Report
    from broker_pipeline.debug.replays.diff_text import summary_lines
    from broker_pipeline.debug.replays.replay_setup import Setup, parse_stand_ins
    from broker_pipeline.target import load_target

    setup = Setup(
        load_target(target), on, url, target, parse_stand_ins(external or ()), external_live,
        workers, save,
    )  # fmt: skip
    selected = selection(instances, sequences, since, until, outcomes, errors)
    report = Report()
    _replay(setup, selected, file, speed, report)
    _tell(report, as_json, summary_lines)
    if report.stopped:
        raise typer.Exit(INTERRUPTED)


def diff(
    target: Target,
    file: From = None,
    other: With = None,
    instances: Instances = None,
    sequences: Sequences = "",
    since: Since = "",
    until: Until = "",
    outcomes: Outcomes = None,
    errors: Errors = False,
    on: Where = On.MEMORY,
    show: Show = 5,
    ignore: Ignore = "",
    slower_than: SlowerThan = None,
    speed: Speed = "max",
    save: Save = None,
    external: External = None,
    external_live: ExternalLive = False,
    workers: Workers = 0,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Run recorded packages again, and say what differs from how they left then.

    Ends with 0 where nothing has changed, 1 where something has, 2 where it could not be told.

    Example: broker-pipeline replay diff examples.shout:pipeline --from talk.bprec
    """
    from broker_pipeline.debug.replays.diff_report import Report
    from broker_pipeline.debug.replays.diff_text import diff_lines
    from broker_pipeline.debug.replays.replay_setup import Setup, parse_kinds, parse_stand_ins
    from broker_pipeline.target import load_target

    setup = Setup(
        load_target(target), on, url, target, parse_stand_ins(external or ()), external_live,
        workers, save,
    )  # fmt: skip
    selected = selection(instances, sequences, since, until, outcomes, errors)
    report = Report(parse_kinds(ignore), show, slower_than)
    _replay(setup, selected, file, speed, report, other)
    _tell(report, as_json, diff_lines)
    if report.stopped:
        raise typer.Exit(INTERRUPTED)
    if report.compared_nothing:
        raise typer.Exit(UNKNOWN)
    if not report.is_same:
        raise typer.Exit(CHANGED)


def _replay(
    setup: Setup,
    selected: Selection,
    file: Path | None,
    speed: str,
    report: Report,
    other: Path | None = None,
) -> None:
    """Replay, or compare with another file, with a bar; fills the report."""
    from broker_pipeline.cli.replay_bars import part_bar, replay_bar
    from broker_pipeline.debug.recordings.selection import Selection
    from broker_pipeline.debug.replays.diff_text import pace_line
    from broker_pipeline.debug.replays.replay_run import compare_files, replay
    from broker_pipeline.debug.replays.replay_setup import parse_speed
    from broker_pipeline.debug.replays.replay_source import source, warnings
    from broker_pipeline.debug.replays.replaying import Watch
    from broker_pipeline.runtime.lifecycle import run_until_signal, unless_stopped

    watch = Watch(parse_speed(speed))
    if other is None:
        setup.check()  # before anything is recorded

    async def begin(stop: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            paths: list[Path] = []

            async def find() -> None:
                with part_bar() as progress:
                    recording = source(
                        setup.pipeline, selected, file=file, url=setup.url, progress=progress
                    )
                    paths.append(await stack.enter_async_context(recording))

            if not await unless_stopped(stop, find()):
                report.stopped = True
                return
            for line in warnings(paths[0], setup.pipeline):
                note(f"note: {line}")
            if other is not None:
                compare_files(paths[0], other, setup.pipeline, report, part=selected != Selection())
                return
            with watch.stopped_by(stop, note):
                async with replay_bar(watch):
                    await replay(paths[0], setup, watch, report)
            note(pace_line(watch))

    run_until_signal(begin, hint=ENDING)


def _tell(report: Report, as_json: bool, lines: Callable[[Report], list[str]]) -> None:
    from rich.text import Text

    from broker_pipeline.cli.screen import print_lines

    if as_json:
        say(json.dumps(report.to_json()))
        return
    print_lines(Text(line, style=_style(line)) for line in lines(report))


def _style(line: str) -> str:
    """Its colour, where there are any."""
    told = line.strip()
    if told.startswith(("- ", "changed: ")) or line.endswith(" !"):
        return "red"
    return "green" if told.startswith("+ ") or told == "nothing has changed" else ""
