"""Payloads by reference and their servers: which form of a package goes where, and what ends it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.broker.large_payloads import LargePayloads, Reference
from broker_pipeline.broker.memory import MemoryBroker, MemoryServer
from broker_pipeline.core.names import payload_bucket
from broker_pipeline.errors import (
    ConnectionLostError,
    MalformedPackageError,
    ModuleServerError,
    ModuleUnreachableError,
    PayloadGoneError,
    PayloadTooLargeError,
)
from broker_pipeline.external import fitting
from broker_pipeline.external.port import Answer, WithdrawnError
from tests.contract.waiting import until
from tests.integration.calling import BOUND_S, Calls, call, calls, in_s, is_ready
from tests.integration.scripted_server import ScriptedServer, Side, answer, silent

__all__ = ["calls"]

LARGE = b"large " * 50_000
"""300 kB."""
LIMIT = 100_000
"""What small servers take."""
BUCKET = payload_bucket("demo")


class Recorded:
    """A script that keeps what came and answers SUCCESS."""

    def __init__(self) -> None:
        self.requests: list[service.RunRequest] = []

    async def __call__(self, side: Side, request: service.RunRequest) -> None:
        """See `Script`."""
        self.requests.append(request)
        await side.say(answer(request))

    @property
    def sizes(self) -> list[int]:
        """Of the requests."""
        return [request.ByteSize() for request in self.requests]


class Away(MemoryBroker):
    """A broker whose objects are not there until it is told."""

    back: asyncio.Event
    asked = 0

    async def object_get(self, bucket: str, name: str) -> bytes | None:
        """See `Broker`."""
        self.asked += 1
        if not self.back.is_set():
            raise ConnectionLostError("as told")
        return await super().object_get(bucket, name)


async def connected(kind: type[MemoryBroker] = MemoryBroker) -> MemoryBroker:
    """A broker with the bucket."""
    broker = MemoryServer().connect()
    broker.__class__ = kind
    if isinstance(broker, Away):
        broker.back = asyncio.Event()
    await broker.ensure_object_bucket(BUCKET)
    return broker


async def kept(broker: MemoryBroker, data: bytes = LARGE) -> Reference:
    """An object."""
    return await LargePayloads(broker, "demo").put(data)


def referring(number: int, reference: Reference) -> pb.DataPackage:
    """A package whose payload is one."""
    return pb.DataPackage(id=number, pipeline="demo", reference=reference)


async def ask(
    relay: Any, package: pb.DataPackage, timeout_s: float | None = None, state: bytes | None = None
) -> Answer:
    """Have it run, in a bounded time."""
    deadline = None if timeout_s is None else in_s(timeout_s)
    async with asyncio.timeout(BOUND_S):
        found: Answer = await relay.call(package, state=state, deadline_ns=deadline)
        return found


@pytest.mark.parametrize("method", ["stream", "run"])
async def test_a_server_that_fetches_gets_the_reference(calls: Calls, method: str) -> None:
    """As it came, in a small message."""
    broker, script = await connected(), Recorded()
    reference = await kept(broker)
    server = await calls.server(script, references=True)

    def run(request: service.RunRequest, context: Any) -> bytes:
        script.requests.append(request)
        return bytes(answer(request).SerializeToString())

    server.run = run
    relay = await calls.relay(server.address, broker=broker, method=method)
    await ask(relay, referring(1, reference))
    assert script.requests[0].package == referring(1, reference) and script.sizes[0] < 200


async def test_a_server_that_does_not_gets_the_payload(calls: Calls) -> None:
    """Whole, and the package that was handed over is not changed."""
    broker, script = await connected(), Recorded()
    server = await calls.server(script)
    relay = await calls.relay(server.address, broker=broker)
    package = referring(1, await kept(broker))
    before = package.SerializeToString()
    await ask(relay, package)
    assert script.requests[0].package == pb.DataPackage(id=1, pipeline="demo", data=LARGE)
    assert package.SerializeToString() == before
    assert relay._fitting._room.bytes == 0


async def test_what_is_too_large_for_a_server_that_fetches_is_stored(calls: Calls) -> None:
    """And goes by reference, its state with it."""
    broker, script = await connected(), Recorded()

    async def stateful(side: Side, request: service.RunRequest) -> None:
        script.requests.append(request)
        await side.say(answer(request, state=b"after"))

    limits = {"references": True, "message_bytes_max": LIMIT, "stateful": True}
    server = await calls.server(stateful, **limits)
    relay = await calls.relay(server.address, broker=broker, stateful=True)
    large = pb.DataPackage(id=1, pipeline="demo", data=LARGE, content_type="x/y")
    await ask(relay, large, state=b"before")
    (request,) = script.requests
    assert request.state == b"before" and request.ByteSize() < 300
    assert request.package.content_type == "x/y" and not request.package.data
    await LargePayloads(broker, "demo").load(request.package)
    assert request.package.data == LARGE
    await ask(relay, pb.DataPackage(id=2, pipeline="demo", data=b"small"), state=b"before")
    assert script.requests[1].package.data == b"small"
    with pytest.raises(ModuleServerError, match=f"takes {LIMIT}"):
        await ask(relay, large, state=LARGE)


@pytest.mark.parametrize("inline", [True, False])
async def test_what_a_server_can_neither_fetch_nor_take_says_what_to_do(
    calls: Calls, inline: bool
) -> None:
    """It is not even loaded for that; the next package is run."""
    broker, script = await connected(Away), Recorded()
    server = await calls.server(script, message_bytes_max=LIMIT)
    relay = await calls.relay(server.address, broker=broker)
    package = pb.DataPackage(id=1, pipeline="demo", data=LARGE)
    with pytest.raises(ModuleServerError, match=r"--announce"):
        await ask(relay, package if inline else referring(1, await kept(broker)))
    await call(relay, 2)
    assert server.got == [2] and isinstance(broker, Away) and broker.asked == 0


async def test_of_several_servers_one_that_takes_it_gets_it(calls: Calls) -> None:
    """Not an error by chance."""
    broker, scripts = await connected(), [Recorded(), Recorded()]
    small = await calls.server(scripts[0], message_bytes_max=LIMIT)
    fetching = await calls.server(scripts[1], message_bytes_max=LIMIT, references=True)
    relay = await calls.registered(small.address, fetching.address)
    relay._fitting._broker = broker
    for number in range(10):
        data = LARGE if number % 2 else b"small"
        await ask(relay, pb.DataPackage(id=number, pipeline="demo", data=data))
    assert {each.package.id for each in scripts[1].requests} >= {1, 3, 5, 7, 9}


async def test_replicas_get_it_in_the_same_form(calls: Calls) -> None:
    """A server that takes another form is none of them."""
    broker, scripts = await connected(), [Recorded() for _ in range(3)]
    servers = [
        await calls.server(script, references=number < 2) for number, script in enumerate(scripts)
    ]
    relay = await calls.registered(*(server.address for server in servers), replicas=3)
    relay._fitting._broker = broker
    reference = await kept(broker)
    for number in range(20):
        await ask(relay, referring(number, reference))
    for script in scripts[:2]:
        assert all(not each.package.data for each in script.requests)
    assert all(each.package.data == LARGE for each in scripts[2].requests)
    ran = {each.package.id for script in scripts for each in script.requests}
    assert ran == set(range(20))


async def test_a_payload_that_is_gone_or_elsewhere_ends_its_package_only(calls: Calls) -> None:
    """With what is wrong."""
    broker = await connected()
    server = await calls.server(Recorded())
    relay = await calls.relay(server.address, broker=broker)
    gone = await kept(broker)
    await broker.object_delete(BUCKET, gone.object)
    with pytest.raises(PayloadGoneError):
        await ask(relay, referring(1, gone))
    with pytest.raises(MalformedPackageError):
        await ask(relay, referring(2, Reference(bucket="bp_payloads_other", object="o", size=9)))
    await ask(relay, referring(3, await kept(broker)))
    assert server.got == [3] and not relay._fitting.calls


async def test_without_a_bucket_it_is_said(calls: Calls) -> None:
    """A pipeline that was deployed before there were large payloads."""
    server = await calls.server(Recorded(), references=True, message_bytes_max=LIMIT)
    relay = await calls.relay(server.address, broker=MemoryServer().connect())
    with pytest.raises(PayloadTooLargeError, match="deploy"):
        await ask(relay, pb.DataPackage(id=1, pipeline="demo", data=LARGE))


@pytest.fixture
async def waiting(calls: Calls) -> Any:
    """A relay with a call whose payload cannot be loaded now, its broker, and the call."""
    broker = await connected(Away)
    server = await calls.server(Recorded())
    relay = await calls.relay(server.address, broker=broker)
    await is_ready(relay)
    room = relay.room
    package = referring(1, await kept(broker))
    calling = asyncio.create_task(ask(relay, package), name="call")
    assert isinstance(broker, Away)
    await until(lambda: broker.asked > 1)
    assert relay.room == room - 1, "it will need a place"
    return relay, broker, calling


async def test_a_broker_that_comes_back_goes_on(waiting: Any) -> None:
    """Nothing is lost meanwhile."""
    relay, broker, calling = waiting
    await call(relay, 2)  # others go on
    broker.back.set()
    assert (await calling).response.package == 1


async def test_a_call_that_waits_for_its_payload_can_be_withdrawn(waiting: Any) -> None:
    """No server has it."""
    relay, _, calling = waiting
    relay.withdraw()
    with pytest.raises(WithdrawnError):
        await calling
    assert not relay._fitting.calls and relay._fitting._room.bytes == 0


async def test_a_call_that_waits_for_its_payload_can_be_cancelled(waiting: Any) -> None:
    """And leaves nothing."""
    relay, _, calling = waiting
    calling.cancel()
    await asyncio.wait((calling,))
    assert not relay._fitting.calls and relay._fitting._room.bytes == 0
    await until(lambda: not any("fit" in task.get_name() for task in relay._tasks))


async def test_a_call_that_waits_for_its_payload_ends_with_the_relay(waiting: Any) -> None:
    """With an error; and no task stays."""
    relay, _, calling = waiting
    await relay.close()
    with pytest.raises(ModuleUnreachableError, match="as told"):
        await calling


async def test_a_call_that_waits_for_its_payload_keeps_its_deadline(calls: Calls) -> None:
    """The error says what was in vain."""
    broker = await connected(Away)
    server = await calls.server(Recorded())
    relay = await calls.relay(server.address, broker=broker)
    began = time.monotonic()
    with pytest.raises(ModuleUnreachableError, match="as told"):
        await ask(relay, referring(1, await kept(broker)), timeout_s=0.5)
    assert time.monotonic() - began < 5 and server.got == []


async def has_got(server: ScriptedServer, count: int) -> None:
    """Wait until so many packages have come to it."""
    await until(lambda: len(server.got) >= count)


async def test_only_so_much_is_loaded_at_once(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many packages wait for a server; each gets its turn."""
    monkeypatch.setattr(fitting, "LOADED_BYTES_MAX", 2 * len(LARGE))
    broker = await connected()
    server = await calls.server(silent)
    relay = await calls.relay(server.address, broker=broker)
    reference = await kept(broker)
    asking = [asyncio.create_task(ask(relay, referring(n, reference))) for n in range(6)]
    for done in range(6):
        await has_got(server, min(6, done + 2))
        assert len(server.got) == min(6, done + 2)
        assert relay._fitting._room.bytes <= 2 * len(LARGE)
        await server.sides[0].say(
            service.RunResponse(call=done + 1, package=server.got[done], status=pb.STATUS_SUCCESS)
        )
    assert len(await asyncio.gather(*asking)) == 6
    assert relay._fitting._room.bytes == 0


@pytest.mark.parametrize(
    "lie",
    [
        {"reference": Reference(bucket="bp_payloads_other", object="o", size=9)},
        {"reference": Reference(bucket=BUCKET, size=9)},
        {"reference": Reference(bucket=BUCKET, object="o", size=9), "data": b"and a payload"},
    ],
)
async def test_a_reference_that_cannot_be_is_a_lie(calls: Calls, lie: dict[str, Any]) -> None:
    """Nothing of another pipeline is read on a server's word; the server is left alone."""

    async def script(side: Side, request: service.RunRequest) -> None:
        await side.say(answer(request, payload=service.Payload(**lie)))

    server = await calls.server(script)
    relay = await calls.relay(server.address)
    with pytest.raises(ModuleServerError, match="it answers with"):
        await ask(relay, pb.DataPackage(id=1, pipeline="demo", data=b"x"))


async def test_a_reference_of_the_pipeline_is_believed(calls: Calls) -> None:
    """It comes back as it is."""
    reference = Reference(bucket=BUCKET, object="o", size=9)

    async def script(side: Side, request: service.RunRequest) -> None:
        await side.say(answer(request, payload=service.Payload(reference=reference)))

    server = await calls.server(script)
    relay = await calls.relay(server.address)
    found = await ask(relay, pb.DataPackage(id=1, pipeline="demo", data=b"x"))
    assert found.response.payload.reference == reference
