"""Large payloads in workers and leaders: by reference between them, in their place in modules."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from broker_pipeline import ExecutionModule, Mode, Outcome, StatefulModule
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.large_payloads import LargePayloads
from broker_pipeline.core.names import ingress_subject, payload_bucket
from broker_pipeline.errors import PublishTimeoutError, StorageFullError
from broker_pipeline.package import CONTENT_TYPE
from broker_pipeline.runtime import loading
from broker_pipeline.runtime.execution.executor import PREFETCH_COUNT_MAX
from tests.unit.runtime.bench import OUTCOMES, Bench, results
from tests.unit.runtime.gate import Gate, pipeline
from tests.unit.runtime.shard import until

BUCKET = payload_bucket("demo")
LARGE = b"large " * 1_000
LIMIT = 4_000
"""Of what travels in the message; the broker takes 16,000 bytes."""


class Does(ExecutionModule[bytes]):
    """What the payload's last byte says: nothing, change it, shorten it, fail."""

    def execute(self, package: Any, run: Any) -> None:
        """One package."""
        data = package.data
        if data.endswith(b"+"):
            package.data = data[:-1] + b"!" * 10
        if data.endswith(b"-"):
            package.data = b"short"
        if data.endswith(b"E"):
            package.data = data + data
            raise ValueError("as told")


async def begin(*modules: Any, **options: Any) -> Bench:
    """A bench where more than LIMIT bytes are large."""
    made = pipeline(*modules, **options)
    made.large_payload_bytes = LIMIT
    bench = await Bench.begin(made, max_payload=16_000)
    for phase in range(len(modules)):
        await bench.work(phase)
    return bench


async def send(bench: Bench, data: bytes, instance: str = "a") -> pb.PayloadReference:
    """As a plain producer does by hand: an object, then a package that refers to it."""
    reference = await LargePayloads(bench.broker, "demo").put(data)
    await refer(bench, reference, instance)
    return reference


async def refer(bench: Bench, reference: Any, instance: str = "a", data: bytes = b"") -> None:
    """A package that refers to a payload."""
    package = pb.DataPackage(content_type="x/y", reference=reference, data=data)
    subject = ingress_subject("demo", instance)
    headers = {"Content-Type": CONTENT_TYPE}
    await bench.broker.publish(subject, package.SerializeToString(), headers=headers)


async def payload(bench: Bench, package: pb.DataPackage) -> bytes:
    """What a reader gets."""
    if package.HasField("reference"):
        assert not package.data
        await LargePayloads(bench.broker, "demo").load(package)
    return package.data


def objects(bench: Bench) -> int:
    """How many there are."""
    return len(bench.server.objects[BUCKET].keys(asyncio.get_running_loop().time()))


async def test_modules_see_a_large_payload_in_its_place() -> None:
    """And what they leave as it was goes on with the same reference, through every phase."""
    first, second = Gate(), Gate()
    bench = await begin(first, second)
    reference = await send(bench, LARGE)
    (left,) = await bench.left(1)
    assert first.entered == second.entered == [LARGE]
    assert left.reference == reference and not left.data
    assert (left.outcome, left.content_type) == (4, "x/y")
    assert objects(bench) == 1
    await bench.end()


@pytest.mark.parametrize(
    ("data", "after", "count"),
    [
        (LARGE + b"+", LARGE + b"!" * 10, 2),
        (LARGE + b"-", b"short", 1),
        (LARGE + b"E", LARGE + b"E", 1),
    ],
)
async def test_what_a_module_changes_is_stored_anew_or_travels_in_the_message(
    data: bytes, after: bytes, count: int
) -> None:
    """As its size asks for; an ERROR keeps the payload as it came, with the same reference."""
    bench = await begin(Does(), Gate())
    reference = await send(bench, data)
    (left,) = await bench.left(1)
    assert left.HasField("reference") is (after != b"short")
    assert (left.reference == reference) is data.endswith(b"E")
    assert OUTCOMES[left.outcome] is (Outcome.ERROR if data.endswith(b"E") else Outcome.SUCCESS)
    assert await payload(bench, left) == after
    assert objects(bench) == count
    await bench.end()


async def test_a_raw_payload_that_is_large_travels_by_reference_from_the_first_result_on() -> None:
    """Also one that fills a message, which has no room for a journey: the leader moves it out."""
    bench = await begin(Gate(), Gate())
    await bench.send(LARGE, b"x" * 15_990)
    left = await bench.left(2)
    assert [package.reference.size for package in left] == [len(LARGE), 15_990]
    assert [await payload(bench, package) for package in left] == [LARGE, b"x" * 15_990]
    dispatched = [pb.DataPackage.FromString(m.data) for m in bench.messages(bench.subjects.work)]
    assert [len(package.data) for package in dispatched if package.id == left[0].id] == [6_000, 0]
    await bench.end()


async def test_a_payload_that_is_gone_is_an_error_of_its_package_alone() -> None:
    """It says which; the reference stays."""
    bench = await begin(Gate())
    reference = await LargePayloads(bench.broker, "demo").put(LARGE)
    await bench.broker.object_delete(BUCKET, reference.object)
    await refer(bench, reference)
    cut = await LargePayloads(bench.broker, "demo").put(LARGE)
    cut.size += 1
    await refer(bench, cut)
    await bench.send(b"next")
    left = await bench.left(3)
    assert results(left[2:]) == [(b"next", Outcome.SUCCESS)]
    for package, lost in zip(left[:2], (reference, cut), strict=True):
        assert package.errors[-1].type == "PayloadGoneError"
        assert lost.object in package.errors[-1].message
        assert package.reference == lost
    await bench.end()


async def test_nobody_reads_what_is_not_the_pipelines_on_a_producers_word() -> None:
    """Another bucket, or data and a reference at once: ERROR, and what it says."""
    bench = await begin(Gate())
    await bench.broker.ensure_object_bucket("secrets")
    await bench.broker.object_put("secrets", "key", b"secret")
    await refer(bench, pb.PayloadReference(bucket="secrets", object="key", size=6))
    reference = await LargePayloads(bench.broker, "demo").put(LARGE)
    await refer(bench, reference, data=b"besides")
    foreign, both = await bench.left(2)
    assert foreign.errors[-1].type == both.errors[-1].type == "MalformedPackageError"
    assert "'bp_payloads_demo'" in foreign.errors[-1].message
    assert "one of the two" in both.errors[-1].message
    assert not foreign.data
    await bench.end()


async def test_a_worker_that_vanishes_with_a_large_payload_leaves_nothing_undone() -> None:
    """Its package runs elsewhere; what the first has stored is referred to by nobody."""
    gate = Gate(is_open=False)
    bench = await begin(gate, ack_wait_s=0.2)
    await send(bench, LARGE)
    await until(lambda: gate.entered)
    vanishing = asyncio.create_task(bench.workers[0].vanish())
    await until(lambda: bench.workers[0].broker._closed)  # type: ignore[attr-defined]
    gate.opened.set()
    await vanishing
    await bench.work()
    (left,) = await bench.left(1)
    assert await payload(bench, left) == LARGE
    await bench.end()


async def test_a_result_waits_for_room_for_its_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is run again meanwhile, and small results of what is here go on."""
    monkeypatch.setattr(loading, "RETRY_MAX_S", 0.01)
    gate = Does()
    bench = await begin(gate, mode=Mode.NO_ORDER)
    working = bench.workers[0].broker
    real, refused = working.object_put, 0

    async def put(bucket: str, name: str, data: bytes) -> None:
        nonlocal refused
        refused += 1
        if refused < 4:
            raise StorageFullError("no room", err_code=10023)
        await real(bucket, name, data)

    monkeypatch.setattr(working, "object_put", put)
    await send(bench, LARGE + b"+")
    await bench.send(b"small")
    left = await bench.left(2)
    assert {package.reference.size for package in left} == {0, len(LARGE) + 10}
    assert refused == 4
    consumer = bench.server.stream(bench.stream).consumers["c=p0"]
    await until(lambda: not consumer.counts)
    await bench.end()


@pytest.mark.parametrize("refuses", [True, False], ids=["refused", "slow"])
async def test_a_worker_takes_nothing_while_large_results_cannot_be_stored(
    refuses: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker has no room for them, or takes them slowly; it is said once, and it goes on."""
    monkeypatch.setattr(loading, "RETRY_MAX_S", 0.01)
    monkeypatch.setattr(loading, "PUT_BYTES_MAX", 20_000)
    bench = await begin(Does(), mode=Mode.NO_ORDER)
    working = bench.workers[0]
    real, opened, asked = working.broker.object_put, asyncio.Event(), 0

    async def put(bucket: str, name: str, data: bytes) -> None:
        nonlocal asked
        asked += 1
        if refuses and not opened.is_set():
            raise StorageFullError("no room", err_code=10023)
        await opened.wait()
        await real(bucket, name, data)

    monkeypatch.setattr(working.broker, "object_put", put)
    sent = 3 * PREFETCH_COUNT_MAX  # what was asked for before it was full may come still
    await bench.send(*[b"x" * 6_000 + b"+"] * sent)
    await until(lambda: working.phase._results.full and asked > 3)
    await until(lambda: working.phase._quota == 0 and working.phase._executor.idle)
    await bench.send(b"small")
    await until(lambda: len(bench.messages(bench.subjects.work)) == sent + 1)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(working.phase._here) < sent
    opened.set()
    await bench.left(sent + 1)
    assert not working.phase._results.full
    assert caplog.text.count("takes no packages and holds") == refuses
    assert caplog.text.count("stores large results again") == refuses
    await bench.end()


async def test_a_payload_that_the_broker_gives_no_answer_about_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is not gone: the package is redelivered."""
    bench = await begin(Gate(), ack_wait_s=0.1)
    working = bench.workers[0].broker
    real, asked = working.object_get, 0

    async def get(bucket: str, name: str) -> bytes | None:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise PublishTimeoutError("no answer")
        return await real(bucket, name)

    monkeypatch.setattr(working, "object_get", get)
    await send(bench, LARGE)
    (left,) = await bench.left(1)
    assert OUTCOMES[left.outcome] is Outcome.SUCCESS and asked == 2
    await bench.end()


async def test_a_worker_holds_no_more_payloads_than_it_has_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many packages it has fetched; one that is larger than that is held alone."""
    monkeypatch.setattr(loading, "FETCHED_BYTES_MAX", 13_000)
    gate = Gate()
    bench = await begin(gate, mode=Mode.NO_ORDER)
    most = 0
    real = loading.Loading.fetch

    async def fetch(self: Any, here: Any, envelope: Any) -> None:
        nonlocal most
        await real(self, here, envelope)
        most = max(most, self._held.bytes)

    monkeypatch.setattr(loading.Loading, "fetch", fetch)
    for number in range(20):
        await send(bench, LARGE + b"%d" % number)
    await send(bench, b"x" * 14_000)
    left = await bench.left(21)
    assert len({package.id for package in left}) == 21
    assert 12_000 <= most <= 13_000
    await until(lambda: bench.workers[0].phase._loading._held.bytes == 0)
    await bench.end()


class Sizes(msgspec.Struct):
    """A state."""

    sizes: list[int] = []


class Adds(StatefulModule[bytes, Sizes]):
    """Notes how large what it sees is, and says so."""

    def initial_state(self) -> Sizes:
        """Nothing."""
        return Sizes([])

    def execute(self, package: Any, run: Any, state: Sizes) -> Sizes:
        """One package."""
        state.sizes.append(len(package.data))
        package.data = repr(state.sizes).encode()
        return state


async def test_catching_up_with_a_state_gets_the_payloads_of_recorded_inputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that does not hold the state runs them again, as they were; one that is gone by then
    makes what comes behind it an ERROR that says so."""
    monkeypatch.setattr("broker_pipeline.runtime.states.STORE_EVERY_S", 1e9)
    bench = await begin(Adds(), mode=Mode.NOT_PARALLEL, ack_wait_s=0.2)
    first = await send(bench, LARGE)
    await send(bench, LARGE * 2)
    await bench.left(2)
    await bench.workers[0].vanish()
    await bench.work()
    await send(bench, LARGE * 2)
    left = await bench.left(3)
    assert left[2].data == b"[6000, 12000, 12000]"
    await bench.workers[1].vanish()
    await bench.broker.object_delete(BUCKET, first.object)
    await bench.work()
    await bench.send(b"next")
    left = await bench.left(4)
    assert left[3].errors[-1].type == "StateError"
    assert "PayloadGone" in left[3].errors[-1].message or "BP403" in left[3].errors[-1].message
    await bench.end()
