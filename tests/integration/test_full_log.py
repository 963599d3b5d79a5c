"""A log of a few MB and more data than fits, on a real broker with real processes."""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker_pipeline import connect
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.port import Message
from broker_pipeline.client.client import Client
from broker_pipeline.core.names import Subjects, ingress_subject, stream_name
from broker_pipeline.core.plan import compile_plan
from broker_pipeline.core.retention import room_factor
from broker_pipeline.errors import LogFullError, PublishRefusedError
from broker_pipeline.runtime.roles import run_controller
from tests.integration import pipelines
from tests.integration.processes import BOUND_S, POLL_S, Role, until

SMALL = pipelines.small
STREAM = stream_name(SMALL.name)
SIZE = SMALL.log_bytes_max or 0
PAYLOAD = 20_000
PURGES = 10
TARGET = "tests.integration.pipelines:small"


class Site:
    """A broker, the deployed pipeline, a client and what left."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.left: list[int] = []
        self.roles: list[Role] = []

    async def start(self, kind: str) -> Role:
        """Start a role."""
        role = await Role.start(kind, TARGET, "--url", self.client.url)
        self.roles.append(role)
        return role

    def take(self, message: Message) -> None:
        """A package left."""
        self.left.append(int(pb.DataPackage.FromString(message.data).data[:8]))

    async def fill(self) -> int:
        """Publish as a raw producer until it is refused; how many are stored."""
        for number in range(SIZE // PAYLOAD + 1):
            try:
                await self.client.broker.publish(ingress_subject(SMALL.name, "a"), payload(number))
            except PublishRefusedError:
                return number
        raise AssertionError("nothing was refused")

    async def is_open(self) -> bool:
        """Whether producers are let in."""
        status = await self.client.broker.stream_status(STREAM)
        return ingress_subject(SMALL.name, "*") in status.subjects

    async def until_open(self, expected: bool) -> None:
        """Wait until they are, or are not."""
        async with asyncio.timeout(BOUND_S):
            while await self.is_open() is not expected:  # noqa: ASYNC110 - the broker is asked
                await asyncio.sleep(POLL_S)


def payload(number: int) -> bytes:
    """Eight digits, and what makes it large."""
    return b"%08d" % number + bytes(PAYLOAD)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """No role runs yet."""
    async with EmbeddedServer() as server, connect(server.url) as client:
        await client.deploy(SMALL)
        site = Site(client)
        await client.broker.read(STREAM, f"{Subjects(SMALL.name).out}>", site.take)
        yield site
        for role in site.roles:
            await role.end()


async def test_a_send_to_a_full_log_says_so_and_one_that_waits_gets_in(site: Site) -> None:
    """LogFullError at once, in plain words; with `wait_full_s` it is sent when the roles have made
    room, which they do by themselves; all that was acknowledged comes out, in order."""
    stored = await site.fill()
    async with site.client.instance(SMALL, "a") as hurried:
        with pytest.raises(LogFullError, match=f"{STREAM}.*is full.*log_bytes_max"):
            await hurried.send(payload(stored))
    told: list[LogFullError] = []
    async with site.client.instance(
        SMALL, "a", wait_full_s=math.inf, on_full=told.append
    ) as patient:
        sending = asyncio.create_task(patient.send(payload(stored)))
        await until(lambda: told, "the send waits")
        await site.start("worker")
        await site.start("controller")
        await sending
    await until(lambda: len(site.left) == stored + 1, "all that was stored leaves")
    assert site.left == list(range(stored + 1))


async def test_the_command_line_waits_for_room_and_says_so(site: Site, tmp_path: Path) -> None:
    """`publish` in a pipe holds up what comes before it, rather than losing it."""
    stored = await site.fill()
    (tmp_path / "late").write_bytes(payload(stored))
    errors = tmp_path / "errors"
    with errors.open("w") as written:
        publishing = await Role.start(
            "publish", TARGET, "--url", site.client.url, "--instance", "a", "--chunk-bytes",
            str(2 * PAYLOAD), str(tmp_path / "late"), errors=written.fileno(),
        )  # fmt: skip
    await until(lambda: "waiting for room: BP310" in errors.read_text(), "it says that it waits")
    assert publishing.process.returncode is None
    await site.start("worker")
    await site.start("controller")
    assert await publishing.ended() == 0
    await until(lambda: len(site.left) == stored + 1, "everything has left")
    assert site.left == list(range(stored + 1))


async def test_several_times_what_fits_goes_through(site: Site) -> None:
    """Ingress closes and opens by itself, the log stays in its bounds, and nothing is lost."""
    await site.start("worker")
    await site.start("controller")
    count = 6 * SIZE // PAYLOAD
    levels: list[int] = []

    async def look() -> None:
        while True:
            levels.append((await site.client.broker.stream_state(STREAM)).bytes)
            await asyncio.sleep(POLL_S)

    looking = asyncio.create_task(look())
    told: list[LogFullError] = []
    async with site.client.instance(SMALL, "a", wait_full_s=math.inf, on_full=told.append) as room:
        await room.send_many(payload(number) for number in range(count))
    await until(lambda: len(site.left) == count, f"{count} leave")
    looking.cancel()
    assert site.left == list(range(count))
    assert max(levels) <= SIZE * room_factor(compile_plan(SMALL))
    await site.until_open(True)


async def test_a_leader_killed_while_the_log_is_full_is_followed_by_one_that_makes_room(
    site: Site,
) -> None:
    """It has closed ingress; the next leader goes on, and opens it again."""
    stored = await site.fill()
    first = await site.start("controller")
    await site.until_open(False)
    first.send(signal.SIGKILL)
    await first.ended()
    assert not await site.is_open()
    await site.client.deploy(SMALL)
    assert not await site.is_open(), "a deploy does not open it"
    await site.start("controller")
    await site.start("worker")
    await until(lambda: len(site.left) == stored, "all that was stored leaves")
    assert site.left == list(range(stored))
    await site.until_open(True)
    async with site.client.instance(SMALL, "a") as room:
        await room.send(payload(stored))


async def test_steady_purging_keeps_the_log_level(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a short replay window the log stays far below what went through it."""
    monkeypatch.setattr("broker_pipeline.pipeline.REPLAY_WINDOW_S_MIN", 0.1)
    monkeypatch.setattr("broker_pipeline.runtime.retention.PURGE_EVERY_S", 0.2)
    monkeypatch.setattr("broker_pipeline.runtime.leader.SNAPSHOT_INTERVAL_S", 0.2)
    monkeypatch.setattr(SMALL, "replay_window_s", 0.5)
    monkeypatch.setattr(SMALL, "log_bytes_max", None)
    await site.client.deploy(SMALL)
    await site.start("worker")
    stop = asyncio.Event()
    leading = asyncio.create_task(
        run_controller(site.client.url, SMALL.name, stop, announce=lambda line: None)
    )
    count, purges = 0, {1}
    async with site.client.instance(SMALL, "a") as room, asyncio.timeout(BOUND_S):
        while len(purges) <= PURGES:
            await room.send_many(payload(count + n) for n in range(20))
            count += 20
            await until(lambda: len(site.left) >= count, "they leave")  # noqa: B023
            state = await site.client.broker.stream_state(STREAM)
            purges.add(state.first_seq)
    stop.set()
    await leading
    assert site.left == list(range(count))
    assert state.bytes < 4 * count * PAYLOAD / 2
