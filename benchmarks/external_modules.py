"""What a bridge and module servers cost, beside a bare gRPC echo in the same run.

Packages wait in the queue of a phase, with no controller about; a bridge relays them to module
servers and its results are stored as completions. Rates and times are taken from the broker's
timestamps: from a package's message in the queue to its completion.

    python -m benchmarks.external_modules relay     Stream and Run, and the echoes, flat out
    python -m benchmarks.external_modules latency   the same at a low rate, beside a local module
    python -m benchmarks.external_modules balance   four servers, one slow; and a fifth that joins
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import uvloop

from benchmarks import grpc_echo
from benchmarks.ordered_controller import cpu_seconds
from broker_pipeline import (
    Controller,
    DataPackage,
    ExecutionModule,
    ExternalModule,
    ExternalOptions,
    Mode,
    Phase,
    Pipeline,
    Run,
)
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker import jetstream
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.port import Broker, Message
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.names import Subjects
from broker_pipeline.journey import MODE_TO_PB, STATUS_TO_PB, Status
from broker_pipeline.modules import Module

HERE = "benchmarks.external_modules"
WAIT_VARIABLE = "BENCHMARK_WAIT_MS"
PORT = 50_951
SILENT_S_MAX = 30.0
SLEEP_S_MIN = 0.0005
PLANS = 1
"""Messages in a log besides those of packages."""
NS = 1_000_000_000


class Nothing(ExecutionModule[bytes]):
    """A module that does nothing."""

    def execute(self, package: DataPackage[bytes], run: Run) -> None:
        """Nothing."""


class Wait(ExecutionModule[bytes]):
    """A module that takes a while and no processor: `WAIT_VARIABLE` milliseconds."""

    def setup(self) -> None:
        """How long."""
        self._wait_s = float(os.environ[WAIT_VARIABLE]) / 1000
        self._who = str(os.getpid())

    async def execute(self, package: DataPackage[bytes], run: Run) -> None:
        """Wait, and say who did."""
        await asyncio.sleep(self._wait_s)
        run.message = self._who


def of(name: str, module: Module[bytes]) -> Pipeline:
    """A pipeline of one phase with one module."""
    return Pipeline(name, [Controller("c", [Phase("p", [module])], mode=Mode.NO_ORDER)])


by_stream = of("stream", ExternalModule("external", target=f"127.0.0.1:{PORT}"))
by_run = of(
    "run",
    ExternalModule("external", target=f"127.0.0.1:{PORT}", options=ExternalOptions(method="run")),
)
local = of("local", Nothing())
balanced = of("balanced", ExternalModule("external", target="registry:///Wait"))


@dataclass(frozen=True)
class Site:
    """A broker with processes around it."""

    broker: Broker
    url: str
    pid: int
    stack: AsyncExitStack

    async def start(self, *words: str, **environment: str) -> asyncio.subprocess.Process:
        """`broker-pipeline WORDS`, when it has said that it is ready."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "broker_pipeline", *words),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        )
        self.stack.push_async_callback(_end, process)
        assert process.stdout is not None
        while b"is ready" not in (line := await process.stdout.readline()):
            if not line:
                raise RuntimeError(f"{words} ended before it was ready")
        return process

    async def serve(self, module: str, *options: str, **environment: str) -> int:
        """A module server; its process id."""
        process = await self.start("serve", f"{HERE}:{module}", *options, **environment)
        return process.pid

    async def run(self, pipeline: Pipeline, attribute: str, *, local: bool = False) -> int:
        """A bridge, or a worker; its process id."""
        role = "worker" if local else "bridge"
        process = await self.start(role, f"{HERE}:{attribute}", "--url", self.url)
        return process.pid


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


@asynccontextmanager
async def site(*pipelines: Pipeline) -> AsyncIterator[Site]:
    """A fresh broker with these deployed."""
    async with EmbeddedServer() as server, AsyncExitStack() as stack:
        broker = await jetstream.connect(server.url, reconnect=False, name="bench client")
        stack.push_async_callback(broker.close)
        for pipeline in pipelines:
            await deploy(broker, pipeline)
        yield Site(broker, server.url, server.pid, stack)


class Queue:
    """The queue of a pipeline's only phase, and what the log says of what went through it."""

    def __init__(self, broker: Broker, pipeline: Pipeline, payload: int) -> None:
        self._broker = broker
        self._subjects = Subjects(pipeline.name, 0)
        self._payload = os.urandom(payload)
        self._next = 1

    async def put(self, count: int, rate: float = 0) -> None:
        """Queue so many packages; at `rate` a second, 0: flat out."""
        begun = time.perf_counter()
        acks = []
        for number in range(count):
            if rate and (ahead := begun + number / rate - time.perf_counter()) > SLEEP_S_MIN:
                await asyncio.sleep(ahead)
            subject = self._subjects.queue("c", "p", "i", 0)
            acks.append(await self._broker.start_publish(subject, self._package()))
        await asyncio.gather(*acks)

    def _package(self) -> bytes:
        number, self._next = self._next, self._next + 1
        now_ns = time.time_ns()
        envelope = pb.DataPackage(
            id=number,
            pipeline=self._subjects.pipeline,
            instance="i",
            epoch=1,
            sequence=number,
            data=self._payload,
            start_time_ns=now_ns,
        )
        envelope.controllers.add(
            name="c",
            mode=MODE_TO_PB[Mode.NO_ORDER],
            sequence=number,
            status=STATUS_TO_PB[Status.RUNNING],
            start_time_ns=now_ns,
        )
        return envelope.SerializeToString()

    async def emptied(self) -> Flow:
        """Wait until all that was queued is done; what became of it.

        Raises:
            RuntimeError: nothing comes any more, or packages failed.
        """
        done, quiet_since = -1, time.monotonic()
        stream = self._subjects.stream
        while done < self._next - 1:
            messages = (await self._broker.stream_state(stream)).messages
            now_done = messages - PLANS - (self._next - 1)
            if now_done != done:
                done, quiet_since = now_done, time.monotonic()
            if time.monotonic() - quiet_since > SILENT_S_MAX:
                raise RuntimeError(f"only {done} of {self._next - 1} packages came back")
            await asyncio.sleep(0.05)
        queued = await self._broker.read_range(
            stream, f"{self._subjects.work}>", start_seq=1, headers_only=True
        )
        done_messages = await self._broker.read_range(
            stream, f"{self._subjects.ctl_done}>", start_seq=1
        )
        return Flow([message.time for message in queued], done_messages)


class Flow:
    """What became of the packages of a queue, which were numbered from 1 as they were stored."""

    def __init__(self, queued: Sequence[int], done: Sequence[Message]) -> None:
        self._queued = queued
        self.done: list[tuple[int, int, str]] = []  # time, number, who ran it
        for message in done:
            envelope = pb.DataPackage.FromString(message.data)
            if envelope.errors:
                raise RuntimeError(f"a package failed: {envelope.errors[0].message}")
            record = envelope.controllers[-1].phases[-1].modules[0]
            who = record.sub_modules[0].message if record.sub_modules else ""
            self.done.append((message.time, envelope.id, who))
        if len({number for _, number, _ in self.done}) != len(queued):
            raise RuntimeError(f"{len(queued)} packages were queued and {len(self.done)} came back")

    def rate(self, share: float = 1.0) -> float:
        """Completions a second, in the first `share` of them."""
        times = [time for time, _, _ in self.done]
        times = times[: max(2, int(len(times) * share))]
        return (len(times) - 1) / (times[-1] - times[0]) * NS

    def times_ms(self) -> list[float]:
        """From being queued to being done, sorted."""
        return sorted((time - self._queued[number - 1]) / 1e6 for time, number, _ in self.done)


def percentile(values: Sequence[float], share: float) -> float:
    """Of sorted values."""
    return values[min(len(values) - 1, int(len(values) * share))]


# -- relay: how many, flat out ---------------------------------------------------------------------
async def relayed(pipeline: Pipeline, attribute: str, arguments: argparse.Namespace) -> float:
    """Packages a second through one bridge and one server; prints what each process used."""
    async with site(pipeline) as here:
        queue = Queue(here.broker, pipeline, arguments.payload)
        await queue.put(arguments.packages)
        server = await here.serve("Nothing", "--port", str(PORT))
        bridge = await here.run(pipeline, attribute)
        flow = await queue.emptied()
        used = [cpu_seconds(pid) / arguments.packages * 1e6 for pid in (here.pid, bridge, server)]
    rate = flow.rate()
    cpu = ", ".join(
        f"{name} {us:.0f}" for name, us in zip(("broker", "bridge", "server"), used, strict=True)
    )
    print(f"{attribute:12} {rate:8,.0f}/s   CPU us/package, with starting: {cpu}", flush=True)
    return rate


async def relay(arguments: argparse.Namespace) -> None:
    """Stream, Run and the bare echoes in turn."""
    ratios = []
    for _ in range(arguments.runs):
        for name in ("stream", "unary"):
            echoed = await grpc_echo.flat_out(name, arguments.packages, arguments.payload)
            print(f"echo {name:7} {echoed:8,.0f}/s   bare grpc.aio, no broker", flush=True)
        stream = await relayed(by_stream, "by_stream", arguments)
        ratios.append(stream / await relayed(by_run, "by_run", arguments))
    print(f"\nStream / Run: x{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


# -- latency: what a bridge adds -------------------------------------------------------------------
async def latency(arguments: argparse.Namespace) -> None:
    """A phase with a local module, and one with a module server, at a low rate; in turn."""
    added = []
    for _ in range(arguments.runs):
        round_trip = await grpc_echo.lock_step(arguments.rate * 2, arguments.payload)
        print(f"echo stream  round trip: median {round_trip:.2f} ms", flush=True)
        medians = {}
        for pipeline, attribute in ((local, "local"), (by_stream, "by_stream")):
            async with site(pipeline) as here:
                if pipeline is by_stream:
                    await here.serve("Nothing", "--port", str(PORT))
                await here.run(pipeline, attribute, local=pipeline is local)
                queue = Queue(here.broker, pipeline, arguments.payload)
                await queue.put(arguments.rate * arguments.seconds, arguments.rate)
                times = (await queue.emptied()).times_ms()
            medians[attribute] = percentile(times, 0.5)
            print(
                f"{attribute:12} in the phase: median {medians[attribute]:.2f} ms, "
                f"99th {percentile(times, 0.99):.2f} ms",
                flush=True,
            )
        added.append(medians["by_stream"] - medians["local"])
    print(f"\nadded by bridge and server: median {statistics.median(added):.2f} ms")


# -- balance: servers that are not alike -----------------------------------------------------------
async def served(here: Site, waits_ms: Sequence[float], slots: int) -> None:
    """Module servers that announce themselves, with a bridge."""
    for wait_ms in waits_ms:
        await one_more(here, wait_ms, slots)
    await here.run(balanced, "balanced")


async def one_more(here: Site, wait_ms: float, slots: int) -> int:
    """Another module server."""
    options = ("--port", "0", "--announce", here.url, "--slots", str(slots))
    return await here.serve("Wait", *options, **{WAIT_VARIABLE: str(wait_ms)})


async def at_rate(waits_ms: Sequence[float], rate: float, arguments: argparse.Namespace) -> float:
    """The 99th percentile in the phase at a rate, ms."""
    async with site(balanced) as here:
        await served(here, waits_ms, arguments.slots)
        queue = Queue(here.broker, balanced, arguments.payload)
        await queue.put(int(rate * arguments.seconds), rate)
        return percentile((await queue.emptied()).times_ms(), 0.99)


async def balance(arguments: argparse.Namespace) -> None:
    """Throughput and tail with a slow server, and how soon a new one has its share."""
    fast, slow, slots = arguments.wait_ms, arguments.wait_ms * 5, arguments.slots
    waits = (fast, fast, fast, slow)
    ideal = sum(slots / wait * 1000 for wait in waits)
    async with site(balanced) as here:
        queue = Queue(here.broker, balanced, arguments.payload)
        await queue.put(int(ideal * arguments.seconds))
        await served(here, waits, slots)
        rate = (await queue.emptied()).rate(0.9)
    print(f"3 servers of {slots / fast * 1000:.0f}/s and one of {slots / slow * 1000:.0f}/s:")
    print(f"  flat out: {rate:.0f}/s, {rate / ideal:.0%} of the ideal {ideal:.0f}/s", flush=True)
    moderate = ideal * arguments.load
    equal = await at_rate((fast,) * 4, moderate, arguments)
    uneven = await at_rate(waits, moderate, arguments)
    print(
        f"  99th percentile at {moderate:.0f}/s: {uneven:.1f} ms; with four equal ones "
        f"{equal:.1f} ms: x{uneven / equal:.2f}",
        flush=True,
    )
    await joining(fast, arguments)


async def joining(wait_ms: float, arguments: argparse.Namespace) -> None:
    """When a fifth server that joins four gets its share."""
    slots = arguments.slots
    async with site(balanced) as here:
        queue = Queue(here.broker, balanced, arguments.payload)
        await queue.put(int(slots / wait_ms * 1000 * 5 * arguments.seconds * 2))
        await served(here, (wait_ms,) * 4, slots)
        await asyncio.sleep(arguments.seconds / 2)
        fifth = str(await one_more(here, wait_ms, slots))
        announced_ns = time.time_ns()
        flow = await queue.emptied()
    window = 0.25
    begin = announced_ns
    while begin < flow.done[-1][0]:
        chunk = [who for at, _, who in flow.done if begin <= at < begin + window * NS]
        if chunk and chunk.count(fifth) / len(chunk) >= 0.9 / 5:
            took = (begin - announced_ns) / NS + window
            print(f"  a fifth has its share (a fifth) within {took:.2f} s of being ready")
            return
        begin += int(window * NS / 5)
    raise RuntimeError("a server that joined never had its share")


def main() -> None:
    """Parse the arguments and measure."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("relay", "latency", "balance"))
    parser.add_argument("--packages", type=int, default=30_000, help="flat out, each run")
    parser.add_argument("--payload", type=int, default=1024, help="bytes")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rate", type=int, default=500, help="packages/s for the latencies")
    parser.add_argument("--seconds", type=float, default=8, help="of a measurement at a rate")
    parser.add_argument("--wait-ms", type=float, default=20, help="balance: what a package takes")
    parser.add_argument("--slots", type=int, default=4, help="balance: of a server")
    parser.add_argument("--load", type=float, default=0.7, help="balance: share of the ideal")
    arguments = parser.parse_args()
    arguments.seconds = int(arguments.seconds)
    uvloop.run({"relay": relay, "latency": latency, "balance": balance}[arguments.what](arguments))


if __name__ == "__main__":
    main()
