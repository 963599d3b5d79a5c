"""What a leader costs in memory."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.jetstream import connect
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.names import ingress_subject
from tests.integration import pipelines
from tests.integration.processes import Outputs, Role

INSTANCES = 10_000


def resident_mb(pid: int) -> float:
    """VmRSS of a process, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads VmRSS from /proc")
async def test_ten_thousand_idle_instances_stay_under_100_mb(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A controller process that has seen one package of each of 10,000 instances."""
    async with EmbeddedServer() as server:
        broker = await connect(server.url, reconnect=True, name="test")
        await deploy(broker, pipelines.relay)
        target = ("tests.integration.pipelines:relay", "--url", server.url)
        controller = await Role.start("controller", *target)
        worker = await Role.start("worker", *target)
        try:
            await controller.said("leads")
            await worker.said("is ready")
            outputs = await Outputs.watch(broker, "relay")
            before = resident_mb(controller.process.pid)
            acks = []
            for number in range(INSTANCES):
                subject = ingress_subject("relay", f"instance-{number}")
                acks.append(await broker.start_publish(subject, b"x" * 100))
            await asyncio.gather(*acks)
            await outputs.until(INSTANCES)
            after = resident_mb(controller.process.pid)
        finally:
            await controller.end()
            await worker.end()
            await broker.close()
    with capsys.disabled():
        print(f"\ncontroller: {before:.0f} MB empty, {after:.0f} MB with {INSTANCES} instances")
    assert len(outputs.by_instance) == INSTANCES
    assert after < 100
