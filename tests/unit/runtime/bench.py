"""A deployed pipeline on the broker in memory, with our own workers and leader."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from broker_pipeline import Pipeline
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.memory import MemoryBroker, MemoryServer
from broker_pipeline.broker.port import Broker, Message
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.names import LEASE_BUCKET, Subjects, ingress_subject, stream_name
from broker_pipeline.journey import STATUS_TO_PB, Outcome
from broker_pipeline.observe.meter import Meter
from broker_pipeline.runtime.leader import Leader
from broker_pipeline.runtime.phase_worker import PhaseWorker
from tests.unit.runtime.shard import BOUND_S, until

OUTCOMES = {STATUS_TO_PB[outcome]: outcome for outcome in Outcome}


class Working:
    """A phase worker as a task."""

    def __init__(self, bench: Bench, phase: PhaseWorker, broker: Broker) -> None:
        self.bench = bench
        self.phase = phase
        self.broker = broker
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(phase.run(self.stop), name="worker")

    async def drain(self) -> None:
        """As SIGTERM."""
        self.stop.set()
        async with asyncio.timeout(BOUND_S):
            await self.task
        await self.phase.close()

    async def vanish(self) -> None:
        """As SIGKILL, a lease's TTL ago: it acks, naks and publishes nothing any more, and is no
        member any more."""
        await self.broker.close()
        if (lanes := self.phase._lanes) is not None:
            await self.bench.broker.kv_erase(LEASE_BUCKET, lanes._members + lanes._name)
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.phase.close()


class Bench:
    """A broker, a leader, and workers that a test starts."""

    def __init__(self, server: MemoryServer, pipeline: Pipeline) -> None:
        self.server = server
        self.pipeline = pipeline
        self.subjects = Subjects(pipeline.name)
        self.stream = stream_name(pipeline.name)
        self.broker: MemoryBroker = server.connect()
        self.workers: list[Working] = []
        self._stop = asyncio.Event()

    @classmethod
    async def begin(cls, pipeline: Pipeline, **options: Any) -> Bench:
        """Deploy and lead."""
        bench = cls(MemoryServer(**options), pipeline)
        await deploy(bench.broker, pipeline)
        leader = Leader(bench.server.connect(), pipeline.name, 0, now_ns=time.time_ns)
        bench.leading = asyncio.create_task(leader.run(bench._stop))
        return bench

    async def work(
        self,
        phase: int = 0,
        *,
        controller: int = 0,
        slots: int = 2,
        relays: Any = None,
        meter: Meter | None = None,
    ) -> Working:
        """Start a worker for a phase."""
        broker = self.server.connect(reconnect=True)
        which = self.pipeline.controllers[controller]
        worker = PhaseWorker(
            broker, self.pipeline, which, which.phases[phase],
            slots=slots, worker=f"w{len(self.workers)}", host="h", target=None,
            relays=relays, meter=meter,
        )  # fmt: skip
        await worker.start()
        self.workers.append(Working(self, worker, broker))
        return self.workers[-1]

    async def send(self, *payloads: bytes, instance: str = "a") -> None:
        """Publish raw packages."""
        for data in payloads:
            await self.broker.publish(ingress_subject(self.pipeline.name, instance), data)

    def messages(self, prefix: str) -> list[Message]:
        """What the log has below a subject."""
        stream = self.server.stream(self.stream)
        return list(stream.messages_from(1, lambda subject: subject.startswith(prefix)))

    async def left(self, count: int) -> list[pb.DataPackage]:
        """Wait until so many have left; all that have."""
        await until(lambda: len(self.messages(self.subjects.out)) >= count, f"{count} have left")
        return [pb.DataPackage.FromString(m.data) for m in self.messages(self.subjects.out)]

    async def end(self) -> None:
        """Stop everything; raises what a role ended with."""
        for worker in self.workers:
            if not worker.task.done():
                await worker.drain()
        self._stop.set()
        async with asyncio.timeout(BOUND_S):
            await self.leading


def results(packages: list[pb.DataPackage]) -> list[tuple[bytes, Outcome]]:
    """Payload and outcome of each."""
    return [(package.data, OUTCOMES[package.outcome]) for package in packages]
