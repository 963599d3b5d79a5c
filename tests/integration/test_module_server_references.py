"""A module server with a broker fetches large payloads, and answers by reference."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from broker_pipeline import Client, connect
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.large_payloads import LargePayloads, Reference
from broker_pipeline.core.names import payload_bucket
from broker_pipeline.errors import ConnectionLostError, ServeError
from broker_pipeline.runtime import call_payloads
from broker_pipeline.runtime.addresses import join
from broker_pipeline.runtime.call_payloads import CallPayloads
from broker_pipeline.runtime.module_server import RunningServer, Serving, _pipelines
from tests.integration.pipelines import distant
from tests.integration.processes import until
from tests.integration.served_modules import (
    ERROR,
    SUCCESS,
    WAITING,
    Calls,
    Gate,
    Words,
    request,
    served,
)

BUCKET = payload_bucket("distant")
SIZE = 2_000_000


def asked(call: int, data: bytes = b"", reference: Reference | None = None) -> service.RunRequest:
    """A package of the pipeline."""
    made = request(call, data, reference=reference)
    made.package.pipeline = "distant"
    return made


class Site:
    """A server that fetches, and its broker."""

    def __init__(self, server: RunningServer, calls: Calls, client: Client) -> None:
        assert server._host.payloads is not None
        self.server = server
        self.payloads: CallPayloads = server._host.payloads
        self.calls = calls
        self.broker = client.broker
        self.kept = LargePayloads(client.broker, "distant")

    async def put(self, data: bytes) -> Reference:
        """An object."""
        return await self.kept.put(data)

    async def read(self, payload: service.Payload) -> bytes:
        """The payload of an answer that is by reference."""
        assert payload.HasField("reference") and not payload.data
        envelope = pb.DataPackage(reference=payload.reference)
        await self.kept.load(envelope)
        return envelope.data

    def holds_nothing(self) -> bool:
        """Whether all that was fetched is let go."""
        return self.payloads.idle and self.payloads._room.bytes == 0


@asynccontextmanager
async def site(module: Any, **options: Any) -> AsyncIterator[Site]:
    """A server that is connected."""
    async with EmbeddedServer() as nats, connect(nats.url) as client:
        await client.deploy(distant)
        async with served(module, announce=nats.url, **options) as (server, calls):
            made = Site(server, calls, client)
            await made.payloads._there.wait()
            yield made


async def test_it_says_that_it_fetches() -> None:
    """To callers, and in the registry."""
    async with site(Words()) as made:
        described = (await made.calls.stub.Describe(service.DescribeRequest())).description
        assert described.references


@pytest.mark.parametrize(
    ("options", "any_pipeline"),
    [({}, True), ({"token": "t"}, True), ({"pipelines": ["distant"]}, False)],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_whose_payloads_are_touched(
    host: str, options: dict[str, Any], *, any_pipeline: bool
) -> None:
    """Of any pipeline where callers are known; of those that are named; none for strangers."""
    found = _pipelines(Serving(host=host, **options), join(host, 1))
    strangers = host == "0.0.0.0" and not options
    assert found == (() if strangers else None if any_pipeline else ["distant"])


async def test_strangers_have_no_payloads_read(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever can call may name any pipeline: the server does not fetch, and says why."""
    async with EmbeddedServer() as nats, served(
        Words(), host="0.0.0.0", announce=nats.url
    ) as (server, _):  # fmt: skip
        assert server._host.payloads is None
        assert not server._host.description.references
        (line,) = [each for each in caplog.messages if "by reference" in each]
        assert "--pipeline" in line and "--token-file" in line


async def test_only_payloads_of_named_pipelines_are_touched() -> None:
    """Another's is not fetched, though it is there, and not stored; its small ones are run."""
    async with site(Words(), pipelines=["other"]) as made:
        assert made.server._host.description.references
        refused = await made.calls.run(asked(0, reference=await made.put(b"upper a")))
        assert refused.errors[0].type == "PayloadGoneError"
        assert "--pipeline 'distant'" in refused.errors[0].message
        answer = await made.calls.run(asked(0, b"grow %d" % SIZE))
        assert len(answer.payload.data) == SIZE and not answer.payload.HasField("reference")


def test_names_of_pipelines_are_checked() -> None:
    """A single text is none, and neither is what no pipeline can be called."""
    for wrong in ("distant", ["a.>"]):
        with pytest.raises(ServeError, match="pipelines"):
            _pipelines(Serving(pipelines=wrong), "127.0.0.1:1")


async def test_a_payload_is_fetched_and_a_large_one_comes_back_by_reference() -> None:
    """On a stream and with Run; a small one comes back in the message."""
    async with site(Words()) as made:
        reference = await made.put(b"upper " + b"a" * SIZE)
        stream = await made.calls.stream()
        await stream.send(asked(1, reference=reference), asked(2, b"grow %d" % SIZE))
        fetched, grown = await stream.answered(1, 2)
        run = await made.calls.run(asked(0, reference=await made.put(b"upper a")))
        assert [each.status for each in (fetched, grown, run)] == [SUCCESS] * 3
        assert await made.read(fetched.payload) == b"A" * SIZE
        assert fetched.payload.reference != reference
        assert await made.read(grown.payload) == b"x" * SIZE
        assert run.payload.data == b"A" and not run.payload.HasField("reference")
        assert made.holds_nothing()


async def test_a_payload_that_was_not_changed_is_not_stored_again() -> None:
    """No payload comes back; where something else was changed, the reference as it came."""
    async with site(Words()) as made:
        same = await made.put(b"nothing " + bytes(SIZE))
        label = await made.put(b"label " + b"x" * SIZE)
        assert not (await made.calls.run(asked(0, reference=same))).HasField("payload")
        payload = (await made.calls.run(asked(0, reference=label))).payload
        assert payload.reference == label and not payload.data
        assert payload.attributes["label"] == "x" * SIZE


async def test_what_exceeds_the_servers_own_limit_comes_back_by_reference() -> None:
    """Though the broker would take it in a message."""
    async with site(Words(), message_bytes_max=100_000) as made:
        payload = (await made.calls.run(asked(0, b"grow 200000"))).payload
        assert await made.read(payload) == b"x" * 200_000
        assert (await made.calls.run(asked(0, b"grow 90000"))).payload.data


async def test_what_cannot_be_read_is_an_error_of_its_package() -> None:
    """An object that is gone; one of another pipeline; a pipeline that is none."""
    async with site(Words()) as made:
        gone = Reference(bucket=BUCKET, object="gone", size=9)
        elsewhere = Reference(bucket="bp_payloads_other", object="o", size=9)
        answers = [
            await made.calls.run(asked(0, reference=reference)) for reference in (gone, elsewhere)
        ]
        strange = asked(0, reference=Reference(bucket="bp_payloads_a.>", object="o", size=9))
        strange.package.pipeline = "a.>"
        answers.append(await made.calls.run(strange))
        assert [each.status for each in answers] == [ERROR] * 3
        types = [each.errors[0].type for each in answers]
        assert types == ["PayloadGoneError", "MalformedPackageError", "MalformedPackageError"]
        assert (await made.calls.run(asked(0, b"upper a"))).status == SUCCESS
        assert made.holds_nothing()


class Stuck:
    """Has the broker's objects wait until they are let go."""

    def __init__(self, made: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        assert made.payloads._broker is not None
        self.asked = 0
        self.open = asyncio.Event()
        self._real = made.payloads._broker.object_get
        monkeypatch.setattr(made.payloads._broker, "object_get", self._get)

    async def _get(self, bucket: str, name: str) -> bytes | None:
        self.asked += 1
        await self.open.wait()
        return await self._real(bucket, name)


async def test_what_is_being_fetched_counts_as_waiting_and_can_be_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cancelled, expired, or its caller gone: it is never begun, and nothing is held for it."""
    gate = Gate()
    gate.open.set()
    async with site(gate, slots=4) as made:
        stuck = Stuck(made, monkeypatch)
        reference = await made.put(bytes(SIZE))
        stream = await made.calls.stream()
        late = asked(2, reference=reference)
        late.timeout_ns = 50_000_000
        await stream.send(asked(1, reference=reference), late)
        await until(lambda: stuck.asked == 2, "both are being fetched")
        assert (made.server._host.load().waiting, made.server._host.idle) == (2, False)
        (expired,) = await stream.answered(2)
        assert expired.errors[0].type == "ModuleTimeoutError"
        await stream.send(cancelled=(1,))
        await until(made.holds_nothing, "the first is let go")
        leaving = await made.calls.stream()
        await leaving.send(asked(1, reference=reference))
        await until(lambda: stuck.asked == 3, "it is being fetched")
        await leaving.close()
        await until(made.holds_nothing, "the third is let go")
        stuck.open.set()
        assert (await made.calls.run(asked(0, reference=reference))).status == SUCCESS
        assert len(gate.begun) == 1 and set(stream.answers) == {2}


async def test_what_waits_behind_a_module_that_hangs_lets_its_payload_go() -> None:
    """As soon as nobody waits for it; what runs keeps its own."""
    gate = Gate()
    async with site(gate, slots=1) as made:
        reference = await made.put(bytes(SIZE))
        stream = await made.calls.stream()
        await stream.send(asked(1, reference=reference))
        await until(lambda: gate.begun, "it runs")
        queued = made.calls.stub.Run(asked(0, reference=reference))
        await until(lambda: made.server._host.load().waiting == 1, "another one waits")
        await until(lambda: not made.payloads.fetching, "with its payload")
        assert made.payloads._room.bytes == 2 * SIZE
        queued.cancel()
        await until(lambda: made.payloads._room.bytes <= SIZE, "it is let go")
        assert made.server._host.load().running == 1, "the other one runs still"
        gate.open.set()
        await stream.answered(1)
        assert made.holds_nothing() and len(gate.begun) == 1


async def test_a_drain_gives_back_what_is_being_fetched_and_stores_what_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its connection to the broker lasts until the last answer is stored."""

    class Grows(Gate):
        """Leaves a large payload."""

        def execute(self, package: Any, run: Any) -> None:
            super().execute(package, run)
            package.data = b"x" * SIZE

    gate = Grows()
    async with site(gate, slots=2) as made:
        stream = await made.calls.stream()
        await stream.send(asked(1, b"runs"))
        await until(lambda: gate.begun, "it runs")
        stuck = Stuck(made, monkeypatch)
        await stream.send(asked(2, reference=await made.put(bytes(SIZE))))
        await until(lambda: stuck.asked, "it is being fetched")
        draining = asyncio.create_task(made.server.drain())
        assert (await stream.answered(2))[0].status == WAITING
        gate.open.set()
        (ran,) = await stream.answered(1)
        assert len(await made.read(ran.payload)) == SIZE
        await draining


async def test_without_its_broker_a_package_is_given_back_and_an_answer_goes_inline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a bounded wait; another server may have the package."""
    monkeypatch.setattr(call_payloads, "BROKER_WAIT_S", 0.3)
    async with EmbeddedServer() as nats:
        url = nats.url
    reference = Reference(bucket=BUCKET, object="o", size=SIZE)
    async with served(Words(), announce=url, message_bytes_max=SIZE) as (_, calls):
        assert (await calls.run(asked(0, reference=reference))).status == WAITING
        assert len((await calls.run(asked(0, b"grow 1500000"))).payload.data) == 1_500_000
        refused = await calls.run(asked(0, b"grow %d" % SIZE))
        assert refused.status == ERROR and refused.errors[0].type == "PayloadTooLargeError"


async def test_a_broker_that_fails_for_long_is_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """For reading and for writing."""
    monkeypatch.setattr(call_payloads, "BROKER_WAIT_S", 0.3)

    async def fail(*_: object) -> None:
        raise ConnectionLostError("as told")

    async with site(Words()) as made:
        reference = await made.put(bytes(SIZE))
        for name in ("object_get", "object_put"):
            monkeypatch.setattr(made.payloads._broker, name, fail)
        assert (await made.calls.run(asked(0, reference=reference))).status == WAITING
        inline = await made.calls.run(asked(0, b"grow %d" % SIZE))
        assert len(inline.payload.data) == SIZE
        assert made.holds_nothing()


async def test_a_server_holds_no_more_than_it_has_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many packages are granted; all are run."""
    monkeypatch.setattr(call_payloads, "FETCHED_BYTES_MAX", 2 * SIZE)
    gate = Gate()
    async with site(gate, slots=5) as made:
        reference = await made.put(bytes(SIZE))
        stream = await made.calls.stream()
        await stream.send(*(asked(number, reference=reference) for number in range(1, 6)))
        await until(lambda: len(gate.begun) == 2, "two run")
        assert made.payloads._room.bytes == 2 * SIZE and made.payloads.fetching == 3
        gate.open.set()
        answers = await stream.answered(*range(1, 6))
        assert {each.status for each in answers} == {SUCCESS}
        await until(made.holds_nothing, "all is let go")
