"""The progress bar, on standard error and only where that is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
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
