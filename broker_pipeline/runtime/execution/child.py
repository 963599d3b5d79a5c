"""The process of one module: `python -m broker_pipeline.runtime.execution.child TARGET C P KEY`.

It imports TARGET, makes the module ready, and then serves packages until its standard input ends.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import queue
import sys
import threading
import time
from typing import IO, Any

import msgspec

from broker_pipeline.codecs import Types
from broker_pipeline.errors import TargetError
from broker_pipeline.journey import NS
from broker_pipeline.modules import KEEP_STATE, PackageExit, Run, StatefulModule, walk
from broker_pipeline.observe import current, error_detail, logs
from broker_pipeline.observe.context import parse_traceparent
from broker_pipeline.observe.setting_up import TRACES_ENV, traced_modules
from broker_pipeline.package import DataPackage
from broker_pipeline.runtime.execution import frames
from broker_pipeline.runtime.execution.failure import MESSAGE_BYTES_MAX, bounded, describe
from broker_pipeline.runtime.execution.package_log import PackageLog
from broker_pipeline.runtime.execution.program import Step, compile_phase
from broker_pipeline.runtime.execution.threads import coroutine_of
from broker_pipeline.runtime.serving import load_for_process

# The worker sends one package at a time; one more may be under way.
_REQUESTS_MAX = 2


def main(arguments: list[str]) -> None:
    """Serve a module. `arguments`: TARGET, controller, phase, the module's path."""
    requests, replies = _take_pipes()
    logs.set_up("module")
    error_detail.set_up(None)
    inbox: queue.Queue[bytes] = queue.Queue(_REQUESTS_MAX)
    threading.Thread(target=_listen, args=(requests, inbox), name="requests", daemon=True).start()
    with traced_modules("worker", os.environ.get(TRACES_ENV)), asyncio.Runner() as runner:
        try:
            step, types = _find(*arguments)
            _finish(runner, step.module.setup())
        except BaseException as error:  # user code: the worker tells what has happened
            frames.write(replies, _failed(error, "setup"))
            return
        frames.write(replies, frames.Reply("ready"))
        decoder = msgspec.msgpack.Decoder(frames.Request)
        while True:
            frames.write(replies, _serve(runner, step, types, decoder.decode(inbox.get())))


def _take_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """The frames' own descriptors; what module code reads and prints goes elsewhere."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def _listen(requests: IO[bytes], inbox: queue.Queue[bytes]) -> None:
    """Pass requests on. In a thread: the end of the worker must be seen while a module runs."""
    while (raw := frames.read(requests)) is not None:
        inbox.put(raw)
    os._exit(0)


def _find(target: str, controller: str, phase: str, key: str) -> tuple[Step, Types]:
    pipeline = load_for_process(target)
    for each in pipeline.controllers:
        for stage in each.phases:
            if (each.name, stage.name) == (controller, phase) and key in dict(walk(stage.modules)):
                steps = compile_phase(each, stage).walk()
                return next(step for step in steps if step.key == key), pipeline.payload_types
    raise TargetError(
        f"the pipeline of TARGET {target!r} has no module {key} in phase {controller}/{phase}; "
        f"expected the pipeline that the worker runs: start the worker with the same TARGET",
        target=target,
    )


def _serve(
    runner: asyncio.Runner, step: Step, types: Types, request: frames.Request
) -> frames.Reply:
    try:
        package = DataPackage.from_bytes(request.package, types)
        package.expect(step.payload_type)
        left_ns = request.left_ns
        deadline = None if left_ns is None else time.monotonic() + left_ns / NS
        span = parse_traceparent(request.traceparent)
        run = Run(PackageLog(package, step.label, span), deadline)
        if span is None:
            kind, reason, state = _execute(runner, step, package, run, request.state)
        else:
            kind, reason, state = current.called(
                span, _execute, runner, step, package, run, request.state
            )
        package.encode()
    except BaseException as error:  # user code: even SystemExit is an ERROR of the package
        return _failed(error, step.label)
    return frames.Reply(
        kind,
        package.envelope.data,
        package.content_type,
        dict(package.attributes),
        bounded(run.message, MESSAGE_BYTES_MAX),
        reason,
        state,
    )


def _execute(
    runner: asyncio.Runner, step: Step, package: DataPackage[Any], run: Run, raw: bytes | None
) -> tuple[str, str, bytes | None]:
    """How it ended, the reason of an exit, and the state after it."""
    module: Any = step.module
    if not isinstance(module, StatefulModule):
        try:
            assert step.call is not None  # a combination has no process
            _finish(runner, step.call(package, run))
            _obey(run)
        except PackageExit as exit_:
            if exit_.state is not KEEP_STATE:
                raise TypeError(f"exit(state=...) was called in {step.name!r}: no state") from None
            return "exit", bounded(exit_.reason, MESSAGE_BYTES_MAX), None
        return "success", "", None
    state = module.initial_state() if raw is None else frames.unpack_state(raw, step.state_type)
    try:
        state = _finish(runner, module.execute(package, run, state))
        _obey(run)
    except PackageExit as exit_:
        kept = state if exit_.state is KEEP_STATE else exit_.state
        return "exit", bounded(exit_.reason, MESSAGE_BYTES_MAX), frames.pack_state(kept)
    return "success", "", frames.pack_state(state)


def _obey(run: Run) -> None:
    if run.verdict is not None:
        raise run.verdict


def _finish(runner: asyncio.Runner, result: Any) -> Any:
    return runner.run(coroutine_of(result)) if inspect.isawaitable(result) else result


def _failed(error: BaseException, path: str) -> frames.Reply:
    told = describe(error, host="", worker="", path=path)
    return frames.Reply("error", error=told.SerializeToString())


if __name__ == "__main__":
    main(sys.argv[1:])
