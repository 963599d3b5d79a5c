"""Every role says how it is doing when it is asked, on a real nats-server."""

from __future__ import annotations

import asyncio
import os
from collections import Counter

from broker_pipeline import connect as client_of
from broker_pipeline import serve
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.jetstream import connect
from broker_pipeline.broker.port import Broker
from broker_pipeline.core.names import server_status_subject, status_subject, stream_name
from broker_pipeline.observe.status import Status, read_status
from broker_pipeline.runtime.local import LocalRoles
from tests.contract.waiting import until
from tests.integration import pipelines
from tests.integration.served_modules import Words

WAIT_S = 0.3


async def statuses(broker: Broker, subject: str) -> list[Status]:
    """What is answered there."""
    answers = await broker.ask_all(subject, b"", wait_s=WAIT_S)
    found = [read_status(each) for each in answers]
    assert None not in found
    return [each for each in found if each is not None]


async def test_controllers_workers_and_bridges_answer() -> None:
    """Each says what it is, what it runs and since when; when they have ended nobody answers, and
    the log holds nothing of it."""
    pipeline = pipelines.bridged
    async with EmbeddedServer() as server, client_of(server.url) as client:
        await client.deploy(pipeline)
        broker, subject = client.broker, status_subject(pipeline.name)
        assert await broker.ask_all(subject, b"", wait_s=60) == []
        before = await broker.stream_state(stream_name(pipeline.name))
        async with LocalRoles(server.url, pipeline):
            found = await statuses(broker, subject)
            roles = Counter(each.role.value for each in found)
            assert roles == {"controller": 1, "bridge": 1}
            for each in found:
                assert each.name.endswith(f"-{os.getpid()}") and each.pipeline == pipeline.name
                assert 0 < each.since <= each.at and each.version
            assert {each.phases for each in found} == {(), ("tidy.upper",)}
            holders = [each.holder for each in found if each.role == "controller"]
            assert holders[0].startswith(found[0].name)
        assert await statuses(broker, subject) == []
        after = await broker.stream_state(stream_name(pipeline.name))
        assert after.last_seq == before.last_seq


async def test_a_module_server_answers_for_its_module() -> None:
    """Where it is announced; by the module's name."""
    async with EmbeddedServer() as server:
        broker = await connect(server.url, reconnect=True, name="test")
        async with serve(Words(), announce=server.url) as there:
            subject = server_status_subject(there.name)

            async def answered() -> bool:
                found = await statuses(broker, subject)
                return [(each.role, each.address) for each in found] == [("server", there.address)]

            await until(answered)
        await broker.close()


async def test_a_role_whose_broker_was_restarted_answers_again() -> None:
    """Its connection comes back, and so does what it answers."""
    async with EmbeddedServer() as server:
        worker = await connect(server.url, reconnect=True, name="worker")
        await worker.answer("bp-status.p", lambda question: b"here")
        await server.stop()
        again = EmbeddedServer(server.port)
        await again.start()
        try:
            async with asyncio.timeout(20):
                broker = await connect(again.url, reconnect=True, name="test")

                async def answered() -> bool:
                    return await broker.ask_all("bp-status.p", b"", wait_s=WAIT_S) == [b"here"]

                await until(answered)
            await worker.close()
            await broker.close()
        finally:
            await again.stop()
