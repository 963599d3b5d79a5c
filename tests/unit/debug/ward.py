"""A deployed pipeline on the in-memory broker with roles that only say they are there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from broker_pipeline import Controller, ExecutionModule, ExternalModule, Phase, Pipeline
from broker_pipeline.broker.lease import LeaseRecord
from broker_pipeline.broker.memory import MemoryBroker, MemoryServer
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.names import (
    LEASE_BUCKET,
    Subjects,
    lease_key,
    presence_subject,
    status_subject,
)
from broker_pipeline.core.plan import compile_plan
from broker_pipeline.debug.operation import doctor
from broker_pipeline.debug.operation.findings import Facts, Finding
from broker_pipeline.journey import NS
from broker_pipeline.observe.meter import Sample
from broker_pipeline.observe.status import Role, Status

TARGET = "app:pipeline"
HOLDER = "host-1-abc"
BEGAN_NS = 1_700_000_000 * NS
BOUND_S = 10.0


class Quiet(ExecutionModule):
    """Does nothing."""

    def execute(self, package: Any, run: Any) -> None:
        """Nothing."""


def made(name: str = "p", **options: Any) -> Pipeline:
    """A pipeline with a phase for workers and one for bridges."""
    there = ExternalModule("asr", target="registry:///asr")
    phases = [Phase("one", [Quiet()]), Phase("two", [there])]
    return Pipeline(name, [Controller("c", phases)], **options)


class Ward:
    """A pipeline to be looked at.

    Attributes:
        clock_ns: the broker's, which stands still unless it is moved on.
        skew_ns: by how much the roles' clocks are ahead of it.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.clock_ns = BEGAN_NS
        self.skew_ns = 0
        self.pipeline = pipeline
        self.server = MemoryServer(now_ns=lambda: self.clock_ns)
        self.broker = self.server.connect()
        self.subjects = Subjects(pipeline.name)
        self.leader: MemoryBroker | None = None
        self.joined: list[MemoryBroker] = []

    @classmethod
    async def healthy(cls, pipeline: Pipeline | None = None) -> Ward:
        """Deployed, led, with somebody for each phase, and a standby."""
        ward = cls(pipeline or made())
        await deploy(ward.broker, ward.pipeline)
        await ward.lead()
        await ward.join(Role.CONTROLLER, holder="host-2-def")
        for controller in ward.pipeline.controllers:
            for phase in controller.phases:
                name = f"{controller.name}.{phase.name}"
                await ward.join(Role.BRIDGE if phase.external else Role.WORKER, (name,))
        return ward

    async def lead(self) -> None:
        """Have somebody hold the lease, and answer."""
        value = msgspec.json.encode(LeaseRecord(HOLDER))
        await self.broker.kv_put(LEASE_BUCKET, lease_key(self.pipeline.name, 0), value)
        self.leader = await self.join(Role.CONTROLLER, holder=HOLDER)
        await self.leader.be_present(presence_subject(self.pipeline.name, 0, HOLDER))

    async def join(
        self,
        role: Role,
        phases: Sequence[str] = (),
        *,
        holder: str = "",
        version: str = "1",
        samples: Sequence[Sample] = (),
    ) -> MemoryBroker:
        """A role of its own connection that answers, and asks for packages."""
        connection = self.server.connect()
        self.joined.append(connection)
        status = Status(
            role=role, name="host-1", pipeline=self.pipeline.name, phases=tuple(phases),
            holder=holder, version=version, samples=tuple(samples),
        )  # fmt: skip

        def answer(question: bytes) -> bytes:
            at = self.clock_ns + self.skew_ns
            return msgspec.msgpack.encode(msgspec.structs.replace(status, at=at))

        await connection.answer(status_subject(self.pipeline.name), answer)
        names = {name: lanes for name, lanes in self._consumers().items() if name in phases}
        for consumers in names.values():
            for consumer in consumers:
                await connection.consume(
                    self.subjects.stream, consumer, lambda message: None, credit=5
                )
        return connection

    def _consumers(self) -> dict[str, list[str]]:
        plan = compile_plan(self.pipeline)
        return {
            f"{c.name}.{p.name}": [n for n, _ in self.subjects.consumers(c.name, p.name, p.lanes)]
            for c in plan.controllers
            for p in c.phases
        }

    async def queue(self, phase: str, count: int = 1) -> None:
        """Packages for a phase, CONTROLLER.PHASE."""
        for _ in range(count):
            await self.broker.publish(f"{self.subjects.work}{phase}.i", b"x")

    async def facts(self, pipeline: Pipeline | None = None, **others: Any) -> Facts:
        """What is gathered, but for what is given here."""
        async with asyncio.timeout(BOUND_S):
            found = await doctor.gather(
                self.broker, pipeline or self.pipeline, target=TARGET, between_s=0
            )
        # The broker's clock stands still somewhere in the past; that of this machine does not.
        return replace(found, **{"clock": None, **others})

    async def found(self, pipeline: Pipeline | None = None, **others: Any) -> dict[str, Finding]:
        """What is found, by name; each name at most once."""
        findings = doctor.examine(await self.facts(pipeline, **others))
        assert len({(each.name, each.what) for each in findings}) == len(findings)
        assert all(each.what and each.remedy for each in findings)
        return {each.name: each for each in findings}

    def take_nothing(self) -> None:
        """Those who take packages ask for no more."""
        for subscription in self.server.pump.subscriptions:
            subscription.set_credit(0)

    async def ends(self) -> None:
        """Nobody holds the lease any more, and its holder is gone."""
        await self.broker.kv_erase(LEASE_BUCKET, lease_key(self.pipeline.name, 0))
        assert self.leader is not None
        await self.leader.close()
