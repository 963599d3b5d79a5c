"""Which module servers a caller talks to: addresses, names, the registry, TLS; which not."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.errors import (
    DeclarationError,
    ModuleMismatchError,
    ModuleServerError,
    ModuleUnreachableError,
)
from broker_pipeline.external import endpoints, finding, registry
from broker_pipeline.external.picking import Health
from broker_pipeline.modules import Tls
from tests.contract.waiting import until
from tests.integration.calling import Calls, call, calls, package, several
from tests.integration.names_and_ports import fake_lookup, free_port
from tests.integration.scripted_server import ScriptedServer, Side, answer, silent

__all__ = ["calls"]


@pytest.mark.parametrize("method", ["stream", "run"])
async def test_tls_on_both_sides_by_the_name_that_was_looked_up(
    calls: Calls, tmp_path: Path, method: str
) -> None:
    """A name's addresses are called, and the name is what the certificate must bear; without the
    caller's certificate nothing is said."""
    files = certificates(tmp_path)
    server = await calls.server(before=lambda s: setattr(s, "tls", files))
    server.run = lambda request, context: answer(request).SerializeToString()
    lookup = fake_lookup({"gpu.example": ["127.0.0.1"]})
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
    relay = await calls.relay(f"dns:///asr:{port}", lookup=fake_lookup(hosts))

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
    relay = await calls.relay(f"dns:///asr:{port}", lookup=fake_lookup(hosts), replicas=2)
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
        relay = await calls.relay("dns:///asr:1", lookup=fake_lookup(hosts))
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
