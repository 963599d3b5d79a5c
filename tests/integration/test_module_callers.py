"""Packages and servers that do as they should, and that come, go, refuse and hang."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.errors import (
    DeclarationError,
    ModuleMismatchError,
    ModuleServerError,
    ModuleTimeoutError,
    ModuleUnreachableError,
)
from broker_pipeline.external import endpoints, finding, registry
from broker_pipeline.external.links import StreamSession
from broker_pipeline.external.picking import Health
from broker_pipeline.external.port import WithdrawnError
from broker_pipeline.modules import Tls
from tests.contract.waiting import until
from tests.integration.calling import Calls, call, calls, in_s, is_ready, package, several
from tests.integration.scripted_server import ScriptedServer, Side, answer, echo, silent

__all__ = ["calls"]


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


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


def _fake(hosts: dict[str, list[str]]) -> finding.LookUp:
    async def lookup(name: str, port: int) -> list[str]:
        found = hosts[name]
        if not found:
            raise OSError("no such name")
        return found

    return lookup


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
        f"dns:///asr:{port}", lookup=_fake({"asr": ["127.0.0.1", "127.0.0.2"]})
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


@pytest.mark.parametrize("method", ["stream", "run"])
async def test_tls_on_both_sides_by_the_name_that_was_looked_up(
    calls: Calls, tmp_path: Path, method: str
) -> None:
    """A name's addresses are called, and the name is what the certificate must bear; without the
    caller's certificate nothing is said."""
    files = certificates(tmp_path)
    server = await calls.server(before=lambda s: setattr(s, "tls", files))
    server.run = lambda request, context: answer(request).SerializeToString()
    lookup = _fake({"gpu.example": ["127.0.0.1"]})
    ours = Tls(ca=files["ca.pem"], cert=files["us.pem"], key=files["us.key"])
    target = f"dns:///gpu.example:{server.port}"
    relay = await calls.relay(target, lookup=lookup, tls=ours, method=method)
    await call(relay, 1)
    for tls, other in ((Tls(ca=files["ca.pem"]), target), (ours, server.address)):
        relay = await calls.relay(other, lookup=lookup, tls=tls, method=method)
        with pytest.raises(ModuleUnreachableError):
            await call(relay, 2, timeout_s=0.4)
    named = replace(ours, server_name="gpu.example")
    relay = await calls.relay(server.address, tls=named, method=method)
    await call(relay, 3)
    assert server.got == [1, 3]


def certificates(folder: Path) -> dict[str, str]:
    """An authority, a server named gpu.example, and us."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl program is not here, which makes the certificates")

    def openssl(*arguments: str) -> None:
        command = ["openssl", *arguments]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=30)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj")
    openssl("req", "-x509", *key, "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2")
    (folder / "names").write_text("subjectAltName=DNS:gpu.example")
    for name in ("gpu", "us"):
        openssl("req", *key, f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-out", f"{name}.pem", "-days", "2", "-extfile", "names",
        )  # fmt: skip
    return {path.name: str(path) for path in folder.iterdir()}


async def test_closing_ends_what_is_outstanding(calls: Calls) -> None:
    """With an error that says whether it may have begun; later calls end at once."""
    server = await calls.server(silent, before=lambda s: setattr(s, "credit", 1))
    relay = await calls.relay(server.address)
    one, two = several(relay, range(2), timeout_s=None)
    await until(lambda: server.got)
    await relay.close()
    found = await asyncio.gather(one, two, return_exceptions=True)
    assert sorted(type(each).__name__ for each in found) == [
        "ModuleServerError", "ModuleUnreachableError",
    ]  # fmt: skip
    with pytest.raises(ModuleUnreachableError):
        await call(relay, 3)


@pytest.mark.parametrize("method", ["stream", "run"])
async def test_a_server_of_something_else_gets_nothing(
    calls: Calls, method: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said, and tried again now and then: somebody may mend it."""
    why = "has a state there"
    monkeypatch.setattr(endpoints, "REFUSED_RETRY_NS", 200_000_000)
    server = await calls.server(stateful=True)
    server.run = lambda request, context: answer(request).SerializeToString()
    relay = await calls.relay(server.address, method=method)
    with pytest.raises(ModuleMismatchError, match=why):
        await call(relay, 1, timeout_s=0.7)
    assert server.got == [] and caplog.text.count(why) == 1
    waiting = several(relay, range(2))
    await server.stop()
    server.description = service.Description(name="asr")
    await server.start()
    await asyncio.gather(*waiting)


async def test_a_server_at_an_address_may_call_its_module_what_it_likes(calls: Calls) -> None:
    """Only the registry goes by the names that servers give."""
    server = await calls.server(name="whisper-large")
    relay = await calls.relay(server.address)
    assert (await call(relay, 1)).server == server.description.server


async def test_a_package_of_a_content_type_that_is_not_taken_is_a_mismatch(calls: Calls) -> None:
    """Others are run."""
    server = await calls.server(content_types=["audio/pcm"])
    relay = await calls.relay(server.address)
    for each in ("audio/pcm", "audio/pcm; rate=8000", ""):
        await relay.call(package(1, content_type=each), state=None, deadline_ns=None)
    with pytest.raises(ModuleMismatchError, match="text/plain"):
        await relay.call(package(2, content_type="text/plain"), state=None, deadline_ns=None)


async def test_a_package_larger_than_the_server_takes_is_not_sent(calls: Calls) -> None:
    """The error names the sizes; the server is not at fault."""
    server = await calls.server(message_bytes_max=100_000)
    relay = await calls.relay(server.address)
    with pytest.raises(ModuleServerError, match="takes 100000"):
        await call(relay, 1, bytes(100_000))
    await call(relay, 2, bytes(90_000))
    assert server.got == [2] and relay._standings[0].health is Health.GOOD


async def test_a_server_without_streams_is_called_one_by_one(calls: Calls) -> None:
    """Without a word from anybody, and without Describe too."""
    server = await calls.server(before=lambda s: setattr(s, "streams", False))
    server.run = lambda request, context: answer(request).SerializeToString()
    relay = await calls.relay(server.address)
    found = await asyncio.gather(*several(relay, range(100)))
    assert len(found) == 100 and sorted(server.got) == list(range(100))


async def test_all_addresses_of_a_name_are_used(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they come and go, IPv6 too; while the name cannot be looked up they stay."""
    monkeypatch.setattr(finding, "RESOLVE_S", 0.06)
    monkeypatch.setattr(finding, "RESOLVE_MIN_S", 0.05)
    port = free_port()
    by_host = {}
    for host in ("127.0.0.1", "127.0.0.2", "::1"):
        by_host[host] = ScriptedServer(server=host)
        shown = f"[{host}]" if ":" in host else host
        calls.servers.append(await by_host[host].start(port, shown))
    hosts = {"asr": ["127.0.0.1", "::1", "127.0.0.1"]}
    relay = await calls.relay(f"dns:///asr:{port}", lookup=_fake(hosts))

    async def servers(numbers: range) -> set[str]:
        return {got.server for got in await asyncio.gather(*several(relay, numbers))}

    await until(lambda: len(relay._standings) == 2 and all(s.credit for s in relay._standings))
    assert await servers(range(60)) == {"127.0.0.1", "::1"}
    hosts["asr"] = ["127.0.0.2", "::1"]
    now = [f"ipv6:[::1]:{port}", f"ipv4:127.0.0.2:{port}"]
    await until(lambda: [each.place.target for each in relay._endpoints.values()] == now)
    await until(lambda: all(s.credit for s in relay._standings))
    assert await servers(range(60)) == {"127.0.0.2", "::1"}
    await until(lambda: not relay._leaving)
    hosts["asr"] = []
    await call(relay, 1)
    assert len(relay._standings) == 2


async def test_streams_to_one_address_are_connections_of_their_own(calls: Calls) -> None:
    """So that a proxy may spread them."""
    server = await calls.server()
    relay = await calls.relay(server.address, streams=3)
    await until(lambda: len(server.sides) == 3)
    peers = {side.context.peer() for side in server.sides}
    assert len(peers) == 3
    await asyncio.gather(*several(relay, range(30)))


async def test_replicas_race_and_the_first_answer_wins(calls: Calls) -> None:
    """The other is cancelled; a failed one matters only when all have failed."""
    port = free_port()
    slow, fast = ScriptedServer(silent, server="slow"), ScriptedServer(server="fast")
    calls.servers += [await slow.start(port), await fast.start(port, "127.0.0.2")]
    hosts = {"asr": ["127.0.0.1", "127.0.0.2"]}
    relay = await calls.relay(f"dns:///asr:{port}", lookup=_fake(hosts), replicas=2)
    await until(lambda: len(relay._standings) == 2 and all(s.credit for s in relay._standings))
    found = await asyncio.gather(*several(relay, range(3)))
    assert {got.server for got in found} == {"fast"}
    await until(lambda: len(slow.cancelled) == 3)
    assert sorted(slow.got) == sorted(fast.got) == [0, 1, 2]
    assert [s.outstanding for s in relay._standings] == [0, 0]
    fast.script = silent
    both = several(relay, range(9, 10))
    await until(lambda: slow.got[-1] == fast.got[-1] == 9)
    await slow.stop()
    await until(lambda: sum(s.outstanding for s in relay._standings) == 1)
    assert not both[0].done()
    await fast.stop()
    with pytest.raises(ModuleServerError):
        await both[0]


async def test_servers_of_the_registry_come_and_go(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fifth has its share within two seconds; one that withdraws gets nothing more, and what it
    has is finished."""
    from broker_pipeline.broker.memory import MemoryServer

    broker = MemoryServer().connect()
    announcers = {}

    async def announced(name: str = "asr") -> ScriptedServer:
        server = await calls.server(name=name)
        one = registry.Announcer(
            broker, service.Description(name="asr", server=server.description.server),
            server.address, service.Load,
        )  # fmt: skip
        await one.start()
        announcers[server] = one
        return server

    first = [await announced() for _ in range(4)]
    relay = await calls.relay("registry:///asr", name="declared", broker=broker)
    await until(lambda: len(relay._standings) == 4 and all(s.credit for s in relay._standings))
    loop = asyncio.get_running_loop()
    began = loop.time()
    fifth, wrong = await announced(), await announced("ocr")
    number = 0
    while len(fifth.got) < 20:
        await asyncio.gather(*several(relay, range(number, number + 20)))
        number += 20
    assert loop.time() - began < 2.0
    assert wrong.got == [] and all(each.got for each in first)
    held: list[tuple[Side, service.RunRequest]] = []

    async def hold(side: Side, request: service.RunRequest) -> None:
        held.append((side, request))

    fifth.script = hold
    while not held:
        last = several(relay, range(number, number + 20))
        await asyncio.wait(last, timeout=0.2)
        number += 20
    await announcers[fifth].withdraw()
    await until(lambda: len(relay._standings) == 5)
    count = len(held)
    await asyncio.gather(*several(relay, range(number, number + 20)))
    assert len(held) == count
    for side, request in held:
        await side.say(answer(request))
    await until(lambda: not relay._leaving)
    for each in announcers.values():
        await each.withdraw()


async def test_a_target_that_cannot_work_is_refused_at_the_start(calls: Calls) -> None:
    """Before any package comes."""
    for target in ("asr", "http://asr:1", "registry:///asr"):
        with pytest.raises(DeclarationError, match="target"):
            await calls.relay(target)


async def test_plaintext_to_another_machine_is_said_once(
    calls: Calls, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loudly, for each address, however many call it; for a bounded number of them."""
    monkeypatch.setattr(finding, "_warned", set())
    monkeypatch.setattr(finding, "WARNED_MAX", 2)
    hosts = {"asr": ["192.0.2.1", "192.0.2.2", "192.0.2.3", "127.0.0.1"]}
    for number in (1, 2):
        relay = await calls.relay("dns:///asr:1", lookup=_fake(hosts))
        await until(lambda relay=relay: relay._endpoints)
        assert caplog.text.count("PLAINTEXT") == 2, number


async def test_a_token_is_not_sent_where_the_registry_says_without_tls(
    calls: Calls, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may write to the broker does not learn it; the others are used, and it is said once."""
    from broker_pipeline.broker.memory import MemoryServer

    monkeypatch.setattr(registry, "ANNOUNCE_S", 0.02)
    monkeypatch.setattr(registry, "LOOK_S", 0.01)
    broker = MemoryServer().connect()
    server = await calls.server()

    async def announced(address: str) -> None:
        what = service.Description(name="asr")
        calls.announcers.append(registry.Announcer(broker, what, address, service.Load))
        await calls.announcers[-1].start()

    await announced("192.0.2.1:1")
    relay = await calls.relay("registry:///asr", broker=broker, token="secret")
    await until(lambda: "is left out: it has no TLS, and the token" in caplog.text)
    await announced(server.address)
    await until(lambda: relay.servers)
    assert [each.place.address for each in relay._endpoints.values()] == [server.address]
    assert caplog.text.count("is left out") == 1
    open_to_all = await calls.relay("registry:///asr", broker=broker)
    await until(lambda: len(open_to_all._endpoints) == 2)
