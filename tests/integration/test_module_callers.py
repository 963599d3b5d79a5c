"""Packages and servers that do as they should, and that come, go, refuse and hang."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.errors import (
    ModuleServerError,
    ModuleTimeoutError,
    ModuleUnreachableError,
)
from broker_pipeline.external.links import StreamSession
from broker_pipeline.external.picking import Health
from broker_pipeline.external.port import WithdrawnError
from tests.contract.waiting import until
from tests.integration.calling import Calls, call, calls, in_s, is_ready, package, several
from tests.integration.names_and_ports import fake_lookup, free_port
from tests.integration.scripted_server import ScriptedServer, Side, answer, echo, silent

__all__ = ["calls"]


@pytest.mark.parametrize("method", ["stream", "run"])
async def test_a_package_comes_back_as_the_server_answered(calls: Calls, method: str) -> None:
    """With the server's name and times; it was sent as it was, with what is left of its time."""
    seen: list[service.RunRequest] = []

    async def script(side: Side, request: service.RunRequest) -> None:
        seen.append(request)
        await echo(side, request)

    def run(request: service.RunRequest, context: Any) -> bytes:
        seen.append(request)
        return answer(request, payload=service.Payload(data=b"data")).SerializeToString()

    server = await calls.server(script)
    server.run = run
    relay = await calls.relay(server.address, method=method, token="secret")
    envelope = package(7, instance="a", attributes={"k": "v"}, content_type="audio/pcm")
    got = await relay.call(envelope, state=None, deadline_ns=in_s(10))
    assert got.response.payload.data == b"data" and got.server == "s0"
    assert 0 < got.sent_ns <= got.received_ns
    assert seen[0].package == envelope and 8e9 < seen[0].timeout_ns <= 10e9
    assert not seen[0].HasField("state")
    assert server.metadata["authorization"] == "Bearer secret"
    await relay.call(envelope, state=None, deadline_ns=None)
    assert seen[1].timeout_ns == 0
    assert len(server.sides) == (method == "stream")


@pytest.mark.parametrize("method", ["stream", "run"])
async def test_a_state_comes_and_goes(calls: Calls, method: str) -> None:
    """Also an empty one, which is not the beginning."""

    def answered(request: service.RunRequest) -> Any:
        has = request.HasField("state")
        return answer(request, state=request.state + b"+" if has else b"")

    async def script(side: Side, request: service.RunRequest) -> None:
        await side.say(answered(request))

    server = await calls.server(script, stateful=True)
    server.run = lambda request, context: answered(request).SerializeToString()
    relay = await calls.relay(server.address, method=method, stateful=True)
    states = [None, b"", b"x"]
    found = [(await call(relay, n, state=state)).response.state for n, state in enumerate(states)]
    assert found == [b"", b"+", b"x+"]


async def test_packages_of_one_turn_go_out_in_one_message(calls: Calls) -> None:
    """Up to a megabyte; a message that is larger than that goes alone."""
    server = await calls.server(credit=200)
    relay = await calls.relay(server.address)
    await is_ready(relay, 4)
    await call(relay, 0)
    server.messages.clear()
    await asyncio.gather(*several(relay, range(1, 100)))
    assert len(server.messages) <= 3 and sum(server.messages) == 99
    server.messages.clear()
    await asyncio.gather(*several(relay, range(100, 110), data=bytes(400_000)))
    assert max(server.messages) == 2 and sum(server.messages) == 10


async def test_nothing_is_sent_without_credit(calls: Calls) -> None:
    """What does not fit waits, in order, until the server grants more."""
    server = await calls.server(silent, before=lambda s: setattr(s, "credit", 0))
    relay = await calls.relay(server.address)
    waiting = several(relay, range(10))
    await until(lambda: server.sides)
    assert relay.room == 0 and server.got == []
    await server.sides[0].say(credit=3)
    await until(lambda: len(server.got) == 3)
    assert relay.room == 0
    server.script = echo
    await server.sides[0].say(
        answer(service.RunRequest(call=2, package=package(1))), credit=4,
    )  # fmt: skip
    await until(lambda: len(server.got) == 10)
    assert server.got == list(range(10))
    assert sum(each.done() for each in waiting) >= 1 and calls.rooms > 0
    for each in waiting:
        each.cancel()
    await asyncio.wait(waiting)
    assert relay._standings[0].outstanding == 0


@pytest.mark.parametrize("method", ["stream", "run"])
async def test_without_a_server_a_package_waits(calls: Calls, method: str) -> None:
    """Until one comes; with a deadline no longer than that, and the error says what was tried."""
    server = ScriptedServer()
    server.run = lambda request, context: answer(request).SerializeToString()
    server.port = free_port()
    relay = await calls.relay(server.address, method=method)
    patient = several(relay, range(3))
    assert relay.room == 0
    with pytest.raises(ModuleUnreachableError, match=server.address):
        await call(relay, 9, timeout_s=0.3)
    calls.servers.append(await server.start())
    assert [got.response.status for got in await asyncio.gather(*patient)] == [4] * 3
    assert sorted(server.got) == [0, 1, 2]


async def test_a_server_that_comes_back_is_used_again(calls: Calls) -> None:
    """With nobody's help; what waited meanwhile is run."""
    server = await calls.server()
    relay = await calls.relay(server.address)
    for round_ in range(3):
        await call(relay, round_)
        await server.stop()
        await until(lambda: relay.room == 0)
        waiting = several(relay, range(10, 15))
        await server.start()
        await asyncio.gather(*waiting)
    assert relay._standings[0].health is Health.GOOD


@pytest.mark.parametrize("idempotent", [False, True])
async def test_a_server_that_closes_in_the_middle(calls: Calls, idempotent: bool) -> None:
    """A package that may be repeated is run again; one that may not is ERROR, and names it."""
    bad = await calls.server(silent)
    relay = await calls.relay(bad.address, idempotent=idempotent)
    waiting = several(relay, range(3))
    await until(lambda: len(bad.got) == 3)
    await bad.stop()
    if idempotent:
        bad.script = echo
        await bad.start()
        await asyncio.gather(*waiting)
        assert sorted(bad.got) == [0, 0, 1, 1, 2, 2]
    else:
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(each, ModuleServerError) for each in found)
        assert "s0" in str(found[0]) and "idempotent" in str(found[0])


async def test_waiting_answers_are_taken_elsewhere(calls: Calls) -> None:
    """They have not begun: also what may not be repeated. The one that refuses gets less."""

    async def refuse(side: Side, request: service.RunRequest) -> None:
        await side.say(answer(request, pb.STATUS_WAITING))

    port = free_port()
    one = ScriptedServer(refuse, server="refuses")
    two = ScriptedServer(server="takes")
    for server, host in ((one, "127.0.0.1"), (two, "127.0.0.2")):
        calls.servers.append(await server.start(port, host))
    relay = await calls.relay(
        f"dns:///asr:{port}", lookup=fake_lookup({"asr": ["127.0.0.1", "127.0.0.2"]})
    )
    await until(lambda: all(each.credit for each in relay._standings) and relay.room > 4)
    found = await asyncio.gather(*several(relay, range(50)))
    assert {got.server for got in found} == {"takes"}
    assert one.got and sorted(two.got) == list(range(50))


async def test_a_server_that_always_refuses_is_asked_seldom(calls: Calls) -> None:
    """And when it takes packages they are run."""

    async def refuse(side: Side, request: service.RunRequest) -> None:
        await side.say(answer(request, pb.STATUS_WAITING))

    server = await calls.server(refuse)
    relay = await calls.relay(server.address)
    with pytest.raises(ModuleUnreachableError):
        await call(relay, 1, timeout_s=1.0)
    assert 1 <= len(server.got) < 12
    waiting = several(relay, range(2, 5))
    server.script = echo
    await asyncio.gather(*waiting)


@pytest.mark.parametrize("method", ["stream", "run"])
async def test_a_deadline_that_passes_at_a_server(calls: Calls, method: str) -> None:
    """Is a timeout; the server is told that nobody waits, and may answer all the same."""
    server = await calls.server(silent)
    late: list[service.RunRequest] = []

    async def keep(side: Side, request: service.RunRequest) -> None:
        late.append(request)

    async def never(request: service.RunRequest, context: Any) -> bytes:
        await asyncio.Event().wait()
        return b""

    server.script, server.run = keep, never
    relay = await calls.relay(server.address, method=method)
    with pytest.raises(ModuleTimeoutError, match="s0"):
        await call(relay, 1, timeout_s=0.3)
    assert relay._standings[0].outstanding == 0
    if method == "stream":
        await until(lambda: server.cancelled == [1])
        server.script = echo
        await server.sides[0].say(answer(late[0]))
        await call(relay, 2)
        assert len(server.sides) == 1


@pytest.mark.parametrize("method", ["stream", "run"])
async def test_a_cancelled_call_leaves_nothing_behind(calls: Calls, method: str) -> None:
    """At the server or waiting."""
    server = await calls.server(silent, before=lambda s: setattr(s, "credit", 2))

    async def never(request: service.RunRequest, context: Any) -> bytes:
        await asyncio.Event().wait()
        return b""

    server.run = never
    relay = await calls.relay(server.address, method=method)
    some = several(relay, range(5))
    await until(lambda: len(server.got) >= 2)
    for each in some:
        each.cancel()
    await asyncio.wait(some)
    assert all(each.cancelled() for each in some)
    assert not relay._calls and not relay._waiting
    assert relay._standings[0].outstanding == 0
    if method == "stream":
        await until(lambda: sorted(server.cancelled) == [1, 2])


async def test_what_waits_can_be_withdrawn(calls: Calls) -> None:
    """What a server has goes on; what waits, comes later or is given back ends at once."""

    async def some(side: Side, request: service.RunRequest) -> None:
        if request.package.id == 0:
            await side.say(answer(request, pb.STATUS_WAITING))

    server = await calls.server(some, before=lambda s: setattr(s, "credit", 2))
    relay = await calls.relay(server.address)
    await until(lambda: relay.servers)
    one = several(relay, range(1, 2))
    await until(lambda: len(server.got) == 1)
    zero, *others = [*several(relay, range(1)), *several(relay, range(2, 4))]
    await until(lambda: len(server.got) >= 2)
    relay.withdraw()
    found = await asyncio.gather(zero, call(relay, 4), *others, return_exceptions=True)
    assert {type(each) for each in found} == {WithdrawnError}
    assert not one[0].done()
    await server.sides[0].say(answer(service.RunRequest(call=1, package=package(1))))
    await one[0]


async def test_servers_are_counted_that_could_be_given_packages(calls: Calls) -> None:
    """Busy ones too, and none that is ejected."""
    server = await calls.server(silent, before=lambda s: setattr(s, "credit", 1))
    relay = await calls.relay(server.address)
    assert relay.servers == 0
    await until(lambda: relay.servers == 1)
    one = several(relay, range(1))
    await until(lambda: server.got)
    assert (relay.servers, relay.room) == (1, 0)
    await server.stop()
    await asyncio.wait(one)
    await until(lambda: relay.servers == 0)


async def test_who_was_away_himself_takes_nobody_for_silent(calls: Calls) -> None:
    """A process that was stopped hears what was said meanwhile before it judges."""
    server = await calls.server(silent, heartbeat_ns=1_000_000_000)
    relay = await calls.relay(server.address, idempotent=True)
    await until(lambda: relay.servers)
    one = several(relay, range(1))
    await until(lambda: server.got)
    endpoint = next(iter(relay._endpoints.values()))
    session = endpoint._session
    assert isinstance(session, StreamSession)
    session._heard_ns -= 100_000_000_000
    endpoint.check(time.monotonic_ns(), late=True)
    assert endpoint.standing.ejections == 0
    session._heard_ns -= 100_000_000_000
    endpoint.check(time.monotonic_ns(), late=False)
    assert endpoint.standing.ejections == 1
    one[0].cancel()
    await asyncio.wait(one)
