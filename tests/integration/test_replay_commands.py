"""`replay run` and `replay diff` as processes: what they say, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_pipeline import DataPackage, Outcome
from broker_pipeline.debug.recordings.recorded import RecordedEvent, RecordedOutcome, RecordingMeta
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.journey import NS, STATUS_TO_PB

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0
APP = """
import os, time
from broker_pipeline import *

class Upper(ExecutionModule):
    def execute(self, package, run):
        if os.environ.get("HANG") and package.sequence == 3:
            print("hangs", flush=True)
            while True:
                time.sleep(0.01)
        if os.environ.pop("TELL", ""):
            print("runs", flush=True)
        package.data = package.data.upper() + os.environ.get("MORE", "").encode()

pipeline = Pipeline("app", [Controller("tidy", [Phase("upper", [Upper()])])])
remote = Pipeline("app", [Controller("tidy", [Phase("upper", [
    ExternalModule("Upper", target="registry:///upper")])])])
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with app.py, and a recording of ten packages, 100 ms apart."""
    (tmp_path / "app.py").write_text(APP)
    subjects = "bp.app.0.ctl."
    with Recording.create(tmp_path / "ten.bprec", RecordingMeta(pipeline="app")) as recording:
        for n in range(10):
            seq, at = 4 * n + 1, 1_700_000_000 * NS + n * NS // 10
            arrival = (seq, at, "in", "room", f"{subjects}in.room", {}, b"text %d" % n)
            done = (seq + 2, at + 1000, "done", "room", f"{subjects}done.tidy.room", {}, b"")
            recording.add_event(RecordedEvent(*arrival))
            recording.add_event(RecordedEvent(*done, package_id=seq, controller="tidy"))
            recording.add_outcome(outcome(seq, n + 1, at))
    return tmp_path


def outcome(package_id: int, sequence: int, at: int) -> RecordedOutcome:
    """As a worker and a leader leave it."""
    package = DataPackage(b"TEXT %d" % (sequence - 1))
    envelope = package.envelope
    envelope.id, envelope.pipeline, envelope.instance = package_id, "app", "room"
    envelope.epoch, envelope.sequence = 1, sequence
    envelope.outcome = STATUS_TO_PB[Outcome.SUCCESS]
    envelope.start_time_ns, envelope.end_time_ns = at, at + 1000
    controller = envelope.controllers.add(name="tidy", mode=1, sequence=sequence, status=4)
    phase = controller.phases.add(name="upper", status=4, worker="w")
    phase.modules.add(name="Upper", status=4, total_time_ns=1_000)
    who = (package_id, "room", 1, sequence, Outcome.SUCCESS)
    return RecordedOutcome(*who, package_id + 3, at + 1000, package.to_bytes())


def command(*words: str, **environment: str) -> tuple[list[str], dict[str, str]]:
    kept = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **environment}
    return [sys.executable, "-P", "-m", "broker_pipeline", "replay", *words], kept


def run(here: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    line, kept = command(*words, **environment)
    return subprocess.run(
        line, cwd=here, env=kept, capture_output=True, text=True, timeout=WAIT_S, check=False
    )


def test_diff_ends_with_0_where_nothing_has_changed(here: Path) -> None:
    """And needs no broker."""
    ran = run(here, "diff", "app:pipeline", "--from", "ten.bprec")
    assert ran.returncode == 0, ran.stderr
    assert "10  the same" in ran.stdout
    assert ran.stdout.endswith("nothing has changed\n")
    assert "replayed 10 packages of 0.9 s in" in ran.stderr


def test_diff_ends_with_1_and_shows_what_has_changed(here: Path) -> None:
    """The first packages in full; what is ignored does not count."""
    words = ("diff", "app:pipeline", "--from", "ten.bprec", "--show", "2")
    ran = run(here, *words, MORE="!")
    assert ran.returncode == 1, ran.stderr
    assert "10  changed: payload 10" in ran.stdout
    assert ran.stdout.count("'room' #") == 2
    assert "the first 6 bytes are the same" in ran.stdout
    ran = run(here, *words, "--ignore", "payload", MORE="!")
    assert ran.returncode == 0
    ran = run(here, *words, "--json", "--sequences", "3..4", MORE="!")
    told = json.loads(ran.stdout)
    assert (told["changed"], told["kinds"]) == (2, {"payload": 2})
    assert "packages are missing in the lives of 'room' (2 of 4)" in ran.stderr


def test_diff_ends_with_2_where_there_is_nothing_to_compare(here: Path) -> None:
    """What was inside when the recording ended may leave now; nobody knows how it should have."""
    with Recording.create(here / "inside.bprec", RecordingMeta(pipeline="app")) as recording:
        at, subject = 1_700_000_000 * NS, "bp.app.0.ctl.in.room"
        recording.add_event(RecordedEvent(1, at, "in", "room", subject, {}, b"text"))
    ran = run(here, "diff", "app:pipeline", "--from", "inside.bprec")
    assert (ran.returncode, "nothing was compared" in ran.stdout) == (2, True), ran.stderr


def test_diff_ends_with_2_where_it_cannot_tell(here: Path) -> None:
    """One line says why, with what to do."""
    for words, told in (
        (("--from", "no.bprec"), "BP701"),
        (("--from", "ten.bprec", "--errors"), "BP710 'ten.bprec' has no package of ERROR"),
        (("--from", "ten.bprec", "--speed", "fast"), "BP710"),
        (("--url", "nats://127.0.0.1:1"), "BP302"),
    ):
        ran = run(here, "diff", "app:pipeline", *words)
        assert ran.returncode == 2, (words, ran.stdout, ran.stderr)
        assert ran.stderr.startswith(f"broker-pipeline: {told}"), ran.stderr
        assert ran.stderr.count("\n") == 1
    ran = run(here, "diff", "app:remote", "--from", "ten.bprec")
    assert (ran.returncode, "--external Upper=" in ran.stderr) == (2, True)
    ran = run(here, "diff", "app:remote", "--from", "ten.bprec", "--external", "Upper=app:Upper")
    assert ran.returncode == 1, "its record stands inside the external one's"


def test_what_was_saved_can_be_compared_and_replayed(here: Path) -> None:
    """--save of one, --with and --from of another; a file is not overwritten."""
    words = ("diff", "app:pipeline", "--from", "ten.bprec")
    assert run(here, *words, "--save", "now.bprec", MORE="!").returncode == 1
    ran = run(here, *words, "--with", "now.bprec")
    assert (ran.returncode, "10  changed: payload 10" in ran.stdout) == (1, True)
    assert run(here, "diff", "app:pipeline", "--from", "now.bprec", MORE="!").returncode == 0
    ran = run(here, *words, "--save", "now.bprec")
    assert (ran.returncode, "BP701" in ran.stderr) == (2, True)


def test_run_says_what_came_of_it_and_how_fast(here: Path) -> None:
    """In an embedded server with real roles, by default."""
    ran = run(here, "run", "app:pipeline", "--from", "ten.bprec")
    assert ran.returncode == 0, ran.stderr
    assert ["SUCCESS", "10", "10"] in [line.split() for line in ran.stdout.splitlines()]
    assert "tidy/upper/Upper" in ran.stdout
    assert "times real time" in ran.stderr


def test_ctrl_c_ends_a_replay_and_says_what_was_done(here: Path) -> None:
    """At a thousandth of the recorded pace, in memory and in an embedded server: exit code 130."""
    for on in ("memory", "embedded"):
        words = ("--from", "ten.bprec", "--on", on, "--speed", "0.001")
        with started(here, "run", "app:pipeline", *words, TELL="1") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "runs\n"
            process.send_signal(signal.SIGINT)
            said, told = process.communicate(timeout=WAIT_S)
        assert process.returncode == 130, told
        assert "replayed " in told
        assert "recorded    replayed" in said


def test_a_module_that_hangs_is_named_at_ctrl_c_and_the_second_one_ends_it(here: Path) -> None:
    """Nothing can break off a module that does not return, in this process."""
    with started(here, "diff", "app:pipeline", "--from", "ten.bprec", HANG="1") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "hangs\n"
        process.send_signal(signal.SIGINT)
        while "has been running for" not in (line := process.stderr.readline()):
            assert line, "it ended"
        assert "package 9 of 'room' in tidy.upper" in line
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 130


@contextlib.contextmanager
def started(here: Path, *words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A replay that runs, and is killed at the end if it does so still."""
    line, kept = command(*words, **environment)
    with subprocess.Popen(
        line, cwd=here, env=kept, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()
