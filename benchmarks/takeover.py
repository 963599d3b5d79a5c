"""How long a shard is without a leader: after a SIGKILL, and after a clean stop, under load.

A real nats-server, three controllers and a worker as processes, and one producer. Each round ends
the leader and measures until the next one says that it leads, and until the first package that it
published itself has left. At the end every package must have left once, and in order.

    python -m benchmarks.takeover --kills 30
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvloop

from benchmarks.ordered_controller import pipeline
from broker_pipeline import DataPackage
from broker_pipeline.broker import jetstream
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.port import Broker, Message
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.names import ingress_subject, stream_name

TARGET = "benchmarks.ordered_controller:pipeline"
CONTROLLERS = 3
BOUND_S = 60.0
# A machine that is too slow for the rate gets what it carries, not a heap that hides the takeover.
BACKLOG_MAX = 2_000
# Between two rounds, so that each finds another part of the snapshots' and the lease's intervals.
CALM_S = (1.0, 3.0)


class Controller:
    """A controller process, and when it has said that it leads."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.leads = asyncio.Event()
        self.leads_at = 0.0
        self.stands_by = asyncio.Event()
        self.lines: deque[str] = deque(maxlen=20)
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for raw in self.process.stdout:
            line = raw.decode()
            self.lines.append(line)
            if line.startswith("leads"):
                self.leads_at = time.monotonic()
                self.leads.set()
            elif "anew" in line:
                self.leads.clear()
            elif "stands by" in line:
                self.stands_by.set()


class Site:
    """The processes, the load, and what came out."""

    def __init__(self, url: str, broker: Broker, instances: int, rate: float) -> None:
        self.url = url
        self.broker = broker
        self.instances = instances
        self.rate = rate
        self.controllers: list[Controller] = []
        self.sent = 0
        self.left: dict[str, list[int]] = {}
        self.count = 0
        self.last_left = time.monotonic()
        self.gap_ends: asyncio.Future[float] | None = None
        self.published_after = 0

    async def start(self) -> Controller:
        """One more controller, which stands by or leads."""
        process = await _role("controller", self.url, stdout=asyncio.subprocess.PIPE)
        controller = Controller(process)
        self.controllers.append(controller)
        async with asyncio.timeout(BOUND_S):
            await controller.stands_by.wait()
        return controller

    async def leader(self) -> Controller:
        """The one that leads."""
        async with asyncio.timeout(BOUND_S):
            while True:
                for each in self.controllers:
                    if each.leads.is_set():
                        return each
                await asyncio.sleep(0.001)

    def take(self, message: Message) -> None:
        """A package has left."""
        package = DataPackage.from_bytes(message.data)
        self.left.setdefault(package.instance, []).append(int(package.data))
        self.count += 1
        if self.gap_ends is not None and message.stream_seq > self.published_after:
            self.gap_ends.set_result(time.monotonic())
            self.gap_ends = None

    async def produce(self, stop: asyncio.Event) -> None:
        """Send at a steady rate until `stop` is set."""
        begun = time.monotonic()
        acks: set[asyncio.Future[object]] = set()
        while not stop.is_set():
            instance, number = self.sent % self.instances, self.sent // self.instances
            while self.sent - self.count >= BACKLOG_MAX:
                await asyncio.sleep(0.01)
                begun = time.monotonic() - self.sent / self.rate
            subject = ingress_subject("bench", f"i{instance}")
            ack = await self.broker.start_publish(subject, b"%d" % number)
            acks.add(ack)  # type: ignore[arg-type]
            ack.add_done_callback(acks.discard)
            self.sent += 1
            if (ahead := begun + self.sent / self.rate - time.monotonic()) > 0.001:
                await asyncio.sleep(ahead)
        await asyncio.gather(*acks)

    async def round(self, number: signal.Signals) -> tuple[float, float]:
        """End the leader; seconds until another leads, and until its first package has left."""
        ending = await self.leader()
        self.controllers.remove(ending)
        begun = time.monotonic()
        ending.leads.clear()
        ending.process.send_signal(number)
        leads_s = (await self.leader()).leads_at - begun
        # What the old leader has published is in the log by now, and at most a little of the new.
        self.published_after = (await self.broker.stream_state(stream_name("bench"))).last_seq
        self.gap_ends = gap = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(BOUND_S):
            left_s = await gap - begun
            await ending.process.wait()
        return leads_s, left_s

    def check(self) -> None:
        """Everything that was sent has left, once and in order."""
        for instance in range(self.instances):
            numbers = self.left.get(f"i{instance}", [])
            expected = list(range((self.sent - instance + self.instances - 1) // self.instances))
            if numbers != expected:
                raise SystemExit(
                    f"{self.count} of {self.sent} left; i{instance}: {len(numbers)} of "
                    f"{len(expected)}, {len(numbers) - len(set(numbers))} twice; in order: "
                    f"{numbers == sorted(numbers)}; missing: "
                    f"{sorted(set(expected) - set(numbers))[:5]}"
                )


async def _role(kind: str, url: str, stdout: int | None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "broker_pipeline", kind, TARGET, "--url", url),
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=stdout,
        stderr=asyncio.subprocess.DEVNULL,
    )


@asynccontextmanager
async def running(arguments: argparse.Namespace) -> AsyncIterator[Site]:
    """Everything, ended afterwards."""
    async with EmbeddedServer() as server:
        broker = await jetstream.connect(server.url, reconnect=False, name="takeover")
        await deploy(broker, pipeline)
        site = Site(server.url, broker, arguments.instances, arguments.rate)
        worker = await _role("worker", server.url, asyncio.subprocess.DEVNULL)
        await broker.read(stream_name("bench"), "bp.bench.0.out.>", site.take)
        try:
            for _ in range(CONTROLLERS):
                await site.start()
            yield site
        finally:
            for process in (worker, *(each.process for each in site.controllers)):
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
            await broker.close()


async def measure(arguments: argparse.Namespace) -> None:
    """All rounds."""
    chance = random.Random(arguments.seed)
    rounds = [signal.SIGKILL] * arguments.kills + [signal.SIGTERM] * arguments.stops
    chance.shuffle(rounds)
    took: dict[signal.Signals, list[tuple[float, float]]] = {}
    async with running(arguments) as site:
        stop = asyncio.Event()
        producing = asyncio.create_task(site.produce(stop))
        for number in rounds:
            await asyncio.sleep(chance.uniform(*CALM_S))
            took.setdefault(number, []).append(ended := await site.round(number))
            if arguments.verbose:
                print(number.name, ended, f"{site.count} of {site.sent} left", flush=True)
            await site.start()
        stop.set()
        await producing
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BOUND_S):
                while site.count < site.sent:  # noqa: ASYNC110 - it comes from other processes
                    await asyncio.sleep(0.01)
        site.check()
    for number, times in took.items():
        for what, values in zip(("leads", "first package"), zip(*times, strict=True), strict=True):
            tell(f"{number.name} to {what}", sorted(values))
    print(f"{site.sent:,} packages: none lost, doubled or out of order")


def tell(what: str, values: list[float]) -> None:
    """One line of figures."""
    median, high = values[len(values) // 2], values[min(len(values) - 1, len(values) * 99 // 100)]
    print(
        f"{what:24} {len(values):3} times: median {median * 1e3:5.0f} ms, 99th {high * 1e3:5.0f} "
        f"ms, largest {values[-1] * 1e3:5.0f} ms"
    )


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=30, help="of the leader, by SIGKILL")
    parser.add_argument("--stops", type=int, default=10, help="of the leader, by SIGTERM")
    parser.add_argument("--rate", type=float, default=1000, help="packages/s")
    parser.add_argument("--instances", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the times between the rounds")
    parser.add_argument("--verbose", action="store_true", help="tell each round")
    uvloop.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
