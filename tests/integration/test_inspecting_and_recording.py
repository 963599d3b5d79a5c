"""The commands inspect, record and recording, against a real nats-server with real roles."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
import wave
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from broker_pipeline.cli.main import main
from tests.integration.processes import ROOT
from tests.integration.test_cli import WAIT_S, Shell, lines_until

APP = """
import asyncio
from pathlib import Path

from broker_pipeline import *

class Upper(ExecutionModule):
    def execute(self, package, run):
        if package.data == b"fail":
            raise ValueError("cannot bear this one")
        run.message = "louder"
        package.data = package.data.decode(errors="replace").upper()

class Stay(ExecutionModule):
    async def execute(self, package, run):
        while package.data == "STAY" and not Path("go").exists():
            await asyncio.sleep(0.05)

pipeline = Pipeline("shout", [Controller(
    "tidy", [Phase("upper", [Upper()]), Phase("stay", [Stay()])], mode=Mode.NO_ORDER)])
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A shell with the pipeline up, and seven packages in it: `stay` is inside."""
    directory = tmp_path_factory.mktemp("app")
    (directory / "tour_app.py").write_text(APP)
    shell = Shell(directory)
    shell.environment["PYTHONPATH"] = str(ROOT)
    up = shell.start("-m", "broker_pipeline", "up", "tour_app:pipeline", "--port", "0")
    shell.environment["NATS_URL"] = lines_until(up, "ready")[0].removeprefix("broker: ")
    for name in ("a", "b"):
        publish = ("publish", "tour_app:pipeline", "--instance", name, "--chunk-bytes", "4", "-")
        shell.run(*publish, stdin="one fail" + ("" if name == "a" else "two stay"))
    with wave.open(str(directory / "talk.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(2 * 1_600))
    shell.run("publish", "tour_app:pipeline", "--instance", "mic", "talk.wav")
    shell.run("results", "tour_app:pipeline", "--from-start", "--count", "6")
    yield shell
    (directory / "go").touch()
    for process in shell.started:
        process.terminate()
        process.wait(WAIT_S)
        if process.stdout is not None:
            process.stdout.close()


@dataclass
class Said:
    """What a command has said, and how it ended."""

    returncode: int
    stdout: str
    stderr: str


class Here:
    """Runs commands in this process, which saves their start."""

    def __init__(self, shell: Shell) -> None:
        self.directory = shell.directory

    def run(self, *words: str) -> Said:
        """Run to the end."""
        out, err = io.StringIO(), io.StringIO()
        code: object = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main(list(words))
            except SystemExit as end:
                code = end.code
        return Said(int(str(code or 0)), out.getvalue(), err.getvalue())


@pytest.fixture
def here(running: Shell, monkeypatch: pytest.MonkeyPatch) -> Here:
    """This process, in the shell's directory."""
    monkeypatch.chdir(running.directory)
    monkeypatch.setenv("NATS_URL", running.environment["NATS_URL"])
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.syspath_prepend(str(running.directory))
    return Here(running)


def inspect(here: Here, *words: str) -> Said:
    """Inspect a package."""
    return here.run("inspect", "tour_app:pipeline", *words)


def test_an_error_is_shown_with_all_that_is_known_of_it(here: Here) -> None:
    """Its way, the exception with its traceback, and the payload."""
    shown = inspect(here, "--error", "1").stdout
    assert shown.startswith("shout/0/")
    for part in (
        "  a #2  ERROR after ",
        "arrived   ",
        "tidy ERROR NO_ORDER #2",
        "  upper ERROR by ",
        "      » ValueError: cannot bear this one",
        "ValueError in tidy/upper/Upper (by ",
        'raise ValueError("cannot bear this one")',
        "payload as it arrived",
    ):
        assert part in shown
    assert "\x1b" not in shown
    # But for where its files are.
    assert all(len(line) <= 80 for line in shown.splitlines() if 'File "' not in line)


def test_one_package_is_found_by_each_of_the_ways(here: Here) -> None:
    """And is the same."""
    found = json.loads(inspect(here, "--instance", "b", "--sequence", "3", "--json").stdout)
    assert (found["data"], found["outcome"]) == ("TWO ", "SUCCESS")
    assert [each["phase"] for each in found["inputs"]] == ["upper", "stay"]
    assert json.loads(inspect(here, found["id"], "--json").stdout) == found
    last = json.loads(inspect(here, "--last", "--instance", "mic", "--json").stdout)
    assert last["instance"] == "mic"
    second = json.loads(inspect(here, "--error", "-1", "--json").stdout)
    assert (second["instance"], second["sequence"]) == ("b", 2)


def test_a_package_that_is_inside_is_shown(here: Here) -> None:
    """Where it is, and since when."""
    shown = inspect(here, "--instance", "b", "--sequence", "4").stdout
    assert "  b #4  INSIDE for " in shown
    assert "It is in the queue of tidy.stay, or being run there." in shown


def test_a_payload_is_saved(here: Here) -> None:
    """Sound as a WAV file; what it is now, as it is."""
    where = ("--last", "--instance", "mic", "--save")
    saved = inspect(here, *where, "out.wav", "--at", "arrival")
    assert saved.stderr == "saved 'out.wav': a WAV file of 0.100 s\n"
    assert "0.100 s at 16,000 Hz, mono; level -96.0 dBFS" in saved.stdout
    with wave.open(str(here.directory / "out.wav")) as file:
        assert file.getnframes() == 1_600
    refused = inspect(here, *where, "out.wav", "--at", "nowhere")
    assert refused.returncode == 2
    assert "'arrival', 'end', 'tidy.stay', 'tidy.upper'" in refused.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no package is named"),
        (("--error", "99"), "has 2 packages that left as ERROR"),
        (("--last", "--from", "tour_app.py"), "file is not a database"),
    ],
)
def test_what_cannot_be_shown_is_refused(here: Here, words: tuple[str, ...], said: str) -> None:
    """In one line, with exit code 2."""
    refused = inspect(here, *words)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("broker-pipeline: BP70") and said in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_log_is_recorded_and_the_file_says_what_it_holds(here: Here) -> None:
    """Everything; and a package in it is inspected with no broker."""
    made = here.run("record", "tour_app:pipeline", "all.bprec")
    assert made.returncode == 0
    assert made.stderr.startswith(
        "recorded 7 packages, 6 of them with their outcome, into 'all.bprec'"
    )
    shown = here.run("recording", "all.bprec").stdout.splitlines()
    assert shown[0] == "all.bprec: pipeline 'shout', tour_app:pipeline"
    assert shown[1].endswith("by version 0.1.0: everything")
    assert shown[2].startswith("  7 packages of 3 instances, ")
    assert shown[3] == "  left: 2 ERROR, 4 SUCCESS"
    assert "    b: 4 packages, 3 left" in shown
    told = json.loads(here.run("recording", "all.bprec", "--json").stdout)
    assert (told["events"]["in"], told["outcomes"]["ERROR"], told["cut"]) == (7, 2, [])
    words = ("inspect", "tour_app:pipeline", "--error", "1", "--url", "nats://127.0.0.1:1")
    kept = here.run(*words, "--from", "all.bprec").stdout
    assert "  a #2  ERROR after " in kept and "note: it is read from a recording" in kept
    again = here.run("record", "tour_app:pipeline", "all.bprec")
    assert again.returncode == 2 and "--force" in again.stderr
    words = ("--force", "--errors", "--instance", "b")
    assert here.run("record", "tour_app:pipeline", "all.bprec", *words).returncode == 0
    shown = here.run("recording", "all.bprec").stdout
    assert "instances 'b', ERROR" in shown
    assert "  cut: life " in shown and "of b has 1 of sequence ids 2 to 2" in shown


def test_a_selection_that_cannot_be_read_is_refused_before_anything_is_done(here: Here) -> None:
    """With what can be written; no file is made."""
    refused = here.run("record", "tour_app:pipeline", "no.bprec", "--since", "teatime")
    assert refused.returncode == 2 and "'10m ago'" in refused.stderr
    assert not (here.directory / "no.bprec").exists()
    refused = here.run("record", "gone:pipeline", "no.bprec")
    assert refused.returncode == 2 and "BP202" in refused.stderr


def test_following_ends_with_ctrl_c_and_keeps_what_came(running: Shell) -> None:
    """Also what came after it began."""
    partial = running.directory / "live.bprec.partial"
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "broker_pipeline", "record", "tour_app:pipeline", "live.bprec",
         "--follow", "--since", "now"],
        cwd=running.directory, env=running.environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not partial.exists():
        assert process.poll() is None
    publish = ("publish", "tour_app:pipeline", "--instance", "live", "--chunk-bytes", "4", "-")
    running.run(*publish, stdin="new ")
    running.run(
        "results", "tour_app:pipeline", "--from-start", "--instance", "live", "--count", "1"
    )
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    assert "recorded 1 package" in said
    assert not partial.exists()
    told = json.loads(running.run("recording", "live.bprec", "--json").stdout)
    assert told["instances"] == {"live": {"packages": 1, "outcomes": 1}}
