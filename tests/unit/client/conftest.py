"""A broker in memory with a deployed pipeline, and a stand-in for its controller."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from broker_pipeline import Controller, ExecutionModule, Mode, Outcome, Phase, Pipeline
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.memory import MemoryBroker, MemoryServer
from broker_pipeline.broker.port import Message
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.names import Subjects, emission_id, escape_instance, stream_name
from broker_pipeline.journey import STATUS_TO_PB


class Nothing(ExecutionModule[bytes]):
    """Leaves packages as they are."""

    def execute(self, package: object, run: object) -> None:
        """Do nothing."""


MakePipeline = Callable[..., Pipeline]


@pytest.fixture
def make_pipeline() -> MakePipeline:
    """Builds a pipeline `talk` with one controller."""

    def make(controller: str = "listen", max_workers: int = 4) -> Pipeline:
        mode = Mode.ORDER_BY_SEQUENCE
        phases = [Phase("hear", [Nothing()])]
        return Pipeline(
            "talk", [Controller(controller, phases, mode=mode, max_workers=max_workers)]
        )

    return make


@pytest.fixture
def pipeline(make_pipeline: MakePipeline) -> Pipeline:
    """The pipeline of most tests."""
    return make_pipeline()


@pytest.fixture
def server() -> MemoryServer:
    """The broker behind all connections of a test."""
    return MemoryServer(max_payload=4096)


@pytest.fixture
async def broker(server: MemoryServer) -> AsyncIterator[MemoryBroker]:
    """One connection, which survives disconnects."""
    broker = server.connect(reconnect=True)
    yield broker
    await broker.close()


@dataclass
class Log:
    """The pipeline's log, and what a controller would write to it."""

    broker: MemoryBroker
    subjects: Subjects
    stream: str

    async def arrivals(self) -> list[Message]:
        """What producers have sent."""
        return await self.broker.read_range(self.stream, f"{self.subjects.ctl_in}>", start_seq=1)

    async def let_leave(
        self,
        package_id: str,
        instance: str = "room",
        outcome: Outcome = Outcome.SUCCESS,
        data: bytes = b"",
    ) -> None:
        """A package leaves the pipeline."""
        number = int(package_id.rpartition("/")[2])
        envelope = pb.DataPackage(
            id=number,
            pipeline="talk",
            instance=instance,
            outcome=STATUS_TO_PB[outcome],
            data=data,
        )
        subject = self.subjects.outcome(outcome, escape_instance(instance))
        await self.broker.publish(subject, envelope.SerializeToString(), msg_id=emission_id(number))


@pytest.fixture
async def log(broker: MemoryBroker, pipeline: Pipeline) -> Log:
    """The log of the deployed pipeline."""
    await deploy(broker, pipeline)
    return Log(broker, Subjects("talk"), stream_name("talk"))
