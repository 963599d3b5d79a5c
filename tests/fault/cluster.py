"""The processes of a run: the real roles, started again when they die, and the producers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from broker_pipeline.broker import large_payloads
from broker_pipeline.client import deploy as deploying
from broker_pipeline.client import provisions
from broker_pipeline.core import plan, snapshot
from broker_pipeline.errors import BrokerPipelineError
from broker_pipeline.journey import NS
from broker_pipeline.runtime import (
    lanes,
    phase_worker,
    reporting,
    retention,
    roles,
    states,
    sweeping,
)
from broker_pipeline.runtime import leader as leading
from broker_pipeline.runtime import worker as working
from tests.fault.executor import Begun, SimExecutor
from tests.fault.link import Link, connect
from tests.fault.loop import PROCESS, Process, VirtualLoop
from tests.fault.network import EPOCH_NS, Network
from tests.fault.scenario import NAME, Scenario

RESTART_S = (0.05, 0.3, 1.0)


class Role:
    """One place for a role: its present process, and how to start the next."""

    def __init__(self, kind: str, number: int, start: Callable[[Role], Coroutine[Any, Any, Any]]):
        self.kind = kind
        self.number = number
        self.start = start
        self.lives = 0
        self.leads = False
        self.held_back_until = 0.0
        self.process: Process | None = None
        self.stop = asyncio.Event()


class Cluster:
    """All processes but the broker's."""

    def __init__(self, loop: VirtualLoop, network: Network, scenario: Scenario) -> None:
        self.loop = loop
        self.network = network
        self.scenario = scenario
        self.processes: list[Process] = []
        self.deaths: list[BaseException] = []
        self.ending = False
        self.begun = Begun()
        self.pipeline = scenario.pipelines[0][1]
        self.controllers = [Role("controller", n, self._lead) for n in range(scenario.controllers)]
        self.workers = [Role("worker", n, self._work) for n in range(len(scenario.workers))]
        self.clients: list[Process] = []

    # -- starting -------------------------------------------------------------------------------
    def new_process(self, name: str) -> Process:
        """A process that does nothing yet."""
        process = Process(name, random.Random(f"{self.scenario.seed} {name}"))
        skews = self.scenario.skews_ns
        process.clock_skew_ns = skews[len(self.processes) % len(skews)]
        self.processes.append(process)
        return process

    def begin(self) -> None:
        """Start every role."""
        for role in (*self.controllers, *self.workers):
            self.start(role)

    def start(self, role: Role) -> None:
        """A new process for a role."""
        if self.ending:
            return
        delay = role.held_back_until - self.loop.time()
        if delay > 0:
            self.loop.call_later(delay, self.start, role)
            return
        role.lives += 1
        role.leads = False
        role.stop = asyncio.Event()
        role.process = process = self.new_process(f"{role.kind} {role.number}.{role.lives}")
        process.kill = lambda: self.kill(role)
        task = self.loop.spawn(process, role.start(role), process.name)
        watch = partial(self._ended, role, process)
        task.add_done_callback(watch, context=self.network.process.context)

    def _ended(self, role: Role, process: Process, task: asyncio.Task[Any]) -> None:
        """A role came to its end by itself."""
        if process.disposed:
            return
        if not task.cancelled() and (error := task.exception()) is not None:
            known = error
            while isinstance(known, BaseExceptionGroup):
                known = known.exceptions[0]
            if not isinstance(known, BrokerPipelineError):
                self.deaths.append(known)
        for link in list(process.links):
            link.wire.cut(noticed_s=0.0)
        if role.process is process:
            self._start_later(role)

    def _start_later(self, role: Role) -> None:
        role.process = None
        chance = self.network.chance
        context = self.network.process.context
        self.loop.call_later(chance.choice(RESTART_S), self.start, role, context=context)

    def kill(self, role: Role) -> None:
        """SIGKILL, and its connections are cut in the same instant."""
        process = role.process
        if process is None or process.dead:
            return
        self.loop.kill(process)
        for link in list(process.links):
            link.wire.cut(noticed_s=self.network.chance.choice((0.0, 0.0, 3.0)))
        self._start_later(role)

    async def _lead(self, role: Role) -> None:
        def announce(text: str) -> None:
            if text.startswith("takes"):
                self.network.injected["lead taken from a holder that is gone"] += 1
            role.leads = text.startswith("leads") or (role.leads and "anew" not in text)

        await roles.run_controller("sim", NAME, role.stop, announce=announce)

    async def _work(self, role: Role) -> None:
        await roles.run_worker(
            "sim",
            self.pipeline,
            role.stop,
            phases=self.scenario.workers[role.number],
            slots=self.scenario.slots,
            target=None,
            announce=lambda text: None,
        )

    # -- ending ---------------------------------------------------------------------------------
    async def end(self, timeout_s: float) -> list[str]:
        """Stop every role, as by SIGTERM; the tasks that are still there afterwards."""
        self.ending = True
        living = [r for r in (*self.controllers, *self.workers) if r.process is not None]
        for role in living:
            role.stop.set()
        processes = [role.process for role in living if role.process is not None]
        deadline = self.loop.time() + timeout_s
        while self.loop.time() < deadline:
            left = [t for p in processes for t in p.tasks if not t.done()]
            if not left:
                return []
            await asyncio.sleep(0.1)
        return [f"{task.process.name}: {task.get_name()}" for task in left]

    def leader(self) -> Role | None:
        """The controller that leads, as far as it has said."""
        return next((role for role in self.controllers if role.leads and role.process), None)

    # -- the seams ------------------------------------------------------------------------------
    @contextmanager
    def installed(self) -> Iterator[None]:
        """The simulation in place of the network, the clocks and the executors."""
        network = self.network

        async def to_network(url: str, *, reconnect: bool, **_: Any) -> Link:
            return await connect(network, reconnect=reconnect)

        def now_ns() -> int:
            skew = PROCESS.get().clock_skew_ns
            return EPOCH_NS + int(self.loop.time() * NS) + skew

        def token_hex(_: int) -> str:
            return PROCESS.get().name

        lanes_chance = random.Random(f"lanes of {self.scenario.seed}")

        def member_hex(_: int) -> str:
            return f"{lanes_chance.getrandbits(32):08x}"

        names_chance = random.Random(f"objects of {self.scenario.seed}")

        def name_hex(_: int) -> str:
            return f"{names_chance.getrandbits(64):016x}"

        large = self.scenario.large
        put_s = large.put_s if large is not None else large_payloads.PUT_S
        quiet_os = SimpleNamespace(getpid=lambda: 1, cpu_count=lambda: 2)
        quiet_host = SimpleNamespace(gethostname=lambda: "sim")
        scenario = self.scenario
        executor = partial(SimExecutor, begun=self.begun, slow=scenario.slow)
        with ExitStack() as stack:
            for place, name, value in (
                (roles, "jetstream", SimpleNamespace(connect=to_network)),
                (roles, "time", SimpleNamespace(time_ns=now_ns)),
                (roles, "secrets", SimpleNamespace(token_hex=token_hex)),
                (reporting, "os", quiet_os),
                (reporting, "socket", quiet_host),
                (lanes, "secrets", SimpleNamespace(token_hex=member_hex)),
                (plan, "LANES", scenario.lanes),
                (large_payloads, "secrets", SimpleNamespace(token_hex=name_hex)),
                (large_payloads, "RENEW_S", put_s / 5),
                (sweeping, "PUT_S", put_s),
                (sweeping, "LOOK_EVERY_S", 0.05),
                (working, "os", quiet_os),
                (working, "socket", quiet_host),
                (working, "PhaseWorker", partial(phase_worker.PhaseWorker, now_ns=now_ns)),
                (phase_worker, "PhaseExecutor", executor),
                (leading, "SNAPSHOT_INTERVAL_S", scenario.snapshot_s),
                (retention, "PURGE_EVERY_S", 0.3),
                (retention, "LOOK_EVERY_S", 0.05),
                (deploying, "MESSAGES_MIN", 0),
                (snapshot, "WHOLE_MAX", scenario.whole_max),
                (snapshot, "SLICES", scenario.slices),
                (snapshot, "SLICES_MAX", 2 * scenario.slices),
                (snapshot, "CHANGED_MAX", scenario.changed_max),
                (states, "STORE_EVERY_S", scenario.state_every_s),
                (states, "HEADROOM_BYTES", (1 << 20) if scenario.large_states else 1024),
                (states, "time", SimpleNamespace(monotonic=self.loop.time)),
                (provisions, "DUPLICATE_WINDOW_S", scenario.window_s),
            ):
                stack.enter_context(patch.object(place, name, value))
            yield
