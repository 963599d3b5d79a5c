"""One run: a seed in, violations out."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec

from broker_pipeline.broker.port import Message
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.names import STATE_BUCKET, ingress_subject, snapshot_key, stream_name
from broker_pipeline.core.snapshot import Head, read_head
from broker_pipeline.errors import BrokerPipelineError, PublishRefusedError
from broker_pipeline.pipeline import Pipeline
from tests.fault.checks import SUBJECTS, Checks
from tests.fault.cluster import Cluster
from tests.fault.faults import Saboteur
from tests.fault.loop import HARNESS, VirtualLoop
from tests.fault.model import Model
from tests.fault.network import Network, Weather
from tests.fault.payloads import Payloads
from tests.fault.scenario import NAME, Scenario, draw
from tests.fault.sources import Acked, SourceProcess

STREAM = stream_name(NAME)
DRAIN_S = 120.0
POISON_S = 12.0
"""What a package takes that kills four workers one after the other, each with its lanes."""
"""Once faults have stopped everything must have left within so many virtual seconds."""
END_S = 30.0
LOOK_S = 0.25


@dataclass
class Report:
    """What came of a run."""

    seed: int
    violations: list[str] = field(default_factory=list)
    injected: Counter[str] = field(default_factory=Counter)
    packages: int = 0
    messages: int = 0
    overflows: int = 0
    virtual_s: float = 0.0
    turns: int = 0
    trace: str = ""


class _Errors(logging.Handler):
    """Errors that the program logs with an exception of another kind than its own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, BrokerPipelineError):
            self.found.append(f"logged: {record.getMessage()}: {error!r}")


class Simulation:
    """A run of one scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        seed = scenario.seed
        self.loop = VirtualLoop(random.Random(f"turns {seed}"))
        self.loop.set_exception_handler(self._exception)
        self.violations: list[str] = []
        self.disposing = False
        self.network: Network
        self.cluster: Cluster
        self.payloads: Payloads
        self.model = Model(SUBJECTS)
        self.fed = 0

    def _exception(self, _: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if self.disposing or isinstance(error, BrokerPipelineError):
            return
        self.violations.append(f"{context.get('message')}: {error!r}")

    async def run(self) -> None:
        """From the first deploy to the last drain."""
        scenario, loop = self.scenario, self.loop
        self.network = network = Network(loop, random.Random(f"network {scenario.seed}"))
        self.cluster = cluster = Cluster(loop, network, scenario)
        acked = Acked()
        with cluster.installed():
            await deploy(network.server.connect(), scenario.pipelines[0][1])
            network.record(STREAM)
            self.payloads = Payloads(network, STREAM)
            cluster.begin()
            sources = self._begin_sources(acked)
            saboteur = Saboteur(cluster)
            saboteur.arm(scenario.faults)
            network.weather = scenario.weather
            for at, pipeline in scenario.pipelines[1:]:
                await asyncio.sleep(max(0.0, at - loop.time()))
                await self._deploy(pipeline)
                cluster.pipeline = pipeline
            await asyncio.sleep(max(0.0, scenario.calm_at - loop.time()))
            await asyncio.sleep(max(0.0, saboteur.quiet_at - loop.time()))
            network.weather = Weather(latency_s=scenario.weather.latency_s)
            for process in cluster.processes:
                process.fuse = None
            await self._until_drained(sources)
            await self._until_swept()
            for task in await cluster.end(END_S):
                self.violations.append(f"a task is left over after the drain: {task}")
            self.violations += [f"a role died of {error!r}" for error in cluster.deaths]
            head = await self._stored_head()
        self._feed()
        log = self._log()
        self.violations += Checks(
            scenario, log, self.model, self.cluster.begun, acked.stored, self.network.injected,
            self.payloads, head,
        ).run()  # fmt: skip

    async def _deploy(self, pipeline: Pipeline) -> None:
        """As its operator does: again, where the log has no room for the plan."""
        while True:
            try:
                await deploy(self.network.server.connect(), pipeline)
            except PublishRefusedError:
                await asyncio.sleep(LOOK_S)
            else:
                return

    def _begin_sources(self, acked: Acked) -> list[SourceProcess]:
        sources = []
        for number, source in enumerate(self.scenario.sources):
            process = self.cluster.new_process(f"client {number}")
            large = self.scenario.large
            runs = SourceProcess(self.network, number, source, acked, process.chance, large)
            sources.append(runs)
            self.cluster.clients.append(process)
            self.loop.spawn(process, runs.run(), process.name)
        return sources

    async def _stored_head(self) -> Head | None:
        """Of the newest snapshot, which the last leader has stored."""
        broker = self.network.server.connect()
        entry = await broker.kv_get(STATE_BUCKET, snapshot_key(NAME, 0))
        return entry and read_head(msgspec.msgpack.decode(entry.value)[1])

    def _log(self) -> list[Message]:
        """All that was ever stored, purged or not."""
        return self.network.stored

    def _feed(self) -> None:
        for message in self.network.stored[self.fed :]:
            self.model.feed(message)
        self.fed = len(self.network.stored)

    async def _until_drained(self, sources: list[SourceProcess]) -> None:
        deadline = self.loop.time() + DRAIN_S + POISON_S * self.scenario.poison
        before = -1
        while self.loop.time() < deadline:
            await asyncio.sleep(LOOK_S)
            last = self.network.server.stream(STREAM).last_seq
            if all(source.done for source in sources) and last == before:
                self._feed()
                left = sum(_is_out(message.subject) for message in self.network.stored)
                if self.model.drained and left >= len(self.model.outs) and self._is_open():
                    return
            before = last
        waiting = [life.token for life in self.model.lives.values() if not life.drained]
        self.violations.append(
            f"not drained {DRAIN_S:g} s after the last fault: {waiting}, "
            f"{sum(not s.done for s in sources)} producers wait, "
            f"ingress is {'open' if self._is_open() else 'closed'}, "
            f"{self.network.server.stream(STREAM).state}"
        )

    async def _until_swept(self) -> None:
        """Where the log is purged, all payloads go once their packages have left."""
        scenario = self.scenario
        pipeline = scenario.pipelines[0][1]
        has_state = any("count" in kinds for kinds in scenario.kinds.values())
        lasts = has_state and pipeline.instance_idle_s > DRAIN_S  # and so long its log is needed
        if scenario.log is None or lasts or self.violations:
            return
        deadline = self.loop.time() + DRAIN_S
        while self.payloads.left:
            if self.loop.time() > deadline:
                self.violations.append(f"{self.payloads.left} payloads are left after {DRAIN_S} s")
                return
            await asyncio.sleep(LOOK_S)

    def _is_open(self) -> bool:
        """Whether producers are let in; they must be when there is nothing left to do."""
        return self.network.server.stream(STREAM).listens_on(ingress_subject(NAME, "a"))

    def trace(self) -> str:
        """A digest of all that is stored, of the time it took, and of each turn of the loop."""
        digest = hashlib.sha256()
        for message in self._log():
            headers = sorted(message.headers.items())
            digest.update(repr((message.subject, message.time, headers)).encode())
            digest.update(message.data)
        digest.update(repr((self.loop.time(), self.loop.turns)).encode())
        return digest.hexdigest()[:16]


def _is_out(subject: str) -> bool:
    return subject.startswith(SUBJECTS.out)


def simulate(seed: int, scenario: Scenario | None = None) -> Report:
    """Run a seed. Nothing outside of it plays a part: the same seed gives the same report."""
    scenario = scenario or draw(seed)
    report = Report(seed, packages=scenario.packages)
    simulation = Simulation(scenario)
    errors = _Errors()
    root = logging.getLogger("broker_pipeline")
    propagate, level = root.propagate, root.level
    root.addHandler(errors)
    root.propagate = False
    root.setLevel(logging.ERROR)
    collecting = gc.isenabled()
    gc.disable()  # when it comes must not depend on what ran before
    try:
        simulation.loop.run_until_complete(simulation.run())
        report.trace = simulation.trace()
    except AssertionError as error:  # SpinError included
        simulation.violations.append(f"{type(error).__name__}: {error}")
    finally:
        _end(simulation)
        root.removeHandler(errors)
        root.propagate = propagate
        root.setLevel(level)
        if collecting:
            gc.enable()
    report.violations = simulation.violations + errors.found
    report.injected = simulation.network.injected
    report.virtual_s = simulation.loop.time()
    report.turns = simulation.loop.turns
    report.overflows = simulation.model.overflows
    if report.trace:
        report.messages = simulation.fed
    return report


def _end(simulation: Simulation) -> None:
    """Let go of everything: tasks of killed processes have never ended."""
    simulation.disposing = True
    processes = [*simulation.cluster.processes, simulation.network.process, HARNESS]
    try:
        simulation.loop.dispose(processes)
    except AssertionError as error:
        simulation.violations.append(f"at the end: {error}")
    for process in processes:
        for task in process.tasks:
            task._log_destroy_pending = False
        process.tasks.clear()
        process.ready.clear()
    simulation.loop.close()
