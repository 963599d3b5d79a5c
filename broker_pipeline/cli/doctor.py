"""The command that looks for what is wrong: doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from broker_pipeline.cli.options import DEFAULT_URL, Target, Url, say

IN_TROUBLE, DID_NOT_LOOK = 1, 2


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


Monitor = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The monitoring port of nats-server, for what it shows to no client.",
        show_default="not asked",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs; docs/operating.md.")]


def doctor(
    target: Target, monitor: Monitor = None, as_json: AsJson = False, url: Url = DEFAULT_URL
) -> None:
    """Say what is wrong with a pipeline or its broker, and what to do about it.

    Looks twice, within a few seconds, and changes nothing. Exit code: 0, nothing is; 1, something
    is in trouble; 2, it could not look.

    Example: broker-pipeline doctor examples.shout:pipeline --monitor http://127.0.0.1:8222
    """
    from broker_pipeline.cli import diagnosis
    from broker_pipeline.client.client import connect
    from broker_pipeline.debug.operation.doctor import examine, gather
    from broker_pipeline.debug.operation.findings import Facts, Severity
    from broker_pipeline.runtime.lifecycle import run_until_signal, unless_stopped
    from broker_pipeline.target import load_target

    pipeline = load_target(target)
    looked: list[Facts] = []

    async def look() -> None:
        async with connect(url, name="broker-pipeline doctor") as client:
            looked.append(await gather(client.broker, pipeline, target=target, monitor=monitor))

    run_until_signal(lambda stop: unless_stopped(stop, look()))
    if not looked:  # Ctrl-C
        raise typer.Exit(DID_NOT_LOOK)
    findings = examine(looked[0])
    tell = diagnosis.as_json if as_json else diagnosis.as_text
    say(tell(looked[0], findings))
    if any(each.severity is Severity.TROUBLE for each in findings):
        raise typer.Exit(IN_TROUBLE)
