"""The command that watches a pipeline: top."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from broker_pipeline.cli.options import DEFAULT_URL, Target, Url, say

DEFAULT_INTERVAL_S = 1.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(top)


Interval = Annotated[
    float, typer.Option(min=0.2, max=60.0, metavar="SECONDS", help="How often to look.")
]
Once = Annotated[bool, typer.Option("--once", help="Look twice, print that, and end.")]
AsJson = Annotated[bool, typer.Option("--json", help="Once, for programs; docs/operating.md.")]


def top(
    target: Target,
    once: Once = False,
    as_json: AsJson = False,
    interval: Interval = DEFAULT_INTERVAL_S,
    url: Url = DEFAULT_URL,
) -> None:
    """Watch a pipeline: controllers and phases, who leads, who works, and how busy they are.

    busy: with the workers; wait: in the queue, or for a free place; turn: done, and waiting for
    those before; oldest: how long ago the oldest came; by: who runs the phase. Rates and quantiles
    are over the last 5 s. Ends with q or Ctrl-C. Where standard output is no terminal: --once.

    Example: broker-pipeline top examples.shout:pipeline
    """
    from broker_pipeline.cli import watching
    from broker_pipeline.runtime.lifecycle import run_until_signal
    from broker_pipeline.target import load_target

    pipeline = load_target(target).name
    if not (once or as_json) and sys.stdout.isatty():
        run_until_signal(lambda stop: watching.watch(url, pipeline, interval, stop))
        return
    seen = run_until_signal(lambda stop: watching.look(url, pipeline, interval, stop))
    if seen is None:  # Ctrl-C
        raise typer.Exit(0)
    if as_json:
        import msgspec

        say(msgspec.json.encode(seen).decode())
    else:
        watching.show(seen)
