"""pdb in the code of a module: on its first line, or where it raised."""

from __future__ import annotations

import bdb
import inspect
import pdb
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from types import CodeType, FrameType, TracebackType
from typing import Any

from broker_pipeline.modules import ConditionModule, ExecutionModule, PackageExit
from broker_pipeline.runtime.execution.interpreter import Abandoned
from broker_pipeline.runtime.execution.program import Step

SKIPPED = ("broker_pipeline", "broker_pipeline.*", "asyncio", "asyncio.*", "bdb", "pdb")
"""Whose lines are not stopped at, also where a module calls them."""
GO_ON = -1
"""The line at which bdb stops next after `continue`."""
HELP = "n: next line  s: into a call  p NAME: its value  c: go on  q: leave"


class ModuleDebugger(pdb.Pdb):
    """A pdb that waits for a function, and says whether the person has left it.

    Attributes:
        left: by `q`, Ctrl-D or Ctrl-C at its prompt: whatever then runs counts for nothing.
        modules: the code with which modules begin. Lines are stopped at within it, and in what it
            calls; between one module and the next there is nothing to see.
    """

    def __init__(self) -> None:
        super().__init__(skip=SKIPPED)
        self.left = False
        self.modules: frozenset[CodeType] = frozenset()
        self._awaited: CodeType | None = None
        self._interrupt = signal.getsignal(signal.SIGINT)

    def stop_in(self, function: Callable[..., Any]) -> None:
        """Stop on the first line of a function that this thread is about to call; of a coroutine
        function, when it begins to run."""
        self._awaited = code_of(function)
        sys.settrace(self._look)

    def _look(self, frame: FrameType, event: str, arg: object) -> Any:
        if event != "call" or not self._is_awaited(frame):
            return None
        self.set_trace(frame)
        self.set_step()  # at the first line: newer Pythons would stop before the first instruction
        return self.trace_dispatch

    def _is_awaited(self, frame: FrameType) -> bool:
        if self._awaited is not None:
            return frame.f_code is self._awaited
        # Something that is called and has no code of its own: where it leads to.
        return not self.is_skipped_module(frame.f_globals.get("__name__", ""))

    def stop_here(self, frame: FrameType) -> bool:
        """Whether a line, call or return is one to stop at."""
        if not super().stop_here(frame):
            return False
        inner: FrameType | None = frame
        while inner is not None and inner.f_code not in self.modules:
            inner = inner.f_back
        return inner is not None or self._awaited is None

    def look_at(self, trace: TracebackType) -> None:
        """Stop where an exception was raised. Leaving that leaves nothing: the module has ended."""
        self.let_go()
        left = self.left
        self.reset()
        self.interaction(None, trace)
        self.left = left

    def let_go(self) -> None:
        """Trace nothing any more."""
        sys.settrace(None)
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            frame.f_trace = None
            frame = frame.f_back

    def user_exception(self, frame: FrameType, exc_info: Any) -> None:
        """As pdb does; but what it shows in our code is the end of a coroutine that was stepped
        through, and then the next line of a module is what is waited for."""
        if self.is_skipped_module(frame.f_globals.get("__name__", "")):
            self.set_step()
        else:
            super().user_exception(frame, exc_info)

    def sigint_handler(self, signum: int, frame: FrameType | None) -> None:
        """Ctrl-C after `continue`: stop where the module is, also where that is a call that waits,
        in which pdb's own handler would wait for the next line."""
        self.message("\ninterrupted here")
        self.set_trace(frame)
        sys.settrace(None)  # or what follows would be stopped at: the module's frame is below it
        self.interaction(frame, None)
        if self.left:
            raise bdb.BdbQuit
        if self.stoplineno != GO_ON or self.breaks:
            sys.settrace(self.trace_dispatch)

    def set_quit(self) -> None:
        """As pdb does, and remember it."""
        self.left = True
        super().set_quit()

    def cmdloop(self, intro: Any = None) -> None:
        """As pdb does; but Ctrl-C at the prompt leaves, and nobody else hears of it."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            super().cmdloop(intro)
        except KeyboardInterrupt:
            self.message("")
            self.set_quit()
        finally:
            # `continue` leaves pdb's own, by which Ctrl-C stops in a module that hangs.
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._interrupt)


class Watch:
    """Looks on while modules run, and stops where it was asked to.

    Args:
        stop_at: the step on whose first line to stop; None: at none.
        at_error: whether to stop where module code raises.

    Attributes:
        raised: whether module code has raised.
    """

    def __init__(self, stop_at: Step | None, *, at_error: bool) -> None:
        self._stop_at = stop_at
        self._at_error = at_error
        self._debugger = ModuleDebugger() if stop_at is not None or at_error else None
        self._quit = self.raised = False

    @property
    def left(self) -> bool:
        """Whether the person has left a debugger, this one or that of `breakpoint()`."""
        return self._quit or (self._debugger is not None and self._debugger.left)

    def attach(self, steps: Sequence[Step]) -> None:
        """From now on look on when these run their code."""
        functions = [(step, users_function(step)) for step in steps if step.call is not None]
        if self._debugger is not None:
            codes = [code_of(function) for _, function in functions]
            self._debugger.modules = frozenset(code for code in codes if code is not None)
        for step, function in functions:
            step.call = self._watched(step, function)

    def end(self) -> None:
        """Trace nothing and stop nowhere any more: what comes now is no module."""
        self._stop_at, self._at_error = None, False
        if self._debugger is not None:
            self._debugger.let_go()

    def _watched(self, step: Step, function: Callable[..., Any]) -> Callable[..., Any]:
        call = step.call
        assert call is not None

        def watched(*args: Any) -> Any:
            if step is self._stop_at and self._debugger is not None:
                self._stop_at = None  # the first time only
                self._debugger.message(f"in {step.label}; {HELP}")
                self._debugger.stop_in(function)
            try:
                result = call(*args)
            except BaseException as error:
                self._raised(error)
                raise
            return self._awaited(result) if inspect.isawaitable(result) else result

        return watched

    async def _awaited(self, result: Awaitable[Any]) -> Any:
        try:
            return await result
        except BaseException as error:
            self._raised(error)
            raise

    def _raised(self, error: BaseException) -> None:
        if isinstance(error, PackageExit | KeyboardInterrupt | Abandoned):
            return
        if isinstance(error, bdb.BdbQuit):
            self._quit = True
        if self.left:
            return
        self.raised = True
        trace = error.__traceback__
        if self._at_error and self._debugger is not None and trace is not None:
            self._debugger.message(f"{type(error).__name__}: {error}")
            self._debugger.look_at(trace.tb_next or trace)  # the first frame is `watched`


def users_function(step: Step) -> Callable[..., Any]:
    """What the user wrote for a step that has code: `execute`, `execute_batch` or a condition."""
    module = step.module
    assert step.call is not None
    if isinstance(module, ConditionModule):
        passed: Callable[..., Any] | None = getattr(module, "_condition", None)
        own = type(module).condition is not ConditionModule.condition
        return module.condition if own or passed is None else passed
    if isinstance(module, ExecutionModule) and step.call != module.execute:
        return module.execute_batch
    return step.call


def code_of(function: Callable[..., Any]) -> CodeType | None:
    """The code behind a function, its decorators taken off; None where it has none."""
    inner = inspect.unwrap(getattr(function, "__func__", function))
    code = getattr(inner, "__code__", None)
    return code if isinstance(code, CodeType) else None
