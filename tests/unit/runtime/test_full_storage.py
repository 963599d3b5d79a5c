"""A worker whose results the broker has no room for, and what such answers are taken for."""

from __future__ import annotations

from typing import Any

import pytest

from broker_pipeline import Outcome
from broker_pipeline.broker.api import ApiError
from broker_pipeline.broker.memory import MemoryServer
from broker_pipeline.broker.port import PubAck
from broker_pipeline.broker.publish import refusal
from broker_pipeline.errors import PublishRefusedError, StorageFullError
from tests.unit.runtime.bench import Bench, results
from tests.unit.runtime.shard import until
from tests.unit.runtime.test_phase_worker import Gate, pipeline

FULL = ApiError(503, 10023, "insufficient resources")


@pytest.mark.parametrize(
    ("error", "what_to_do"),
    [
        (FULL, "max_file_store"),
        (ApiError(400, 10002, "resource limits exceeded for account"), "limit of this account"),
        (ApiError(500, 10047, "insufficient storage resources available"), "max_file_store"),
        (ApiError(503, 10077, "write 1.blk: no space left on device"), "make room"),
        (ApiError(500, 10049, "error creating store for stream"), "make room"),
    ],
)
def test_a_refusal_for_want_of_room_is_known(error: ApiError, what_to_do: str) -> None:
    """It may be tried again, and says what is used up."""
    refused = refusal("s.x", error)
    assert isinstance(refused, StorageFullError)
    assert refused.retriable and refused.err_code == error.err_code
    assert what_to_do in str(refused) and error.description in str(refused)


def test_a_full_stream_is_another_matter() -> None:
    """The code of a write that failed is also that of `max_bytes`."""
    refused = refusal("s.x", ApiError(503, 10077, "maximum bytes exceeded"))
    assert isinstance(refused, PublishRefusedError) and not isinstance(refused, StorageFullError)


async def test_results_wait_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker refuses everything for longer than all deliveries of a package: its modules run
    once, nothing more is taken, and with room it leaves with its result, not as poison."""
    gate = Gate()
    full = False
    refused = 0
    store = MemoryServer.store

    def storing(self: Any, subject: str, data: bytes, block: bytes) -> PubAck:
        nonlocal refused
        if full:
            refused += 1
            raise refusal(subject, FULL)
        return store(self, subject, data, block)

    monkeypatch.setattr(MemoryServer, "store", storing)
    bench = await Bench.begin(pipeline(gate, ack_wait_s=0.05, max_deliver=2))
    gate.opened.clear()
    await bench.work(slots=1)
    await bench.send(b"1", b"2", b"3")
    await until(lambda: gate.entered)
    full = True
    gate.opened.set()
    await until(lambda: refused > 5)
    entered = list(gate.entered)
    assert len(entered) == len(set(entered))
    full = False
    left = await bench.left(3)
    assert results(left) == [(b, Outcome.SUCCESS) for b in (b"1", b"2", b"3")]
    assert sorted(gate.entered) == [b"1", b"2", b"3"]
