"""Replays of what real roles did on a real server, in memory, in a log of its own and beside live
traffic."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker_pipeline import ExternalModule, Outcome, Phase, Pipeline, connect
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.client.client import Client
from broker_pipeline.core.names import STATE_BUCKET
from broker_pipeline.debug.recordings.narrowing import narrow
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.debug.recordings.selection import Selection
from broker_pipeline.debug.replays.diff import Kind
from broker_pipeline.debug.replays.diff_report import Report
from broker_pipeline.debug.replays.private_log import INFIX, sweep
from broker_pipeline.debug.replays.replay_run import compare_files, replay
from broker_pipeline.debug.replays.replay_setup import Setup
from broker_pipeline.debug.replays.replaying import On, Watch
from broker_pipeline.journey import STATUS_TO_PB
from broker_pipeline.pipeline import Controller
from broker_pipeline.runtime.local import LocalRoles
from tests.integration.processes import ROOT
from tests.integration.replaying import BOUND_S, Race, left, make, pipeline, record, until_left


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 packages of two instances and four lives, some of them faster than they can be run."""
    path = tmp_path_factory.mktemp("recorded") / "nasty.bprec"
    asyncio.run(_record(path))
    return path


async def _record(path: Path) -> None:
    async with EmbeddedServer() as server, connect(server.url) as client:
        await client.deploy(pipeline)
        async with LocalRoles(server.url, pipeline):
            for life in range(2):
                async with asyncio.TaskGroup() as group:
                    for name in ("room", "r\udcff"):
                        group.create_task(_speak(client, name, life))
            await until_left(client.broker, "nasty", 400)
        await record(client.broker, "nasty", path)


async def _speak(client: Client, name: str, life: int) -> None:
    async with client.instance(pipeline, name) as room:
        for burst in range(5):
            await room.send_many([b"%d %d" % (life, burst * 20 + n) for n in range(20)])
            await until_left(client.broker, "nasty", life * 200 + burst * 20)
        await room.close()


async def replayed(path: Path, setup: Setup, **options: Any) -> Report:
    watch = Watch()
    async with asyncio.timeout(BOUND_S):
        return await replay(path, setup, watch, Report(**options))


async def test_real_roles_are_replayed_to_the_same_outcomes(recorded: Path) -> None:
    """Overflows, overtaken and outdated packages, states and lives: nothing differs in memory."""
    report = await replayed(recorded, Setup(pipeline))
    happened = {outcome for outcome, (old, _) in report.outcomes.items() if old}
    assert happened >= {Outcome.EXIT, Outcome.ERROR}
    assert happened & {Outcome.OVERFLOW, Outcome.OUTDATED}, "nothing was decided by time or order"
    assert report.first == []
    assert (report.same, report.changed, report.missing, report.new) == (400, 0, 0, 0)


async def test_what_was_changed_differs_and_nothing_else(recorded: Path) -> None:
    """A module that shouts no more: each package that came through it, in time or too late."""

    class Quiet(Race):
        async def execute(self, package: Any, run: Any) -> None:
            if package.data.endswith(b"5"):
                run.exit("a five")
            run.message = f"{len(package.data)} bytes"
            package.data = b"quiet"

    changed = make()
    phases = [Phase("run", [Quiet(name="Race")])]
    *others, last = changed.controllers
    changed.controllers = (*others, replace(last, phases=phases))
    report = await replayed(recorded, Setup(changed))
    assert set(report.kinds) == {Kind.PAYLOAD}
    success, outdated = (report.outcomes[o][0] for o in (Outcome.SUCCESS, Outcome.OUTDATED))
    assert report.changed > 0
    assert success <= report.changed <= success + outdated


async def test_a_replay_through_a_log_of_its_own_has_all_packages(
    recorded: Path, tmp_path: Path
) -> None:
    """With real threads, and as many at a time as overflow nowhere; what is saved is comparable."""
    saved = tmp_path / "saved"
    roomy = make(max_age_s=None)
    report = await replayed(recorded, Setup(roomy, On.EMBEDDED, save=saved))
    assert (report.missing, report.new) == (0, 0)
    assert sum(new for _, new in report.outcomes.values()) == 400
    assert report.outcomes[Outcome.OVERFLOW][1] == 0
    # What the first controller made of a package does not depend on how fast it went.
    assert report.outcomes[Outcome.ERROR][1] >= report.outcomes[Outcome.ERROR][0] > 0
    again = compare_files(recorded, saved, roomy, Report())
    assert (again.same, again.changed) == (report.same, report.changed)
    with Recording.open(saved) as recording:
        assert recording.counts().events["in"] == 400


async def test_a_part_of_a_recording_replays_by_itself(recorded: Path, tmp_path: Path) -> None:
    """One instance of two is as it was; the ERRORs alone have other states, and are told apart."""
    with Recording.open(recorded) as recording:
        narrow(recording, Selection(instances=("room",)), tmp_path / "room")
        errors = Selection(outcomes=frozenset([Outcome.ERROR]))
        narrow(recording, errors, tmp_path / "errors")
    report = await replayed(tmp_path / "room", Setup(pipeline))
    assert (report.same, report.changed, report.missing, report.new) == (200, 0, 0, 0)
    report = await replayed(tmp_path / "errors", Setup(pipeline))
    old, new = report.outcomes[Outcome.ERROR]
    assert old == new == report.same > 0


async def test_large_payloads_travel_by_reference_again(tmp_path: Path) -> None:
    """Those that fit no message, raw and with attributes, in memory and through a log."""
    large = Pipeline("large", [Controller("c", [Phase("p", [Race()])])], large_payload_bytes=2_000)
    path = tmp_path / "large.bprec"
    async with EmbeddedServer() as server, connect(server.url) as client:
        await client.deploy(large)
        async with (
            LocalRoles(server.url, large),
            client.instance(large, "room") as room,
        ):
            await room.send(b"a" * 2_000_000)
            await room.send(b"b" * 5_000, attributes={"speaker": "B"})
            await room.send(b"c")
            await until_left(client.broker, "large", 3)
        await record(client.broker, "large", path)
    for on in (On.MEMORY, On.EMBEDDED):
        report = await replayed(path, Setup(large, on))
        assert (report.same, report.changed, report.missing) == (3, 0, 0), report.first


async def test_worker_processes_replay_too(tmp_path: Path) -> None:
    """A TARGET, imported by a controller and workers of an embedded server."""
    from tests.integration.pipelines import ordered

    path = tmp_path / "ordered.bprec"
    async with EmbeddedServer() as server, connect(server.url) as client:
        await client.deploy(ordered)
        async with LocalRoles(server.url, ordered), client.instance(ordered, "room") as room:
            await room.send_many([b"a %d" % n for n in range(50)])
            await until_left(client.broker, "ordered", 50)
        await record(client.broker, "ordered", path)
    target = "tests.integration.pipelines:ordered"
    report = await replayed(path, Setup(ordered, On.EMBEDDED, target=target, workers=2))
    assert (report.same, report.changed, report.missing) == (50, 0, 0), report.first


async def test_a_role_that_cannot_begin_ends_the_replay(recorded: Path) -> None:
    """With its own error, and no server is left behind."""

    class Broken(Race):
        def setup(self) -> None:
            raise OSError("no model")

    broken = Pipeline("nasty", [Controller("c", [Phase("p", [Broken()])])])
    for on in (On.EMBEDDED, On.MEMORY):
        with pytest.raises(Exception, match="no model"):
            await replayed(recorded, Setup(broken, on))


async def test_a_replay_through_a_log_can_be_stopped(recorded: Path) -> None:
    """It ends soon, says that it was broken off, and calls nothing missing."""
    watch, report = Watch(0.01), Report()

    async def stop() -> None:
        async with asyncio.timeout(BOUND_S):
            while not watch.arrived:  # noqa: ASYNC110
                await asyncio.sleep(0)
        watch.stop()

    async with asyncio.timeout(BOUND_S):
        stopping = asyncio.create_task(stop())
        await replay(recorded, Setup(pipeline, On.EMBEDDED), watch, report)
        await stopping
    assert report.stopped
    assert report.missing == 0
    assert watch.left < 400


async def test_stand_ins_run_in_the_place_of_servers(tmp_path: Path) -> None:
    """Through a log too; journeys look as if a server had run it."""
    path = tmp_path / "nasty.bprec"
    asr = ExternalModule("asr", target="registry:///asr")
    bridged = Pipeline("nasty", [Controller("c", [Phase("p", [asr])])])
    async with EmbeddedServer() as server, connect(server.url) as client:
        await client.deploy(bridged)
        async with client.instance(bridged, "room") as room:
            await room.send(b"x")  # nobody serves it: it is inside when the recording ends
        await record(client.broker, "nasty", path)
    for on in (On.MEMORY, On.EMBEDDED):
        report = await replayed(path, Setup(bridged, on, external={"asr": Race()}))
        assert (report.unfinished, report.outcomes[Outcome.SUCCESS]) == (1, [0, 1])


# -- beside live traffic ---------------------------------------------------------------------------
KILLED = """
import asyncio, sys
from pathlib import Path
from broker_pipeline.debug.replays.diff_report import Report
from broker_pipeline.debug.replays.replay_run import replay
from broker_pipeline.debug.replays.replay_setup import Setup
from broker_pipeline.debug.replays.replaying import On, Watch
from tests.integration.replaying import pipeline

async def main(url, path):
    watch = Watch(0.05)
    async def tell():
        while watch.left < 5:
            await asyncio.sleep(0.01)
        print("halfway", flush=True)
    telling = asyncio.create_task(tell())
    await replay(Path(path), Setup(pipeline, On.BROKER, url=url), watch, Report())

asyncio.run(main(*sys.argv[1:]))
"""


async def names(client: Client) -> tuple[set[str], dict[str, set[str]]]:
    """Every stream of the broker, and the consumers of each that is no replay's."""
    import nats

    connection = await nats.connect(client.url)
    try:
        manager = connection.jsm()
        streams = {info.config.name for info in await manager.streams_info()}
        consumers = {
            stream: {
                info.name
                for info in await manager.consumers_info(stream)
                if info.config.durable_name
            }
            for stream in streams
            if INFIX not in stream
        }
    finally:
        await connection.close()
    return streams, consumers


@pytest.fixture
async def live(recorded: Path) -> AsyncIterator[Client]:
    """A broker with live roles."""
    async with EmbeddedServer() as server, connect(server.url) as client:
        await client.deploy(pipeline)
        async with LocalRoles(server.url, pipeline):
            yield client


async def say(client: Client, word: str) -> list[str]:
    """Three live packages, each of an instance of its own, so that none overtakes another."""
    ids = []
    for n in range(3):
        async with client.instance(pipeline, f"live {n}") as room:
            ids.append(await room.send(b"%s %d" % (word.encode(), n)))
    return ids


async def lively(client: Client, ids: list[str]) -> bool:
    """Whether these packages, and no others, have left, each with SUCCESS."""
    await until_left(client.broker, "nasty", len(ids))
    packages = [pb.DataPackage.FromString(raw) for raw in await left(client.broker, "nasty")]
    wanted = sorted(int(each.rpartition("/")[2]) for each in ids)
    succeeded = {package.outcome for package in packages} == {STATUS_TO_PB[Outcome.SUCCESS]}
    return succeeded and sorted(package.id for package in packages) == wanted


async def test_a_replay_beside_live_traffic_leaves_nothing_and_touches_nothing(
    live: Client, recorded: Path
) -> None:
    """No stream, consumer, bucket or key that was not there before; live outcomes are the live
    packages' alone."""
    before = await names(live)
    keys = await live.broker.kv_keys(STATE_BUCKET)
    ids = await say(live, "before")
    report = await replayed(recorded, Setup(pipeline, On.BROKER, url=live.url))
    ids += await say(live, "after")
    assert sum(new for _, new in report.outcomes.values()) == 400
    assert await lively(live, ids)
    assert await names(live) == before
    after = await live.broker.kv_keys(STATE_BUCKET)
    assert {key for key in after if INFIX in key} == set()
    assert set(after) >= set(keys)


async def test_a_replay_that_is_killed_changes_nothing_live_and_the_next_one_tidies_up(
    live: Client, recorded: Path
) -> None:
    """SIGKILL half-way, with live traffic before, during and after."""
    before = await names(live)
    ids = await say(live, "before")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, live.url, str(recorded),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(BOUND_S):
        assert await process.stdout.readline() == b"halfway\n"
    ids += await say(live, "beside")
    assert await sweep(live.broker) == [], "one that is there is left alone"
    process.send_signal(signal.SIGKILL)
    await process.wait()
    ids += await say(live, "after")
    streams, consumers = await names(live)
    assert consumers == before[1]
    assert {stream for stream in streams if INFIX in stream}, "it was killed before it began"
    assert await lively(live, ids)
    (gone,) = await sweep(live.broker)
    assert gone.startswith(f"nasty{INFIX}")
    assert await names(live) == before
    assert [key for key in await live.broker.kv_keys(STATE_BUCKET) if INFIX in key] == []
    assert await sweep(live.broker) == []
