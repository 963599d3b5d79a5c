"""Everything on one machine: children that cannot begin, die, or lose their parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from broker_pipeline import Controller, ExternalModule, Phase, Pipeline, connect
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.errors import PlanError, SetupError
from broker_pipeline.runtime.local import LocalRoles
from broker_pipeline.runtime.roles import run_controller, run_worker
from broker_pipeline.runtime.supervisor import plan_children
from tests.integration import pipelines
from tests.integration.processes import Role, until

TARGET = "tests.integration.pipelines:"


def children_of(pid: int) -> set[int]:
    """The processes below one, at any depth."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat") as stat:
                parents[int(entry)] = int(stat.read().rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def alive(pids: set[int]) -> set[int]:
    """Those that still run."""
    running = set()
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as stat:
            if stat.read().rpartition(")")[2].split()[0] != "Z":
                running.add(pid)
    return running


@pytest.fixture
def leftovers() -> Iterator[set[int]]:
    """Processes to end when the test is over, should it fail."""
    pids: set[int] = set()
    yield pids
    for pid in alive(pids):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def up(name: str) -> Role:
    """`up` for one of the pipelines, on a free port."""
    return await Role.start("up", TARGET + name, "--port", "0", "--slots", "1")


async def test_a_child_that_cannot_begin_ends_everything() -> None:
    """A module's setup fails: exit code 2, no endless restarts, no process left."""
    role = await up("broken")
    pids = children_of(role.process.pid)
    assert await role.ended() == 2
    assert "ready" not in role.lines
    assert not alive(pids)


async def test_a_broker_that_dies_ends_everything(leftovers: set[int]) -> None:
    """The embedded server is killed: it is said, with exit code 2, and no process is left."""
    role = await Role.start(
        "up", f"{TARGET}ordered", "--port", "0", errors=asyncio.subprocess.STDOUT
    )
    await until(lambda: "ready" in role.lines or role.process.returncode is not None, "ready")
    pids = children_of(role.process.pid)
    leftovers |= pids
    (server,) = [pid for pid in pids if b"nats-server" in command_of(pid).split(b"\0")[0]]
    os.kill(server, signal.SIGKILL)
    assert await role.ended() == 2
    assert any("BP317" in line for line in role.lines), role.lines
    assert not alive(pids)


async def test_a_child_that_dies_is_started_again(leftovers: set[int]) -> None:
    """A worker is killed: it is said, and there is another; SIGTERM ends all with code 0."""
    role = await up("ordered")
    try:
        await until(lambda: "ready" in role.lines or role.process.returncode is not None, "ready")
        before = children_of(role.process.pid)
        leftovers |= before
        (worker,) = [pid for pid in before if b"\0worker\0" in command_of(pid)]
        os.kill(worker, signal.SIGKILL)
        await role.said("ended (SIGKILL)")
        ready = [line for line in role.lines if "is ready" in line]
        await until(
            lambda: len([line for line in role.lines if "is ready" in line]) > len(ready),
            "another worker",
        )
        leftovers |= children_of(role.process.pid)
        role.send(signal.SIGTERM)
        assert await role.ended() == 0
        await until(lambda: not alive(leftovers), "all children have ended")
    finally:
        await role.end()


async def test_no_child_outlives_a_killed_supervisor(leftovers: set[int]) -> None:
    """SIGKILL for `up`: broker, controller and worker end by themselves."""
    role = await up("chained")
    try:
        await until(lambda: "ready" in role.lines or role.process.returncode is not None, "ready")
        leftovers |= children_of(role.process.pid)
        assert len(leftovers) >= 4, "guardian, server, controller, worker"
    finally:
        await role.end()
    await until(lambda: not alive(leftovers), f"all children have ended: {alive(leftovers)}")


def command_of(pid: int) -> bytes:
    """A process's arguments."""
    with open(f"/proc/{pid}/cmdline", "rb") as command:
        return command.read()


def test_every_worker_runs_every_phase() -> None:
    """Stateful ones too: each worker has its own lanes of them."""
    children = plan_children([("t:p", pipelines.chained)], workers=3, slots=2)
    assert [child.arguments for child in children] == [
        ("controller", "t:p"),
        *[("worker", "t:p", "--slots", "2")] * 3,
    ]


def test_external_phases_get_a_bridge_and_no_worker_that_has_nothing_to_do() -> None:
    """A pipeline of both kinds gets both; slots are those of the workers."""
    asr = ExternalModule("asr", target="registry:///asr")
    there, here = Phase("there", [asr]), Phase("here", [asr, pipelines.Pass()])
    for phases, expected in (
        ([there], [("bridge", "t:p")]),
        ([there, here], [("bridge", "t:p"), ("worker", "t:p", "--slots", "2")]),
        ([here], [("worker", "t:p", "--slots", "2")]),
    ):
        pipeline = Pipeline("p", [Controller("c", phases)])
        children = plan_children([("t:p", pipeline)], workers=1, slots=2)
        assert [child.arguments for child in children] == [("controller", "t:p"), *expected]


async def test_local_roles_end_when_a_setup_fails() -> None:
    """SetupError from entering, and no task is left behind."""
    async with EmbeddedServer() as server, connect(server.url) as client:
        await client.deploy(pipelines.broken)
        before = asyncio.all_tasks()
        async with asyncio.timeout(20):
            with pytest.raises(SetupError, match="no model"):
                async with LocalRoles(server.url, pipelines.broken):
                    pytest.fail("it is entered")
        await until(lambda: not asyncio.all_tasks() - before, f"{asyncio.all_tasks() - before}")


async def test_local_roles_that_are_cancelled_while_they_start_leave_nothing() -> None:
    """Whoever starts them gives up."""
    async with EmbeddedServer() as server, connect(server.url) as client:
        await client.deploy(pipelines.ordered)
        before = asyncio.all_tasks()
        starting = asyncio.create_task(LocalRoles(server.url, pipelines.ordered).__aenter__())
        for _ in range(20):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await until(lambda: not asyncio.all_tasks() - before, f"{asyncio.all_tasks() - before}")


async def test_roles_of_a_pipeline_that_is_not_deployed_say_so() -> None:
    """PlanError from both, at once."""
    async with EmbeddedServer() as server, asyncio.timeout(20):
        stop = asyncio.Event()
        with pytest.raises(PlanError, match="not deployed"):
            await run_controller(server.url, "ordered", stop, announce=print)
        with pytest.raises(PlanError, match="not deployed"):
            await run_worker(
                server.url, pipelines.ordered, stop,
                phases=None, slots=1, target=None, announce=print,
            )  # fmt: skip


async def test_a_controller_stops_at_any_moment() -> None:
    """While it connects, stands by, recovers, leads, or waits for a broker that is down."""
    async with EmbeddedServer() as server:
        async with connect(server.url) as client:
            await client.deploy(pipelines.ordered)
        for delay in (0, 3, 10, 30, 100, 300):
            stop = asyncio.Event()
            running = asyncio.create_task(
                run_controller(server.url, "ordered", stop, announce=lambda line: None)
            )
            for _ in range(delay):
                await asyncio.sleep(0)
            stop.set()
            async with asyncio.timeout(10):
                await running
        said: list[str] = []
        stop = asyncio.Event()
        running = asyncio.create_task(
            run_controller(server.url, "ordered", stop, announce=said.append)
        )
        await until(lambda: any("leads" in line for line in said), "it leads")
        await server.kill()
        await until(lambda: any("begins anew" in line for line in said), "it begins anew")
        stop.set()
        async with asyncio.timeout(5):
            await running
