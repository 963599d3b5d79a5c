"""Commands about plans: deploy, graph."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Annotated

import typer

from broker_pipeline.cli.options import DEFAULT_URL, Target, Url, say


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (deploy, graph):
        app.command()(command)


class Format(StrEnum):
    """How a graph is written."""

    TEXT = "text"
    MERMAID = "mermaid"
    JSON = "json"


def deploy(
    target: Target,
    replicas: Annotated[
        int | None,
        typer.Option(
            min=1, max=5, help="Keep everything on so many servers.", show_default="as it is, or 1"
        ),
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Put a pipeline into force, and say what changed. Doing it again changes nothing.

    Example: broker-pipeline deploy examples.shout:pipeline
    """
    from broker_pipeline.client.client import connect
    from broker_pipeline.runtime.lifecycle import run_until_signal
    from broker_pipeline.target import load_target

    pipeline = load_target(target)

    async def run(_: asyncio.Event) -> None:
        async with connect(url, name="broker-pipeline deploy") as client:
            say(str(await client.deploy(pipeline, replicas)))

    run_until_signal(run)


def graph(
    target: Target,
    format: Annotated[Format, typer.Option(help="How to write it.")] = Format.TEXT,
) -> None:
    """Print a pipeline's plan: controllers, phases, modules, who reads what. Needs no broker.

    Example: broker-pipeline graph examples.shout:pipeline --format mermaid
    """
    from broker_pipeline.cli import drawing
    from broker_pipeline.core.plan import compile_plan
    from broker_pipeline.target import load_target

    plan = compile_plan(load_target(target))
    draw = {
        Format.TEXT: drawing.as_text,
        Format.MERMAID: drawing.as_mermaid,
        Format.JSON: drawing.as_json,
    }
    say(draw[format](plan))
