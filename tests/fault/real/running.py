"""One run: servers, proxies, roles, load and faults; then the checks."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from broker_pipeline.broker.api import Answer
from broker_pipeline.broker.jetstream import JetStreamBroker, connect
from broker_pipeline.client.client import connect as client_connect
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.names import STATE_BUCKET, snapshot_key, stream_name
from broker_pipeline.core.snapshot import read_head
from broker_pipeline.errors import BrokerPipelineError
from tests.fault.real.chaos import Chaos, Fault, draw_faults
from tests.fault.real.checking import Verdict, check_all
from tests.fault.real.fleet import TARGET, Role
from tests.fault.real.load import Load, draw_sources
from tests.fault.real.pipeline import CONSUMERS, pipeline
from tests.fault.real.proxy import Door
from tests.fault.real.recording import Recording
from tests.fault.real.servers import Servers
from tests.fault.real.watching import Watch
from tests.fault.scenario import NAME

CONTROLLERS, WORKERS = 2, 3
STATELESS = ("free.p", "first.p", "order.p")
STUCK_S = 30.0
"""After the last fault and the last send nothing may leave for so long while packages are inside.
How long it takes in all follows from what had piled up, at most `load.INSIDE_MAX` packages."""
END_S = 15.0
SPIN_SHARE = 0.25
"""Processor time per second of a role with nothing to do, above which it spins."""
PROBE_S = 20.0
LEADS_S = 30.0


@dataclass(frozen=True)
class Settings:
    """What to run."""

    seed: int
    packages: int
    replicas: int
    rate: float
    fault_every_s: float
    poison: int = 1
    stateful_workers: int = 3
    """So many workers run the phase with a state: more than one catch up all the time."""
    sample_s: float = 1.0
    faults: bool = True
    script: tuple[Fault, ...] = ()
    """What goes wrong, instead of what the seed draws."""
    idle_watch_s: float = 5.0
    curves: Path | None = None
    minutes: float = 0.0
    """Of a soak: it goes on for so long, at half of the rate that it measured."""


@dataclass
class Result:
    """What came of it."""

    settings: Settings
    violations: list[str] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    takeovers: list[tuple[float, bool]] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=dict)
    idle_cpu: dict[str, float] = field(default_factory=dict)
    ends: dict[str, Counter[int]] = field(default_factory=dict)
    sent: int = 0
    unknown: int = 0
    messages: int = 0
    redeliveries: int = 0
    log_mb: float = 0.0
    took_s: float = 0.0
    drained_s: float = 0.0
    checked_s: float = 0.0
    rate: float = 0.0
    watch: Watch | None = None


class Site:
    """Everything that runs."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.settings = settings
        self.servers = Servers(directory / "servers", settings.replicas)
        self.directory = directory
        self.doors: dict[str, Door] = {}
        self.controllers: list[Role] = []
        self.workers: list[Role] = []
        self.admin: JetStreamBroker
        self.recording = Recording(directory / "log")
        self.results: list[int] = []
        self.brokers: dict[str, JetStreamBroker] = {}

    @property
    def roles(self) -> list[Role]:
        """All."""
        return [*self.controllers, *self.workers]

    def pids(self) -> dict[str, int]:
        """Of all processes."""
        return {each.name: each.pid for each in (*self.roles, *self.servers.all)}

    async def begin(self, stack: AsyncExitStack) -> None:
        """Start everything; returns when all roles are ready."""
        await self.servers.start()
        stack.push_async_callback(self.servers.end)
        self.admin = await self._connect(self.servers.url, "admin", stack)
        await deploy(self.admin, pipeline, self.settings.replicas)
        stack.callback(self.recording.close)
        await self.recording.begin(await self._connect(self.servers.url, "recording", stack))
        ports = [server.port for server in self.servers.all]
        names = [f"controller-{n + 1}" for n in range(CONTROLLERS)]
        names += [f"worker-{n + 1}" for n in range(WORKERS)]
        for name in (*names, "client"):
            self.doors[name] = door = Door(name, ports)
            await door.open()
            stack.push_async_callback(door.close)
        for number in range(CONTROLLERS):
            self._role(names[number], ("controller", TARGET), self.controllers, stack)
        for number in range(WORKERS):
            phases = STATELESS if number >= self.settings.stateful_workers else ()
            options = tuple(word for phase in phases for word in ("--phase", phase))
            name = names[CONTROLLERS + number]
            self._role(name, ("worker", TARGET, "--slots", "2", *options), self.workers, stack)
        async with asyncio.timeout(LEADS_S):
            await asyncio.gather(*(role.ready.wait() for role in self.roles))
            while not any(role.leads for role in self.controllers):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        for style in ("sdk", "raw", "numbered"):
            self.brokers[style] = await self._connect(self.doors["client"].url, style, stack)

    def _role(
        self, name: str, arguments: tuple[str, ...], into: list[Role], stack: AsyncExitStack
    ) -> None:
        role = Role(name, (*arguments, "--url", self.doors[name].url), self.directory)
        role.start()
        stack.push_async_callback(role.end, 0.5)
        into.append(role)

    async def _connect(self, url: str, name: str, stack: AsyncExitStack) -> JetStreamBroker:
        broker = await connect(url, reconnect=True, name=f"fault {name}")

        async def close() -> None:
            with contextlib.suppress(RuntimeError):
                await broker.close()

        stack.push_async_callback(close)
        return broker

    async def read_results(self) -> None:
        """As a program does, by the client."""
        async with client_connect(self.doors["client"].url) as client:
            async for package in client.results(pipeline, start="beginning"):
                self.results.append(package.envelope.id)


async def run(settings: Settings) -> Result:
    """One run. What it leaves behind is removed, unless a promise was broken."""
    directory = Path(tempfile.mkdtemp(prefix=f"fault-real-{settings.seed}-r{settings.replicas}-"))
    result = Result(settings)
    begun = time.monotonic()
    async with AsyncExitStack() as stack:
        site = Site(settings, directory)
        await site.begin(stack)
        await _go(site, result)
    result.took_s = time.monotonic() - begun
    if result.violations:
        result.violations.append(f"logs of the roles and servers are in {directory}")
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return result


async def _go(site: Site, result: Result) -> None:
    settings, recording = result.settings, site.recording
    watch = result.watch = Watch(site.pids, settings.sample_s)
    background = [asyncio.create_task(watch.run(), name="watch")]
    reading = asyncio.create_task(site.read_results(), name="results")
    rate = settings.rate
    packages = settings.packages
    if settings.minutes:
        packages = int(settings.minutes * 60 * 5_000)  # it ends by time, not by number
    load = Load(draw_sources(packages), settings.seed, settings.poison, _inside(recording))
    chaos = Chaos(site.servers, site.controllers, site.workers, site.doors, site.admin)
    pace = {"rate": rate}
    loading = asyncio.create_task(load.run(dict(site.brokers), lambda: pace["rate"]), name="load")
    background.append(asyncio.create_task(_tell(site, load), name="tell"))
    try:
        length_s = packages / rate
        if settings.minutes:
            pace["rate"] = rate = await _half_of_the_highest(pace, recording)
            length_s = settings.minutes * 60
        result.rate = rate
        if settings.faults:
            faults = list(settings.script) or draw_faults(
                settings.seed, length_s * 0.95, settings.replicas, settings.fault_every_s
            )
            if not settings.script:
                print("\n".join(str(fault) for fault in faults), flush=True)
            await chaos.run(faults)
            if settings.minutes:
                load.stopped = True
        await loading
        await _drain(site, load, chaos, result)
        result.idle_cpu = await watch.cpu_shares(settings.idle_watch_s)
        await _end(site, reading, result)
    finally:
        for task in (*background, loading, reading):
            task.cancel()
        await asyncio.gather(*background, loading, reading, return_exceptions=True)
    result.sent, result.unknown = load.sent, len(load.unknown)
    result.faults, result.skipped = chaos.done, chaos.skipped
    result.takeovers = takeovers(chaos.log, recording.left_at)
    if settings.curves is not None:
        watch.write(settings.curves)
    tokens = recording.end()
    begun = time.monotonic()
    faults_done = sum(chaos.done.values()) + settings.poison
    result.verdicts = await asyncio.to_thread(
        check_all, site.directory / "log", tokens, load.acked, load.unknown, faults_done
    )
    result.checked_s = time.monotonic() - begun
    for verdict in result.verdicts:
        result.violations += verdict.violations


def _inside(recording: Recording):  # type: ignore[no-untyped-def]
    return lambda sent: sent - recording.left


async def _half_of_the_highest(pace: dict[str, float], recording: Recording) -> float:
    """Send as much as goes through for a while; half of what left a second."""
    pace["rate"] = 100_000.0
    await asyncio.sleep(PROBE_S / 2)
    before = recording.left
    await asyncio.sleep(PROBE_S / 2)
    highest = (recording.left - before) / (PROBE_S / 2)
    print(f"highest rate, without faults: {highest:.0f} packages/s", flush=True)
    return max(1.0, highest / 2)


async def _tell(site: Site, load: Load) -> None:
    recording, begun = site.recording, time.monotonic()
    while True:
        await asyncio.sleep(10.0)
        print(
            f"{time.monotonic() - begun:6.0f} s: sent {load.sent}, out {recording.left}, log "
            f"{recording.bytes / 1e6:.0f} MB",
            flush=True,
        )


async def _drain(site: Site, load: Load, chaos: Chaos, result: Result) -> None:
    """Wait until everything has left."""
    recording = site.recording
    begun = time.monotonic()
    moved, before = begun, recording.left
    while recording.left < recording.expected or not all(
        role.ready.is_set() for role in site.roles
    ):
        await asyncio.sleep(0.1)
        if recording.left > before:
            moved, before = time.monotonic(), recording.left
        if time.monotonic() - moved < STUCK_S:
            continue
        result.violations.append(
            f"{recording.expected - recording.left} of {recording.expected} packages are inside, "
            f"and none has left for {STUCK_S:g} s"
        )
        result.violations += [
            f"{role.name} is not ready again; its last lines: {[t for _, t in role.said[-3:]]}"
            for role in site.roles
            if not role.ready.is_set()
        ]
        break
    result.drained_s = time.monotonic() - begun
    with contextlib.suppress(BrokerPipelineError):
        state = await site.admin.stream_state(stream_name(NAME))
        result.messages, result.log_mb = state.messages, state.bytes / 2**20
        if state.last_seq != recording.last_seq:
            async with asyncio.timeout(10):
                while recording.last_seq < state.last_seq:  # noqa: ASYNC110 - other processes bring it about
                    await asyncio.sleep(0.1)
        if recording.gaps:
            result.violations.append(f"what was read of the log has the gaps {recording.gaps[:5]}")
    result.outcomes = recording.outcomes
    result.redeliveries = await _redeliveries(site)


async def _redeliveries(site: Site) -> int:
    """Deliveries of the workers' queues, less the messages in them; the broker's own count."""
    delivered = 0
    for consumer in CONSUMERS:
        path = f"CONSUMER.INFO.{stream_name(NAME)}.{consumer}"
        with contextlib.suppress(BrokerPipelineError):
            # The port has no word for it, nor needs one.
            info = await site.admin._api.request(path, None, _ConsumerInfo)
            delivered += info.delivered["consumer_seq"]
    return delivered - site.recording.queued


class _ConsumerInfo(Answer, frozen=True):
    """As far as it is looked at."""

    delivered: dict[str, Any] = {}  # noqa: RUF012 - msgspec copies it


async def _end(site: Site, reading: asyncio.Task[None], result: Result) -> None:
    """What must hold of the roles; then end them."""
    for name, share in result.idle_cpu.items():
        if share > SPIN_SHARE and not name.startswith("s"):
            result.violations.append(f"{name} spins: {share:.0%} of a processor, nothing to do")
    left = site.recording.left
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_S):
            while len(site.results) < left and not reading.done():  # noqa: ASYNC110 - other processes bring it about
                await asyncio.sleep(0.1)
    if reading.done():
        result.violations.append(f"results() has ended: {reading.exception()!r}")
    if len(site.results) != left or len(set(site.results)) != left:
        result.violations.append(
            f"results() gave {len(site.results)} packages, {len(set(site.results))} of them "
            f"different; {left} left"
        )
    codes = await asyncio.gather(*(role.end(END_S) for role in site.roles))
    for role, code in zip(site.roles, codes, strict=True):
        result.ends[role.name] = Counter(code for _, code in role.ends)
        if code != 0:
            result.violations.append(f"{role.name} ended with {code!r} after SIGTERM, not with 0")
    await _counted_once(site, result)


async def _counted_once(site: Site, result: Result) -> None:
    """Through all takeovers: the counts that the last leader has stored are those of what left."""
    entry = await site.admin.kv_get(STATE_BUCKET, snapshot_key(NAME, 0))
    assert entry is not None  # a leader that drains stores a snapshot
    counts = read_head(msgspec.msgpack.decode(entry.value)[1]).tallies[0]
    left = site.recording.left
    if (counts.came, sum(counts.left), counts.inside) != (left, left, 0):
        result.violations.append(f"{left} packages have left, and counted are {counts}")


def takeovers(log: list[tuple[float, str, str]], left_at: list[float]) -> list[tuple[float, bool]]:
    """From each kill of a leader to the next emission, and whether nothing else went wrong then."""
    found = []
    moments = sorted(left_at)
    for at, kind, _ in log:
        if kind != "kill leader":
            continue
        # What was on its way to the broker when the leader died is still stored.
        following = [moment for moment in moments if moment > at + 0.02]
        if following:
            others = [each for each in log if each[0] != at and -5 < each[0] - at < 5]
            found.append((following[0] - at, not others))
    return found
