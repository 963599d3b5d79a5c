"""`replay step` as a person uses it: in a terminal, with pdb, beside a pipeline that runs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker_pipeline.client.client import connect
from tests.integration.terminal import Terminal

WAIT_S = 40
APP = """
import time
from pathlib import Path
import msgspec
from broker_pipeline import (
    ConditionModule, Controller, ExecutionModule, ExternalModule, Mode, ModuleOptions, Phase,
    Pipeline, StatefulModule,
)

class Tally(msgspec.Struct):
    seen: list[str] = []

class Count(StatefulModule[str, Tally]):
    def initial_state(self):
        return Tally()
    def execute(self, package, run, state):
        text = package.data
        state.seen.append(text)
        if text == "bad ":
            raise ValueError(f"{text!r} is the {len(state.seen)}th")
        package.data = f"{text}{len(state.seen)}"
        return state

class Upper(ExecutionModule[str]):
    async def execute(self, package, run):
        text = package.data
        package.data = text.upper()

class Batch(ExecutionModule[str]):
    def execute_batch(self, packages, runs):
        for package in packages:
            package.data += "!"

class Slow(ExecutionModule[str]):
    def execute(self, package, run):
        slow = Path("slow").exists()
        print("begins", flush=True)
        if slow:
            time.sleep(60)

def make(upper=None): return Pipeline("steps", [
    Controller("count", [Phase("count", [Count()])], mode=Mode.NOT_PARALLEL),
    Controller("rest", [
        Phase("upper", upper or [Upper(options=ModuleOptions(isolation="process")),
                                 Upper(name="Again")]),
        Phase("batch", [ConditionModule(Batch(options=ModuleOptions(max_batch=4)),
                                        condition=lambda package: "1" in package.data)]),
        Phase("slow", [Slow()]),
    ], mode=Mode.ORDER_BY_SEQUENCE, max_workers=4),
])

pipeline = make()
remote = make([ExternalModule("up", target="registry:///Upper")])
"""


class Steps:
    """A running pipeline with packages that have gone through it, and `replay step` on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {
            **{k: v for k, v in os.environ.items() if k != "NATS_URL"},
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PYTHONWARNINGS": "error",
        }
        self.ids: dict[str, str] = {}

    def words(self, *words: str) -> list[str]:
        """A command line."""
        return [sys.executable, "-P", "-m", "broker_pipeline", *words]

    def run(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """A command to its end."""
        return subprocess.run(
            self.words(*words), cwd=self.directory, env=self.environment, input=stdin,
            capture_output=True, text=True, timeout=WAIT_S,
        )  # fmt: skip

    def step(self, text: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Step a package, by its text."""
        return self.run("replay", "step", "app:pipeline", self.ids[text], *options)

    def terminal(self, text: str, *options: str) -> Terminal:
        """The same in a terminal."""
        words = self.words("replay", "step", "app:pipeline", self.ids[text], *options)
        return Terminal(*words, cwd=self.directory, environment=self.environment)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steps]:
    """Three packages: one that is SUCCESS, one that is ERROR, and one behind it."""
    directory = tmp_path_factory.mktemp("steps")
    (directory / "app.py").write_text(APP)
    steps = Steps(directory)
    up = subprocess.Popen(
        steps.words("up", "app:pipeline", "--port", "0"), cwd=directory, env=steps.environment,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert up.stdout is not None
    try:
        for line in up.stdout:
            if line.startswith("broker: "):
                steps.environment["NATS_URL"] = line.split()[1]
            if line == "ready\n":
                break
        steps.run(
            "publish", "app:pipeline", "--instance", "r", "--chunk-bytes", "4", "-",
            stdin="one bad two ",
        )  # fmt: skip
        rows = steps.run("results", "app:pipeline", "--from-start", "--json", "--count", "3").stdout
        left = sorted(map(json.loads, rows.splitlines()), key=lambda row: row["sequence"])
        assert [row["outcome"] for row in left] == ["SUCCESS", "ERROR", "SUCCESS"], rows
        steps.ids = {name: row["id"] for name, row in zip(("one", "bad", "two"), left, strict=True)}
        yield steps
    finally:
        up.terminate()
        up.wait(WAIT_S)
        up.stdout.close()


def test_stepping_prints_and_goes_on(steps: Steps) -> None:
    """On the first line of `execute`, with the package and the state that it found."""
    with steps.terminal("two", "--phase", "count.count", "--pdb") as terminal:
        terminal.reads("in count/count/Count")
        terminal.reads("-> text = package.data")
        terminal.answers("n")
        terminal.reads("-> state.seen.append(text)")
        terminal.answers("p text, state.seen, package.sequence")
        terminal.reads("('two ', ['one '], 3)")
        terminal.answers("c")
        assert terminal.ends() == 0, terminal.text
    assert "the same as recorded" in terminal.text
    assert "+    1: 'two '" in terminal.text


def test_what_is_changed_in_the_debugger_makes_a_difference(steps: Steps) -> None:
    """And nowhere else: the log has what it had."""
    with steps.terminal("two", "--phase", "count.count", "--pdb") as terminal:
        terminal.answers("!state.seen.extend(['x', 'y'])")
        terminal.answers("c")
        assert terminal.ends() == 1, terminal.text
    assert "not the same as recorded" in terminal.text
    assert "- two 2" in terminal.text and "+ two 4" in terminal.text
    assert steps.step("two", "--phase", "count.count").returncode == 0


def test_stepping_on_leaves_a_coroutine_for_the_next_module(steps: Steps) -> None:
    """An async module, isolated in a worker; what is ours between the two is not shown."""
    with steps.terminal("two", "--phase", "rest.upper", "--pdb") as terminal:
        terminal.reads("in rest/upper/Upper")
        for line in ("-> text = package.data", "-> package.data = text.upper()", "--Call--"):
            terminal.reads(line)
            terminal.answers("n")
        terminal.reads("-> text = package.data")
        terminal.answers("n")
        terminal.answers("p text")
        terminal.reads("'TWO 2'")
        terminal.answers("c")
        assert terminal.ends() == 0, terminal.text
    assert "broker_pipeline" not in terminal.text and "asyncio" not in terminal.text


def test_a_module_is_chosen_by_its_name(steps: Steps) -> None:
    """The first by default; one inside a condition, of which a batch is one."""
    with steps.terminal("one", "--phase", "rest.batch", "--pdb", "--module", "Batch") as terminal:
        terminal.reads("-> for package in packages:")
        terminal.answers("p len(packages), len(runs)")
        terminal.reads("(1, 1)")
        terminal.answers("c")
        assert terminal.ends() == 0, terminal.text
    wrong = steps.step("one", "--phase", "rest.batch", "--pdb", "--module", "Nobody")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("broker-pipeline: BP720 no module 'Nobody'")


def test_post_mortem_stops_where_it_was_raised(steps: Steps) -> None:
    """With what was at hand there; leaving that, the result is told."""
    with steps.terminal("bad", "--post-mortem") as terminal:
        terminal.reads("ValueError: 'bad ' is the 2th")
        terminal.reads("-> raise ValueError")
        terminal.answers("p state.seen")
        terminal.reads("['one ', 'bad ']")
        terminal.answers("q")
        assert terminal.ends() == 0, terminal.text
    assert "the same as recorded" in terminal.text
    nothing = steps.step("one", "--post-mortem")
    assert nothing.returncode == 0 and "no module code raised anything" in nothing.stderr


@pytest.mark.parametrize("way", ["q", "\x04", "\x03"])
def test_leaving_the_debugger_leaves_cleanly(steps: Steps, way: str) -> None:
    """By q, Ctrl-D or Ctrl-C: one line, no traceback, and no result that means nothing."""
    with steps.terminal("two", "--phase", "count.count", "--pdb") as terminal:
        terminal.reads("(Pdb) ")
        terminal.types(way) if way == "q" else terminal.presses_until(way, "left: ")
        assert terminal.ends() == 2, terminal.text
    assert "left: there is nothing to compare" in terminal.text
    assert "Traceback" not in terminal.text and "recorded" not in terminal.text


def test_ctrl_c_stops_in_a_module_that_hangs_after_continue(steps: Steps) -> None:
    """Where it is."""
    (steps.directory / "slow").touch()
    try:
        with steps.terminal("two", "--phase", "rest.slow", "--pdb") as terminal:
            terminal.answers("c")
            terminal.reads("begins")
            terminal.presses("\x03")
            terminal.reads("interrupted here")
            terminal.reads("execute()")
            terminal.answers("p package.data")
            terminal.reads("'TWO 2'")
            terminal.answers("q")
            assert terminal.ends() == 2, terminal.text
        assert "Traceback" not in terminal.text
    finally:
        (steps.directory / "slow").unlink()


def test_ctrl_c_ends_a_module_that_hangs(steps: Steps) -> None:
    """Without a debugger: the exit code of shells, no traceback."""
    (steps.directory / "slow").touch()
    try:
        with steps.terminal("two", "--phase", "rest.slow") as terminal:
            terminal.reads("begins")
            terminal.presses("\x03")
            assert terminal.ends() == 130, terminal.text
        assert "Traceback" not in terminal.text
    finally:
        (steps.directory / "slow").unlink()


def test_a_program_reads_json_and_the_exit_code(steps: Steps) -> None:
    """What a module prints goes to standard error."""
    result = steps.step("two", "--json")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["phase"], told["status"], told["same"]) == ("rest.slow", "SUCCESS", True)
    assert told["input"]["data"] == told["now"]["data"] == "TWO 2"
    assert "begins" in result.stderr
    told = json.loads(steps.step("two", "--json", "--phase", "count.count").stdout)
    assert told["state"]["before"] == {"0": {"seen": ["one "]}}
    assert told["state"]["after"] == {"0": {"seen": ["one ", "two "]}}


def test_todays_code_is_compared_with_what_was_recorded(steps: Steps) -> None:
    """Mended in the working tree: what was ERROR is SUCCESS, and the exit code says so."""
    mended = APP.replace('text == "bad "', 'text == "worse"')
    (steps.directory / "mended.py").write_text(mended)
    result = steps.run("replay", "step", "mended:pipeline", steps.ids["bad"])
    assert result.returncode == 1, result.stderr
    assert "recorded  ERROR" in result.stdout and "now       SUCCESS" in result.stdout


def test_an_external_module_runs_here_or_in_its_servers_where_that_is_asked_for(
    steps: Steps,
) -> None:
    """A debugger stops in what stands in for it; the servers that run are called; else neither."""
    words = ("app:remote", steps.ids["two"], "--phase", "rest.upper")
    refused = steps.run("replay", "step", *words)
    assert refused.returncode == 2 and "--external up=package.module:Class" in refused.stderr
    command = steps.words("replay", "step", *words, "--external", "up=app:Upper", "--pdb")
    with Terminal(*command, cwd=steps.directory, environment=steps.environment) as terminal:
        terminal.reads("-> text = package.data")
        terminal.answers("c")
        assert terminal.ends() == 1, terminal.text  # the modules of the journey have other names
    assert "TWO 2" in terminal.text
    url = steps.environment["NATS_URL"]
    server = subprocess.Popen(
        steps.words("serve", "app:Upper", "--port", "0", "--announce", url),
        cwd=steps.directory, env=steps.environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    try:
        assert "is ready" in server.stdout.readline()
        told = json.loads(steps.run("replay", "step", *words, "--external-live", "--json").stdout)
        assert told["now"]["data"] == "TWO 2"
        assert told["now"]["controllers"][-1]["phases"][-1]["modules"][0]["server"]
    finally:
        server.terminate()
        server.wait(WAIT_S)
        server.stdout.close()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nonsense",), "BP703 'nonsense' is no package's id"),
        (("steps/0/1",), "BP703 there is no package 'steps/0/1'"),
        (("steps/0/2", "--phase", "count.none"), "BP203 "),
        (("steps/0/2", "--phase", "count.count", "--module", "Count"), "--module says where"),
        (("steps/0/2", "--timeout", "--pdb"), "--timeout would end"),
        ((), "BP702 no package is named"),
        (("steps/0/2", "--error", "1"), "BP702 several packages are named"),
        (("--error", "0"), "BP702 "),
        (("--error", "2"), "BP703 "),
        (("--sequence", "2"), "BP702 a sequence id alone"),
        (("--instance", "r"), "BP702 "),
        (("--instance", "r", "--sequence", "77"), "BP703 "),
        (("steps/0/2", "--external", "a"), "expected NAME=package.module:Class"),
        (("steps/0/2", "--external", "a=no:b"), "BP202 "),
    ],
)
def test_what_cannot_be_done_is_said(steps: Steps, words: tuple[str, ...], says: str) -> None:
    """With exit code 2 and no traceback."""
    failed = steps.run("replay", "step", "app:pipeline", *words)
    assert failed.returncode == 2
    text = " ".join(failed.stderr.replace("│", " ").split())
    assert says in text and "Traceback" not in failed.stderr


def test_a_package_is_named_by_its_place_or_as_an_error(steps: Steps) -> None:
    """As `inspect` does."""
    for options in (("--error", "1"), ("--error", "-1"), ("--instance", "r", "--sequence", "2")):
        result = steps.run("replay", "step", "app:pipeline", *options)
        assert result.stdout.startswith(f"package   {steps.ids['bad']}  r #2\n"), result.stderr


def test_nothing_live_changes(steps: Steps) -> None:
    """Streams, consumers and buckets are what they were, and what is in them."""

    async def everything() -> Any:
        async with connect(steps.environment["NATS_URL"]) as client:
            broker = client.broker
            found: dict[str, Any] = {}
            for stream in ("BP_steps_0", "KV_bp_modules_steps"):
                found[stream] = (
                    await broker.stream_state(stream),
                    await broker.consumer_states(stream),
                )
            return found

    before = asyncio.run(everything())
    for text in steps.ids:
        steps.step(text, "--phase", "count.count")
    assert asyncio.run(everything()) == before
