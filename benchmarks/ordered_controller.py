"""One ORDER_BY_SEQUENCE controller, ours beside the same topology hand-written on nats-py.

Server, leader, worker and client are a process each. Both systems get the same load from the same
client; runs take turns, and what counts is the ratio of a pair.

    python -m benchmarks.ordered_controller --help
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvloop

from benchmarks import hand_written
from broker_pipeline import (
    Controller,
    DataPackage,
    ExecutionModule,
    Mode,
    Phase,
    Pipeline,
    Run,
)
from broker_pipeline.broker import jetstream
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.port import Broker, Message, PubAck
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.names import ingress_subject, stream_name

WINDOW = 64


class Nothing(ExecutionModule[bytes]):
    """A module that does nothing."""

    def execute(self, package: DataPackage[bytes], run: Run) -> None:
        """Nothing."""


pipeline = Pipeline(
    "bench",
    [
        Controller(
            "ordered",
            mode=Mode.ORDER_BY_SEQUENCE,
            max_workers=WINDOW,
            phases=[Phase("nothing", [Nothing()])],
        )
    ],
)


@dataclass(frozen=True)
class System:
    """What is measured: where packages go in and come out, and the processes between."""

    name: str
    stream: str
    ingress: str
    out: str
    processes: tuple[tuple[str, ...], ...]


OURS = System(
    "broker_pipeline",
    stream_name("bench"),
    ingress_subject("bench", ""),
    "bp.bench.0.out.>",
    (
        ("-m", "broker_pipeline", "controller", "benchmarks.ordered_controller:pipeline", "--url"),
        ("-m", "broker_pipeline", "worker", "benchmarks.ordered_controller:pipeline", "--url"),
    ),
)
HAND_WRITTEN = System(
    "hand-written",
    hand_written.STREAM,
    hand_written.INGRESS,
    f"{hand_written.OUT}>",
    (
        ("-m", "benchmarks.hand_written", "leader"),
        ("-m", "benchmarks.hand_written", "worker"),
    ),
)


@asynccontextmanager
async def running(system: System) -> AsyncIterator[tuple[Broker, list[int]]]:
    """The system on a fresh server; gives a connection and the process ids: server first."""
    async with EmbeddedServer() as server:
        broker = await jetstream.connect(server.url, reconnect=False, name="bench client")
        if system is OURS:
            await deploy(broker, pipeline)
        else:
            await hand_written.provision(server.url)
        children = [
            await asyncio.create_subprocess_exec(
                sys.executable,
                *words,
                server.url,
                *(() if system is OURS else (str(WINDOW),)),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            for words in system.processes
        ]
        try:
            yield broker, [server.pid, *(child.pid for child in children)]
        finally:
            for child in children:
                child.kill()
                await child.wait()
            await broker.close()


async def drive(
    system: System, broker: Broker, count: int, instances: int, payload: int, rate: float
) -> tuple[float, list[float]]:
    """Send `count` packages (at `rate` a second; 0: flat out) and wait for all of them.

    Returns:
        Packages/s and the latencies in seconds, by this client's clock.
    """
    sent_at: dict[int, float] = {}
    latencies: list[float] = []
    finished = asyncio.Event()
    marker = b"<number>"  # found in a bare payload and inside an envelope alike

    def received(message: Message) -> None:
        number = int(message.data.partition(marker)[2][:12])
        latencies.append(time.perf_counter() - sent_at.pop(number))
        if len(latencies) == count:
            finished.set()

    begin = (await broker.stream_state(system.stream)).last_seq + 1
    subscription = await broker.read(system.stream, system.out, received, start_seq=begin)
    started = time.perf_counter()
    acks: set[asyncio.Future[PubAck]] = set()
    for number in range(count):
        if rate and (ahead := started + number / rate - time.perf_counter()) > 0.001:
            await asyncio.sleep(ahead)
        sent_at[number] = time.perf_counter()
        data = marker + f"{number:012}".encode() + b"x" * (payload - 20)
        ack = await broker.start_publish(f"{system.ingress}i{number % instances}", data)
        acks.add(ack)
        ack.add_done_callback(acks.discard)
    waiting = asyncio.ensure_future(finished.wait())
    await asyncio.wait(
        (waiting, subscription.failed), timeout=120, return_when=asyncio.FIRST_COMPLETED
    )
    waiting.cancel()
    if not finished.is_set():
        raise RuntimeError(f"{system.name}: only {len(latencies)} of {count} packages came back")
    elapsed = time.perf_counter() - started
    await subscription.stop()
    return count / elapsed, latencies


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used so far, user and system."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))


async def measure(system: System, arguments: argparse.Namespace) -> tuple[float, float, float]:
    """One run: packages/s flat out, then median and 99th percentile at the low rate (seconds)."""
    async with running(system) as (broker, pids):
        await drive(system, broker, 500, arguments.instances, arguments.payload, 0)  # warm up
        before = [cpu_seconds(pid) for pid in pids]
        rate, _ = await drive(
            system, broker, arguments.packages, arguments.instances, arguments.payload, 0
        )
        used = [
            (cpu_seconds(p) - b) / arguments.packages for p, b in zip(pids, before, strict=True)
        ]
        _, latencies = await drive(
            system,
            broker,
            arguments.rate * arguments.seconds,
            arguments.instances,
            arguments.payload,
            arguments.rate,
        )
    latencies.sort()
    median = latencies[len(latencies) // 2]
    high = latencies[int(len(latencies) * 0.99)]
    names = ("server", "leader", "worker")
    cpu = ", ".join(f"{n} {u * 1e6:.0f}" for n, u in zip(names, used, strict=True))
    print(
        f"{system.name:16} {rate:8,.0f}/s   at {arguments.rate}/s: median {median * 1e3:.2f} ms, "
        f"99th {high * 1e3:.2f} ms   CPU us/package: {cpu}",
        flush=True,
    )
    return rate, median, high


async def compare(arguments: argparse.Namespace) -> None:
    """Run pairs and print the ratios."""
    ratios, medians = [], []
    for number in range(arguments.runs):
        order = (OURS, HAND_WRITTEN) if number % 2 == 0 else (HAND_WRITTEN, OURS)
        results = {system.name: await measure(system, arguments) for system in order}
        ours, theirs = results[OURS.name], results[HAND_WRITTEN.name]
        ratios.append(ours[0] / theirs[0])
        medians.append(ours[1] / theirs[1])
    print(
        f"\nbroker_pipeline / hand-written over {arguments.runs} pairs: "
        f"packages/s x{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}), "
        f"median latency x{statistics.median(medians):.2f}"
    )


def main() -> None:
    """Parse the arguments and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--packages", type=int, default=30_000, help="flat out, each run")
    parser.add_argument("--instances", type=int, default=100)
    parser.add_argument("--payload", type=int, default=1024, help="bytes")
    parser.add_argument("--runs", type=int, default=3, help="pairs")
    parser.add_argument("--rate", type=int, default=500, help="packages/s for the latencies")
    parser.add_argument("--seconds", type=int, default=5, help="of the low rate")
    uvloop.run(compare(parser.parse_args()))


if __name__ == "__main__":
    main()
