"""A phase on one package, here and now: for the in-memory runner and the fault simulation."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.journey import Status
from broker_pipeline.package import DataPackage
from broker_pipeline.runtime.execution.interpreter import States, Walk
from broker_pipeline.runtime.execution.program import Program
from broker_pipeline.runtime.execution.setting import Setting
from broker_pipeline.runtime.execution.threads import drive


def run_inline(
    program: Program,
    package: DataPackage[Any],
    states: Mapping[str, object] | None = None,
    *,
    worker: str = "inline",
    host: str = "inline",
    now_ns: Callable[[], int] = time.time_ns,
    monotonic_ns: Callable[[], int] = time.monotonic_ns,
    runner: asyncio.Runner | None = None,
) -> tuple[pb.DataPackage, Status, States | None]:
    """Run a phase on one package here and now: no threads, no timeouts, no waiting for a mutex.

    Args:
        program: from `compile_phase`.
        package: what the modules get; the record is a copy.
        states: by module path; missing ones are made by `initial_state`.
        worker: as it stands in the journey.
        host: as it stands in errors.
        now_ns: the clock of `start_time_ns`.
        monotonic_ns: the clock of durations.
        runner: a private loop for async modules, to be given where they keep something that is
            bound to a loop; by default each package has its own.

    Returns:
        The record, how it ended, and the states (None after an ERROR: they are unknown).
    """
    walk = Walk(program, package, states, Setting(worker, host, now_ns, monotonic_ns))
    if not any(step.is_async for step in program.walk()):
        status = drive(walk)
    elif runner is not None:
        status = _beside(lambda: runner.run(walk.run()))
    else:
        status = _beside(lambda: asyncio.run(walk.run()))
    return walk.envelope, status, walk.states


def _beside(run: Callable[[], Status]) -> Status:
    """Call what needs a loop of its own, in a thread where this one has a running loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run()
    answers: list[Status] = []
    thread = threading.Thread(target=lambda: answers.append(run()), name="inline")
    thread.start()
    thread.join()
    if not answers:
        raise RuntimeError("an inline walk ended without a status; its thread has told why")
    return answers[0]
