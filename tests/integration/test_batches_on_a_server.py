"""A phase that works in batches, with real workers, one of which is killed and one drained."""

from __future__ import annotations

import asyncio
import signal

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.jetstream import connect
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.names import Subjects, stream_name
from tests.integration.pipelines import batched
from tests.integration.processes import Outputs, Role, expected_ordered, send, until

INSTANCES, PACKAGES = 5, 300


async def test_batches_change_neither_order_nor_outcomes_under_a_kill_and_a_drain() -> None:
    """Every package once and in order; each bad one of a batch fails alone; batches are real."""
    total = INSTANCES * PACKAGES
    target = "tests.integration.pipelines:batched"
    async with EmbeddedServer() as server:
        broker = await connect(server.url, reconnect=True, name="test")
        await deploy(broker, batched)
        roles = [await Role.start("controller", target, "--url", server.url)]
        try:
            for _ in range(2):
                worker = await Role.start("worker", target, "--url", server.url, "--slots", "1")
                roles.append(worker)
            leader, killed, drained = roles
            await leader.said("leads")
            await killed.said("is ready")
            await drained.said("is ready")
            outputs = await Outputs.watch(broker, "batched")
            sizes: list[int] = []

            def take(message: object) -> None:
                left = pb.DataPackage.FromString(message.data)  # type: ignore[attr-defined]
                sizes.append(int(left.attributes["batch"] or "0"))

            await broker.read(stream_name("batched"), f"{Subjects('batched').out}>", take)
            sending = asyncio.create_task(send(broker, "batched", INSTANCES, PACKAGES))
            await outputs.until(total // 5)
            killed.send(signal.SIGKILL)
            roles.append(await Role.start("worker", target, "--url", server.url, "--slots", "1"))
            await roles[-1].said("is ready")
            drained.send(signal.SIGTERM)
            assert await drained.ended() == 0
            await sending
            await outputs.until(total)
            outputs.check(INSTANCES, PACKAGES, expected_ordered)
            await until(lambda: len(sizes) == total, "all sizes")
            assert max(sizes) > 1, "nothing was ever run together: the test shows nothing"
        finally:
            for role in roles:
                await role.end()
            await broker.close()
