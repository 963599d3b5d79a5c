"""A role's process: its event loop, its signals, and how it drains."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from broker_pipeline.observe.logs import tell

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

DRAINING = "draining; once more to stop at once"
"""What roles say at the first signal."""
GC_THRESHOLDS = (10_000, 20, 50)
"""What a role allocates lives for milliseconds and is freed by counting references. By Python's own
thresholds (700, 10, 10) a fifth of a bridge's time went into looking for cycles."""
SUPERVISED = "BROKER_PIPELINE_SUPERVISED"
"""Set in the environment of a role whose standard input is a pipe that its parent holds open."""


async def unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, object]) -> bool:
    """Do `work`, or break it off as soon as `stop` is set; whether it was done."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return False
        working.result()
        return True
    finally:
        stopping.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait((working,))
            if not working.cancelled():
                working.exception()  # nobody waits for it any more


@contextlib.contextmanager
def first_error() -> Iterator[None]:
    """Raise the first error of a task group instead of the group: callers look at its class."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from error.__cause__


def once_ready(announce: Callable[[str], None]) -> Callable[[str], None]:
    """`announce` for a role that has its process to itself: with the first line it is ready, and
    what is there by then, mostly imported code, is not searched for garbage again and again."""
    first = True

    def announced(line: str) -> None:
        nonlocal first
        if first:
            first = False
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
        announce(line)

    return announced


def run_until_signal(main: Callable[[asyncio.Event], Awaitable[T]], *, hint: str = "") -> T:
    """Run a role's main function on uvloop, where there is one.

    The first SIGTERM or Ctrl-C sets the event that `main` gets: drain. The second ends the process
    at once, with the signal's usual exit code. A supervised role also drains when its parent ends.

    Args:
        hint: what to say on stderr at the first signal.
    """

    async def watched() -> T:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def asked(number: int) -> None:
            if stop.is_set():
                os._exit(128 + number)
            stop.set()  # first: a terminal that is gone cannot be told anything
            if hint and not os.environ.get(SUPERVISED):  # its supervisor has said so already
                tell(hint)

        def orphaned() -> None:
            loop.remove_reader(sys.stdin)
            stop.set()

        if os.environ.get(SUPERVISED):
            # The parent never writes: what is to be read is the end, however the parent ended.
            loop.add_reader(sys.stdin, orphaned)
        for number in _SIGNALS:
            loop.add_signal_handler(number, asked, number)
        try:
            return await main(stop)
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(watched())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not on every platform; asyncio's own loop serves as well
        return None
    return uvloop.new_event_loop
