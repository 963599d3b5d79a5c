"""`setup` and `teardown` of a phase's modules: once each, off the event loop."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any

from broker_pipeline.errors import SetupError
from broker_pipeline.modules import Module
from broker_pipeline.runtime.execution.module_loop import ModuleLoop
from broker_pipeline.runtime.execution.pool import DaemonPool
from broker_pipeline.runtime.execution.program import Program, Step
from broker_pipeline.runtime.execution.threads import coroutine_of

_log = logging.getLogger(__name__)


class Lifecycle:
    """Makes the modules ready and lets them go again, in the order of the tree and back."""

    def __init__(self, program: Program, loop: ModuleLoop) -> None:
        self._loop = loop
        self._ready: list[Step] = []
        # A module object may stand at several places, and a process has modules of its own.
        by_object = {id(step.module): step for step in program.walk() if not step.isolated}
        self._steps = tuple(by_object.values())

    async def set_up(self) -> None:
        """Run every `setup`. Raises SetupError; what was ready by then is let go."""
        for step in self._steps:
            try:
                await self._call(step.module, step.module.setup)
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # user code: SystemExit too is just a failed setup
                await self.tear_down()
                raise SetupError(
                    f"setup of module {step.label!r} failed: {type(error).__name__}: {error}; the "
                    f"worker takes no package: mend the module, or what it needs, and start again",
                    module=step.label,
                ) from error
            self._ready.append(step)

    async def tear_down(self) -> None:
        """Run every `teardown`; a failing one is logged and does not hold up the others."""
        while self._ready:
            step = self._ready.pop()
            try:
                await self._call(step.module, step.module.teardown)
            except asyncio.CancelledError:
                raise
            except BaseException:  # user code at the end of a process: say so and go on
                _log.exception("teardown of module %r failed", step.label)

    async def _call(self, module: Module[Any], method: Callable[[], Any]) -> None:
        if type(module).setup is Module.setup and method.__name__ == "setup":
            return
        if type(module).teardown is Module.teardown and method.__name__ == "teardown":
            return
        if inspect.iscoroutinefunction(method):
            await self._loop.run(coroutine_of(method()))
            return
        pool = DaemonPool(f"{module.name}-{method.__name__}")
        try:
            result = await asyncio.wrap_future(pool.submit(method))
        finally:
            pool.close()
        if inspect.isawaitable(result):
            await self._loop.run(coroutine_of(result))
