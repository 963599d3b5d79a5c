"""The progress bar, on standard error and only where that is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from broker_pipeline.client.files import Source


@contextmanager
def progress_bar(sources: Sequence[Source]) -> Iterator[Callable[[Source], None]]:
    """A bar over all chunks; yields what is called for each."""
    console = Console(stderr=True)
    counts = [source.chunks for source in sources]
    total = None if None in counts else sum(count or 0 for count in counts)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("publishing", total=total)

        def advance(source: Source) -> None:
            progress.update(task, advance=1, description=source.name)

        yield advance


@contextmanager
def share_bar(doing: str) -> Iterator[Callable[[str, float], None]]:
    """A bar from 0 to 100 %; yields what is called with what is being done, and how much of all of
    it is."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(doing, total=1.0)

        def show(what: str, share: float) -> None:
            progress.update(task, completed=share, description=f"{doing} {what}")

        yield show
