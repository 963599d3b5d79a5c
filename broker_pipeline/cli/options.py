"""Options and ways of speaking that the commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from broker_pipeline.observe.logs import tell

DEFAULT_URL = "nats://127.0.0.1:4222"

Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="The pipeline, as package.module:attribute; modules are also looked for here.",
        show_default=False,
    ),
]
Url = Annotated[
    str, typer.Option("--url", envvar="NATS_URL", metavar="URL", help="The broker's address.")
]

MetricsPort = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        help="Serve metrics for Prometheus here, at /metrics; 0 takes a free port, which is said.",
        show_default="not served",
    ),
]
MetricsHost = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS", help="Where metrics are served; 0.0.0.0: everywhere, as in containers."
    ),
]


def say(line: str) -> None:
    """A line for the person, or the program, that reads standard output."""
    print(line, flush=True)


def note(line: str) -> None:
    """A line beside the output."""
    tell(line)
