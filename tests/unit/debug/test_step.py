"""A package in a phase again: its input and its states from a log in memory, today's modules."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker_pipeline.core.names import module_bucket
from broker_pipeline.debug.inspection.wanted import Wanted
from broker_pipeline.debug.steps.step import run_step
from broker_pipeline.debug.steps.step_source import Given, look_up
from broker_pipeline.errors import (
    StepStateError,
    UnknownPackageError,
)
from broker_pipeline.journey import Status
from broker_pipeline.runtime import states as keeping
from tests.unit.debug.stepping import (
    PAYLOADS,
    Count,
    Tally,
    counting,
    data_of,
    given,
    recorded,
    stepped,
)
from tests.unit.runtime.bench import Bench


def test_every_package_comes_out_of_every_phase_as_it_was_recorded() -> None:
    """With a state, async, as SUCCESS, ERROR and EXIT: the same code gives the same."""
    run = counting()

    async def find(bench: Bench, ids: list[str]) -> list[Given]:
        return [await look_up(bench.broker, run, Wanted(each)) for each in ids] + [
            await look_up(bench.broker, run, Wanted(each), "c.count") for each in ids
        ]

    everything = recorded(run, PAYLOADS, find)
    assert [f"{g.controller.name}.{g.phase.name}" for g in everything[: len(PAYLOADS)]] == [
        "c.upper", "c.upper", "c.count", "c.upper", "c.count", "c.upper",
    ]  # fmt: skip
    for what in everything:
        result, found = stepped(what)
        assert found.differences == (), list(found.lines())
        assert not result.left


@pytest.mark.parametrize("store_every_s", [0.0, 1e9])
def test_the_state_is_that_which_the_package_found(
    store_every_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it was stored or is to be computed again; an ERROR left none."""
    monkeypatch.setattr(keeping, "STORE_EVERY_S", store_every_s)
    what = given(counting(), PAYLOADS, 6, "c.count")
    result, _ = stepped(what)
    assert result.before == {"0": Tally(["one", "two", "four", "exit"])}
    assert result.after == {"0": Tally(["one", "two", "four", "exit", "six"])}


def test_a_stored_state_that_is_newer_is_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is computed from the beginning of the instance's life."""
    monkeypatch.setattr(keeping, "STORE_EVERY_S", 0.0)
    what = given(counting(), PAYLOADS, 4, "c.count")
    assert what.before is not None
    assert (what.before.sequence, len(what.before.inputs)) == (0, 2)
    result, found = stepped(what)
    assert result.before == {"0": Tally(["one", "two"])} and found.same


def test_what_todays_code_does_otherwise_is_said() -> None:
    """The recorded ERROR is mended: status, payload and errors differ."""

    class Mended(Count):
        bad = ""

    today = counting(Mended(name="Count"))
    result, found = stepped(given(counting(), PAYLOADS, 3, "c.count", today))
    assert result.status is Status.SUCCESS
    assert data_of(result) == "bad 3"
    assert not found.same and found.differences
    text = "\n".join(found.lines())
    assert "ValueError: bad is bad in c/count/Count" in text
    assert "not the same as recorded:" in text
    assert found.to_json()["recorded"]["errors"][0]["message"] == "bad is bad"
    assert found.to_json()["now"]["errors"] == []


def test_a_traceback_is_shown_once() -> None:
    """Where it is the same."""
    _, found = stepped(given(counting(), PAYLOADS, 3, "c.count"))
    text = "\n".join(found.lines())
    assert text.count("ValueError: bad is bad in c/count/Count") == 2
    assert text.count("Traceback (most recent call last)") == 1


def test_nothing_that_a_package_says_moves_the_terminal() -> None:
    """Escape sequences in errors, messages and attributes are not written."""

    class Rude(Count):
        def execute(self, package: Any, run: Any, state: Tally) -> Tally:
            run.message = "\x1b[2J"
            package.attributes["\x1b[31m"] = "\r"
            if package.data == "bad":
                raise ValueError("\x1b[0m\x07")
            return state

    for number in (1, 3):
        _, found = stepped(given(counting(Rude()), PAYLOADS, number, "c.count"))
        lines = list(found.lines())
        assert all(line.isprintable() for line in lines) and len(lines) > 8


def test_an_initial_state_can_be_asked_for() -> None:
    """Whatever came before."""
    what = given(counting(), PAYLOADS, 4, "c.count", initial_state=True)
    result, found = stepped(what)
    assert result.before == {"0": Tally()} and not found.same


def test_history_that_is_gone_is_said_and_can_be_done_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The inputs before it were purged, and no state is stored that would help."""
    monkeypatch.setattr(keeping, "STORE_EVERY_S", 1e9)
    run = counting()

    async def find(bench: Bench, ids: list[str]) -> Given:
        queue = f"{bench.subjects.work}c.count."
        second = bench.messages(queue)[1].stream_seq
        await bench.broker.purge(bench.stream, below=second)
        with pytest.raises(StepStateError, match=r"does not have any more.*--initial-state"):
            await look_up(bench.broker, run, Wanted(ids[2]), "c.count")
        with pytest.raises(UnknownPackageError, match="purged"):
            await look_up(bench.broker, run, Wanted(ids[0]), "c.count")
        return await look_up(bench.broker, run, Wanted(ids[2]), "c.count", initial_state=True)

    what = recorded(run, PAYLOADS[:3], find)
    assert stepped(what)[1].same  # bad with any state


def test_a_package_whose_arrival_is_purged_is_found_by_what_is_left() -> None:
    """Its way through the queues may be in the log still."""
    run = counting()

    async def find(bench: Bench, ids: list[str]) -> Given:
        number = int(ids[-1].rpartition("/")[2])
        await bench.broker.purge(bench.stream, below=number + 1)
        return await look_up(bench.broker, run, Wanted(ids[-1]))

    assert stepped(recorded(run, PAYLOADS, find))[1].same


def test_an_input_that_fails_today_when_it_is_run_again_is_named() -> None:
    """The state cannot be had by a code that fails on the way to it."""

    class Worse(Count):
        bad = "two"

    what = given(counting(), PAYLOADS, 4, "c.count", counting(Worse(name="Count")))
    with pytest.raises(StepStateError, match=r"fails today.*ValueError: two is bad"):
        run_step(what)


def test_several_lives_of_an_instance_are_told_apart() -> None:
    """Each begins with the initial state; the package's own life counts."""
    run = counting()

    async def find(bench: Bench, ids: list[str]) -> list[Given]:
        return [await look_up(bench.broker, run, Wanted(each), "c.count") for each in ids]

    async def lives(bench: Bench, ids: list[str]) -> Any:
        return await find(bench, ids)

    async def main() -> list[Given]:
        bench = await Bench.begin(run)
        for phase in range(2):
            await bench.work(phase)
        for life in range(2):
            for number, payload in enumerate(PAYLOADS[:2], start=1):
                await bench.send(payload)
                await bench.left(2 * life + number)
            close = bench.subjects.arrival("a").replace(".0.ctl.in.", ".in.")
            await bench.broker.publish(close, b"", headers={"Bp-Control": "close"})
        left = sorted(each.id for each in await bench.left(4))
        await bench.end()
        return await lives(bench, [f"demo/0/{number}" for number in left])

    befores = [stepped(what)[0].before["0"] for what in asyncio.run(main())]
    assert befores == [Tally(), Tally(["one"])] * 2


def test_nothing_is_written_and_no_consumer_is_left() -> None:
    """The log, the consumers and the stored states are what they were."""
    run = counting()

    async def find(bench: Bench, ids: list[str]) -> None:
        async def everything() -> Any:
            keys = await bench.broker.kv_keys(module_bucket("demo"))
            return (
                await bench.broker.stream_state(bench.stream),
                await bench.broker.consumer_states(bench.stream),
                [await bench.broker.kv_get(module_bucket("demo"), key) for key in keys],
            )

        before = await everything()
        for each in ids:
            await look_up(bench.broker, run, Wanted(each), "c.count")
        assert await everything() == before

    recorded(run, PAYLOADS, find)
