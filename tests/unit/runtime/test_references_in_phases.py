"""Payloads by reference and external modules: left alone in their phases, in place behind them."""

from __future__ import annotations

from typing import Any

import pytest

from broker_pipeline import (
    CombinationModule,
    ExecutionModule,
    ExternalModule,
    ExternalOptions,
    Mode,
    Outcome,
)
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.large_payloads import LargePayloads
from broker_pipeline.errors import ConnectionLostError, PayloadGoneError
from tests.unit.fake_relay import Servers, said
from tests.unit.runtime.bench import OUTCOMES, Bench
from tests.unit.runtime.gate import pipeline
from tests.unit.runtime.shard import until
from tests.unit.runtime.test_payloads_in_workers import BUCKET, LARGE, LIMIT, objects, send


class Note(ExecutionModule[bytes]):
    """Says how large what it gets is."""

    def execute(self, package: Any, run: Any) -> None:
        """One package."""
        run.message = str(len(package.data))


def asr(**more: Any) -> ExternalModule:
    return ExternalModule("asr", target="registry:///asr", **more)


async def begin(relays: Any, *modules: Any, **options: Any) -> Bench:
    """A phase of these modules, with a worker."""
    made = pipeline(*modules, **options)
    made.large_payload_bytes = LIMIT
    bench = await Bench.begin(made, max_payload=16_000)
    await bench.work(relays=relays)
    return bench


async def test_an_external_phase_leaves_payloads_where_they_are() -> None:
    """What is given on has the reference as it came, whatever became of the package."""
    seen: list[pb.DataPackage] = []

    def behave(package: pb.DataPackage, state: bytes | None) -> Any:
        seen.append(package)
        if len(seen) == 2:
            return said("ERROR", errors=[pb.Error(type="E", message="as told")])
        return said()

    bench = await begin(Servers(behave), asr())
    reads: list[str] = []
    worker = bench.workers[0].broker
    real = worker.object_get

    async def get(bucket: str, name: str) -> bytes | None:
        reads.append(name)
        return await real(bucket, name)

    worker.object_get = get  # type: ignore[method-assign]
    references = [await send(bench, LARGE), await send(bench, LARGE)]
    left = await bench.left(2)
    assert [OUTCOMES[each.outcome] for each in left] == [Outcome.SUCCESS, Outcome.ERROR]
    assert [each.reference for each in left] == references
    assert [package.reference for package in seen] == references and reads == []
    assert all(not package.data for package in seen) and objects(bench) == 2
    await bench.end()


async def test_an_answer_by_reference_goes_on_as_it_is() -> None:
    """And one in a message is put away."""
    response = said()

    def behave(package: pb.DataPackage, state: bytes | None) -> Any:
        return response if package.data == b"1" else said(data=LARGE)

    bench = await begin(Servers(behave), asr())
    kept = await LargePayloads(bench.broker, "demo").put(LARGE)
    response.payload.reference.CopyFrom(kept)
    await bench.send(b"1", b"2")
    left = await bench.left(2)
    assert left[0].reference == kept and not left[0].data
    assert left[1].reference.size == len(LARGE) and objects(bench) == 2
    await bench.end()


async def test_a_recorded_input_whose_payload_is_gone_is_not_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The state behind it cannot be told: what comes next is an ERROR that says so."""
    monkeypatch.setattr("broker_pipeline.runtime.states.STORE_EVERY_S", 1e9)
    gone: list[str] = []

    def behave(package: pb.DataPackage, state: bytes | None) -> Any:
        if package.reference.object in gone:
            raise PayloadGoneError("as told")
        count = int(state or b"0") + 1
        return said(data=b"%d" % count, state=b"%d" % count)

    bench = await begin(Servers(behave), asr(stateful=True), mode=Mode.NOT_PARALLEL, ack_wait_s=0.2)
    first = await send(bench, LARGE)
    await bench.left(1)
    await bench.workers[0].vanish()
    await bench.work(relays=Servers(behave))
    await bench.send(b"next")
    assert (await bench.left(2))[1].data == b"2"
    await bench.workers[1].vanish()
    gone.append(first.object)
    await bench.work(relays=Servers(behave))
    await bench.send(b"last")
    last = (await bench.left(3))[2]
    assert last.errors[-1].type == "StateError" and "as told" in last.errors[-1].message
    await bench.end()


def by_reference(reference: Any) -> Any:
    """A server that answers with it."""

    def behave(package: pb.DataPackage, state: bytes | None) -> Any:
        response = said()
        response.payload.reference.CopyFrom(reference)
        return response

    return behave


async def test_modules_behind_see_the_payload_of_an_answer_in_its_place() -> None:
    """Also where the broker fails at first; one that is gone is an ERROR of its package."""
    servers = Servers()
    bench = await begin(servers, CombinationModule([asr(), Note()]))
    kept = await LargePayloads(bench.broker, "demo").put(LARGE)
    servers.behave = by_reference(kept)
    failing = await fail(bench, 0)
    await bench.send(b"1")
    await until(lambda: len(failing) > 1)
    failing[0] = "back"
    (left,) = await bench.left(1)
    modules = left.controllers[0].phases[0].modules[0].sub_modules
    assert [modules[1].name, modules[1].message] == ["Note", str(len(LARGE))]
    await bench.broker.object_delete(BUCKET, kept.object)
    await bench.send(b"2")
    assert (await bench.left(2))[1].errors[-1].type == "PayloadGoneError"
    await bench.end()


async def fail(bench: Bench, worker: int) -> list[str]:
    """Have a worker's broker read no objects until the first entry says `back`; the attempts."""
    broker = bench.workers[worker].broker
    real = broker.object_get
    asked = ["away"]

    async def get(bucket: str, name: str) -> bytes | None:
        asked.append(name)
        if asked[0] != "back":
            raise ConnectionLostError("as told")
        return await real(bucket, name)

    broker.object_get = get  # type: ignore[method-assign]
    return asked


@pytest.mark.parametrize("idempotent", [True, False])
async def test_a_drain_waits_for_no_answer_that_cannot_be_loaded(idempotent: bool) -> None:
    """Another worker runs the package if its server may do so twice; otherwise it is an ERROR."""
    servers, module = Servers(), asr(options=ExternalOptions(idempotent=idempotent))
    bench = await begin(servers, CombinationModule([module, Note()]), ack_wait_s=600.0)
    kept = await LargePayloads(bench.broker, "demo").put(LARGE)
    servers.behave = by_reference(kept)
    failing = await fail(bench, 0)
    await bench.send(b"1")
    await until(lambda: len(failing) > 1)
    await bench.workers[0].drain()
    other = Servers(by_reference(kept))
    await bench.work(relays=other)
    (left,) = await bench.left(1)
    assert OUTCOMES[left.outcome] is (Outcome.SUCCESS if idempotent else Outcome.ERROR)
    assert [each.type for each in left.errors] == ["ModuleServerError"] * (not idempotent)
    assert len(other.seen) == idempotent
    await bench.end()
