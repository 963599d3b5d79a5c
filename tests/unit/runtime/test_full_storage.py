"""A worker whose results the broker has no room for, and what such answers are taken for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker_pipeline import Outcome
from broker_pipeline.broker.api import ApiError
from broker_pipeline.broker.memory import MemoryServer
from broker_pipeline.broker.port import PubAck
from broker_pipeline.broker.publish import refusal
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.machine import Machine
from broker_pipeline.core.names import log_subjects
from broker_pipeline.core.plan import compile_plan
from broker_pipeline.errors import PublishRefusedError, StorageFullError
from broker_pipeline.runtime.holding import RETRY_MAX_S, RETRY_MIN_S, Holding, Send
from broker_pipeline.runtime.retention import Retention
from tests.unit.runtime.bench import Bench, results
from tests.unit.runtime.gate import Gate, pipeline
from tests.unit.runtime.shard import STREAM, SUBJECTS, until

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


async def test_after_one_success_the_next_refusal_is_waited_for_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A small result fits and the next does not: the broker is not asked at the speed of light."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("broker_pipeline.runtime.holding.asyncio.sleep", sleep)
    loop = asyncio.get_running_loop()
    refusals = 6
    ended: list[str] = []

    def sending(name: str) -> Send:
        async def send() -> asyncio.Future[PubAck]:
            nonlocal refusals
            ack: asyncio.Future[PubAck] = loop.create_future()
            if name == "large" and refusals:
                refusals -= 1
                ack.set_exception(refusal("s", FULL))
            else:
                ack.set_result(PubAck("S", 1))
            return ack

        return send

    roomy = asyncio.Event()
    holding = Holding("c.p", roomy.set)
    for name in ("small", "large"):
        assert holding.hold(refusal("s", FULL), sending(name), lambda ack, n=name: ended.append(n))
    async with asyncio.timeout(10):
        await roomy.wait()
    assert ended == ["small", "large"]
    assert waits[0] == waits[2] == RETRY_MIN_S and waits[-1] <= RETRY_MAX_S
    assert min(waits[2:]) >= RETRY_MIN_S


async def test_a_log_is_led_though_the_room_for_it_is_not_granted() -> None:
    """The server's limit may forbid as large a stream as the work inside could need: producers are
    shut out all the same, and the log gets what is granted."""
    server = MemoryServer()
    broker = server.connect()
    bounded = pipeline(Gate())
    bounded.log_bytes_max = 4 << 20
    await deploy(broker, bounded)
    for _ in range(33):
        await broker.publish(SUBJECTS.arrival("a"), bytes(100_000))
    granted = 10 << 20
    limit = broker.limit_stream

    async def limiting(stream: str, *, subjects: tuple[str, ...], max_bytes: int | None) -> None:
        if max_bytes is None or max_bytes > granted:
            raise refusal(stream, ApiError(500, 10047, "insufficient storage resources available"))
        await limit(stream, subjects=subjects, max_bytes=max_bytes)

    broker.limit_stream = limiting  # type: ignore[method-assign]
    machine = Machine()
    machine.plan = compile_plan(bounded)
    retention = Retention(broker, bounded.name, 0, lambda: machine)
    for _ in range(2):
        await retention.make_room()
        status = await broker.stream_status(STREAM)
        assert set(status.subjects) == set(log_subjects(bounded.name, ingress=False))
        assert 4 << 20 < (status.max_bytes or 0) <= granted
    await broker.close()
