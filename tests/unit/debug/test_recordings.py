"""Recordings: what is put in comes out, exactly and once, and no half of one looks whole."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from broker_pipeline import DataPackage, Outcome
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.core.events import Arrived, Closed, Deployed, Opened, Ticked
from broker_pipeline.core.names import (
    CONTROL_CLOSE,
    CONTROL_OPEN,
    HEADER_CONTROL,
    TICK_PAUSE,
    Subjects,
)
from broker_pipeline.debug.recordings.recorded import RecordedEvent, RecordingMeta
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.debug.recordings.splitting import join, split
from broker_pipeline.errors import RecordingError
from broker_pipeline.package import CONTENT_TYPE
from tests.unit.debug.recorded import arrival, done, left, plan_of

META = RecordingMeta(pipeline="talk", target="app:pipeline", selection="everything")
SUBJECTS = Subjects("talk")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test's recording is."""
    return tmp_path / "talk.bprec"


def test_events_come_out_as_they_went_in_and_in_the_order_of_the_log(path: Path) -> None:
    """Every kind, in whatever order it was added: subject, headers, bytes, place and time."""
    package = DataPackage(b"sound", attributes={"a": "1", "b": "2"}).to_bytes()
    events = [
        RecordedEvent(1, 10, "plan", subject=SUBJECTS.plan, data=plan_of("talk").to_bytes()),
        RecordedEvent(
            2, 20, "open", "room", SUBJECTS.arrival("room"), {HEADER_CONTROL: CONTROL_OPEN}
        ),
        arrival(3, b"raw", "room"),
        arrival(4, package, "room", {"Content-Type": CONTENT_TYPE, "Bp-Number": "1"}),
        arrival(5, b"", "room"),
        arrival(6, b"\xff no package", "room", {"Content-Type": CONTENT_TYPE}),
        RecordedEvent(7, 70, "in", "=FF", "bp.talk.0.ctl.in.\udcff", {"X": "\udcff"}, b"raw"),
        done(8, 3, "c", "room"),
        RecordedEvent(9, 90, "tick", subject=SUBJECTS.tick),
        RecordedEvent(
            10, 100, "close", "room", SUBJECTS.arrival("room"), {HEADER_CONTROL: CONTROL_CLOSE}
        ),
    ]
    with Recording.create(path, META) as recording:
        for event in reversed(events):
            recording.add_event(event)
    with Recording.open(path) as recording:
        assert recording.meta == META
        found = list(recording.events())
        assert found == events
        kinds = [type(e.read(SUBJECTS)[0]) for e in found if e.kind != "done"]
        assert kinds == [Deployed, Opened, Arrived, Arrived, Arrived, Arrived, Arrived, Ticked,
                         Closed]  # fmt: skip
        assert list(recording.events(after=8)) == events[8:]
        assert recording.arrival_of(4) == events[3]
        assert recording.arrival_of(8) is None
        assert (recording.done_seq(3, "c"), recording.done_seq(3, "other")) == (8, None)
        assert recording.completions(3) == [events[7]]


def test_outcomes_are_found_by_package_place_and_number(path: Path) -> None:
    """By the id of the package, by instance and sequence in the newest life, and the n-th."""
    with Recording.create(path, META) as recording:
        for event in (arrival(1), arrival(2), arrival(12)):
            recording.add_event(event)
        recording.add_outcome(left(1, 1, b"one", stream_seq=5))
        recording.add_outcome(left(2, 2, b"two", outcome=Outcome.ERROR, stream_seq=4))
        recording.add_outcome(left(12, 1, b"three", epoch=12, stream_seq=20))
    with Recording.open(path) as recording:
        assert [each.package_id for each in recording.outcomes()] == [2, 1, 12]
        package = recording.outcome_of(1)
        assert package is not None and package.data == b"one"
        assert package.id == "talk/0/1"
        assert recording.outcome_of(99) is None
        assert recording.find("room", 1) == 12
        assert recording.find("room", 1, epoch=1) == 1
        assert recording.find("room", 2) == 2
        assert recording.find("room", 3) is None
        assert [recording.nth(None, n) for n in (1, 3, 4, -1, -3, -4)] == [2, 12, None, 12, 2, None]
        assert recording.nth(Outcome.ERROR, 1) == recording.nth(Outcome.ERROR, -1) == 2
        assert recording.nth(None, 1, "other") is None
        with pytest.raises(ValueError, match="counts from 1"):
            recording.nth(None, 0)
        counts = recording.counts()
        assert counts.outcomes == {"SUCCESS": 2, "ERROR": 1}
        assert (counts.events, counts.instances, counts.gone) == ({"in": 3}, 1, 0)
        assert recording.cut_lives() == []


def test_lives_that_are_cut_are_told(path: Path) -> None:
    """A life that does not begin with its first package, and one with a hole."""
    with Recording.create(path, META) as recording:
        recording.add_outcome(left(11, 3, stream_seq=21, epoch=1))
        recording.add_outcome(left(12, 1, stream_seq=22, epoch=12))
        recording.add_outcome(left(14, 3, stream_seq=23, epoch=12))
        recording.add_outcome(left(15, 1, stream_seq=24, epoch=15))
        lives = recording.cut_lives()
    assert [(life.epoch, life.first, life.last, life.outcomes) for life in lives] == [
        (1, 3, 3, 1),
        (12, 1, 3, 2),
    ]


def test_equal_payloads_are_stored_once(path: Path) -> None:
    """And compressed where that makes them smaller: noise is not."""
    noise, silence = os.urandom(5_000), bytes(5_000)
    with Recording.create(path, META) as recording:
        for seq in range(1, 101):
            recording.add_event(arrival(seq, silence))
            recording.add_outcome(left(seq, seq, silence, stream_seq=200 + seq))
        recording.add_event(arrival(101, noise))
    with Recording.open(path) as recording:
        counts = recording.counts()
        assert (counts.payloads, counts.payload_bytes) == (2, 10_000)
        assert 5_000 <= counts.stored_bytes < 5_100
        event, package = recording.arrival_of(101), recording.outcome_of(100)
        assert event is not None and event.data == noise
        assert package is not None and package.data == silence
    assert path.stat().st_size < 100_000


def test_what_is_added_twice_is_there_once(path: Path) -> None:
    """The first stays, of events and of outcomes, and no payload is kept that nobody has."""
    with Recording.create(path, META) as recording:
        recording.add_event(arrival(1, b"one"))
        recording.add_event(arrival(1, b"another"))
        recording.add_outcome(left(1, 1, b"ONE", stream_seq=2))
        recording.add_outcome(left(1, 1, b"ANOTHER", stream_seq=3))
    with Recording.open(path) as recording:
        assert [event.data for event in recording.events()] == [b"one"]
        assert [each.package().data for each in recording.outcomes()] == [b"ONE"]
        assert recording.counts().payloads == 2


def test_the_plan_is_kept(path: Path) -> None:
    """As it was deployed; a recording without one says so."""
    plan = plan_of("talk")
    meta = RecordingMeta(pipeline="talk", plan=plan.to_bytes().decode())
    with Recording.create(path, meta) as recording:
        assert recording.plan == plan
    with Recording.create(path, RecordingMeta(pipeline="talk"), overwrite=True):
        pass
    with Recording.open(path) as recording:
        assert recording.plan is None


def test_what_pauses_gaps_is_kept_where_a_recording_is_trimmed(path: Path) -> None:
    """It says how long the packages behind it are waited for; a plain tick says nothing."""
    with Recording.create(path, META) as recording:
        recording.add_event(RecordedEvent(1, 1, "tick", subject=SUBJECTS.tick))
        recording.add_event(RecordedEvent(2, 2, "tick", subject=SUBJECTS.tick, data=TICK_PAUSE))
        recording.add_event(arrival(3))
        recording.trim()
    with Recording.open(path) as recording:
        assert [(e.kind, e.data) for e in recording.events()][:-1] == [("tick", TICK_PAUSE)]


def test_an_error_while_recording_leaves_nothing(path: Path) -> None:
    """And a recording that was to be replaced stays as it was."""
    with Recording.create(path, META) as recording:
        recording.add_event(arrival(1))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        _interrupted(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def _interrupted(path: Path) -> None:
    with Recording.create(path, META, overwrite=True) as recording:
        recording.add_event(arrival(2))
        raise KeyboardInterrupt


def test_no_file_is_replaced_unasked(path: Path) -> None:
    """Whatever it is."""
    path.write_bytes(b"precious")
    with pytest.raises(RecordingError, match="already"):
        Recording.create(path, META)
    assert path.read_bytes() == b"precious"


def test_two_do_not_write_one_recording(path: Path) -> None:
    """The second is refused, and the first goes on undisturbed."""
    with Recording.create(path, META) as recording:
        recording.add_event(arrival(1))
        with pytest.raises(RecordingError, match="another process"):
            Recording.create(path, META)
        recording.add_event(arrival(2))
    with Recording.open(path) as recording:
        assert len(list(recording.events())) == 2


KILLED = """
import os, signal, sys
from broker_pipeline.debug.recordings.recording import Recording
from tests.unit.debug.recorded import META, arrival
with Recording.create(sys.argv[1], META) as recording:
    for seq in range(1, 5_000):
        recording.add_event(arrival(seq, os.urandom(1_000)))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_recorder_that_is_killed_leaves_no_file_that_looks_whole(path: Path) -> None:
    """What it leaves is named `.partial`, and the next recording takes its place."""
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, timeout=60)
    assert [each.name for each in path.parent.iterdir()] == ["talk.bprec.partial"]
    with Recording.create(path, META) as recording:
        recording.add_event(arrival(1))
    assert list(path.parent.iterdir()) == [path]
    with Recording.open(path) as recording:
        assert len(list(recording.events())) == 1


def test_a_disk_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """A folder that is not there."""
    with pytest.raises(RecordingError, match="BP701 writing"):
        Recording.create(tmp_path / "nowhere" / "talk.bprec", META)


@pytest.mark.parametrize("name", ["talk?mode=rw#%41.bprec", "m\udcffusic.bprec", "stück 1.bprec"])
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    """What has a meaning in URIs, blanks, umlauts, bytes that are no UTF-8."""
    with Recording.create(tmp_path / name, META) as recording:
        recording.add_event(arrival(1))
    with Recording.open(tmp_path / name) as recording:
        assert len(list(recording.events())) == 1


def test_memory_does_not_grow_with_the_length(path: Path) -> None:
    """Writing and reading 38,000 packages takes no more than the first 4,000 did."""
    after_the_first = 0
    with Recording.create(path, META) as recording:
        for seq in range(1, 38_001):
            recording.add_event(arrival(seq, b"%08d" % seq * 20))
            recording.add_outcome(left(seq, seq, b"%08d" % seq * 20, stream_seq=100_000 + seq))
            if seq == 4_000:
                after_the_first = _peak_kib()
    with Recording.open(path) as recording:
        assert sum(1 for _ in recording.events()) == 38_000
        assert sum(1 for _ in recording.outcomes()) == 38_000
        assert recording.done_seq(1, "c") is None
        recording.cut_lives()
    assert _peak_kib() - after_the_first < 8_192


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("size", [0, 1, 127, 128, 20_000, 3_000_000])
def test_a_payload_is_cut_out_and_put_back(size: int) -> None:
    """Byte for byte, wherever it stands; without one nothing is cut."""
    envelope = pb.DataPackage(id=7, data=b"x" * size, instance="B\x01", attributes={"B": "b"})
    raw = envelope.SerializeToString()
    parts = split(raw)
    if not size:
        assert parts is None
        return
    assert parts is not None
    without, at, payload = parts
    assert join(without, at, payload) == raw
    assert payload == envelope.data
    envelope.ClearField("data")
    assert pb.DataPackage.FromString(without) == envelope


@pytest.mark.parametrize(
    "raw",
    [
        b"\x42\x01a\x42\x01b",
        b"\x42\x05abc",
        b"\x42\x81\x00a",
        b"\x43",
        b"\x08" + b"\x80" * 100,
        b"\x09\x01",
        b"",
    ],
    ids=["twice", "short", "wide length", "group", "endless", "short fixed", "nothing"],
)
def test_what_is_written_strangely_is_left_whole(raw: bytes) -> None:
    """Nothing is cut out of what could not be put back exactly."""
    assert split(raw) is None
