"""Options that name packages: one, or a selection of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from broker_pipeline.journey import Outcome

if TYPE_CHECKING:
    from broker_pipeline.debug.recordings.selection import Selection

PackageId = Annotated[
    str | None,
    typer.Argument(
        metavar="PACKAGE-ID",
        help="Such as shout/0/852, as results and errors show it.",
        show_default=False,
    ),
]
OfInstance = Annotated[
    str | None,
    typer.Option("--instance", metavar="NAME", help="With --sequence, --error or --last: whose."),
]
Sequence = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Number N of --instance, in its newest life."),
]
Epoch = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="With --sequence: in that life of the instance."),
]
NthError = Annotated[
    int | None,
    typer.Option(
        "--error", metavar="N", help="The N-th ERROR: 1 is the oldest there is, -1 the newest."
    ),
]
Last = Annotated[bool, typer.Option("--last", help="The newest that left.")]

Instances = Annotated[
    list[str] | None,
    typer.Option("--instance", metavar="NAME", help="Only this one's; may be given several times."),
]
Sequences = Annotated[
    str,
    typer.Option(
        metavar="A..B",
        help="Only those with these sequence ids: 12, 3..9, 3.. or ..9.",
        show_default=False,
    ),
]
Since = Annotated[
    str,
    typer.Option(
        metavar="TIME",
        help="Only those that arrived since: 14:00, '10m ago', 2026-02-03T14:00, now.",
        show_default=False,
    ),
]
Until = Annotated[
    str,
    typer.Option(metavar="TIME", help="Only those that arrived before.", show_default=False),
]
Outcomes = Annotated[
    list[Outcome] | None,
    typer.Option(
        "--outcome",
        case_sensitive=False,
        help="Only those that left so; may be given several times.",
    ),
]
Errors = Annotated[bool, typer.Option("--errors", help="The same as --outcome ERROR.")]


def selection(
    instances: list[str] | None,
    sequences: str,
    since: str,
    until: str,
    outcomes: list[Outcome] | None,
    errors: bool,
) -> Selection:
    """What these options select. Raises SelectionError."""
    from datetime import datetime

    from broker_pipeline.debug.recordings.selection import Selection

    return Selection.parse(
        instances=instances or (),
        sequences=sequences,
        since=since,
        until=until,
        outcomes=outcomes or (),
        errors=errors,
        now=datetime.now(),
    )
