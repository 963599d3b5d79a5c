"""Real worker processes: one that a package kills, and one that has a state of three megabytes."""

from __future__ import annotations

import signal

import msgspec

from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.jetstream import connect
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.names import (
    ingress_subject,
    module_bucket,
    module_key,
    object_bucket,
)
from broker_pipeline.runtime.large_states import Reference
from tests.integration import pipelines
from tests.integration.processes import Outputs, Role

TARGET = "tests.integration.pipelines:"
NEIGHBOURS = 60


async def test_a_poison_package_takes_no_neighbour_along() -> None:
    """It kills its worker four times and leaves as ERROR; those that were fetched with it are run,
    each leaves once and as SUCCESS, though the broker delivered them as often."""
    up = await Role.start(
        "up", f"{TARGET}poisoned", "--port", "0", "--slots", "2", "--workers", "2"
    )
    try:
        await up.said("ready")
        url = next(line.split()[-1] for line in up.lines if line.startswith("broker: "))
        broker = await connect(url, reconnect=True, name="test")
        outputs = await Outputs.watch(broker, "poisoned")
        for number in range(NEIGHBOURS):
            data = b"poison" if number == NEIGHBOURS // 2 else b"%d" % number
            await broker.publish(ingress_subject("poisoned", f"i{number % 3}"), data)
        await outputs.until(NEIGHBOURS)
        assert len(outputs.ids) == len(set(outputs.ids)) == NEIGHBOURS
        left = [each for of_one in outputs.by_instance.values() for each in of_one]
        assert [(data, how) for _, data, how in left if how != "SUCCESS"] == [(b"poison", "ERROR")]
        for of_one in outputs.by_instance.values():
            # The one that is ERROR waits for nobody's turn.
            in_turn = [sequence for sequence, _, outcome in of_one if outcome == "SUCCESS"]
            assert in_turn == sorted(in_turn)
        await broker.close()
    finally:
        await up.end()


async def test_a_worker_goes_on_from_a_stored_state_of_three_megabytes() -> None:
    """The one before is killed: only the inputs since the state was stored are run again."""
    key = module_key(0, "c", "p", "i")
    async with EmbeddedServer() as server:
        broker = await connect(server.url, reconnect=True, name="test")
        await deploy(broker, pipelines.heavy)
        roles = [
            await Role.start(kind, f"{TARGET}heavy", "--url", server.url)
            for kind in ("controller", "worker")
        ]
        try:
            outputs = await Outputs.watch(broker, "heavy")
            sent = stored = 0
            while stored < 3:
                await broker.publish(ingress_subject("heavy", "i"), b"")
                sent += 1
                await outputs.until(sent)
                if (entry := await broker.kv_get(module_bucket("heavy"), key)) is not None:
                    name = msgspec.msgpack.decode(entry.value, type=Reference).object
                    encoded = await broker.object_get(object_bucket("heavy"), name)
                    if encoded is not None:  # else a newer one has taken its place just now
                        assert len(encoded) > 3_000_000
                        stored = msgspec.msgpack.decode(encoded)[1]
            roles[1].send(signal.SIGKILL)
            await roles[1].ended()
            roles.append(await Role.start("worker", f"{TARGET}heavy", "--url", server.url))
            await broker.publish(ingress_subject("heavy", "i"), b"")
            await outputs.until(sent + 1)
            _, data, outcome = outputs.by_instance["i"][-1]
            count, runs = map(int, data.split())
            assert (count, outcome) == (sent + 1, "SUCCESS")
            assert runs <= sent + 1 - stored
        finally:
            for role in roles:
                await role.end()
            await broker.close()
