"""The progress of a replay, on standard error and only where that is a terminal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

if TYPE_CHECKING:
    from broker_pipeline.debug.replays.replaying import Watch

LOOK_S = 0.1
"""Between two looks at how far it is."""


@contextmanager
def part_bar() -> Iterator[Callable[[str, float], None]]:
    """A bar over what is one; yields what is called with what is done now, and how much is."""
    with _progress(TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()) as bar:
        task = bar.add_task("reading the log", total=1.0)
        yield lambda what, done: bar.update(task, description=f"reading {what}", completed=done)


@asynccontextmanager
async def replay_bar(watch: Watch) -> AsyncIterator[None]:
    """A bar over the packages of a replay, with its rate."""
    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with _progress(*columns, TextColumn("{task.fields[pace]}")) as bar:
        task = bar.add_task("", total=None, pace="")

        def show() -> None:
            took_s = watch.took_s
            pace = f"{watch.left / took_s:,.0f}/s, {watch.times_real:,.3g}x" if took_s else ""
            bar.update(task, completed=watch.left, total=watch.total or None, pace=pace)

        async def follow() -> None:
            while True:
                show()
                await asyncio.sleep(LOOK_S)

        following = asyncio.create_task(follow(), name="show the progress")
        try:
            yield
        finally:
            following.cancel()
            show()


def _progress(*columns: ProgressColumn) -> Progress:
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
