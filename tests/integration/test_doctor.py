"""`doctor` on a real nats-server, with real roles: quiet where all is well, and loud where not."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from broker_pipeline.broker import provision
from broker_pipeline.broker.api import Answer
from broker_pipeline.broker.embedded import find_server
from broker_pipeline.broker.jetstream import JetStreamBroker, connect
from broker_pipeline.broker.monitoring import server_settings
from broker_pipeline.broker.port import ConsumerSpec
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.names import attempts_bucket, attempts_key, ingress_subject, stream_name
from broker_pipeline.debug.operation.doctor import examine, gather
from broker_pipeline.debug.operation.findings import Finding, Severity
from broker_pipeline.errors import MonitoringError
from broker_pipeline.runtime.local import LocalRoles
from broker_pipeline.runtime.suspects import Record
from tests.integration import pipelines
from tests.integration.processes import Role, until

TARGET = "tests.integration.pipelines:ordered"
PIPELINE = pipelines.ordered
LOG = stream_name(PIPELINE.name)
PORTS = {
    "url": re.compile(r"Listening for client connections on .*:(\d+)"),
    "monitor": re.compile(r"Starting http monitor on .*:(\d+)"),
}
GOOD = """
ping_interval: "5s"
ping_max: 2
feature_flags { js_ack_fc_v2: false }
jetstream { store_dir: "%s", sync_interval: always, limits { default_max_consumers: -1 } }
"""
USUAL = 'jetstream { store_dir: "%s" }\n'
"""What nats-server does when it is told nothing."""


@dataclass
class Site:
    """A server, and a connection to it."""

    url: str
    monitor: str
    broker: JetStreamBroker

    async def found(self, **options: str) -> dict[str, Finding]:
        """What doctor finds, by name."""
        facts = await gather(self.broker, PIPELINE, target=TARGET, between_s=0.3, **options)
        return {each.name: each for each in examine(facts)}


@asynccontextmanager
async def serving(directory: Path, settings: str) -> AsyncIterator[Site]:
    """A nats-server with a monitoring port."""
    config = directory / "nats.conf"
    store = directory / "store"
    config.write_text(f'listen: "127.0.0.1:-1"\nhttp: "127.0.0.1:-1"\n{settings % store}')
    process = await asyncio.create_subprocess_exec(
        find_server(), "--config", str(config), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    ports: dict[str, str] = {}
    try:
        async with asyncio.timeout(20):
            while len(ports) < len(PORTS):
                line = (await process.stderr.readline()).decode()
                assert line, "nats-server ended"
                ports |= {key: m[1] for key, each in PORTS.items() if (m := each.search(line))}
        reading = asyncio.create_task(process.stderr.read())
        url = f"nats://127.0.0.1:{ports['url']}"
        broker = await connect(url, reconnect=True, name="test")
        yield Site(url, f"http://127.0.0.1:{ports['monitor']}", broker)
        await broker.close()
    finally:
        process.terminate()
        await process.wait()
    await reading


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A server as it should be, with the pipeline deployed."""
    async with serving(tmp_path, GOOD) as site:
        await deploy(site.broker, PIPELINE)
        yield site


async def test_a_pipeline_at_work_has_nothing_but_no_standby(site: Site) -> None:
    """Packages go through it meanwhile; with a second controller there is nothing at all."""
    sending = asyncio.Event()

    async def send() -> None:
        while not sending.is_set():
            await site.broker.publish(ingress_subject(PIPELINE.name, "i"), b"x")

    async with LocalRoles(site.url, PIPELINE):
        task = asyncio.create_task(send())
        try:
            found = await site.found(monitor=site.monitor)
            assert list(found) == ["no-standby"], found
            async with LocalRoles(site.url, PIPELINE):
                found = await site.found(monitor=site.monitor)
                found.pop("lead-changed", None)  # both lead from this process, which may be held up
                assert found == {}
        finally:
            sending.set()
            await task


async def test_a_server_as_it_comes_is_told_what_to_set(tmp_path: Path) -> None:
    """It notices dead peers after the message ids are forgotten, and writes every two minutes."""
    async with serving(tmp_path, USUAL) as site:
        await deploy(site.broker, PIPELINE)
        found = await site.found(monitor=site.monitor)
        assert found["ping-interval"].severity is Severity.TROUBLE
        assert found["fsync"].severity is Severity.WARNING
        settings = await server_settings(site.monitor + "/")
        assert settings.consumers_max == 1000 and settings.storage_bytes_max > 0


async def test_what_was_changed_behind_our_back(site: Site) -> None:
    """A consumer that is gone or different, a stream and a bucket that are, a stray consumer."""
    broker, api = site.broker, site.broker._api
    async with LocalRoles(site.url, PIPELINE):
        await broker.ensure_consumer(LOG, ConsumerSpec("stray", f"bp.{PIPELINE.name}.0.out.>"))
        await provision.limit_stream(api, LOG, ("bp.ordered.0.>", "bp.ordered.in.*", "x.>"), 10**9)
        await broker.ensure_bucket(attempts_bucket(PIPELINE.name), ttl_s=5)
        found = await site.found()
        assert {"consumer-stray", "differs"} <= set(found)
    (consumer, *_) = [
        name for name, each in (await broker.consumer_states(LOG)).items() if name != "stray"
    ]
    await broker.ensure_consumer(LOG, ConsumerSpec(consumer, "bp.ordered.0.work.>", 1.0))
    assert "consumer-differs" in await site.found()
    await api.request(f"CONSUMER.DELETE.{LOG}.{consumer}", None, Answer)
    assert (await site.found())["consumer-missing"].severity is Severity.TROUBLE
    await deploy(broker, PIPELINE)
    found = await site.found()
    assert not {"consumer-missing", "consumer-differs", "differs"} & set(found)


async def test_roles_that_were_killed(site: Site) -> None:
    """Nobody leads, and nobody runs the phase for which packages wait."""
    roles = [await Role.start(kind, TARGET, "--url", site.url) for kind in ("controller", "worker")]
    try:
        await roles[0].said("leads")
        await roles[1].said("is ready")
        found = await site.found(monitor=site.monitor)
        assert {each.severity for each in found.values()} <= {Severity.NOTE}, found
        roles[1].send(signal.SIGKILL)
        await roles[1].ended()
        await site.broker.publish(ingress_subject(PIPELINE.name, "i"), b"x")

        async def finds(name: str) -> None:
            async with asyncio.timeout(30):
                while True:
                    found = (await site.found()).get(name)
                    if found is not None and found.severity is Severity.TROUBLE:
                        return

        await finds("no-worker")
        await record_attempts(site.broker)
        found = await site.found()
        assert "ordered/0/2 of 'i' in tidy.upper (4 of 20)" in found["poison"].what
        roles[0].send(signal.SIGKILL)
        await roles[0].ended()
        await finds("no-leader")
    finally:
        for role in roles:
            await role.end()


async def record_attempts(broker: JetStreamBroker) -> None:
    """As if the package that waits had come again and again."""
    bucket = attempts_bucket(PIPELINE.name)
    queued = await broker.next_message(LOG, "bp.ordered.0.work.>", start_seq=1)
    assert queued is not None
    for stream_seq in (queued.stream_seq, 10**12):
        key = attempts_key(0, "tidy", "upper", stream_seq)
        await broker.kv_put(bucket, key, msgspec.msgpack.encode(Record(begun=2)))


async def test_what_the_command_says_and_ends_with(site: Site) -> None:
    """0: fine; 1: in trouble; 2: it could not look. As JSON with everything that it found."""

    async def run(*arguments: str) -> tuple[int, str]:
        role = await Role.start("doctor", *arguments, errors=asyncio.subprocess.STDOUT)
        code = await role.ended()
        return code, "\n".join(role.lines)

    async with LocalRoles(site.url, PIPELINE):
        code, text = await run(TARGET, "--url", site.url, "--monitor", site.monitor)
        assert code == 0 and "all is well" in text, text
        assert "API level" in text and "1 controller, 1 worker" in text
    code, text = await run(TARGET, "--url", site.url)
    assert code == 1 and "TROUBLE" in text and f"broker-pipeline controller {TARGET}" in text
    code, text = await run(TARGET, "--url", site.url, "--json")
    told = json.loads(text)
    assert code == 1 and told["counts"]["trouble"] == 1
    assert {each["name"] for each in told["findings"]} >= {"no-leader", "no-worker"}
    code, text = await run("tests.integration.pipelines:chained", "--url", site.url)
    assert code == 1 and "is not deployed" in text
    for arguments in (
        (TARGET, "--url", "nats://127.0.0.1:1"),
        (TARGET, "--url", site.url, "--monitor", site.url),
        (TARGET, "--url", site.url, "--monitor", "http://127.0.0.1:1"),
        (TARGET, "--url", site.url, "--monitor", site.monitor.replace("http", "http:/")),
        ("no.such:thing", "--url", site.url),
    ):
        code, text = await run(*arguments)
        assert code == 2 and len(text.splitlines()) == 1 and "Traceback" not in text, text


async def test_monitoring_addresses_that_are_none(site: Site) -> None:
    """Each is an error of its own, whatever answers there."""
    with socket.create_server(("127.0.0.1", 0)) as hung:  # takes connections, and says nothing
        addresses = [f"http://127.0.0.1:{hung.getsockname()[1]}", site.url.replace("nats", "http")]
        for address in (*addresses, f"{site.monitor}/nothing", "file:///etc/passwd", "x"):
            with pytest.raises(MonitoringError, match="BP319"):
                await server_settings(address)


async def test_a_paused_leader_is_silent(site: Site) -> None:
    """It holds the lease until that runs out, and does not answer."""
    leader = await Role.start("controller", TARGET, "--url", site.url)
    try:
        await leader.said("leads")
        leader.send(signal.SIGSTOP)
        found = await site.found()
        assert found["leader-silent"].severity is Severity.WARNING or "no-leader" in found
    finally:
        leader.send(signal.SIGCONT)
        await leader.end()
        await until(lambda: leader.process.returncode is not None, "its end")
