"""`top` at a terminal: the screen, the keys, and what happens while the broker is away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.live import Live
from rich.text import Text

from broker_pipeline.client.client import connect
from broker_pipeline.debug.operation import screen
from broker_pipeline.debug.operation.top import View
from broker_pipeline.debug.operation.watching import views
from broker_pipeline.errors import BrokerError
from broker_pipeline.runtime.lifecycle import unless_stopped

NAME = "broker-pipeline top"
END_KEYS = b"qQ\x04"
"""q, and Ctrl-D."""
KEYS_READ = 64
LINES_MAX = 10_000
"""Where nobody watches there is room for everything."""


async def look(url: str, pipeline: str, interval_s: float, stop: asyncio.Event) -> View | None:
    """One view; None where `stop` is set first. Raises as `views` does."""
    seen: list[View] = []

    async def first() -> None:
        async with (
            connect(url, name=NAME) as client,
            contextlib.aclosing(views(client.broker, pipeline, interval_s=interval_s)) as coming,
        ):
            async for view in coming:
                seen.append(view)
                return

    await unless_stopped(stop, first())
    return seen[0] if seen else None


def show(view: View) -> None:
    """Print it, as wide as the terminal is."""
    console = Console(highlight=False)
    console.print(_text(screen.lines(view, console.width, LINES_MAX)))


async def watch(url: str, pipeline: str, interval_s: float, stop: asyncio.Event) -> None:
    """Show views until `stop` is set, or the person ends it. While the broker does not answer the
    last view stays, and says so. Raises as `views` does."""
    console = Console(highlight=False)
    async with connect(url, name=NAME) as client:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            shown = _Shown(console, live, pipeline)

            async def follow() -> None:
                while True:
                    try:
                        async with contextlib.aclosing(
                            views(client.broker, pipeline, interval_s=interval_s)
                        ) as coming:
                            async for view in coming:
                                shown.came(view)
                    except BrokerError as error:
                        if not error.retriable:
                            raise
                        shown.failed(error)
                        await asyncio.sleep(interval_s)

            with _keys(stop.set), _resized(shown.draw):
                await unless_stopped(stop, follow())


class _Shown:
    """What is on the screen."""

    def __init__(self, console: Console, live: Live, pipeline: str) -> None:
        self._console = console
        self._live = live
        self._view: View | None = None
        self._history: deque[float] = deque(maxlen=screen.HISTORY_MAX)
        self._says = f"looking at {pipeline!r} ..."
        self.draw()

    def came(self, view: View) -> None:
        """Show it."""
        self._view, self._says = view, ""
        self._history.append(sum((view.total.flow.out_s or {}).values()))
        self.draw()

    def failed(self, error: BrokerError) -> None:
        """Say so, below what was seen last."""
        self._says = f"the broker does not answer, trying again: {error}"
        self.draw()

    def draw(self) -> None:
        """For the terminal as large as it is now."""
        width, height = self._console.size
        made: list[screen.Line] = []
        if self._view is not None:
            made = screen.lines(self._view, width, height - bool(self._says), self._history)
        if self._says:
            style = screen.BAD if self._view is not None else screen.DIM
            made.append([screen.Span(screen.cut(self._says, width).rstrip(), style)])
        self._live.update(_text(made), refresh=True)


def _text(made: list[screen.Line]) -> Text:
    text = Text("\n", no_wrap=True, overflow="crop").join(
        Text.assemble(*((span.text, span.style) for span in line)) for line in made
    )
    text.no_wrap, text.overflow = True, "crop"
    return text


@contextlib.contextmanager
def _keys(end: Callable[[], None]) -> Iterator[None]:
    """Call `end` when the person presses q; keys are not echoed meanwhile."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    loop, keyboard = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)

    def pressed() -> None:
        keys = os.read(keyboard, KEYS_READ)
        if not keys or set(keys) & set(END_KEYS):
            loop.remove_reader(keyboard)
            end()

    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, pressed)
    try:
        yield
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _resized(draw: Callable[[], None]) -> Iterator[None]:
    """Call `draw` when the terminal has another size."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGWINCH, draw)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
