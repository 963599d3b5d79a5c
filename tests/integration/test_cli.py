"""The command line, as processes, against a real nats-server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest

WAIT_S = 60.0
APP = """
from broker_pipeline import *

class Upper(ExecutionModule):
    def execute(self, package, run):
        if package.data == b"exit":
            run.exit("as asked")
        package.data = package.data.decode(errors="replace").upper()

def make(workers=4):
    return Pipeline("shout", [Controller(
        "tidy", [Phase("upper", [Upper()])], mode=Mode.ORDER_BY_SEQUENCE, max_workers=workers)])

pipeline = make()
changed = make(8)
asr = ExternalModule("asr", target="registry:///asr")
bridged = Pipeline("bridged", [Controller("c", [Phase("there", [asr])])])
unfollowable = Pipeline("shout", [Controller("other", [Phase("upper", [Upper()])])])
"""


class Shell:
    """Runs commands in a directory that holds `app.py`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {
            **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            "PYTHONWARNINGS": "error",
        }
        self.started: list[subprocess.Popen[str]] = []

    def run(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        return subprocess.run(
            [sys.executable, "-P", "-m", "broker_pipeline", *words],
            cwd=self.directory,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start, and leave running until the test ends."""
        process = subprocess.Popen(
            [sys.executable, "-P", *words],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process


def lines_until(process: subprocess.Popen[str], last: str) -> list[str]:
    """What it prints, up to the line that is `last`. The test's own timeout bounds it."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if lines[-1] == last:
            return lines
    raise AssertionError(f"it ended without {last!r}: {lines}")


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell; what it started is ended with the test."""
    (tmp_path / "app.py").write_text(APP)
    shell = Shell(tmp_path)
    yield shell
    for process in shell.started:
        process.terminate()
        process.wait(WAIT_S)
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def running(shell: Shell) -> Shell:
    """A shell with the pipeline up; NATS_URL leads to it."""
    up = shell.start("-m", "broker_pipeline", "up", "app:pipeline", "--port", "0")
    first = lines_until(up, "ready")[0]
    assert first.startswith("broker: nats://127.0.0.1:")
    shell.environment["NATS_URL"] = first.removeprefix("broker: ")
    return shell


def test_published_lines_come_out_as_json_and_as_lines(running: Shell) -> None:
    """up, publish from standard input, results in both forms."""
    published = running.run(
        "publish",
        "app:pipeline",
        "--instance",
        "r",
        "--chunk-bytes",
        "4",
        "-",
        stdin="one two exit",
    )
    assert published.returncode == 0
    assert published.stderr.startswith("published 3 packages, 12 bytes in ")
    ask = ("results", "app:pipeline", "--from-start", "--count")
    rows = [json.loads(row) for row in running.run(*ask, "3", "--json").stdout.splitlines()]
    by_sequence = sorted(rows, key=lambda row: row["sequence"])
    assert [(row["outcome"], row["data"]) for row in by_sequence[:2]] == [
        ("SUCCESS", "ONE "),
        ("SUCCESS", "TWO "),
    ]
    assert list(rows[0])[:4] == ["id", "pipeline", "instance", "epoch"]
    shown = running.run(*ask, "1", "--outcome", "exit", "--instance", "r").stdout
    assert " r #3 EXIT " in shown and shown.rstrip().endswith("as asked")


def test_a_wav_file_is_published_in_chunks(running: Shell) -> None:
    """100 ms each, whatever is not asked for."""
    with wave.open(str(running.directory / "talk.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(2 * 16_000))
    published = running.run(
        "publish", "app:pipeline", "--instance", "r", "talk.wav", "--realtime", "--close"
    )
    assert published.returncode == 0
    assert published.stderr.startswith("published 10 packages, 32,000 bytes in 1.")


def test_results_end_well_with_ctrl_c(running: Shell) -> None:
    """Exit code 0, and what was printed is whole."""
    running.run("publish", "app:pipeline", "--instance", "r", "-", stdin="x")
    results = running.start(
        "-m", "broker_pipeline", "results", "app:pipeline", "--from-start", "--json"
    )
    assert results.stdout is not None
    assert json.loads(results.stdout.readline())["data"] == "X"
    results.send_signal(signal.SIGINT)
    assert results.wait(WAIT_S) == 0


def test_deploying_says_what_changed_and_what_is_refused(running: Shell) -> None:
    """Nothing, a bound, and a plan that cannot be followed."""
    assert "nothing changed" in running.run("deploy", "app:pipeline").stdout
    assert "window: 4 -> 8" in running.run("deploy", "app:changed").stdout
    refused = running.run("deploy", "app:unfollowable")
    assert refused.returncode == 2
    assert refused.stderr.startswith("broker-pipeline: BP201 ")
    assert refused.stderr.count("\n") == 1


def test_the_launchers_are_roles_of_their_own(running: Shell) -> None:
    """A second controller and worker join, by `python -m workers...`, and drain at SIGTERM."""
    repository = Path(__file__).parents[2]
    running.environment["PYTHONPATH"] = str(repository)
    for role, last in (
        ("controller", "controller of 'shout' stands by"),
        ("worker", "worker of 'shout' is ready: tidy.upper"),
    ):
        options = ["--phase", "tidy.upper"] if role == "worker" else []
        process = running.start("-m", f"workers.{role}", "app:pipeline", *options)
        lines_until(process, last)
        process.terminate()
        assert process.wait(WAIT_S) == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("graph", "app:nothing"), "BP202"),
        (("up", "not_there:pipeline"), "BP202"),
        (("worker", "app:Upper"), "BP202"),
        (("worker", "app:pipeline", "--phase", "tidy.lower"), "BP203"),
        (("worker", "app:pipeline"), "BP302"),
        (("controller", "app:pipeline"), "BP302"),
        (("bridge", "app:pipeline"), "BP203"),
        (("bridge", "app:bridged", "--phase", "c.here"), "BP203"),
        (("bridge", "app:bridged"), "BP302"),
        (("worker", "app:bridged"), "BP203"),
        (("deploy", "app:pipeline"), "BP302"),
        (("results", "app:pipeline"), "BP302"),
        (("publish", "app:pipeline", "--instance", "r", "app.py"), "BP302"),
        (("publish", "app:pipeline", "--instance", "", "app.py"), "BP601"),
        (("publish", "app:pipeline", "--instance", "r", "none.txt"), "BP601"),
        (("publish", "app:pipeline", "--instance", "r", "none.wav"), "BP602"),
    ],
)
def test_what_may_be_expected_to_fail_is_one_line_and_exit_code_2(
    shell: Shell, words: tuple[str, ...], code: str
) -> None:
    """On standard error, with its code, and no traceback."""
    shell.environment["NATS_URL"] = "nats://127.0.0.1:9"
    failed = shell.run(*words)
    assert failed.returncode == 2, failed.stderr
    assert failed.stdout == ""
    assert f"broker-pipeline: {code} " in failed.stderr  # a role writes JSON where nobody looks
    assert failed.stderr.count("\n") == 1


def test_a_pipeline_that_is_not_deployed_is_said_to_be_none(running: Shell) -> None:
    """For publishing and for reading."""
    other = APP.replace('Pipeline("shout"', 'Pipeline("quiet"')
    (running.directory / "other.py").write_text(other)
    for words in (
        ("publish", "other:pipeline", "--instance", "r", "app.py"),
        ("results", "other:pipeline"),
    ):
        failed = running.run(*words)
        assert (failed.returncode, failed.stderr[:23]) == (2, "broker-pipeline: BP201 ")


def test_graphs_need_no_broker(shell: Shell) -> None:
    """Text, Mermaid, JSON."""
    assert shell.run("graph", "app:pipeline").stdout.startswith("pipeline shout\n")
    mermaid = shell.run("graph", "app:pipeline", "--format", "mermaid").stdout
    assert mermaid.startswith("flowchart LR\n")
    graph = json.loads(shell.run("graph", "app:pipeline", "--format", "json").stdout)
    assert graph["plan"]["pipeline"] == "shout"
