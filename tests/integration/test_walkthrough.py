"""docs/debugging.md is run as it stands: its commands in a terminal, and what it types into pdb."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.integration.terminal import Terminal

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "debugging.md"
PROMPT = "<walk>"
KEY_LINES = {
    "patch -p1 ": ["patching file examples/transcribe/segmenter.py"],
    "broker-pipeline top ": ["CONTROLLER, phase       in/s out/s err/s busy", "  segment"],
    "broker-pipeline inspect ": [
        "room-1 #45  ERROR",
        "ValueError in listen/segment/Segment",
        "return 10.0 * math.log10(power)",
        "ValueError: math domain error",
        "0.100 s at 16,000 Hz, mono; level -96.0 dBFS",
    ],
    "broker-pipeline record ": ["recorded 113 packages, 113 of them with their outcome"],
    "broker-pipeline replay step $pipeline --error 1 --pdb": [
        "44 recorded inputs are run again for the state",
        "-> after, utterance = segmenter.step(state, _pcm(package))",
        "(3200, {0})",
        "(False, 4.4)",
        "left: there is nothing to compare",
    ],
    "broker-pipeline replay step $pipeline --error 1 --post-mortem": [
        "-> return 10.0 * math.log10(power)",
        "0.0",
        "the same as recorded",
    ],
    "patch -R ": ["patching file examples/transcribe/segmenter.py"],
    "broker-pipeline replay step $pipeline --error 1": [
        "now       EXIT",
        "+  end: 72000",
        "not the same as recorded:",
        "messages of listen/segment/Segment: '' -> 'silence'",
    ],
    "broker-pipeline replay diff $pipeline --from meeting.bprec --save ": [
        "replayed 113 packages",
        "82  the same",
        "31  changed: outcome 30, attributes 1, errors 30, journey 30, messages 31",
        "outcome: ERROR ('math domain error') -> EXIT ('silence')",
        "changed: 31 packages differ",
    ],
    "broker-pipeline replay diff $pipeline --from meeting.bprec --with ": [
        "112  the same",
        "attributes of 'start_s': '4.26' -> '7.26'",
        "changed: 1 package",
    ],
    "broker-pipeline replay diff $pipeline --from mended.bprec": [
        "113  the same",
        "nothing has changed",
    ],
}
"""What must be in the page and in what is really written, by the beginning of the command."""


@dataclass
class Command:
    """A command of the page, what is typed while it runs, and what the page says that it writes."""

    line: str
    typed: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)

    def key_lines(self) -> list[str]:
        """Those of the longest beginning that fits."""
        fits = [begin for begin in KEY_LINES if self.line.startswith(begin)]
        return KEY_LINES[max(fits, key=len)] if fits else []


def commands() -> list[Command]:
    """The console blocks of the page, in order."""
    found: list[Command] = []
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.M | re.S):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Command(line[2:]))
                continue
            if line.startswith("(Pdb) "):
                found[-1].typed.append(line.removeprefix("(Pdb) "))
            found[-1].output.append(line)
    return found


class Walk:
    """A shell in a terminal, which runs the page."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._terminal.reads(PROMPT)
        self.started: list[int] = []

    def run(self, command: Command) -> str:
        """Run one to its end; what it wrote."""
        self._terminal.types(command.line)
        self._terminal.reads(command.line)  # the terminal's echo
        if command.line.startswith("broker-pipeline top "):
            return self._watch()
        written = ""
        for line in command.typed:
            written += self._terminal.reads("(Pdb) ")
            self._terminal.types(line)
        written += self._terminal.reads(PROMPT)
        self.started += [int(number) for number in re.findall(r"^\[\d+\] (\d+)$", written, re.M)]
        return written

    def _watch(self) -> str:
        """Look at `top` until it shows what is wrong, then leave it."""
        screen = self._terminal.reads_match(r"  segment +[\d.]+ +[\d.]+ +[1-9]")
        self._terminal.presses("q")
        return screen + self._terminal.reads(PROMPT)


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Walk]:
    """At the root of a copy of the repository; whatever it leaves running is ended."""
    for package in ("onnxruntime", "soundfile", "soxr"):
        pytest.importorskip(package, reason="needs the extra 'transcribe'")
    for name in ("examples", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, words in (("python", ""), ("broker-pipeline", "-m broker_pipeline ")):
        (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words}"$@"\n')
        (tools / name).chmod(0o755)
    environment = {
        **{key: value for key, value in os.environ.items() if key != "NATS_URL"},
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PS1": PROMPT,
        "TMPDIR": str(tmp_path),
    }
    shell = ("bash", "--norc", "--noediting")
    with Terminal(*shell, cwd=tmp_path, environment=environment) as terminal:
        walk = Walk(terminal)
        try:
            yield walk
        finally:
            for number in walk.started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGTERM)


@pytest.mark.timeout(240)
def test_the_walk_through_debugging_leads_where_it_says(walk: Walk) -> None:
    """Every command of the page, in its order; what matters of what it shows is what happens."""
    page = commands()
    for command in page:
        written = walk.run(command)
        shown = "\n".join(command.output)
        if command.line == "echo $?":
            assert written.split()[0] == shown.strip(), f"another exit code than the page's {shown}"
        for line in command.key_lines():
            assert line in written, f"$ {command.line}\n{written}"
            assert line in shown, f"the page lacks {line!r} behind $ {command.line}"
    for begin in KEY_LINES:
        assert any(command.line.startswith(begin) for command in page), f"no {begin!r} in the page"
