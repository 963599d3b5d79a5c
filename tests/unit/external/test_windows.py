"""How a module server's window is shared and told, and how its messages are put together."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.external.deadlines import Deadlines
from broker_pipeline.external.framing import _varint, append_response
from broker_pipeline.external.hosting import Call
from broker_pipeline.external.windows import is_notable, share


@given(st.integers(1, 10_000), st.integers(0, 200))
def test_shares_add_up_to_the_window_and_are_never_nothing(window: int, streams: int) -> None:
    """Only where there are more streams than packages do they add up to more."""
    each = share(window, streams)
    assert each >= 1
    assert each * streams <= max(window, streams)
    assert share(0, streams) == 0, "a server that can run nothing"


@pytest.mark.parametrize(
    ("granted", "wanted", "notable"),
    [(0, 1, True), (1, 2, True), (2, 1, True), (100, 100, False), (100, 125, False),
     (100, 126, True), (100, 74, True), (1, 1, False)],
)  # fmt: skip
def test_a_change_is_told_when_it_matters(granted: int, wanted: int, notable: bool) -> None:
    """By more than a quarter of what is granted."""
    assert is_notable(granted, wanted) is notable


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_a_message_is_the_concatenation_of_its_parts(states: list[bytes]) -> None:
    """What is put together from bytes reads as if protobuf had done it."""
    answers = [service.RunResponse(call=n, state=state) for n, state in enumerate(states)]
    rest = service.StreamResponse(credit=3)
    parts: list[bytes] = []
    for answer in answers:
        append_response(parts, answer.SerializeToString())
    message = service.StreamResponse.FromString(b"".join(parts) + rest.SerializeToString())
    assert message == service.StreamResponse(responses=answers, credit=3)


@given(st.integers(0, 2**35))
def test_lengths_are_encoded_as_protobuf_does(number: int) -> None:
    """As in any varint field."""
    assert service.RunResponse(call=number).SerializeToString()[1:] == (
        _varint(number) if number else b""
    )


async def test_calls_end_at_their_deadlines_whatever_comes_later() -> None:
    """One timer for all: an earlier deadline that comes later is kept too; none is, for ever."""
    now_ns = time.monotonic_ns()
    over: list[Any] = []
    calls: dict[str, Call] = {}
    done = asyncio.Event()

    def expire(call: Call) -> None:
        over.append(next(name for name, each in calls.items() if each is call))
        del calls[over[-1]]
        if len(over) == 3:
            done.set()

    def call(name: str, after_s: float | None) -> Call:
        deadline_ns = None if after_s is None else now_ns + round(after_s * 1e9)
        calls[name] = Call(service.RunRequest(), lambda *_: None, now_ns, deadline_ns)
        return calls[name]

    deadlines = Deadlines(lambda: calls.values(), expire)
    deadlines.watch([call("third", 0.3), call("never", None)])
    deadlines.watch([call("first", 0.05)])
    deadlines.watch([call("second", 0.1)])
    async with asyncio.timeout(5):
        await done.wait()
    assert over == ["first", "second", "third"] and set(calls) == {"never"}
    deadlines.close()
