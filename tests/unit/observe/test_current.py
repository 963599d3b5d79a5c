"""The span of a module while its code runs."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest
from opentelemetry import trace

from broker_pipeline import (
    CombinationModule,
    ConditionModule,
    ExecutionModule,
    Phase,
    StatefulModule,
)
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.observe import context, current
from broker_pipeline.observe.context import TraceContext
from broker_pipeline.observe.journey_spans import spans_of
from broker_pipeline.package import DataPackage
from broker_pipeline.runtime.execution.interpreter import Walk
from broker_pipeline.runtime.execution.program import compile_phase
from broker_pipeline.runtime.execution.setting import Setting
from broker_pipeline.runtime.execution.threads import drive

HEADERS = {"traceparent": f"00-{'4b' * 16}-{'0f' * 8}-01", "tracestate": "a=b"}
seen: list[tuple[str, TraceContext]] = []


def look(name: str) -> None:
    """Note which span is current."""
    now = trace.get_current_span().get_span_context()
    seen.append(
        (name, TraceContext(f"{now.trace_id:032x}", f"{now.span_id:016x}",
                            bool(now.trace_flags.sampled), now.trace_state.to_header()))
    )  # fmt: skip


class Look(ExecutionModule[bytes]):
    """Looks, and fails where it is told to."""

    def execute(self, package: Any, run: Any) -> None:
        """One package."""
        look(self.name)
        if package.data == self.name.encode():
            raise ValueError("told to")


class LookLater(ExecutionModule[bytes]):
    """Looks while it is awaited."""

    async def execute(self, package: Any, run: Any) -> None:
        """One package."""
        await asyncio.sleep(0)
        look(self.name)


class Fold(StatefulModule[bytes, int]):
    """Looks, with a state."""

    def initial_state(self) -> int:
        """Nothing."""
        return 0

    def execute(self, package: Any, run: Any, state: int) -> int:
        """One package."""
        look(self.name)
        return state + 1


class Choose(ConditionModule):
    """Looks, and takes the second branch."""

    def condition(self, package: Any) -> bool:
        """Never."""
        look(self.name)
        return False


def walk(*modules: Any, data: bytes = b"x", headers: Any = HEADERS) -> pb.DataPackage:
    """Run modules on a package; the record, with what the controller adds."""
    seen.clear()
    envelope = pb.DataPackage(id=7, pipeline="p", data=data)
    envelope.controllers.add(name="c")
    span = context.span_in_phase(headers, envelope, "ph")
    program = compile_phase("c", Phase("ph", list(modules)))
    walk = Walk(program, DataPackage[bytes].wrap(envelope), None, Setting("w", "h"), span)
    if program.on_loop:
        asyncio.run(walk.run())
    else:
        drive(walk)
    return walk.envelope


def told(envelope: pb.DataPackage) -> dict[str, TraceContext]:
    """The spans of modules as the leader tells of them, by the module's name."""
    spans = spans_of(HEADERS, envelope)
    return {s.name.partition(" ")[2]: s.context for s in spans if s.name.startswith("module ")}


def test_each_module_runs_in_the_span_that_will_be_told_of() -> None:
    """At any depth, with a state, awaited, and in a branch whose place in the tree is another than
    in the journey."""
    left = walk(
        Look(name="a"), Fold(name="b"), LookLater(name="c"),
        CombinationModule(
            [Look(name="d"), Choose(Look(name="e"), CombinationModule([Look(name="f")], name="g"),
                                    name="h")], name="i"),
        Look(name="j"),
    )  # fmt: skip
    assert [name for name, _ in seen] == ["a", "b", "c", "d", "h", "f", "j"]
    spans = told(left)
    for name, span in seen:
        assert span == spans[name], name
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_failure_shows_user_code_only_and_leaves_nothing_current() -> None:
    """The traceback begins in the module, as it does without a trace."""
    for headers in (HEADERS, {}):
        left = walk(Look(name="a"), data=b"a", headers=headers)
        assert left.controllers[0].phases[0].status == pb.STATUS_ERROR
        frames = [line for line in left.errors[0].traceback.splitlines() if "File" in line]
        assert len(frames) == 1 and "in execute" in frames[0]
        assert not trace.get_current_span().get_span_context().is_valid


def test_without_a_trace_nothing_is_current() -> None:
    """What user code traces is its own."""
    walk(Look(name="a"), headers={"Nats-Msg-Id": "1"})
    assert seen[0][1].trace_id == "0" * 32


def test_a_trace_that_is_not_recorded_is_current_as_such() -> None:
    """So user code's samplers, which follow their parent, record nothing either."""
    walk(Look(name="a"), headers={"traceparent": HEADERS["traceparent"][:-1] + "0"})
    assert seen[0][1].trace_id == "4b" * 16 and not seen[0][1].sampled


def test_a_coroutine_that_is_thrown_away_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """As after a timeout: cleaned up in another context than it began in."""

    async def never() -> None:
        await asyncio.sleep(0)

    span = context.parse(HEADERS)
    assert span is not None
    begun = current.called(span, never)
    contextvars.copy_context().run(begun.send, None)
    assert not trace.get_current_span().get_span_context().is_valid
    begun.close()
    assert caplog.text == ""
