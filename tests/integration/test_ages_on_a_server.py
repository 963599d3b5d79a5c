"""Packages that get too old behind a slow module, on a real nats-server."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from broker_pipeline import Controller, ExecutionModule, Mode, Phase, Pipeline
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.jetstream import connect
from broker_pipeline.broker.port import Message
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.names import Subjects, ingress_subject, stream_name
from broker_pipeline.journey import NS, STATUS_TO_PB, Status
from broker_pipeline.runtime.local import LocalRoles
from tests.integration.processes import until

PACKAGES = 60
WORK_S = 0.2
AGE_S = 0.5


class Slow(ExecutionModule[bytes]):
    """Takes WORK_S, and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.entered: list[bytes] = []

    def execute(self, package: Any, run: Any) -> None:
        """One package."""
        self.entered.append(package.data)
        threading.Event().wait(WORK_S)


@pytest.mark.parametrize(
    ("mode", "window", "who"),
    [(Mode.NO_ORDER, None, "a worker"), (Mode.ORDER_BY_SEQUENCE, 1, "the leader")],
)
async def test_what_is_too_old_leaves_as_outdated_without_being_run(
    mode: Mode, window: int | None, who: str
) -> None:
    """A burst that would take seconds: the first are run, the rest is left out as soon as it is too
    old, in the queue of a phase by a worker, in that of the controller by the leader."""
    slow = Slow()
    controller = Controller("c", [Phase("p", [slow])], mode, window, max_age_s=AGE_S)
    pipeline = Pipeline("aged", [controller])
    left: list[pb.DataPackage] = []

    def take(message: Message) -> None:
        left.append(pb.DataPackage.FromString(message.data))

    async with EmbeddedServer() as server:
        broker = await connect(server.url, reconnect=True, name="test")
        await deploy(broker, pipeline)
        await broker.read(stream_name("aged"), f"{Subjects('aged').out}>", take)
        async with LocalRoles(server.url, pipeline):
            for number in range(PACKAGES):
                await broker.start_publish(ingress_subject("aged", "a"), b"%d" % number)
            await until(lambda: len(left) >= PACKAGES, "all have left")
        await broker.close()
    assert sorted(package.data for package in left) == sorted(b"%d" % n for n in range(PACKAGES))
    success, outdated = STATUS_TO_PB[Status.SUCCESS], STATUS_TO_PB[Status.OUTDATED]
    assert {package.outcome for package in left} == {success, outdated}
    assert len(slow.entered) < PACKAGES / 2
    for package in left:
        age_s = (package.end_time_ns - package.start_time_ns) / NS
        assert (age_s >= AGE_S) == (package.outcome == outdated)
        (record,) = package.controllers
        ran = bool(record.phases) and bool(record.phases[0].modules)
        assert ran == (package.data in slow.entered)
    never = [package for package in left if package.data not in slow.entered]
    assert {len(package.controllers[0].phases) for package in never} == {who == "a worker"}
