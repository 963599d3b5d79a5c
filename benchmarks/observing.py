"""What it costs to be observed: one ORDER_BY_SEQUENCE controller that counts, is scraped and has
one package in a hundred traced, beside the same with nothing of it.

Server, leader and worker are a process each. Both run at the same time, under the same load: what
else the machine does befalls both. What counts is the processor time a package, as a ratio.

    python -m benchmarks.observing --help
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import uvloop

from benchmarks.ordered_controller import OURS, cpu_seconds, drive, pipeline
from broker_pipeline.broker import jetstream
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.port import Broker
from broker_pipeline.client.deploy import deploy
from broker_pipeline.observe.metering import SWITCH

SCRAPE_EVERY_S = 15.0
"""As Prometheus does by default; the first scrape is at the beginning."""
WARM_UP = 3_000
"""Packages before it counts: roles are slower at first."""
NAMES = ("server", "leader", "worker")


@dataclass(frozen=True)
class Way:
    """How the roles are run.

    Args:
        options: of both roles.
        environment: what they see besides.
        observed: whether their metrics are read, and traces are sent.
    """

    name: str
    options: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    observed: bool = False


OFF = Way("not observed", environment=((SWITCH, "off"),))
OBSERVED = Way("scraped and traced", ("--metrics-port", "0"), observed=True)
RATIO = ("--trace-ratio", "0.01")
"""Of the leader, who chooses what is traced."""


class Receiver(BaseHTTPRequestHandler):
    """Takes OTLP over HTTP and counts its bytes."""

    taken = 0

    def do_POST(self) -> None:
        """Take it."""
        size = int(self.headers["Content-Length"])
        self.rfile.read(size)
        Receiver.taken += size
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def receiver() -> Iterator[str]:
    """Somebody who takes traces; gives the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


async def start(
    words: tuple[str, ...], url: str, way: Way, traces: str
) -> asyncio.subprocess.Process:
    """One of the roles as a process."""
    traced = ("--traces", traces, *(RATIO if "controller" in words else ()))
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *words,
        url,
        *way.options,
        *(traced if way.observed else ()),
        env={**os.environ, "PYTHONUNBUFFERED": "1", **dict(way.environment)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )


async def scraped_at(process: asyncio.subprocess.Process) -> str:
    """Where a role says that its metrics are."""
    assert process.stdout is not None
    async for line in process.stdout:
        _, found, url = line.decode().strip().partition("metrics: ")
        if found:
            return url
    raise RuntimeError("a role has ended and not said where its metrics are")


def read(url: str) -> int:
    """One scrape; its size."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return len(answer.read())


async def scrape(urls: list[str], sizes: list[int]) -> None:
    """Read all of them, again and again."""
    while True:
        for url in urls:
            sizes.append(await asyncio.to_thread(read, url))
        await asyncio.sleep(SCRAPE_EVERY_S)


@asynccontextmanager
async def running(way: Way, sizes: list[int]) -> AsyncIterator[tuple[Broker, list[int]]]:
    """The roles on a fresh server; gives a connection and the process ids: server first."""
    async with EmbeddedServer() as server, AsyncExitStack() as stack:
        traces = stack.enter_context(receiver())
        broker = await jetstream.connect(server.url, reconnect=False, name="bench client")
        await deploy(broker, pipeline)
        children = [await start(words, server.url, way, traces) for words in OURS.processes]
        scraping = None
        if way.observed:
            urls = [await scraped_at(child) for child in children]
            scraping = asyncio.create_task(scrape(urls, sizes), name="scrape")
        try:
            yield broker, [server.pid, *(child.pid for child in children)]
        finally:
            if scraping is not None:
                scraping.cancel()
            for child in children:
                child.kill()
                await child.wait()
            await broker.close()


async def measure(
    way: Way, arguments: argparse.Namespace, together: asyncio.Barrier
) -> tuple[float, list[float]]:
    """One run: packages/s, and the processor time of each process a package."""
    sizes: list[int] = []
    count = arguments.packages
    async with running(way, sizes) as (broker, pids):
        load = (arguments.instances, arguments.payload)
        await drive(OURS, broker, WARM_UP, *load, 0)
        await together.wait()
        before = [cpu_seconds(pid) for pid in pids]
        rate, _ = await drive(OURS, broker, count, *load, arguments.rate)
        used = [(cpu_seconds(pid) - was) / count for pid, was in zip(pids, before, strict=True)]
        await together.wait()  # the other one is measured as long as this one is there
    each = ", ".join(f"{name} {cpu * 1e6:.0f}" for name, cpu in zip(NAMES, used, strict=True))
    told = f"   {len(sizes)} scrapes of {max(sizes):,} bytes" if sizes else ""
    told += f", {Receiver.taken:,} bytes of traces" if sizes else ""
    print(
        f"{way.name:20} {rate:6,.0f}/s   CPU us/package: {sum(used) * 1e6:.0f}: {each}{told}",
        flush=True,
    )
    return rate, used


async def compare(arguments: argparse.Namespace) -> None:
    """Run pairs and print the ratios."""
    rates: list[float] = []
    used: list[list[float]] = []
    for number in range(arguments.runs):
        Receiver.taken = 0
        together = asyncio.Barrier(2)
        order = (OBSERVED, OFF) if number % 2 == 0 else (OFF, OBSERVED)
        runs = await asyncio.gather(*(measure(way, arguments, together) for way in order))
        results = dict(zip((way.name for way in order), runs, strict=True))
        with_it, without = results[OBSERVED.name], results[OFF.name]
        rates.append(with_it[0] / without[0])
        pairs = zip((sum(with_it[1]), *with_it[1]), (sum(without[1]), *without[1]), strict=True)
        used.append([a / b for a, b in pairs])
    cpu = ", ".join(
        f"{name} x{statistics.median(each):.3f}"
        for name, each in zip(("all", *NAMES), zip(*used, strict=True), strict=True)
    )
    every = [each[0] for each in used]
    print(
        f"\n{OBSERVED.name} / {OFF.name} over {arguments.runs} pairs: CPU {cpu} "
        f"(all: {min(every):.3f}-{max(every):.3f}); packages/s x{statistics.median(rates):.3f}"
    )


def main() -> None:
    """Parse the arguments and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--packages", type=int, default=12_000, help="each run")
    parser.add_argument("--rate", type=float, default=1_200, help="packages/s; 0: flat out")
    parser.add_argument("--instances", type=int, default=100)
    parser.add_argument("--payload", type=int, default=1024, help="bytes")
    parser.add_argument("--runs", type=int, default=5, help="pairs")
    uvloop.run(compare(parser.parse_args()))


if __name__ == "__main__":
    main()
