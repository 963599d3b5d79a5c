"""Replays in memory: what is decided by the recorded order, and what by today's code."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker_pipeline import (
    Controller,
    DataPackage,
    ExecutionModule,
    ExternalModule,
    Mode,
    Outcome,
    Phase,
    Pipeline,
    Run,
    StatefulModule,
)
from broker_pipeline.core.names import HEADER_NUMBER, HEADER_PRODUCER
from broker_pipeline.core.plan import compile_plan
from broker_pipeline.debug.recordings.recorded import RecordedEvent, RecordedOutcome, RecordingMeta
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.debug.replays.diff import compare
from broker_pipeline.debug.replays.replay_memory import replay_in_memory
from broker_pipeline.debug.replays.replaying import Watch
from broker_pipeline.errors import ClientError, ReplayError, SetupError
from broker_pipeline.journey import NS
from broker_pipeline.modules import Module
from broker_pipeline.testing import replay
from tests.unit.debug.recorded import META, SUBJECTS, arrival, at, done, left

CLOSE = {"Bp-Control": "close"}


class Upper(ExecutionModule[bytes]):
    """Upper case; '!' fails."""

    def execute(self, package: DataPackage[bytes], run: Run) -> None:
        if package.data == b"!":
            raise ValueError("a bang")
        package.data = package.data.upper()


class Count(msgspec.Struct):
    n: int = 0


class Counting(StatefulModule[bytes, Count]):
    """Says the how-manieth it is."""

    def initial_state(self) -> Count:
        return Count()

    def execute(self, package: DataPackage[bytes], run: Run, state: Count) -> Count:
        state.n += 1
        package.data = b"%d" % state.n
        return state


def talk(*modules: Module[Any], **options: Any) -> Pipeline:
    """The pipeline of tests.unit.debug.recorded, with other modules."""
    options.setdefault("mode", Mode.NOT_PARALLEL)
    return Pipeline("talk", [Controller("c", [Phase("p", modules or [Upper()])], **options)])


def write(path: Path, *rows: RecordedEvent | RecordedOutcome, **meta: Any) -> Path:
    """A recording of these."""
    with Recording.create(path, RecordingMeta(pipeline="talk", **meta)) as recording:
        for row in rows:
            if isinstance(row, RecordedEvent):
                recording.add_event(row)
            else:
                recording.add_outcome(row)
    return path


def close(stream_seq: int, token: str = "room") -> RecordedEvent:
    subject = SUBJECTS.arrival(token)
    return RecordedEvent(stream_seq, at(stream_seq), "close", token, subject, CLOSE)


def numbered(stream_seq: int, number: int, data: bytes = b"sound") -> RecordedEvent:
    headers = {HEADER_PRODUCER: "p", HEADER_NUMBER: str(number)}
    return arrival(stream_seq, data, headers=headers)


def replayed(path: Path, pipeline: Pipeline, **options: Any) -> list[DataPackage[Any]]:
    with Recording.open(path) as recording:
        return [each.package for each in replay_in_memory(recording, pipeline, **options)]


def told(packages: list[DataPackage[Any]]) -> list[tuple[int, str, bytes]]:
    return [(each.envelope.id, str(each.outcome), each.envelope.data) for each in packages]


def test_a_package_that_fails_no_more_goes_on_at_once(tmp_path: Path) -> None:
    """It left as ERROR in the first controller then; the second has no place for it in the log."""
    rows = [
        arrival(1, b"!"), done(3, 1, "c"), left(1, 1, b"!", outcome=Outcome.ERROR, stream_seq=4),
        arrival(5, b"x"), done(7, 5, "c"), done(9, 5, "d"), left(5, 2, b"X", stream_seq=10),
    ]  # fmt: skip

    class Mended(ExecutionModule[bytes]):
        def execute(self, package: DataPackage[bytes], run: Run) -> None:
            package.data = package.data.replace(b"!", b"?").upper()

    path = write(tmp_path / "r", *rows)
    controllers = [Controller(name, [Phase("p", [Mended()])]) for name in ("c", "d")]
    packages = replayed(path, Pipeline("talk", controllers))
    assert told(packages) == [(1, "SUCCESS", b"?"), (5, "SUCCESS", b"X")]
    assert [c.name for c in packages[0].controllers] == ["c", "d"]


def test_what_overflowed_while_others_ran_overflows_again(tmp_path: Path) -> None:
    """However fast a module is here: its place comes free where it came free then."""
    rows = [
        arrival(1, b"a"), arrival(3, b"b"), arrival(5, b"c"),
        left(3, 2, b"b", outcome=Outcome.OVERFLOW, stream_seq=6),
        done(7, 1, "c"), left(1, 1, b"A", stream_seq=8),
        done(10, 5, "c"), left(5, 3, b"C", stream_seq=11),
    ]  # fmt: skip
    path = write(tmp_path / "r", *rows)
    assert told(replayed(path, talk(queue_size=1))) == [
        (3, "OVERFLOW", b"b"), (1, "SUCCESS", b"A"), (5, "SUCCESS", b"C"),
    ]  # fmt: skip
    # With more room, the one that overflowed has no place to come back at: it does at once.
    assert told(replayed(path, talk(queue_size=2))) == [
        (1, "SUCCESS", b"A"), (3, "SUCCESS", b"B"), (5, "SUCCESS", b"C"),
    ]  # fmt: skip


def test_what_was_inside_when_the_recording_ended_comes_out_at_last(tmp_path: Path) -> None:
    """Not before: its place in a window was taken until then."""
    rows = [
        arrival(1, b"a"), arrival(3, b"b"),
        left(3, 2, b"b", outcome=Outcome.OVERFLOW, stream_seq=4), arrival(5, b"c"),
        left(5, 3, b"c", outcome=Outcome.OVERFLOW, stream_seq=6),
    ]  # fmt: skip
    packages = replayed(write(tmp_path / "r", *rows), talk(queue_size=0))
    assert told(packages) == [
        (3, "OVERFLOW", b"b"), (5, "OVERFLOW", b"c"), (1, "SUCCESS", b"A"),
    ]  # fmt: skip


def test_an_age_is_judged_by_the_recorded_time(tmp_path: Path) -> None:
    """A package that a worker did not run then is not run, unless it may be older now."""
    late = RecordedEvent(
        3, at(1) + 5 * NS, "done", "room", SUBJECTS.completion("c", "room"),
        package_id=1, controller="c",
    )  # fmt: skip
    outcome = left(1, 1, b"a", outcome=Outcome.OUTDATED, stream_seq=4)
    package = outcome.package()
    record = package.envelope.controllers.add(name="c", mode=1, sequence=1, status=8)
    record.phases.add(name="p", status=8, worker="w")
    outcome = replace(outcome, data=package.envelope.SerializeToString())
    path = write(tmp_path / "r", arrival(1, b"a"), late, outcome)
    (skipped,) = replayed(path, talk(max_age_s=3.0))
    assert skipped.outcome is Outcome.OUTDATED
    assert skipped.controllers[0].phases[0].modules == ()
    for age in (60.0, None):
        (run,) = replayed(path, talk(max_age_s=age))
        assert told([run]) == [(1, "SUCCESS", b"A")]


def test_a_shorter_age_outdates_what_came_back_in_time(tmp_path: Path) -> None:
    """The controller finds it when it comes back, by the log's time."""
    late = RecordedEvent(
        3, at(1) + 5 * NS, "done", "room", SUBJECTS.completion("c", "room"),
        package_id=1, controller="c",
    )  # fmt: skip
    path = write(tmp_path / "r", arrival(1, b"a"), late, left(1, 1, b"A", stream_seq=4))
    assert told(replayed(path, talk())) == [(1, "SUCCESS", b"A")]
    assert told(replayed(path, talk(max_age_s=3.0))) == [(1, "OUTDATED", b"A")]


def test_lives_have_states_of_their_own_which_are_dropped(tmp_path: Path) -> None:
    """A closed instance begins anew, and nothing of the old life is kept in memory."""
    rows: list[Any] = []
    for life in range(50):
        a, b = 10 * life + 1, 10 * life + 4
        rows += [arrival(a), done(a + 2, a, "c"), arrival(b), done(b + 2, b, "c"), close(b + 4)]
        rows += [left(a, 1, epoch=a, stream_seq=a + 1), left(b, 2, epoch=a, stream_seq=b + 1)]
    path = write(tmp_path / "r", *rows)
    from broker_pipeline.debug.replays import replay_memory

    kept: list[int] = []
    with Recording.open(path) as recording:
        pipeline = talk(Counting())
        modules = replay_memory.InlineModules(pipeline, {})
        with modules:
            run = replay_memory._Replay(recording, pipeline, modules, Watch(), None)
            data = []
            for each in run.run():
                data.append(each.package.data)
                kept.append(len(modules._states) + len(run._lives) + len(run._leader._kept))
    assert data == [b"1", b"2"] * 50
    assert max(kept) <= 4


def test_packages_of_one_instance_are_not_delayed_by_others_that_are_not_there(
    tmp_path: Path,
) -> None:
    """The log's leader gave a producer's gap up when another instance's event told it the time. A
    recording that lacks that event has the completion that came of it."""
    gap_s, later = 2 * NS, at(1) + 3 * NS
    rows = [
        numbered(1, 1), done(3, 1, "c"), left(1, 1, stream_seq=4),
        numbered(5, 3), left(5, 2, stream_seq=9),
        RecordedEvent(8, later, "done", "room", SUBJECTS.completion("c", "room"),
                      package_id=5, controller="c"),
        RecordedEvent(10, later + 1, "in", "room", SUBJECTS.arrival("room"), {}, b"more"),
        left(10, 3, outcome=Outcome.OVERFLOW, stream_seq=11),
    ]  # fmt: skip
    assert at(5) + gap_s < later
    packages = replayed(write(tmp_path / "r", *rows), talk(Counting()))
    assert [each.envelope.id for each in packages] == [1, 5, 10]
    assert [each.data for each in packages] == [b"1", b"2", b"3"]


def test_a_producer_goes_on_where_a_recording_is_cut(tmp_path: Path) -> None:
    """Its first number is 5, and 6 is missing: nobody waits for what is not in the recording."""
    rows = [
        numbered(11, 5), done(13, 11, "c"), left(11, 5, epoch=1, stream_seq=14),
        numbered(15, 7), numbered(16, 7), done(17, 15, "c"), left(15, 7, epoch=1, stream_seq=18),
    ]  # fmt: skip
    path = write(tmp_path / "r", *rows)
    packages = replayed(path, talk(Counting()))
    assert told(packages) == [(11, "SUCCESS", b"1"), (15, "SUCCESS", b"2")]
    assert [each.end_time_ns for each in packages] == [at(13), at(17)]


def test_modules_are_set_up_once_and_torn_down(tmp_path: Path) -> None:
    """Also where the replay is broken off, and where `async def` modules need a loop."""
    events: list[str] = []

    class Noted(ExecutionModule[bytes]):
        async def setup(self) -> None:
            events.append("setup")

        async def execute(self, package: DataPackage[bytes], run: Run) -> None:
            await asyncio.sleep(0)
            events.append("run")

        def teardown(self) -> None:
            events.append("teardown")

    rows = [arrival(1), done(2, 1, "c"), left(1, 1, stream_seq=3)]
    path = write(tmp_path / "r", *rows, arrival(4), done(5, 4, "c"), left(4, 2, stream_seq=6))
    assert len(replayed(path, talk(Noted()))) == 2
    assert events == ["setup", "run", "run", "teardown"]
    events.clear()
    with Recording.open(path) as recording:
        going = replay_in_memory(recording, talk(Noted()))
        next(going)
        going.close()
    assert events == ["setup", "run", "teardown"]


def test_a_setup_that_fails_is_said(tmp_path: Path) -> None:
    """Before any package runs."""

    class Broken(Upper):
        def setup(self) -> None:
            raise OSError("no model")

    with pytest.raises(SetupError, match="no model"):
        replayed(write(tmp_path / "r", arrival(1)), talk(Broken()))


async def test_async_modules_need_a_thread_without_a_loop(tmp_path: Path) -> None:
    """The error says where to call it."""

    class Waits(ExecutionModule[bytes]):
        async def execute(self, package: DataPackage[bytes], run: Run) -> None:
            """Nothing."""

    path = write(tmp_path / "r", arrival(1))
    with pytest.raises(ClientError, match="a replay in memory was called where an event loop"):
        replayed(path, talk(Waits()))
    assert len(await asyncio.to_thread(replayed, path, talk(Waits()))) == 1


def test_external_modules_need_a_stand_in(tmp_path: Path) -> None:
    """Nothing calls a server by itself."""
    path = write(tmp_path / "r", arrival(1, b"a"), left(1, 1, b"A", stream_seq=3))
    pipeline = talk(ExternalModule("asr", target="registry:///asr"))
    with pytest.raises(ReplayError, match=r"--external asr=package\.module:Class"):
        replayed(path, pipeline)
    (package,) = replayed(path, pipeline, external={"asr": Upper()})
    assert package.data == b"A"
    (module,) = package.controllers[0].phases[0].modules
    assert (module.name, module.sub_modules[0].name) == ("asr", "Upper")


def test_times_of_modules_are_measured_and_time_stands_still(tmp_path: Path) -> None:
    """Durations are real, so that they can be compared; the clock is the log's."""
    deadlines: list[float | None] = []

    class Slow(ExecutionModule[bytes]):
        def execute(self, package: DataPackage[bytes], run: Run) -> None:
            deadlines.append(run.deadline)
            threading.Event().wait(0.002)

    rows = [arrival(1), done(9, 1, "c"), left(1, 1, stream_seq=10)]
    from broker_pipeline import ModuleOptions

    pipeline = talk(Slow(options=ModuleOptions(timeout_s=0.001)))
    (package,) = replayed(write(tmp_path / "r", *rows), pipeline)
    assert package.outcome is Outcome.SUCCESS, "a timeout is told, and not enforced"
    phase = package.controllers[0].phases[0]
    assert phase.start_time_ns == at(1)
    assert package.end_time_ns == at(9)
    assert phase.modules[0].total_time_ns >= 2_000_000
    assert deadlines[0] is not None


def test_a_pipeline_that_has_changed_decides_by_its_own_plan(tmp_path: Path) -> None:
    """Recorded plans are passed over: today's is in force from the first event on."""
    old = compile_plan(talk(queue_size=0)).to_bytes()
    rows = [
        RecordedEvent(1, at(1), "plan", "", SUBJECTS.plan, {}, old),
        arrival(2, b"a"), arrival(4, b"b"),
        left(4, 2, b"b", outcome=Outcome.OVERFLOW, stream_seq=5),
        RecordedEvent(6, at(6), "plan", "", SUBJECTS.plan, {}, b"not even a plan"),
        done(7, 2, "c"), left(2, 1, b"A", stream_seq=8),
    ]  # fmt: skip
    path = write(tmp_path / "r", *rows)
    assert [row[1] for row in told(replayed(path, talk(queue_size=0)))] == ["OVERFLOW", "SUCCESS"]
    assert [row[1] for row in told(replayed(path, talk()))] == ["SUCCESS", "SUCCESS"]


def test_what_nobody_of_ours_wrote_is_passed_over(tmp_path: Path) -> None:
    """As leaders do: an arrival that names no instance, a close of none, bytes that are none."""
    kind = {"Content-Type": "application/vnd.broker-pipeline.package.v1+protobuf"}
    rows = [
        RecordedEvent(1, at(1), "in", "", SUBJECTS.ctl_in),
        close(2), done(3, 77, "c"), done(4, 1, "nobody"),
        RecordedEvent(5, at(5), "in", "room", SUBJECTS.arrival("room"), kind, b"\xff\xff"),
    ]  # fmt: skip
    (package,) = replayed(write(tmp_path / "r", *rows), talk())
    assert (package.outcome, package.errors[0].type) == (Outcome.ERROR, "MalformedPackageError")


def test_a_replay_that_was_saved_replays_as_it_went(tmp_path: Path) -> None:
    """What came back where the recorded log has no place for it included."""
    rows = [
        arrival(1, b"a"), arrival(3, b"b"), arrival(5, b"c"),
        left(3, 2, b"b", outcome=Outcome.OVERFLOW, stream_seq=6),
        done(7, 1, "c"), left(1, 1, b"A", stream_seq=8), arrival(9, b"d"), arrival(11, b"e"),
        left(9, 4, b"d", outcome=Outcome.OVERFLOW, stream_seq=12),
    ]  # fmt: skip
    path = write(tmp_path / "r", *rows)
    pipeline = talk(queue_size=2)
    with Recording.open(path) as recording, Recording.create(tmp_path / "s", META) as sink:
        first = [each.package for each in replay_in_memory(recording, pipeline, sink=sink)]
    pairs = list(replay(tmp_path / "s", talk(queue_size=2)))
    assert [now.envelope.id for _, now in pairs] == [each.envelope.id for each in first]
    assert all(then is not None and compare(then, now) == [] for then, now in pairs)


def test_a_recording_is_a_golden_test(tmp_path: Path) -> None:
    """`testing.replay` gives each package as it was and as it is; None where it was inside."""
    rows = [
        arrival(1, b"a"), done(3, 1, "c"), left(1, 1, b"A", stream_seq=4), arrival(5, b"b"),
    ]  # fmt: skip
    path = write(tmp_path / "r", *rows)
    (then, now), (inside, later) = replay(str(path), talk())
    assert then is not None
    assert (then.data, now.data) == (b"A", b"A")
    assert (inside, later.data) == (None, b"B")
