"""Recorded pipelines to step into."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from broker_pipeline import (
    Controller,
    ExecutionModule,
    Mode,
    Phase,
    Pipeline,
    StatefulModule,
)
from broker_pipeline.debug.inspection.wanted import Wanted
from broker_pipeline.debug.steps.step import How, Stepped, run_step
from broker_pipeline.debug.steps.step_report import Report, report
from broker_pipeline.debug.steps.step_source import Given, look_up
from tests.unit.runtime.bench import Bench

PAYLOADS = [b"one", b"two", b"bad", b"four", b"exit", b"six"]


class Tally(msgspec.Struct):
    """What a `Count` has seen."""

    seen: list[str] = []


class Count(StatefulModule[str, Tally]):
    """Says how many it has seen; some of them badly."""

    bad = "bad"

    def initial_state(self) -> Tally:
        """Nothing."""
        return Tally()

    def execute(self, package: Any, run: Any, state: Tally) -> Tally:
        """One."""
        text = package.data
        state.seen.append(text)  # in place: a state that failed must be as it was
        if text == self.bad:
            raise ValueError(f"{text} is bad")
        if text == "exit":
            run.exit("as asked", state=state)
        package.data = f"{text} {len(state.seen)}"
        run.message = f"{len(state.seen)} seen"
        return state


class Upper(ExecutionModule[str]):
    """In upper case; `async`, with something that is bound to the loop of its `setup`."""

    async def setup(self) -> None:
        """On the loop."""
        self.loop = asyncio.get_running_loop()

    async def execute(self, package: Any, run: Any) -> None:
        """One."""
        assert asyncio.get_running_loop() is self.loop
        await asyncio.sleep(0)
        package.data = package.data.upper()


def pipeline(*phases: Phase, mode: Mode = Mode.NOT_PARALLEL, **options: Any) -> Pipeline:
    """One controller of these phases."""
    return Pipeline("demo", [Controller("c", list(phases), mode=mode)], **options)


def counting(module: Any = None) -> Pipeline:
    """A stateful phase and an async one."""
    return pipeline(Phase("count", [module or Count()]), Phase("upper", [Upper()]))


def recorded(
    run: Pipeline,
    payloads: list[bytes],
    then: Callable[[Bench, list[str]], Awaitable[Any]],
    **options: Any,
) -> Any:
    """Have packages go through, and look at what that left. Gets their ids in order of arrival."""

    async def main() -> Any:
        bench = await Bench.begin(run, **options)
        for phase in range(len(run.controllers[0].phases)):
            await bench.work(phase)
        for number, payload in enumerate(payloads, start=1):
            await bench.send(payload)
            await bench.left(number)
        left = await bench.left(len(payloads))
        await bench.end()
        return await then(bench, [f"demo/0/{n}" for n in sorted(each.id for each in left)])

    return asyncio.run(main())


def given(
    run: Pipeline,
    payloads: list[bytes],
    number: int,
    phase: str | None = None,
    today: Pipeline | None = None,
    **options: Any,
) -> Given:
    """What the package of that number had in a phase, of a pipeline that may be another today."""

    async def find(bench: Bench, ids: list[str]) -> Given:
        return await look_up(bench.broker, today or run, Wanted(ids[number - 1]), phase, **options)

    found = recorded(run, payloads, find)
    assert isinstance(found, Given)
    return found


def stepped(what: Given, **how: Any) -> tuple[Stepped, Report]:
    """Run it, and compare."""
    result = run_step(what, How(**how))
    return result, report(what, result)


def data_of(result: Stepped) -> str:
    """The payload."""
    return result.envelope.data.decode()
