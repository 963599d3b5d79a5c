"""One package over a module tree."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.journey import Status
from broker_pipeline.modules import (
    CombinationModule,
    ConditionModule,
    ExecutionModule,
    Module,
    ModuleOptions,
    StatefulModule,
)
from broker_pipeline.package import DataPackage
from broker_pipeline.pipeline import Phase
from broker_pipeline.runtime.execution.failure import MESSAGE_BYTES_MAX, TRACEBACK_BYTES_MAX
from broker_pipeline.runtime.execution.inline import run_inline
from broker_pipeline.runtime.execution.program import compile_phase

from .conftest import package


class Append(ExecutionModule[bytes]):
    """Appends its name to the payload, then does what it was told to."""

    def __init__(self, name: str, then: str = "success") -> None:
        super().__init__(name=name)
        self.then = then

    def execute(self, package: Any, run: Any) -> None:
        package.data = package.data + self.name.encode()
        package.attributes[self.name] = "seen"
        run.message = f"I am {self.name}"
        if self.then == "exit":
            run.exit("enough")
        if self.then == "error":
            raise ValueError("broken")


class Count(msgspec.Struct):
    value: int = 0


class Counter(StatefulModule[bytes, Count]):
    """Counts packages, in place."""

    def __init__(self, then: str = "success") -> None:
        super().__init__()
        self.then = then

    def initial_state(self) -> Count:
        return Count()

    def execute(self, package: Any, run: Any, state: Count) -> Any:
        state.value += 1
        if self.then == "exit":
            run.exit()
        if self.then == "exit with":
            run.exit("", state=Count(50))
        if self.then == "error":
            raise ValueError("broken")
        return None if self.then == "forget" else state


def inline(*modules: Module[Any], states: Any = None, data: bytes = b"") -> Any:
    program = compile_phase("c", Phase("ph", modules))
    return run_inline(program, package(data), states)


def read(envelope: Any) -> Any:
    return DataPackage.wrap(envelope).controllers[-1].phases[-1]


def test_the_journey_has_every_module_nested_as_it_ran() -> None:
    """A combination in a condition shows its modules; the branch not taken is not there."""
    inner: CombinationModule[bytes] = CombinationModule([Append("a"), Append("b")], name="both")
    choice: ConditionModule[bytes] = ConditionModule(
        inner, Append("never"), condition=lambda _: True, name="choice"
    )
    envelope, status, _ = inline(choice, Append("z"))
    phase = read(envelope)
    assert (status, phase.status, phase.worker) == (Status.SUCCESS, Status.SUCCESS, "inline")
    assert [m.name for m in phase.modules] == ["choice", "z"]
    assert [m.name for m in phase.modules[0].sub_modules] == ["both"]
    assert [m.name for m in phase.modules[0].sub_modules[0].sub_modules] == ["a", "b"]
    assert phase.modules[1].message == "I am z"
    assert envelope.data == b"abz"


def test_times_come_from_the_injected_clocks() -> None:
    """The phase has an absolute start, modules have offsets from it."""
    ticks = iter(range(0, 1000, 10))
    program = compile_phase("c", Phase("ph", [Append("a")]))
    envelope, _, _ = run_inline(
        program, package(), now_ns=lambda: 77, monotonic_ns=lambda: next(ticks)
    )
    phase = read(envelope)
    assert (phase.start_time_ns, phase.total_time_ns) == (77, 30)
    assert (phase.modules[0].start_offset_ns, phase.modules[0].total_time_ns) == (10, 10)


def test_an_exit_ends_the_phase_and_keeps_what_the_module_did() -> None:
    """The reason is the module's message; nothing after it runs."""
    envelope, status, _ = inline(CombinationModule([Append("a", "exit")]), Append("b"))
    phase = read(envelope)
    assert status is Status.EXIT
    assert envelope.data == b"a"
    assert [m.status for m in phase.modules] == [Status.EXIT]
    assert phase.modules[0].sub_modules[0].message == "enough"
    assert not envelope.errors


def test_an_error_restores_what_the_failing_module_got() -> None:
    """Payload and attributes of the modules before it are kept, its own are not."""
    choice: ConditionModule[bytes] = ConditionModule(
        Append("b", "error"), condition=lambda _: True, name="if"
    )
    envelope, status, states = inline(Append("a"), choice, Append("c"))
    phase = read(envelope)
    (error,) = envelope.errors
    assert (status, states) == (Status.ERROR, None)
    assert (envelope.data, dict(envelope.attributes)) == (b"a", {"a": "seen"})
    assert (error.type, error.message, error.path) == ("ValueError", "broken", "c/ph/if/b")
    assert (error.host, error.worker) == ("inline", "inline")
    assert [m.name for m in phase.modules] == ["a", "if"]
    assert phase.modules[1].sub_modules[0].error.type == "ValueError"
    assert phase.modules[1].error is None


def test_a_traceback_starts_at_the_users_code_and_is_bounded() -> None:
    """No frame of the interpreter, and no more bytes than promised, in any text."""

    class Long(ExecutionModule[bytes]):
        def execute(self, package: Any, run: Any) -> None:
            run.message = "é" * 5000
            raise ValueError("ü" * 100_000)

    envelope, _, _ = inline(Long())
    (error,) = envelope.errors
    assert len(error.message.encode()) <= MESSAGE_BYTES_MAX
    assert len(error.traceback.encode()) <= TRACEBACK_BYTES_MAX
    assert len(read(envelope).modules[0].message.encode()) <= MESSAGE_BYTES_MAX
    short, _, _ = inline(Append("a", "error"))
    assert "execution/interpreter.py" not in short.errors[0].traceback
    assert "test_interpreter.py" in short.errors[0].traceback


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_any_base_exception_of_user_code_is_an_error_of_the_package(kind: Any) -> None:
    """Not even SystemExit gets past the interpreter."""

    class Rude(ExecutionModule[bytes]):
        def execute(self, package: Any, run: Any) -> None:
            raise kind

    envelope, status, _ = inline(Rude())
    assert (status, envelope.errors[0].type) == (Status.ERROR, kind.__name__)


def test_an_error_whose_text_cannot_be_read_is_still_told() -> None:
    """A failing __str__ and a lone surrogate do not get in the way."""

    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    class Fails(ExecutionModule[bytes]):
        def execute(self, package: Any, run: Any) -> None:
            run.message = "\ud800"
            raise Odd

    envelope, _, _ = inline(Fails())
    assert envelope.errors[0].type == "Odd"


def test_a_payload_that_cannot_be_encoded_is_the_error_of_the_module_that_set_it() -> None:
    """It is found at that module's end, not at the end of the phase."""

    class Sets(ExecutionModule[Any]):
        def execute(self, package: Any, run: Any) -> None:
            package.data = object()

    envelope, status, _ = inline(Sets(), Append("b"), data=b"x")
    assert (status, envelope.data) == (Status.ERROR, b"x")
    assert envelope.errors[0].type == "PayloadError"
    assert envelope.errors[0].path == "c/ph/Sets"


def test_a_payload_of_another_type_is_an_error_of_the_module_that_reads_it() -> None:
    """`data` is read as the type that the module names."""

    class Reads(ExecutionModule[Count]):
        def execute(self, package: Any, run: Any) -> None:
            package.data.value += 1

    envelope, status, _ = inline(Reads(), data=b"\xff")
    assert (status, envelope.errors[0].type) == (Status.ERROR, "PayloadError")


def test_states_are_by_path_and_made_where_missing() -> None:
    """A nested stateful module has its position as key."""
    _, _, states = inline(
        Counter(), CombinationModule([Append("a"), Counter()]), states={"0": Count(7)}
    )
    assert states == {"0": Count(8), "1.1": Count(1)}


@pytest.mark.parametrize(
    ("then", "after"), [("exit", 8), ("exit with", 50), ("error", None), ("forget", None)]
)
def test_the_state_after_an_exit_or_an_error(then: str, after: int | None) -> None:
    """EXIT keeps the given state or takes another; after an ERROR it is unknown."""
    _, _, states = inline(Counter(then), states={"0": Count(7)})
    assert states == (None if after is None else {"0": Count(after)})


def test_a_state_given_to_exit_without_having_one_is_refused() -> None:
    """It would be dropped in silence."""

    class Confused(ExecutionModule[bytes]):
        def execute(self, package: Any, run: Any) -> None:
            run.exit("", state=1)

    envelope, status, _ = inline(Confused())
    assert (status, envelope.errors[0].type) == (Status.ERROR, "TypeError")


async def test_async_modules_run_inline_too_also_inside_a_running_loop() -> None:
    """A coroutine that suspends gets a private loop."""
    import asyncio

    class Slow(ExecutionModule[bytes]):
        async def execute(self, package: Any, run: Any) -> None:
            await asyncio.sleep(0)
            package.data = b"slept"

    envelope, status, _ = inline(Slow())
    assert (status, envelope.data) == (Status.SUCCESS, b"slept")


def test_a_mutex_and_a_timeout_have_no_effect_inline() -> None:
    """A simulation decides about time itself."""
    module = Append("a")
    module.options = ModuleOptions(timeout_s=1e-9, use_mutex=True)
    assert inline(module)[1] is Status.SUCCESS


Tree = tuple[Any, ...]
_leaves = st.tuples(st.just("leaf"), st.sampled_from(["success"] * 6 + ["exit", "error"]))
_trees = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.tuples(st.just("all"), st.lists(inner, max_size=3)),
        st.tuples(st.just("if"), st.booleans(), st.none() | inner, st.none() | inner),
    ),
    max_leaves=12,
)


def build(tree: Tree, names: Any) -> Module[Any]:
    match tree:
        case ("leaf", then):
            return Append(f"{next(names)},", then)
        case ("all", inner):
            return CombinationModule([build(each, names) for each in inner])
        case (_, answer, true, false):
            branches = [each and build(each, names) for each in (true, false)]
            return ConditionModule(*branches, condition=lambda _: answer)
    raise AssertionError(tree)


def model(tree: Tree, names: Any, ran: list[str], live: bool) -> str:
    """What a tree does, naively. Names are numbered as `build` does, run or not."""
    match tree:
        case ("leaf", then):
            name = f"{next(names)},"
            if live and then != "error":
                ran.append(name)
            return str(then)
        case ("all", inner):
            end = "success"
            for each in inner:
                got = model(each, names, ran, live and end == "success")
                end = got if end == "success" else end
            return end
    _, answer, true, false = tree
    end = "success"
    for branch, taken in ((true, answer), (false, not answer)):
        if branch:
            got = model(branch, names, ran, live and taken)
            end = got if taken else end
    return end


def statuses(record: Any) -> set[Status]:
    return {record.status}.union(*(statuses(sub) for sub in record.sub_modules))


@given(st.lists(_trees, min_size=1, max_size=4))
def test_random_trees_do_what_a_naive_model_does(trees: list[Tree]) -> None:
    """Status and payload agree, and a status goes up to the phase unchanged."""
    names, ran = iter(range(1000)), list[str]()
    expected = model(("all", trees), names, ran, True)
    numbers = iter(range(1000))
    envelope, status, _ = inline(*(build(tree, numbers) for tree in trees))
    assert (status.value.lower(), envelope.data.decode()) == (expected, "".join(ran))
    phase = read(envelope)
    assert phase.status is status
    for module in phase.modules[:-1]:
        assert statuses(module) == {Status.SUCCESS}
    assert phase.modules[-1].status is status
