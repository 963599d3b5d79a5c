"""Recording a log beside live traffic, on a real server with real roles."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from broker_pipeline import DataPackage, Outcome, connect
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.client.client import Client
from broker_pipeline.client.deploy import deployed_plan
from broker_pipeline.core.envelope import message_of, read_event, write
from broker_pipeline.core.events import Completed
from broker_pipeline.core.machine import Machine
from broker_pipeline.core.names import Subjects, escape_instance, ingress_subject, stream_name
from broker_pipeline.core.plan import compile_plan
from broker_pipeline.debug.recordings import log_reading
from broker_pipeline.debug.recordings.recorded import RecordingMeta
from broker_pipeline.debug.recordings.recorder import record_log
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.debug.recordings.selection import Selection
from broker_pipeline.debug.recordings.taking import Summary
from broker_pipeline.errors import BrokerError, PlanError, RecordingError
from broker_pipeline.package import CONTENT_TYPE
from tests.integration.histories import Stay, close, pipeline, running, send
from tests.integration.test_histories import until_only_the_leader_reads

STREAM = stream_name("tour")
SUBJECTS = Subjects("tour")
EVERYTHING = Selection()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test's recording is."""
    return tmp_path / "tour.bprec"


async def record(
    client: Client, path: Path, selection: Selection = EVERYTHING, **how: Any
) -> Summary:
    """Record what is selected."""
    with Recording.create(path, RecordingMeta(target="app:pipeline")) as recording:
        return await record_log(client.broker, "tour", selection, recording, **how)


async def wait_left(client: Client, count: int) -> None:
    """Until so many have left."""
    async with asyncio.timeout(30):
        while True:
            left = await client.broker.read_range(STREAM, f"{SUBJECTS.out}>", start_seq=1)
            if len(left) >= count:
                return


def ids(recording: Recording) -> list[int]:
    """The packages whose arrivals are recorded."""
    return [event.stream_seq for event in recording.events() if event.kind == "in"]


def numbers(names: list[str]) -> list[int]:
    """Of packages' ids."""
    return [int(name.rpartition("/")[2]) for name in names]


async def test_everything_is_recorded_as_the_log_has_it(path: Path) -> None:
    """Each event of the log, exactly, and each outcome; two lives of an instance, several
    instances, names and payloads of all kinds, and what is inside still."""
    async with running() as client:
        await send(client, "room", b"one", b"fail", b"exit", b"\0" * 1_000)
        await close(client, "room")
        await send(client, "room", b"again")
        await send(client, "r\udcff", b"odd")
        package = DataPackage(b"packed", attributes={"a": "1", "b": "2"})
        await client.broker.publish(
            ingress_subject("tour", "=31"),
            package.to_bytes(),
            headers={"Content-Type": CONTENT_TYPE},
        )
        await client.broker.publish(
            ingress_subject("tour", "bad"), b"junk", headers={"Content-Type": CONTENT_TYPE}
        )
        await wait_left(client, 8)
        await send(client, "late", b"stay", wait=0)
        log = await client.broker.read_range(STREAM, SUBJECTS.ctl, start_seq=1)
        left = await client.broker.read_range(STREAM, f"{SUBJECTS.out}>", start_seq=1)
        plan = await deployed_plan(client.broker, "tour")
        summary = await record(client, path)
        Stay.gate.set()
    assert (summary.arrivals, summary.outcomes, summary.purged) == (9, 8, 0)
    log = [message for message in log if message.subject != SUBJECTS.plan]
    with Recording.open(path) as recording:
        assert recording.plan == plan
        assert recording.meta.target == "app:pipeline"
        assert (recording.meta.notes, recording.meta.selection) == ((), "everything")
        events = {event.stream_seq: event for event in recording.events()}
        for message in log:
            event = events[message.stream_seq]
            assert (event.subject, event.time_ns) == (message.subject, message.time)
            if event.kind != "done":
                assert (event.data, event.headers) == (message.data, message.headers)
                continue
            completed, _ = read_event(SUBJECTS, message.subject, {}, message.data, 1, 1)
            assert isinstance(completed, Completed)
            assert (event.package_id, event.controller) == (completed.id, completed.controller)
            assert event.instance == completed.instance
        assert [(each.stream_seq, each.data) for each in recording.outcomes()] == [
            (message.stream_seq, message.data) for message in left
        ]
        assert recording.cut_lives() == []
        assert recording.counts().events["close"] == 1
        assert recording.find(escape_instance("r\udcff"), 1) is not None
        found = recording.outcome_of(recording.nth(Outcome.ERROR, 1) or 0)
        assert found is not None and found.reason == "cannot bear this one"


async def test_a_recording_decides_as_the_log_did(path: Path) -> None:
    """The machine, fed with the recorded arrivals, openings, closings, ticks and the completions in
    their places, emits the recorded outcomes in their order."""
    async with running() as client:
        await send(client, "room", *(b"%d" % n for n in range(40)), b"fail", b"exit")
        await close(client, "room")
        await send(client, "room", b"again")
        done = await client.broker.read_range(STREAM, f"{SUBJECTS.ctl_done}>", start_seq=1)
        await record(client, path)
    completions = {message.stream_seq: message for message in done}
    machine, emitted = Machine(), []
    with Recording.open(path) as recording:
        plan = recording.plan
        assert plan is not None
        machine.step(read_event(SUBJECTS, SUBJECTS.plan, {}, plan.to_bytes(), 1, 1)[0])
        sources = {}
        for event in recording.events():
            if event.kind == "done":
                message = completions[event.stream_seq]
                read = read_event(
                    SUBJECTS, event.subject, {}, message.data, event.stream_seq, event.time_ns
                )
            else:
                read = event.read(SUBJECTS)
            sources[event.stream_seq] = read[1]
            for command in machine.step(read[0]):
                subject, _ = message_of(plan, SUBJECTS, command)
                if subject.startswith(SUBJECTS.out):
                    source = sources[command.package.source]
                    assert source is not None
                    emitted.append((subject, write(plan, 0, command, source)))
        recorded = [
            (f"{SUBJECTS.out}{each.outcome.lower()}.{each.instance}", each.data)
            for each in recording.outcomes()
        ]
    assert emitted == recorded


async def test_only_what_is_selected_is_recorded(path: Path) -> None:
    """By instance, by sequence ids, by outcome, by time; with what belongs to it."""
    async with running() as client:
        a = numbers(await send(client, "a", b"one", b"fail", b"three", b"exit", b"five"))
        await close(client, "a")
        b = numbers(await send(client, "b", b"fail", b"two"))
        arrived = (await client.broker.get_message(STREAM, a[2])).time
        cases = {
            "instance": (Selection(instances=("b",)), b),
            "sequences": (Selection(first=2, last=3), [*a[1:3], b[1]]),
            "both": (Selection(("a",), first=2, last=3), a[1:3]),
            "errors": (Selection(outcomes=frozenset([Outcome.ERROR])), [a[1], b[0]]),
            "two outcomes": (
                Selection(("a",), outcomes=frozenset([Outcome.ERROR, Outcome.EXIT])),
                [a[1], a[3]],
            ),
            "since": (Selection(since_ns=arrived), [*a[2:], *b]),
            "until": (Selection(until_ns=arrived), a[:2]),
            "all of it": (
                Selection(("a",), 2, 4, arrived, None, frozenset([Outcome.EXIT])),
                [a[3]],
            ),
            "nobody": (Selection(instances=("c",)), []),
        }
        for name, (selection, expected) in cases.items():
            summary = await record(client, path.with_name(name), selection)
            with Recording.open(path.with_name(name)) as recording:
                assert ids(recording) == expected, name
                # As they left: EXIT and ERROR wait for nobody's turn.
                outcomes = list(recording.outcomes())
                assert sorted(e.package_id for e in outcomes) == expected, name
                left = [e.stream_seq for e in outcomes]
                assert left == sorted(left), name
                assert (summary.arrivals, summary.outcomes) == (len(expected), len(expected))
                # Each was in both controllers, whatever became of it.
                assert recording.counts().events.get("done", 0) == 2 * len(expected), name
                closed = any(number in a for number in expected)
                until = selection.until_ns is not None
                assert recording.counts().events.get("close", 0) == (closed and not until), name
                assert recording.meta.selection == str(selection)


async def test_what_is_inside_is_recorded_where_its_sequence_id_is_selected(path: Path) -> None:
    """As far as a worker has it; what left and is not selected is not taken for it."""
    async with running() as client:
        sent = numbers(await send(client, "room", b"one", b"two", b"stay", b"stay too", wait=2))
        async with asyncio.timeout(20):
            while (
                len(
                    await client.broker.read_range(
                        STREAM, f"{SUBJECTS.work}shout.stay.*", start_seq=1
                    )
                )
                < 4
            ):
                pass
        await record(client, path, Selection(first=2, last=3))
        with Recording.open(path) as recording:
            assert ids(recording) == sent[1:3]
            assert recording.counts().outcomes == {"SUCCESS": 1}
            assert recording.done_seq(sent[2], "count") is not None
        Stay.gate.set()


async def test_what_was_purged_is_left_out_and_said(path: Path) -> None:
    """An outcome whose arrival is gone; and a plan that is."""
    async with running() as client:
        sent = numbers(await send(client, "room", b"one", b"two"))
        await client.broker.purge(STREAM, below=sent[1])
        summary = await record(client, path)
        assert (summary.arrivals, summary.outcomes, summary.purged) == (1, 1, 1)
        plan = await deployed_plan(client.broker, "tour")
    with Recording.open(path) as recording:
        assert ids(recording) == sent[1:]
        assert recording.plan == plan
        assert [note[:9] for note in recording.meta.notes] == ["1 package", "the plan "]
        assert recording.cut_lives()[0].first == 2


async def test_following_takes_what_comes_until_it_is_told_to_stop(path: Path) -> None:
    """What is in the log already, what comes, and no gap between; everything or errors only."""
    async with running() as client:
        first = numbers(await send(client, "room", b"one", b"fail"))
        stop = asyncio.Event()
        errors = Selection(outcomes=frozenset([Outcome.ERROR]))
        following = [
            asyncio.create_task(record(client, path.with_name(name), selection, follow=stop))
            for name, selection in (("all", Selection()), ("errors", errors))
        ]
        later = []
        for round in range(3):
            later += numbers(await send(client, "room", b"fail %d" % round, b"more"))
        stop.set()
        summary, _ = await asyncio.gather(*following)
        assert (summary.arrivals, summary.outcomes) == (8, 8)
    with Recording.open(path.with_name("all")) as recording:
        assert ids(recording) == first + later
        assert recording.counts().events["done"] == 16
    with Recording.open(path.with_name("errors")) as recording:
        assert ids(recording) == [first[1], *later[::2]]
        assert recording.counts().events["done"] == 8


async def test_large_payloads_are_in_the_recording(path: Path) -> None:
    """In the place of the reference, once; and one that is gone is said to be."""
    async with running() as client:
        kept = client.broker.max_payload * 2
        sent = numbers(await send(client, "room", b"a" * kept, b"b" * kept))
        arrival = await client.broker.get_message(STREAM, sent[1])
        reference = DataPackage.from_bytes(arrival.data).envelope.reference
        await client.broker.object_delete(reference.bucket, reference.object)
        summary = await record(client, path)
        assert summary.gone == 1
    with Recording.open(path) as recording:
        first, second = recording.arrival_of(sent[0]), recording.arrival_of(sent[1])
        assert first is not None and second is not None
        assert DataPackage.from_bytes(first.data).data == b"a" * kept
        assert not first.gone and "no such object" in second.gone
        outcome = recording.outcome_of(sent[1])
        assert outcome is not None and outcome.data == b"2 " + b"B" * kept
        assert recording.meta.notes == ("1 payloads were objects and are gone",)
        assert recording.counts().gone == 1


async def test_strangers_in_the_log_are_passed_over(path: Path) -> None:
    """Outcomes that are none, completions of nobody, numbers that no log has."""
    async with running() as client:
        sent = numbers(await send(client, "room", b"one"))
        huge = DataPackage(b"x")
        huge.envelope.id, huge.envelope.outcome = 2**64 - 1, 4
        for subject, data, msg_id in (
            ("out.error.room", b"\xff", None),
            ("out.success.room", huge.to_bytes(), None),
            ("out.success.room", DataPackage(b"inside").to_bytes(), None),
            ("ctl.done.count.room", b"\xff", None),
            ("ctl.done.count.room", b"\xff", "~d.99999999999999999999.count"),
            ("ctl.done.count.room", b"\xff", "~d.x.count"),
            ("ctl.done.count.room", huge.to_bytes(), None),
            ("ctl.other", b"\xff", None),
        ):
            await client.broker.publish(f"{SUBJECTS.prefix}{subject}", data, msg_id=msg_id)
        summary = await record(client, path)
        assert (summary.arrivals, summary.outcomes, summary.unreadable) == (1, 1, 3)
    with Recording.open(path) as recording:
        assert ids(recording) == sent
        assert recording.counts().events["done"] == 2


async def test_recording_disturbs_nobody(path: Path) -> None:
    """Packages that come meanwhile leave as ever, and no consumer is left."""
    async with running() as client:
        await send(client, "room", *(b"%d" % n for n in range(200)))
        live = asyncio.create_task(send(client, "live", *(b"%d" % n for n in range(200))))
        for number in range(5):
            await record(client, path.with_name(f"{number}"))
        await live
        await until_only_the_leader_reads(client)


async def test_what_goes_wrong_leaves_no_file(path: Path) -> None:
    """A pipeline that is not there; a file that is."""
    async with running() as client:
        with pytest.raises(PlanError), Recording.create(path, RecordingMeta()) as recording:
            await record_log(client.broker, "nothing", Selection(), recording)
        assert list(path.parent.iterdir()) == []
        await record(client, path)
        with pytest.raises(RecordingError):
            await record(client, path)


async def test_progress_goes_from_nothing_to_all(path: Path) -> None:
    """And never back."""
    async with running() as client:
        await send(client, "room", b"one", b"two")
        told: list[float] = []
        await record(client, path, progress=lambda _, share: told.append(share))
    assert told == sorted(told)
    assert told[0] == 0.0 and told[-1] <= 1.0


async def test_a_broker_that_restarts_is_waited_for(path: Path) -> None:
    """While following, and nothing is missed or doubled."""
    async with EmbeddedServer() as server, connect(server.url) as client:
        await client.deploy(pipeline)
        stop = asyncio.Event()
        following = asyncio.create_task(record(client, path, follow=stop))
        sent = []
        for round in range(2):
            for n in range(20):
                ack = await client.broker.publish(ingress_subject("tour", "room"), b"%d" % n)
                sent.append(ack.stream_seq)
            if not round:
                await server.kill()
                await server.start()
        stop.set()
        summary = await following
        assert (summary.arrivals, summary.ended) == (40, "")
    with Recording.open(path) as recording:
        assert ids(recording) == sent
        assert recording.plan == compile_plan(pipeline)


async def test_a_broker_that_does_not_come_back_ends_a_recording(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was followed until then is kept, and the file says that it ended early; without
    following nothing is kept, for half of what was asked looks like all of it."""
    monkeypatch.setattr(log_reading, "PATIENCE_S", 0.3)
    async with EmbeddedServer() as server, connect(server.url) as client:
        await client.deploy(pipeline)
        ack = await client.broker.publish(ingress_subject("tour", "room"), b"one")
        recorded = asyncio.Event()

        def progress(what: str, _: float) -> None:
            if what.startswith("what comes; 1 packages"):
                recorded.set()

        following = asyncio.create_task(
            record(client, path, progress=progress, follow=asyncio.Event())
        )
        await recorded.wait()
        await server.kill()
        summary = await following
        assert summary.ended.startswith("BP30")
        with pytest.raises(BrokerError):
            await record(client, path.with_name("other"))
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    with Recording.open(path) as recording:
        assert ids(recording) == [ack.stream_seq]
        assert "it ended early: BP30" in recording.meta.notes[0]
