"""Modules that batch, without a batch: a package ends as it does in one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_pipeline.journey import Status
from broker_pipeline.modules import (
    ExecutionModule,
    Module,
    StatefulModule,
)
from broker_pipeline.package import DataPackage
from broker_pipeline.pipeline import Phase
from broker_pipeline.runtime.execution.inline import run_inline
from broker_pipeline.runtime.execution.program import compile_phase
from tests.unit.execution.gpus import Append, AsyncGpu, Gpu, many

from .conftest import Desk, package


# -- without batches --------------------------------------------------------------------------
class Both(Gpu):
    """Defines both ways."""

    def execute(self, package: Any, run: Any) -> None:
        package.data = b"alone"


def inline(*modules: Module[Any], data: bytes = b"x", states: Any = None) -> Any:
    return run_inline(compile_phase("c", Phase("ph", modules)), package(data), states)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Gpu(max_batch=1), b"x!"),
        (AsyncGpu(max_batch=1), b"x!"),
        (Gpu(max_batch=4), b"x!"),
        (Both(max_batch=1), b"alone"),
        (Both(max_batch=4), b"x!"),
    ],
)
async def test_which_of_the_two_runs_a_package(module: Gpu, expected: bytes, start: Any) -> None:
    """In a worker as in memory: execute_batch above a max_batch of 1, or where it is alone."""
    envelope, status, _ = await asyncio.to_thread(inline, module)
    assert (status, envelope.data) == (Status.SUCCESS, expected)
    (finished,) = await (await start(module)).run(package(b"x"))
    assert finished.envelope.data == expected


def test_fail_and_leave_in_execute_count_when_it_returns() -> None:
    """The last word counts, and raising counts more."""

    class Says(ExecutionModule[bytes]):
        def execute(self, package: Any, run: Any) -> None:
            package.data = b"changed"
            run.leave("first")
            if package.attributes.get("then") == "fail":
                run.fail(ValueError("then"))
            if package.attributes.get("then") == "raise":
                raise KeyError("more")

    program = compile_phase("c", Phase("ph", [Says(), Append()]))

    def run(then: str) -> Any:
        envelope, status, _ = run_inline(program, package(attributes={"then": then}))
        return status, envelope.data, [e.type for e in envelope.errors]

    assert run("") == (Status.EXIT, b"changed", [])
    assert run("fail") == (Status.ERROR, b"raw", ["ValueError"])
    assert run("raise") == (Status.ERROR, b"raw", ["KeyError"])


def test_fail_takes_an_exception_and_nothing_else() -> None:
    """A text has no type to show in the journey."""

    class Says(ExecutionModule[bytes]):
        def execute(self, package: Any, run: Any) -> None:
            run.fail("broken")

    envelope, status, _ = inline(Says())
    assert (status, envelope.errors[0].type) == (Status.ERROR, "TypeError")


def test_a_stateful_module_that_leaves_keeps_the_state_that_it_returns() -> None:
    """`exit` raises and keeps what was given; `leave` lets it go on."""

    class Counts(StatefulModule[bytes, bytes]):
        def initial_state(self) -> bytes:
            return b""

        def execute(self, package: Any, run: Any, state: bytes) -> bytes:
            run.leave("enough")
            return state + b"1"

    _, status, states = inline(Counts(), states={"0": b"1"})
    assert (status, states) == (Status.EXIT, {"0": b"11"})


def test_a_batch_of_one_in_memory_obeys_fail_leave_exit_and_raise() -> None:
    """As a worker does."""
    words = (b"ok", b"bad", b"exit", b"fail", b"leave")
    statuses = [inline(Gpu(max_batch=4), data=word)[1] for word in words]
    assert statuses == [Status.SUCCESS, Status.ERROR, Status.EXIT, Status.ERROR, Status.EXIT]


# -- the same as alone ------------------------------------------------------------------------
WORDS = st.sampled_from([b"ok", b"ok2", b"bad", b"bad2", b"exit", b"fail", b"leave", b"hold"])


def told(envelope: Any, status: Status) -> Any:
    (module,) = DataPackage.wrap(envelope).controllers[-1].phases[-1].modules
    errors = [(e.type, e.message, e.path) for e in envelope.errors]
    return status, envelope.data, dict(envelope.attributes), module.message, errors


@settings(max_examples=40, deadline=None)
@given(words=st.lists(WORDS, min_size=1, max_size=24), size=st.integers(1, 8), sync=st.booleans())
def test_a_package_ends_in_a_batch_as_it_does_alone(
    words: list[bytes], size: int, sync: bool
) -> None:
    """Whoever it is with: status, payload, attributes, message and error; `hold` is slow."""

    class Slow(Gpu if sync else AsyncGpu):  # type: ignore[misc]
        async def hold(self) -> None:
            await asyncio.sleep(0)

    module = Slow(max_batch=size)
    module.open.set()
    alone = {}
    for word in set(words):
        envelope, status, _ = inline(module, data=word)
        alone[word] = told(envelope, status)
    assert {status for status, *_ in alone.values()} <= {
        Status.SUCCESS,
        Status.ERROR,
        Status.EXIT,
    }

    async def run() -> list[Any]:
        desk = Desk([module], slots=1)
        await desk.executor.start()
        try:
            return list(await desk.run(*many(*words)))
        finally:
            await desk.executor.close()

    finished = asyncio.run(run())
    assert sorted(each.job.token for each in finished) == list(range(1, len(words) + 1))
    for each in finished:
        assert told(each.envelope, each.status) == alone[words[each.job.token - 1]]
