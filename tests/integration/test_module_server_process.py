"""`broker-pipeline serve`: real processes, signals, ports, certificates and announcements."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from broker_pipeline import Tls, connect, serve
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.errors import ServeError
from broker_pipeline.external.credentials import channel_credentials, token_metadata
from broker_pipeline.external.registry import Watch
from broker_pipeline.runtime.addresses import advertised
from broker_pipeline.runtime.module_server import Serving, plan_servers
from tests.integration.processes import Role, until
from tests.integration.served_modules import (
    ERROR,
    SUCCESS,
    WAITING,
    Calls,
    Gate,
    Words,
    calling,
    request,
    served,
    watched,
)
from tests.integration.test_supervisor import alive, children_of, command_of

pytestmark = pytest.mark.timeout(90)

WORDS = "tests.integration.served_modules:Words"
SLOW = "tests.integration.served_modules:FileGate"
READY = "is ready: "


def address_of(line: str) -> str:
    """From a line that says that a server is ready."""
    return line.rpartition(READY)[2]


async def started(*arguments: str, **environment: str) -> tuple[Role, str]:
    """A server process on a free port, and its address."""
    role = await Role.start("serve", *arguments, "--port", "0", **environment)
    await role.said(READY)
    return role, address_of(role.lines[-1])


async def status_of(calls: Calls) -> int:
    """The health."""
    answer = await health_pb2_grpc.HealthStub(calls.channel).Check(health_pb2.HealthCheckRequest())
    return int(answer.status)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains(tmp_path: Path, number: signal.Signals) -> None:
    """NOT_SERVING, credit 0, what runs is answered, what waits and what still comes is WAITING, the
    stream ends with OK, exit code 0."""
    role, address = await started(SLOW, "--slots", "1", GATE=str(tmp_path / "gate"))
    try:
        async with calling(address) as calls:
            stream = await calls.stream()
            assert role.lines == [f"module server of 'FileGate' is ready: {address}"]
            await stream.send(request(1, b"runs"))
            await until((tmp_path / "gate.begun").exists, "it runs")
            queued = asyncio.create_task(calls.run(request(0, b"queued")))
            await until(lambda: stream.messages[-1].load.waiting == 1, "another one waits")
            role.send(number)
            assert (await queued).status == WAITING
            await until(lambda: stream.credit == 0, "nothing more is granted")
            assert await status_of(calls) == health_pb2.HealthCheckResponse.NOT_SERVING
            await stream.send(request(2, b"too late"))
            assert (await stream.answered(2))[0].status == WAITING
            late = await calls.stream()
            assert late.credit == 0, "who comes now learns at once"
            (tmp_path / "gate").touch()
            assert (await stream.answered(1))[0].status == SUCCESS
            assert await stream.ended() is grpc.StatusCode.OK
        assert await role.ended() == 0
    finally:
        await role.end()


async def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    """With the signal's usual exit code, whatever runs."""
    role, address = await started(SLOW, GATE=str(tmp_path / "gate"))
    try:
        async with calling(address) as calls:
            stream = await calls.stream()
            await stream.send(request(1, b"runs"))
            await until((tmp_path / "gate.begun").exists, "it runs")
            role.send(signal.SIGTERM)
            await until(lambda: stream.credit == 0, "it drains")
            role.send(signal.SIGTERM)
            assert await role.ended() == 128 + signal.SIGTERM
    finally:
        await role.end()


async def test_what_cannot_begin_ends_with_one_line_and_code_2(tmp_path: Path) -> None:
    """A port that is taken, a TARGET that is none, files that are missing: what, and what to do."""
    token = tmp_path / "token"
    token.write_text("two words")
    async with serve(Words()) as server:
        port = server.address.rpartition(":")[2]
        for arguments, said in [
            ((WORDS, "--port", port), "BP513"),
            ((WORDS, "--host", "192.0.2.1"), "BP513"),
            ((WORDS, "--port", "65535", "--workers", "2"), "BP513"),
            (("tests.integration.served_modules:request",), "BP202"),
            (("tests.integration.served_modules:SUCCESS",), "BP202"),
            (("tests.integration.served_modules:Missing",), "'Words'"),
            ((WORDS, "--port", "0", "--tls-cert", "no.pem", "--tls-key", "no.pem"), "BP514"),
            ((WORDS, "--port", "0", "--client-ca", "no.pem"), "BP514"),
            ((WORDS, "--port", "0", "--token-file", str(token)), "BP514"),
        ]:
            role = await Role.start("serve", *arguments, errors=asyncio.subprocess.STDOUT)
            try:
                assert await role.ended() == 2, (arguments, role.lines)
                assert len(role.lines) == 1 and said in role.lines[0], role.lines
            finally:
                await role.end()


def two_ports() -> int:
    """Two free ports, one after the other, below those that the kernel gives away."""
    for port in range(20_000 + os.getpid() % 5_000, 32_000, 2):
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError):
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 1))
            return port
    raise AssertionError("no two ports are free")


async def test_several_processes_have_ports_one_after_the_other() -> None:
    """One that is killed is started again at its port; SIGTERM ends all with code 0."""
    port = two_ports()
    role = await Role.start("serve", WORDS, "--workers", "2", "--port", str(port))
    try:
        await until(lambda: "ready" in role.lines or role.process.returncode is not None, "ready")
        addresses = {address_of(line) for line in role.lines if READY in line}
        assert addresses == {f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"}
        pids = children_of(role.process.pid)
        (second,) = [pid for pid in pids if f"\0{port + 1}\0".encode() in command_of(pid) + b"\0"]
        os.kill(second, signal.SIGKILL)
        await role.said("ended (SIGKILL)")
        await until(lambda: sum(READY in line for line in role.lines) == 3, "there again")
        async with calling(f"127.0.0.1:{port + 1}") as calls:
            assert (await calls.run(request(0, b"upper a"))).payload.data == b"A"
        role.send(signal.SIGTERM)
        assert await role.ended() == 0
        await until(lambda: not alive(pids | children_of(role.process.pid)), "all have ended")
    finally:
        await role.end()


async def test_no_server_outlives_a_killed_parent() -> None:
    """Several on free ports are all announced; SIGKILL for their parent: they drain and end."""
    async with EmbeddedServer() as nats, connect(nats.url) as client:
        watch, seen = await watched(client, "Words")
        role = await Role.start(
            "serve", WORDS, "--port", "0", "--workers", "2", "--announce", nats.url
        )
        try:
            await until(lambda: len(seen) == 2, "both are announced")
            pids = children_of(role.process.pid)
            assert len(pids) >= 2
            found = {each.address for each in seen.values()}
            assert found == {address_of(line) for line in role.lines if READY in line}
        finally:
            await role.end()
        await until(lambda: not seen, "they are withdrawn")
        await until(lambda: not alive(pids), "they have ended")
        await watch.close()


async def test_plaintext_on_all_addresses_is_said_loudly() -> None:
    """On standard error, before it is ready; nothing of the kind on loopback."""
    for host, loud in (("0.0.0.0", True), ("127.0.0.1", False)):
        role = await Role.start(
            "serve", WORDS, "--host", host, "--port", "0", errors=asyncio.subprocess.STDOUT
        )
        try:
            await role.said(READY)
            assert ("PLAINTEXT" in role.lines[0]) is loud
            role.send(signal.SIGTERM)
            assert await role.ended() == 0
        finally:
            await role.end()


async def test_a_token_must_be_shown(tmp_path: Path) -> None:
    """UNAUTHENTICATED for none, a wrong one and two; the health may be asked by anybody."""
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    role, address = await started(WORDS, "--token-file", str(file))
    try:
        async with calling(address) as calls:
            assert await status_of(calls) == health_pb2.HealthCheckResponse.SERVING
            right = token_metadata("s3cret")
            wrong = [(), token_metadata("secret"), right + right, (("authorization", "s3cret"),)]
            for metadata in wrong:
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await calls.run(request(0, b"upper a"), metadata=metadata)
                assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await calls.stub.Stream(metadata=metadata).read()
                assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
            answer = await calls.run(request(0, b"upper a"), metadata=right)
            assert answer.payload.data == b"A"
            assert (await calls.stream(metadata=right)).credit >= 1
    finally:
        await role.end()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca, server and client: each NAME.pem and NAME.key; and `other`, of another authority."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl program is not here, which makes the certificates")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        command = ["openssl", *arguments]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=30)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ca", "other"):
        openssl(
            "req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2",
            "-subj", f"/CN={name}",
        )  # fmt: skip
    (folder / "names").write_text("subjectAltName=DNS:gpu.example,IP:127.0.0.1")
    for name in ("server", "client"):
        openssl(
            "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-out", f"{name}.pem", "-days", "2", "-extfile", "names",
        )  # fmt: skip
    return folder


async def test_tls_hides_what_is_said(certificates: Path) -> None:
    """With the authority of its certificate a server is believed, without it is not."""
    files = {name: str(certificates / name) for name in os.listdir(certificates)}
    role, address = await started(
        WORDS, "--tls-cert", files["server.pem"], "--tls-key", files["server.key"]
    )
    try:
        trusting = channel_credentials(Tls(ca=files["ca.pem"]))
        async with calling(address, trusting) as calls:
            assert (await calls.run(request(0, b"upper a"))).payload.data == b"A"
            assert (await calls.stream()).credit >= 1
        for credentials in (channel_credentials(Tls(ca=files["other.pem"])), None):
            async with calling(address, credentials) as calls:
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await calls.run(request(0, b"upper a"), timeout=10)
                assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        await role.end()


async def test_mutual_tls_lets_in_who_has_a_certificate(certificates: Path) -> None:
    """Of the authority that the server was given; nobody else."""
    files = {name: str(certificates / name) for name in os.listdir(certificates)}
    options = {
        "cert": files["server.pem"],
        "key": files["server.key"],
        "client_ca": files["ca.pem"],
    }
    ours = Tls(files["ca.pem"], files["client.pem"], files["client.key"])
    stranger = Tls(files["ca.pem"], files["other.pem"], files["other.key"])
    async with serve(Words(), **options) as server:
        async with calling(server.address, channel_credentials(ours)) as calls:
            assert (await calls.run(request(0, b"upper a"))).payload.data == b"A"
        for tls in (stranger, Tls(ca=files["ca.pem"])):
            async with calling(server.address, channel_credentials(tls)) as calls:
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await calls.run(request(0, b"upper a"), timeout=10)
                assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_server_is_found_until_it_drains(tmp_path: Path) -> None:
    """The announcement goes before what runs is done."""
    async with EmbeddedServer() as nats, connect(nats.url) as client:
        watch, seen = await watched(client, "gate")
        role, address = await started(
            SLOW, "--name", "gate", "--announce", nats.url, "--advertise", "gpu-1",
            GATE=str(tmp_path / "gate"),
        )  # fmt: skip
        try:
            await until(lambda: seen, "it is announced")
            (found,) = seen.values()
            port = address.rpartition(":")[2]
            assert (found.name, found.address) == ("gate", f"gpu-1:{port}")
            async with calling(address) as calls:
                stream = await calls.stream()
                await stream.send(request(1, b"runs"))
                await until((tmp_path / "gate.begun").exists, "it runs")
                role.send(signal.SIGTERM)
                await until(lambda: not seen, "it is withdrawn")
                assert not stream.answers
                (tmp_path / "gate").touch()
                assert (await stream.answered(1))[0].status == SUCCESS
            assert await role.ended() == 0
        finally:
            await role.end()
            await watch.close()


async def test_a_server_serves_without_its_broker() -> None:
    """It starts while none is there, is found when one comes, and serves on when it goes."""
    async with EmbeddedServer() as nats:
        url = nats.url
    port = int(url.rpartition(":")[2])
    async with served(Words(), announce=url) as (_, calls):
        assert (await calls.run(request(0, b"upper a"))).status == SUCCESS
        async with EmbeddedServer(port) as nats, connect(nats.url) as client:
            seen: list[object] = []
            watch = Watch(client.broker, "Words", lambda servers: seen.append(servers))
            await watch.start()
            await until(lambda: seen and seen[-1], "it is announced")
            await watch.close()
        assert (await calls.run(request(0, b"upper a"))).status == SUCCESS


async def test_a_server_that_has_lost_its_slots_begins_anew() -> None:
    """Modules that do not come back after their timeouts hold slots; a new process has them all."""
    role, address = await started("tests.integration.served_modules:stuck", "--slots", "1")
    try:
        async with calling(address) as calls:
            assert (await calls.run(request(0, b"a"))).status == ERROR
        await until(lambda: sum(READY in line for line in role.lines) == 2, "another process")
        async with calling(address_of(role.lines[-1])) as calls:
            assert (await calls.stub.Describe(service.DescribeRequest())).description.capacity == 1
        role.send(signal.SIGTERM)
        assert await role.ended() == 0
    finally:
        await role.end()


async def test_servers_in_code_end_when_their_context_does() -> None:
    """What runs is finished first; then nothing listens any more."""
    gate = Gate()
    async with serve(gate, slots=1) as server, calling(server.address) as calls:
        stream = await calls.stream()
        await stream.send(request(1))
        await until(lambda: gate.begun, "it runs")
        asyncio.get_running_loop().call_soon(gate.open.set)
    with pytest.raises(grpc.aio.AioRpcError):
        async with calling(server.address) as calls:
            await calls.run(request(0))


def test_what_is_announced_can_be_reached() -> None:
    """The address as it was said, or the one that it listens at; a wildcard is none."""
    assert advertised("127.0.0.1", 5, None) == "127.0.0.1:5"
    assert advertised("::1", 5, None) == "[::1]:5"
    assert advertised("0.0.0.0", 5, "gpu-1:7") == "gpu-1:7"
    assert advertised("0.0.0.0", 5, "gpu-1") == "gpu-1:5"
    assert "0.0.0.0" not in advertised("0.0.0.0", 5, None)
    with pytest.raises(ServeError, match="advertise"):
        advertised("0.0.0.0", 5, "gpu-1:http")


def test_every_process_has_its_own_port_and_address() -> None:
    """Free ports stay free; all else is the same."""
    options = Serving(
        port=7000, slots=2, target="a:B", advertise="gpu:80", token="t", pipelines=["p", "q"]
    )
    first, second = plan_servers(options, 2, "token.txt")
    assert first.arguments[:2] == ("serve", "a:B")
    assert second.arguments[-4:] == ("--port", "7001", "--advertise", "gpu:81")
    assert second.arguments[6:8] == ("--token-file", "token.txt")
    assert second.arguments[8:12] == ("--pipeline", "p", "--pipeline", "q")
    (only,) = plan_servers(Serving(port=0, target="a:B"), 1, None)
    assert only.arguments[-2:] == ("--port", "0")
