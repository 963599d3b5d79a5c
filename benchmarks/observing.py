"""What it costs to be observed: one ORDER_BY_SEQUENCE controller that counts, and is scraped every
second, beside the same that does not.

Server, leader, worker and client are a process each. Runs take turns, and what counts is the ratio
of a pair.

    python -m benchmarks.observing --help
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvloop

from benchmarks.ordered_controller import OURS, cpu_seconds, drive, pipeline
from broker_pipeline.broker import jetstream
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.port import Broker
from broker_pipeline.client.deploy import deploy
from broker_pipeline.observe.metering import SWITCH

SCRAPE_EVERY_S = 1.0
"""Fifteen times as often as Prometheus does by default."""
NAMES = ("server", "leader", "worker")


@dataclass(frozen=True)
class Way:
    """How the roles are run.

    Args:
        options: of both roles.
        environment: what they see besides.
        scraped: whether their metrics are read.
    """

    name: str
    options: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    scraped: bool = False


OFF = Way("not observed", environment=((SWITCH, "off"),))
COUNTED = Way("counted and scraped", ("--metrics-port", "0"), scraped=True)


async def start(words: tuple[str, ...], url: str, way: Way) -> asyncio.subprocess.Process:
    """One of the roles as a process."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *words,
        url,
        *way.options,
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
    async with EmbeddedServer() as server:
        broker = await jetstream.connect(server.url, reconnect=False, name="bench client")
        await deploy(broker, pipeline)
        children = [await start(words, server.url, way) for words in OURS.processes]
        scraping = None
        if way.scraped:
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


async def measure(way: Way, arguments: argparse.Namespace) -> tuple[float, list[float]]:
    """One run: packages/s flat out, and the processor time of each process a package."""
    sizes: list[int] = []
    async with running(way, sizes) as (broker, pids):
        load = (arguments.instances, arguments.payload, 0)
        await drive(OURS, broker, 1000, *load)  # warm up
        before = [cpu_seconds(pid) for pid in pids]
        rate, _ = await drive(OURS, broker, arguments.packages, *load)
        used = [
            (cpu_seconds(pid) - was) / arguments.packages
            for pid, was in zip(pids, before, strict=True)
        ]
    cpu = ", ".join(f"{name} {each * 1e6:.1f}" for name, each in zip(NAMES, used, strict=True))
    told = f"   {len(sizes)} scrapes of {max(sizes)} bytes" if sizes else ""
    print(f"{way.name:20} {rate:8,.0f}/s   CPU us/package: {cpu}{told}", flush=True)
    return rate, used


async def compare(arguments: argparse.Namespace) -> None:
    """Run pairs and print the ratios."""
    rates: list[float] = []
    used: list[list[float]] = []
    for number in range(arguments.runs):
        order = (COUNTED, OFF) if number % 2 == 0 else (OFF, COUNTED)
        results = {way.name: await measure(way, arguments) for way in order}
        with_it, without = results[COUNTED.name], results[OFF.name]
        rates.append(with_it[0] / without[0])
        used.append([a / b for a, b in zip(with_it[1], without[1], strict=True)])
    cpu = ", ".join(
        f"{name} x{statistics.median(each):.3f}"
        for name, each in zip(NAMES, zip(*used, strict=True), strict=True)
    )
    print(
        f"\n{COUNTED.name} / {OFF.name} over {arguments.runs} pairs: packages/s "
        f"x{statistics.median(rates):.3f} ({min(rates):.3f}-{max(rates):.3f}), CPU {cpu}"
    )


def main() -> None:
    """Parse the arguments and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--packages", type=int, default=30_000, help="each run")
    parser.add_argument("--instances", type=int, default=100)
    parser.add_argument("--payload", type=int, default=1024, help="bytes")
    parser.add_argument("--runs", type=int, default=5, help="pairs")
    uvloop.run(compare(parser.parse_args()))


if __name__ == "__main__":
    main()
