"""The client against a real nats-server and real roles."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker_pipeline import (
    Controller,
    DataPackage,
    ExecutionModule,
    Mode,
    Outcome,
    Phase,
    Pipeline,
    Run,
    connect,
)
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.errors import BrokerUnavailableError, ClientError, PayloadTooLargeError

WAIT_S = 30.0


class Upper(ExecutionModule[bytes]):
    """Upper case; nothing leaves as EXIT, a bang as ERROR."""

    def execute(self, package: DataPackage[bytes], run: Run) -> None:
        """Shout."""
        if not package.data:
            run.exit("empty")
        if package.data == b"!":
            raise ValueError("a bang")
        package.data = package.data.upper()


def shout(max_workers: int = 8) -> Pipeline:
    phases = [Phase("upper", [Upper()])]
    mode = Mode.ORDER_BY_SEQUENCE
    return Pipeline("shout", [Controller("tidy", phases, mode=mode, max_workers=max_workers)])


async def collect(results: Any) -> list[DataPackage[Any]]:
    async with asyncio.timeout(WAIT_S):
        return [package async for package in results]


async def test_an_address_is_not_needed() -> None:
    """connect() brings broker, controller and worker; every outcome comes, in order."""
    pipeline = shout()
    async with connect() as client:
        assert (await client.deploy(pipeline)).changes
        assert not (await client.deploy(pipeline)).changes
        async with client.instance(pipeline, "room 1/äö") as room:
            errors: list[str] = []
            room.on(Outcome.ERROR, lambda package: errors.append(package.id))
            ids = await room.send_many([b"a", b"", b"!", *(b"%d" % n for n in range(300))])
            await room.close()
            packages = await collect(room.results())
        assert errors == [ids[2]]
        successes = [p for p in packages if p.outcome is Outcome.SUCCESS]
        assert [p.data for p in successes] == [b"A", *(b"%d" % n for n in range(300))]
        assert sorted(p.id for p in packages) == sorted(ids)
        assert [p.sequence for p in successes] == [1, *range(4, 304)]
        assert {p.instance for p in packages} == {"room 1/äö"}


async def test_a_closed_instance_begins_a_new_life_with_the_next_object() -> None:
    """Sequence ids start at 1 under another epoch."""
    pipeline = shout()
    async with connect() as client:
        await client.deploy(pipeline)
        lives = []
        for _ in range(2):
            async with client.instance(pipeline, "room") as room:
                await room.send_many([b"a", b"b"])
                await room.close()
                lives.append(await collect(room.results()))
        assert [[p.sequence for p in life] for life in lives] == [[1, 2], [1, 2]]
        assert len({p.epoch for life in lives for p in life}) == 2


async def test_a_redeploy_in_the_same_process_runs_the_new_pipeline() -> None:
    """connect() without an address changes its roles over."""
    async with connect() as client:
        await client.deploy(shout())
        result = await client.deploy(pipeline := shout(max_workers=2))
        assert any("window: 8 -> 2" in line for line in result.changes)
        async with client.instance(pipeline, "room") as room:
            await room.send(b"a")
            await room.close()
            assert [p.data for p in await collect(room.results())] == [b"A"]


async def test_a_package_over_the_servers_limit_without_its_payload_is_refused() -> None:
    """With the limit, before it is sent; a payload over the limit goes by reference."""
    pipeline = shout()
    async with EmbeddedServer(max_payload=65_536) as server, connect(server.url) as client:
        await client.deploy(pipeline)
        async with client.instance(pipeline, "room") as room:
            with pytest.raises(PayloadTooLargeError, match="65536"):
                await room.send(b"", attributes={"a": "a" * 70_000})
            assert await room.send(b"a" * 70_000)


async def test_a_server_that_restarts_is_waited_for(tmp_path: Any) -> None:
    """Sends and results go on; nothing is missing, doubled or out of order."""
    pipeline = shout()
    server = EmbeddedServer(store_dir=tmp_path)
    await server.start()
    async with connect(server.url) as client:
        await client.deploy(pipeline)
        async with client.instance(pipeline, "room") as room:
            ids = await room.send_many([b"1", b"2"])
            again = EmbeddedServer(server.port, tmp_path)
            stopping = asyncio.create_task(server.stop())
            sends = [asyncio.create_task(room.send(b"%d" % n)) for n in range(3, 50)]
            await stopping
            await again.start()
            try:
                async with asyncio.timeout(WAIT_S):
                    ids += await asyncio.gather(*sends)
                stored = await client.broker.read_range(
                    "BP_shout_0", "bp.shout.0.ctl.in.>", start_seq=1
                )
            finally:
                await again.stop()
    assert sorted(m.data for m in stored) == sorted(b"%d" % n for n in range(1, 50))
    assert len(set(ids)) == 49


async def test_nobody_at_the_address_and_no_connection_are_said() -> None:
    """One error each, that names the address or the way."""
    with pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1:9"):
        async with connect("nats://127.0.0.1:9"):
            pass
    with pytest.raises(ClientError, match="async with"):
        await connect("nats://127.0.0.1:9").deploy(shout())
