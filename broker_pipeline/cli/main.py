"""`broker-pipeline`: the commands, and how they fail.

What may be expected to go wrong ends with one line on standard error and exit code 2.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from broker_pipeline import __version__
from broker_pipeline.cli import (
    doctor,
    inspecting,
    packages,
    plans,
    recordings,
    replay,
    roles,
    serve,
    top,
)
from broker_pipeline.errors import BrokerPipelineError
from broker_pipeline.observe.logs import tell

EXPECTED_FAILURE = 2
GRPC_VERBOSITY = "GRPC_VERBOSITY"
"""Of gRPC's own lines on standard error, such as "Got goaway": what matters we say ourselves."""

app = typer.Typer(
    name="broker-pipeline",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def introduce(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """Pipelines over live streams on NATS JetStream.

    TARGET is a pipeline in Python, as package.module:attribute. On one machine, in three terminals:

    1. broker-pipeline up examples.shout:pipeline

    2. broker-pipeline results examples.shout:pipeline

    3. echo hello | broker-pipeline publish examples.shout:pipeline --instance room-1 -
    """


for group in (roles, serve, plans, packages, top, doctor, inspecting, recordings, replay):
    group.register(app)


def main(arguments: list[str] | None = None) -> None:
    """Run a command line; `arguments` are those after the program's name, sys.argv's by default."""
    os.environ.setdefault(GRPC_VERBOSITY, "ERROR")
    try:
        app(args=arguments)
    except BrokerPipelineError as error:
        line = " ".join(part.strip() for part in str(error).splitlines())
        tell(f"broker-pipeline: {line}", logging.ERROR)
        sys.exit(EXPECTED_FAILURE)
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does: there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
