"""Modules in processes of their own: real ones, that crash and are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.errors import SetupError
from broker_pipeline.journey import Status
from broker_pipeline.modules import CombinationModule, ModuleOptions
from broker_pipeline.package import DataPackage
from broker_pipeline.pipeline import Controller, Phase, Pipeline
from broker_pipeline.runtime.execution.executor import Finished, Job, PhaseExecutor
from broker_pipeline.runtime.execution.process import ChildPool
from broker_pipeline.runtime.execution.program import compile_phase

BOUND_S = 30.0

USER_CODE = """
import os, signal, sys, threading, time
import msgspec
from broker_pipeline.modules import ExecutionModule, ModuleOptions, StatefulModule
from broker_pipeline.pipeline import Controller, Phase, Pipeline

OPTIONS = ModuleOptions(isolation="process", timeout_s=10)

class Obeys(ExecutionModule[bytes]):
    options = OPTIONS

    def setup(self):
        print("noise on standard output, in setup", flush=True)
        self.ready = True

    def execute(self, package, run):
        assert self.ready
        os.write(1, b"noise past the buffers")
        word, _, rest = package.data.decode().partition(" ")
        package.attributes["word"] = word
        run.message = word
        if word == "pid":
            package.data = str(os.getpid()).encode()
        elif word == "exit":
            run.exit(rest)
        elif word == "raise":
            raise ValueError(rest)
        elif word == "die":
            os._exit(int(rest))
        elif word == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif word == "hang":
            threading.Event().wait()

class Hurried(Obeys):
    options = ModuleOptions(isolation="process", timeout_s=0.2)

class Asks(ExecutionModule[bytes]):
    options = OPTIONS

    async def execute(self, package, run):
        package.data = package.data + b" async"

class Batches(ExecutionModule[bytes]):
    options = OPTIONS

    def execute_batch(self, packages, runs):
        (package,), (run,) = packages, runs
        if package.data == b"leave":
            run.leave("recorded")
        if package.data == b"fail":
            run.fail(ValueError("recorded"))
        package.data = package.data + b"!"

class Sum(msgspec.Struct):
    total: int = 0

class Adds(StatefulModule[bytes, Sum]):
    options = OPTIONS

    def initial_state(self):
        return Sum(100)

    def execute(self, package, run, state):
        state.total += int(package.data)
        return state

class BadSetup(ExecutionModule[bytes]):
    options = OPTIONS

    def setup(self):
        raise OSError("no such model")

def build():
    names = [Obeys, Hurried, Asks, Adds, Batches, BadSetup]
    return Pipeline("p", [Controller("c", [Phase(kind.__name__, [kind()]) for kind in names])])
"""


@pytest.fixture
async def start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Any]]:
    """Start the executor of a phase of the user's pipeline, and run payloads through it."""
    name = f"user_code_{tmp_path.name}".replace("-", "_").replace("[", "_").replace("]", "_")
    (tmp_path / f"{name}.py").write_text(USER_CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    module: Any = __import__(name)
    pipeline: Pipeline = module.build()
    executors: list[PhaseExecutor] = []

    async def begin(
        phase_name: str, *, slots: int = 1, target: str | None = f"{name}:build"
    ) -> Any:
        (controller,) = pipeline.controllers
        phase = next(each for each in controller.phases if each.name == phase_name)
        news: asyncio.Queue[list[Finished]] = asyncio.Queue()
        executor = PhaseExecutor(
            controller,
            phase,
            types=pipeline.payload_types,
            slots=slots,
            worker="w",
            host="h",
            target=target,
            deliver=news.put_nowait,
        )
        await executor.start()
        executors.append(executor)

        async def run(*payloads: bytes, states: Any = None) -> list[Finished]:
            executor.submit([Job(package(each), None, states) for each in payloads])
            finished: list[Finished] = []
            async with asyncio.timeout(BOUND_S):
                while len(finished) < len(payloads):
                    finished += await news.get()
            return finished

        run.executor = executor  # type: ignore[attr-defined]
        return run

    yield begin
    for executor in executors:
        await executor.close()


def package(data: bytes) -> DataPackage[Any]:
    envelope = pb.DataPackage(id=1, pipeline="p", data=data, content_type="x/y")
    envelope.controllers.add(name="c")
    return DataPackage.wrap(envelope)


def record(finished: Finished) -> Any:
    return DataPackage.wrap(finished.envelope).controllers[-1].phases[-1].modules[-1]


async def test_a_module_runs_in_another_process_and_its_prints_do_no_harm(start: Any) -> None:
    """Payload, attributes and message come back; the frames are its own descriptors."""
    run = await start("Obeys")
    (finished,) = await run(b"pid")
    assert finished.status is Status.SUCCESS
    assert int(finished.envelope.data) != os.getpid()
    assert dict(finished.envelope.attributes) == {"word": "pid"}
    assert (record(finished).message, finished.envelope.content_type) == ("pid", "x/y")


async def test_exit_and_errors_come_back_as_if_it_were_here(start: Any) -> None:
    """With the reason, and with the traceback of the other process; the process goes on."""
    run = await start("Obeys")
    (before,) = await run(b"pid")
    (left,) = await run(b"exit enough of it")
    (failed,) = await run(b"raise it is broken")
    assert (left.status, record(left).message) == (Status.EXIT, "enough of it")
    (error,) = failed.envelope.errors
    assert (failed.status, failed.envelope.data) == (Status.ERROR, b"raise it is broken")
    assert not failed.envelope.attributes
    assert (error.type, error.message, error.host) == ("ValueError", "it is broken", "h")
    assert (error.worker, error.path) == ("w", "c/Obeys/Obeys")
    assert "in execute" in error.traceback and "child.py" not in error.traceback
    (after,) = await run(b"pid")
    assert after.envelope.data == before.envelope.data


async def test_a_module_with_execute_batch_alone_gets_batches_of_one_there(start: Any) -> None:
    """What it says of a package by `fail` and `leave` comes back too."""
    run = await start("Batches")
    finished = [(await run(word))[0] for word in (b"a", b"leave", b"fail")]
    assert [each.status for each in finished] == [Status.SUCCESS, Status.EXIT, Status.ERROR]
    assert [each.envelope.data for each in finished] == [b"a!", b"leave!", b"fail"]
    assert record(finished[1]).message == "recorded"
    assert finished[2].envelope.errors[0].message == "recorded"


@pytest.mark.parametrize(("order", "told"), [(b"die 7", "exit code 7"), (b"kill", "SIGKILL")])
async def test_a_crash_is_an_error_and_the_next_package_gets_a_new_process(
    start: Any, order: bytes, told: str
) -> None:
    """The error names how it ended; the worker lives."""
    run = await start("Obeys")
    (before,) = await run(b"pid")
    for _ in range(2):
        (crashed,) = await run(order)
        assert (crashed.status, crashed.envelope.data) == (Status.ERROR, order)
        assert crashed.envelope.errors[0].type == "ModuleProcessError"
        assert told in crashed.envelope.errors[0].message
    (after,) = await run(b"pid")
    assert after.status is Status.SUCCESS
    assert after.envelope.data != before.envelope.data


async def test_a_process_is_killed_at_the_timeout_and_its_slot_is_not_lost(start: Any) -> None:
    """The package is an ERROR in time; the next one runs."""
    run = await start("Hurried")
    (before,) = await run(b"pid")
    (late,) = await run(b"hang")
    assert late.envelope.errors[0].type == "ModuleTimeoutError"
    await until(lambda: not run.executor._flow.running)
    assert run.executor.lost_slots == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(before.envelope.data), 0)


async def test_async_modules_and_states_work_in_processes(start: Any) -> None:
    """A state goes along as bytes and comes back as the declared type; a missing one is made."""
    (finished,) = await (await start("Asks"))(b"an")
    assert finished.envelope.data == b"an async"
    run = await start("Adds")
    (first,) = await run(b"1")
    assert first.states["0"].total == 101
    (second,) = await run(b"10", states=first.states)
    assert second.states["0"].total == 111


async def test_each_slot_has_a_process(start: Any) -> None:
    """Two hang at the same time; both are ended."""
    run = await start("Obeys", slots=2)
    assert len(run.executor._processes._pools[0][1]._all) == 2


async def test_a_setup_that_fails_in_the_process_stops_the_start(start: Any) -> None:
    """With the module, its error and its traceback."""
    with pytest.raises(SetupError, match=r"(?s)BadSetup.*OSError: no such model.*in setup"):
        await start("BadSetup")


async def test_without_a_target_the_start_says_how_to_give_one(start: Any) -> None:
    """A process cannot import what it does not know."""
    with pytest.raises(SetupError, match="needs a TARGET to import; give the worker one"):
        await start("Obeys", target=None)


async def test_a_target_that_does_not_hold_the_module_is_told(start: Any) -> None:
    """Instead of running something else."""
    with pytest.raises(SetupError, match=r"did not start|failed in its process"):
        await start("Obeys", target="broker_pipeline.no_such_thing:build")


async def test_isolating_a_module_that_holds_others_is_refused() -> None:
    """The option would be ignored otherwise."""
    module: CombinationModule[bytes] = CombinationModule(
        [], options=ModuleOptions(isolation="process")
    )
    phase = Phase("ph", [module])
    executor = PhaseExecutor(
        Controller("c", [phase]),
        phase,
        types={},
        slots=1,
        worker="w",
        host="h",
        target="a:b",
        deliver=lambda finished: None,
    )
    with pytest.raises(SetupError, match="holds other modules"):
        await executor.start()


async def test_the_processes_end_with_a_worker_that_is_killed(start: Any, tmp_path: Path) -> None:
    """Also while a module hangs: the end of standard input is seen by a thread of its own."""
    (name,) = (file[:-3] for file in os.listdir(tmp_path) if file.endswith(".py"))
    parent = subprocess.Popen(  # noqa: ASYNC220 - it is to be killed, and read from before
        [
            sys.executable,
            "-c",
            textwrap.dedent(f"""
            import os, sys, threading
            sys.path.insert(0, {str(tmp_path)!r})
            import {name} as user
            from broker_pipeline.runtime.execution import frames
            from broker_pipeline.runtime.execution.process import Child
            command = [sys.executable, "-m", "broker_pipeline.runtime.execution.child"]
            from broker_pipeline.runtime.execution.program import compile_phase
            controller = user.build().controllers[0]
            step = compile_phase(controller, controller.phases[0]).steps[0]
            child = Child(step, [*command, "{name}:build", "c", "Obeys", "0"])
            child.ready()
            print(child._process.pid, flush=True)
            from broker_pipeline.package import DataPackage
            child.ask(frames.Request(DataPackage(b"hang").to_bytes()))
            """),
        ],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    await until(lambda: not _runs(pid))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that another process or thread brings about."""
    async with asyncio.timeout(BOUND_S):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)


def _runs(pid: int) -> bool:
    """Whether the process is there and no zombie: its new parent may be slow to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_backing_off_is_bounded_and_can_be_called_off() -> None:
    """A process that always dies holds a package no longer than its timeout."""
    import threading

    phase = Phase("ph", [CombinationModule([])])
    pool = ChildPool(compile_phase("c", phase).steps[0], [])
    pool._deaths = 1_000_000
    called_off = threading.Event()
    called_off.set()
    pool._back_off(called_off)
