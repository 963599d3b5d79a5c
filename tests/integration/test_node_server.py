"""The module server in Node.js, built as its README says, driven by the generated Python stub."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from broker_pipeline import DataPackage, connect
from broker_pipeline._proto.v1 import data_package_pb2 as packages
from broker_pipeline._proto.v1 import module_service_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2_grpc as stubs
from broker_pipeline.broker.embedded import EmbeddedServer
from examples.node_server.pipeline import pipeline
from tests.integration.processes import Role

ROOT = Path(__file__).parents[2]
TARGET = "examples.node_server.pipeline:pipeline"
SOURCE = ROOT / "examples" / "node_server"
BOUND_S = 30.0
INSTALL_BOUND_S = 90.0
PACKAGES = 3_000
PAYLOADS = (b"so many words", b" ", b"\xff")
ENDS = (
    ("SUCCESS", b"SO MANY WORDS", "3 words"),
    ("EXIT", b" ", "there are no words in it"),
    ("ERROR", b"\xff", "TypeError"),
)
NODE, NPM = shutil.which("node"), shutil.which("npm")

pytestmark = pytest.mark.skipif(
    NODE is None or NPM is None, reason="node and npm are needed, and are not both on the path"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with its packages installed."""
    assert NPM is not None
    folder = tmp_path_factory.mktemp("node") / "server"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("node_modules", "*.py"))
    try:
        done = subprocess.run(
            [NPM, "install", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=INSTALL_BOUND_S,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm install took more than {INSTALL_BOUND_S} s: is there a registry?")
    if done.returncode != 0 and "EINTEGRITY" not in done.stderr and "network" in done.stderr:
        pytest.skip(f"npm install found no registry: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    return folder


class Node:
    """`node server.js` as a process."""

    def __init__(self, folder: Path, address: str = "127.0.0.1:0") -> None:
        assert NODE is not None
        environment = {**os.environ, "ADDRESS": address, "PROTO": str(ROOT / "proto")}
        self.process = subprocess.Popen(
            [NODE, "server.js"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("words at "), line
        self.address = line.removeprefix("words at ").strip()

    def end(self) -> None:
        """Kill it, if it still runs."""
        self.process.kill()
        with self.process:
            self.process.wait(BOUND_S)


@pytest.fixture
def node(built: Path) -> Iterator[Node]:
    """A server."""
    server = Node(built)
    yield server
    server.end()


@pytest.fixture
def slow(built: Path, tmp_path: Path) -> Iterator[Node]:
    """A server with room for one package, whose module waits for SIGUSR2 or for the caller to give
    up, and then says which it was."""
    folder = tmp_path / "slow"
    shutil.copytree(built, folder, symlinks=True)
    words = folder / "words.js"
    text = words.read_text()
    assert "signal.throwIfAborted();" in text and "capacity = 16" in text
    waiting = """await new Promise((go) => {
    process.once("SIGUSR2", go);
    signal.addEventListener("abort", go);
  });
  signal.throwIfAborted();"""
    text = text.replace("signal.throwIfAborted();", waiting).replace("= 16", "= 1")
    words.write_text(text)
    server = Node(folder)
    yield server
    server.end()


@asynccontextmanager
async def channel_to(server: Node) -> AsyncIterator[grpc.aio.Channel]:
    """A connection of its own."""
    options = [("grpc.max_receive_message_length", 64 << 20)]
    async with (
        asyncio.timeout(BOUND_S),
        grpc.aio.insecure_channel(server.address, options=options) as channel,
    ):
        yield channel


def request(number: int, data: bytes, **attributes: str) -> pb.RunRequest:
    """One package."""
    package = {"id": number + 1_000, "data": data, "attributes": attributes}
    return pb.RunRequest(call=number, package=package)


async def answers(call: Any, count: int) -> list[pb.RunResponse]:
    """So many answers from a stream, whatever else it says."""
    found: list[pb.RunResponse] = []
    while len(found) < count:
        message = await call.read()
        assert message is not grpc.aio.EOF
        found += message.responses
    return found


async def test_it_says_what_it_serves(node: Node) -> None:
    """Describe and the health service answer."""
    async with channel_to(node) as channel:
        described = await stubs.ModuleServiceStub(channel).Describe(pb.DescribeRequest())
        assert described.description.name == "words"
        assert described.description.capacity == 16
        assert described.description.heartbeat_ns == 1_000_000_000
        health = health_pb2_grpc.HealthStub(channel)
        state = await health.Check(health_pb2.HealthCheckRequest())
        assert state.status == health_pb2.HealthCheckResponse.SERVING


async def test_run_gives_success_exit_and_error(node: Node) -> None:
    """The three ends of a package, each told as the proto says."""
    async with channel_to(node) as channel:
        stub = stubs.ModuleServiceStub(channel)
        done = await stub.Run(request(0, b"so many words", room="a"))
        assert (done.package, done.status) == (1_000, packages.STATUS_SUCCESS)
        assert done.payload.data == b"SO MANY WORDS"
        assert dict(done.payload.attributes) == {"room": "a", "words": "3"}
        assert done.message == "3 words" and done.total_time_ns > 0
        left = await stub.Run(request(0, b" "))
        assert left.status == packages.STATUS_EXIT
        assert left.message == "there are no words in it"
        failed = await stub.Run(request(0, b"\xff"))
        assert failed.status == packages.STATUS_ERROR
        error = failed.errors[0]
        assert error.type == "TypeError" and "utf-8" in error.message
        assert "words.js" in error.traceback and error.worker and error.host


async def test_a_stream_answers_each_request_once_within_its_credit(node: Node) -> None:
    """2,000 packages, no more outstanding than granted; when the caller closes, so does it."""
    async with channel_to(node) as channel:
        call = stubs.ModuleServiceStub(channel).Stream()
        first = await call.read()
        assert first.credit > 0 and first.description.name == "words"
        left = {number: b"word %d" % number for number in range(1, 2_001)}
        numbers = iter(sorted(left))
        while left:
            batch = [request(number, left[number]) for number in islice(numbers, first.credit)]
            await call.write(pb.StreamRequest(requests=batch))
            for answer in await answers(call, len(batch)):
                assert answer.package == answer.call + 1_000
                assert answer.payload.data == left.pop(answer.call).upper()
        await call.done_writing()
        while (message := await call.read()) is not grpc.aio.EOF:
            assert not message.responses
        assert await call.code() == grpc.StatusCode.OK


async def test_a_stream_beats(node: Node) -> None:
    """Without anything to do it says how busy it is."""
    async with channel_to(node) as channel:
        call = stubs.ModuleServiceStub(channel).Stream()
        await call.read()
        for _ in range(2):
            beat = await call.read()
            assert beat.HasField("load") and not beat.responses


async def test_large_packages_pass(node: Node) -> None:
    """8 MiB each way."""
    text = b"a word " * (1 << 20)
    async with channel_to(node) as channel:
        call = stubs.ModuleServiceStub(channel).Stream()
        await call.write(pb.StreamRequest(requests=[request(1, text)]))
        (answer,) = await answers(call, 1)
        assert answer.payload.data == text.upper()


async def test_what_nobody_waits_for_ends(slow: Node) -> None:
    """By `cancelled` on a stream, and when the time that the request gave is over."""
    async with channel_to(slow) as channel:
        call = stubs.ModuleServiceStub(channel).Stream()
        await call.write(pb.StreamRequest(requests=[request(1, b"one")]))
        await call.write(pb.StreamRequest(cancelled=[1]))
        (answer,) = await answers(call, 1)
        assert answer.errors[0].type == "AbortError"
        late = request(2, b"two")
        late.timeout_ns = 50_000_000
        await call.write(pb.StreamRequest(requests=[late]))
        (answer,) = await answers(call, 1)
        assert answer.errors[0].type == "TimeoutError"


async def test_sigterm_finishes_what_runs_and_gives_back_the_rest(slow: Node) -> None:
    """Health first, credit 0, what comes nevertheless is WAITING, the rest is finished, exit 0."""
    async with channel_to(slow) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        call = stubs.ModuleServiceStub(channel).Stream()
        await call.write(pb.StreamRequest(requests=[request(1, b"one")]))
        while not (await call.read()).load.running:
            pass
        slow.process.send_signal(signal.SIGTERM)
        while not ((message := await call.read()).HasField("credit")):
            pass
        assert message.credit == 0
        state = await health.Check(health_pb2.HealthCheckRequest())
        assert state.status == health_pb2.HealthCheckResponse.NOT_SERVING
        await call.write(pb.StreamRequest(requests=[request(2, b"two")]))
        (refused,) = await answers(call, 1)
        assert (refused.call, refused.status) == (2, packages.STATUS_WAITING)
        slow.process.send_signal(signal.SIGUSR2)
        (done,) = await answers(call, 1)
        assert (done.call, done.payload.data) == (1, b"ONE")
        while await call.read() is not grpc.aio.EOF:
            pass
        assert await call.code() == grpc.StatusCode.OK
    assert slow.process.wait(BOUND_S) == 0


async def test_a_pipeline_has_its_packages_run_by_node(built: Path) -> None:
    """The example's pipeline, through nats-server, a controller and a bridge. The server is killed
    half-way, and another takes its place: every package leaves once, in order, as what it is."""
    server = Node(built)
    roles: list[Role] = []
    try:
        async with EmbeddedServer() as broker, asyncio.timeout(2 * BOUND_S):
            where = {"NATS_URL": broker.url, "WORDS_TARGET": server.address}
            for name, begins in (("controller", "leads"), ("bridge", "ready")):
                roles.append(await Role.start(name, TARGET, **where))
                await roles[-1].said(begins)
            async with connect(broker.url) as client, client.instance(pipeline, "room") as room:
                for number in range(PACKAGES):
                    await room.send(PAYLOADS[number % 3], content_type="text/plain")
                await room.close()
                left = []
                async for package in room.results():
                    left.append((package.sequence, *told(package)))
                    if len(left) == PACKAGES // 2:
                        server.end()
                        server = await asyncio.to_thread(Node, built, server.address)
            for role in reversed(roles):
                role.send(signal.SIGTERM)
                assert await role.ended() == 0
        assert left == [(number + 1, *ENDS[number % 3]) for number in range(PACKAGES)]
    finally:
        for role in roles:
            await role.end()
        server.end()


def told(package: DataPackage[Any]) -> tuple[str, bytes, str]:
    """How a package left, its payload, and what the module said."""
    reason = package.envelope.errors[0].type if package.envelope.errors else package.reason
    return package.outcome.value, package.envelope.data, reason
