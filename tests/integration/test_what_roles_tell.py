"""Logs and errors of real roles: what the options ask for, wherever a module runs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from broker_pipeline import DataPackage, Outcome, connect
from broker_pipeline.broker import jetstream
from broker_pipeline.broker.embedded import EmbeddedServer
from tests.integration import traced
from tests.integration.processes import BOUND_S, Outputs, Role, until

TARGET = "tests.integration.traced:pipeline"
PLAIN = "tests.integration.traced:plain"
PLACES = ("thread", "process", "loop", "batch", "server")
"""Where the modules of `traced.pipeline` run."""


class Site:
    """A broker, and the roles that a test starts."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.roles: list[Role] = []
        self.errors: list[list[str]] = []

    async def start(self, ready: str, *arguments: str, **environment: str) -> Role:
        """Start a role, keep its standard error, and wait until it says that."""
        role = await Role.start(*arguments, errors=asyncio.subprocess.PIPE, **environment)
        self.roles.append(role)
        lines: list[str] = []
        self.errors.append(lines)
        role.reading = asyncio.create_task(self._read(role, lines))  # type: ignore[attr-defined]
        await role.said(ready)
        return role

    async def _read(self, role: Role, lines: list[str]) -> None:
        assert role.process.stderr is not None
        async for line in role.process.stderr:
            lines.append(line.decode())

    async def start_all(self, *options: str, **environment: str) -> None:
        """Every role of `traced.pipeline`."""
        server = await self.start(
            "is ready", "serve", "tests.integration.traced:served", "--port", "0", *options,
            **environment,
        )  # fmt: skip
        at = {"MODULE_SERVER": server.lines[0].rpartition(" ")[2], **environment}
        to = (TARGET, "--url", self.url)
        await self.start("leads", "controller", *to, **at)
        await self.start("is ready", "worker", *to, *options, **at)
        await self.start("is ready", "bridge", *to, **at)

    async def end(self) -> None:
        """Have all drain."""
        for role in self.roles:
            if role.process.returncode is None:
                role.send(signal.SIGTERM)
        for role in self.roles:
            await role.ended()
            await role.reading  # type: ignore[attr-defined]

    def lines(self) -> list[dict[str, Any]]:
        """What all of them have logged. Each line must be an object."""
        return [json.loads(line) for lines in self.errors for line in lines]


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """No role is there yet."""
    async with EmbeddedServer() as server:
        site = Site(server.url)
        yield site
        for role in site.roles:
            await role.end()


async def outcomes(site: Site, *payloads: bytes) -> list[DataPackage[Any]]:
    """What becomes of them."""
    async with connect(site.url) as client, client.instance(traced.pipeline, "röom") as room:
        await room.send_many(payloads)
        results = room.results()
        async with asyncio.timeout(BOUND_S):
            return [await anext(results) for _ in payloads]


async def test_every_line_is_an_event_with_its_package_wherever_it_comes_from(site: Site) -> None:
    """JSON where nobody has a terminal: of roles, of modules here, apart and behind gRPC."""
    await site.start_all()
    (left,) = await outcomes(site, b"hello")
    assert left.outcome is Outcome.SUCCESS
    await site.end()
    lines = site.lines()
    said = {line["event"]: line for line in lines if line["logger"] == "broker_pipeline.module"}
    assert set(said) == {f"worked in {place}" for place in PLACES}
    assert {line["package"] for line in said.values()} == {left.id}
    assert {line["instance"] for line in said.values()} == {"röom"}
    assert {line["pipeline"] for line in said.values()} == {"traced"}
    assert said["worked in loop"]["phase"] == "first.async"
    roles = {name.rpartition(" ")[2]: line["role"] for name, line in said.items()}
    assert roles == {
        "thread": "worker", "loop": "worker", "batch": "worker", "process": "module",
        "server": "serve",
    }  # fmt: skip
    worker = left.controllers[0].phases[0].worker
    assert said["worked in thread"]["worker"] == worker
    draining = [line for line in lines if line["event"].startswith("draining")]
    assert {line["role"] for line in draining} == {"controller", "worker", "bridge", "serve"}


async def test_a_person_reads_text_and_a_level_holds_what_is_below_it_back(site: Site) -> None:
    """By options or by the environment, for modules apart too."""
    await site.start_all("--log-format", "text", BROKER_PIPELINE_LOG_LEVEL="error")
    await outcomes(site, b"hello")
    await site.end()
    server, _, worker, _ = site.errors
    assert [line.split(": ")[-1].strip() for line in server + worker] == [
        "draining; once more to stop at once"
    ] * 2


async def test_an_error_has_its_details_wherever_the_module_runs(site: Site) -> None:
    """In a thread, on the loop, in a batch, in a process, in a module server; secrets masked."""
    planted = {"TRACED_API_KEY": "s3cr3t-of-the-environment", "TRACED_COLOUR": "blue"}
    await site.start_all("--error-detail", "locals,environment,versions", **planted)
    left = await outcomes(site, *(f"fail {place}".encode() for place in PLACES))
    for package in left:
        place = package.data.decode().split()[1]
        assert package.outcome is Outcome.ERROR
        (error,) = package.errors
        assert error.message == f"{place} was asked to"
        wanted = [text for name, text in error.details.items() if name.endswith("/wanted")]
        assert wanted == ["{'colour': 'green', 'password': ***}"], place
        assert error.details["environment/TRACED_COLOUR"] == "blue"
        assert error.details["environment/TRACED_API_KEY"] == "***"
        assert "versions/broker_pipeline" in error.details
        raw = package.to_bytes()
        assert b"s3cr3t" not in raw and b"hunter2" not in raw
        assert error.to_json()["details"] == error.details


async def test_errors_record_nothing_more_unless_they_are_told_to(site: Site) -> None:
    """Off by default."""
    await site.start("leads", "controller", PLAIN, "--url", site.url)
    await site.start("is ready", "worker", PLAIN, "--url", site.url)
    async with connect(site.url) as client, client.instance(traced.plain, "room") as room:
        await room.send(b"fail thread")
        left = await anext(room.results())
    (error,) = left.errors
    assert error.details == {} and "details" not in error.to_json()


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (("worker", PLAIN, "--error-detail", "locals,globals"), {}, "BP517 .*globals"),
        (("worker", PLAIN), {"BROKER_PIPELINE_ERROR_DETAIL": "all"}, "BP517 .*'all'"),
        (("controller", PLAIN, "--traces", "ftp://x"), {}, "BP517 .*'ftp://x'"),
        (("controller", PLAIN, "--traces", "http://x:99999999"), {}, "BP517 .*99999999"),
        (("controller", PLAIN, "--trace-ratio", "2"), {}, "trace-ratio"),
        (("worker", PLAIN, "--log-level", "loud"), {}, "log-level"),
        (("up", PLAIN, "--traces", "nowhere"), {}, "BP517 .*nowhere"),
    ],
)
async def test_a_setting_that_is_none_is_refused_before_anything_begins(
    arguments: tuple[str, ...], environment: dict[str, str], said: str
) -> None:
    """Exit code 2, and a line that says what was expected."""
    role = await Role.start(*arguments, errors=asyncio.subprocess.PIPE, **environment)
    assert role.process.stderr is not None
    raw = await role.process.stderr.read()
    assert await role.ended() == 2
    assert re.search(said, raw.decode(), re.DOTALL), raw.decode()


@pytest.fixture
def without_opentelemetry(tmp_path: Path) -> dict[str, str]:
    """An environment in which it is not installed."""
    (tmp_path / "opentelemetry.py").write_text(
        "raise ModuleNotFoundError('no opentelemetry', name='opentelemetry')\n"
    )
    return {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split()])
    }


async def test_without_the_extra_traces_are_refused_and_nothing_else_changes(
    site: Site, without_opentelemetry: dict[str, str]
) -> None:
    """BP516 says what to install. Packages with a trace go through, and keep it."""
    refused = await Role.start(
        "controller", "tests.integration.pipelines:ordered", "--traces", "http://127.0.0.1:9",
        errors=asyncio.subprocess.PIPE, **without_opentelemetry,
    )  # fmt: skip
    assert refused.process.stderr is not None
    raw = (await refused.process.stderr.read()).decode()
    assert await refused.ended() == 2 and "BP516" in raw and "broker_pipeline[traces]" in raw
    to = ("tests.integration.pipelines:ordered", "--url", site.url)
    named = {**without_opentelemetry, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    await site.start("leads", "controller", *to, **named)
    await site.start("is ready", "worker", *to, **named)
    parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    broker = await jetstream.connect(site.url, reconnect=True, name="test")
    try:
        outputs = await Outputs.watch(broker, "ordered")
        await broker.publish(
            "bp.ordered.in.i0", b"payload 0", headers={"traceparent": parent, "tracestate": "a=b"}
        )
        await outputs.until(1)
        left = await broker.last_message("BP_ordered_0", "bp.ordered.0.out.success.i0")
        assert left is not None and left.headers["traceparent"] == parent
        assert left.headers["tracestate"] == "a=b"
    finally:
        await broker.close()
    await until(lambda: any("BP516" in line for line in site.errors[0]), "the controller says so")
