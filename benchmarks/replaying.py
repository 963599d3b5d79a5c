"""Replays: how many times real time, and how much memory, for an hour of one instance.

    python -m benchmarks.replaying [PACKAGES]

One recording of 36,000 packages of 1 KiB, ten a second, and one of a tenth of it, through a module
that does nothing; in memory, and in an embedded server with the real roles. Each replay is a
process of its own: its largest resident memory is told, and must not grow with the length; and the
CPU time that it took, with the start of Python and without the broker: machines are shared.
Comparing with what was recorded is part of it, as in `replay diff`.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from broker_pipeline import Controller, DataPackage, ExecutionModule, Mode, Phase, Pipeline
from broker_pipeline.core.commands import Dispatch
from broker_pipeline.core.plan import compile_plan
from broker_pipeline.debug.recordings.recorded import RecordedEvent, RecordedOutcome, RecordingMeta
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.debug.replays.diff_report import Report
from broker_pipeline.debug.replays.replay_run import replay
from broker_pipeline.debug.replays.replay_setup import Setup
from broker_pipeline.debug.replays.replaying import On, Watch
from broker_pipeline.journey import NS
from broker_pipeline.runtime.inline_pipeline import InlineLeader, InlineModules
from broker_pipeline.runtime.lifecycle import run_until_signal

HOUR = 36_000
INTERVAL_NS = NS // 10
PAYLOAD_BYTES = 1024


class Nothing(ExecutionModule[bytes]):
    """Does nothing."""

    def execute(self, package: object, run: object) -> None:
        """Nothing."""


pipeline = Pipeline(
    "hour",
    [Controller("c", [Phase("p", [Nothing()])], mode=Mode.ORDER_BY_SEQUENCE, max_workers=64)],
)


class Recorder:
    """A log as a leader and a worker make it, written into a recording."""

    def __init__(self, recording: Recording, modules: InlineModules) -> None:
        self._recording = recording
        self._modules = modules
        self._leader = InlineLeader(compile_plan(pipeline))
        self._dispatched: list[bytes] = []
        self._seq = 0
        self._now = 1_700_000_000 * NS

    def package(self, data: bytes) -> None:
        """It arrives, is run, and leaves."""
        subjects = self._leader.subjects
        self._now += INTERVAL_NS
        self._append("in", subjects.arrival("room"), data)
        raw = self._dispatched.pop()
        self._now += NS // 1000
        envelope, _ = self._modules.run((0, 0), "room", raw, self._now)
        done = (envelope.id, "c")
        self._append("done", subjects.completion("c", "room"), envelope.SerializeToString(), *done)

    def plan(self) -> None:
        """Put the plan into force."""
        self._append("plan", self._leader.subjects.plan, self._leader.plan.to_bytes())

    def _append(
        self, kind: str, subject: str, data: bytes, package_id: int = 0, controller: str = ""
    ) -> None:
        self._seq += 1
        token = "" if kind == "plan" else "room"
        kept = b"" if kind == "done" else data
        event: tuple[Any, ...] = (
            self._seq,
            self._now,
            kind,
            token,
            subject,
            {},
            kept,
            package_id,
            controller,
        )
        self._recording.add_event(RecordedEvent(*event))
        for command, raw in self._leader.apply(subject, {}, data, self._seq, self._now):
            self._seq += 1
            if isinstance(command, Dispatch):
                self._dispatched.append(raw)
                continue
            package = DataPackage.from_bytes(raw)
            who = (command.package.id, "room", package.epoch, package.sequence)
            left = (*who, command.outcome, self._seq, self._now, raw)
            self._recording.add_outcome(RecordedOutcome(*left))


def record(path: Path, packages: int) -> None:
    """A recording of so many packages."""
    meta = RecordingMeta(pipeline="hour")
    with Recording.create(path, meta) as recording, InlineModules(pipeline, {}) as modules:
        recorder = Recorder(recording, modules)
        recorder.plan()
        for _ in range(packages):
            recorder.package(os.urandom(PAYLOAD_BYTES))


def run_one(path: Path, on: On) -> None:
    """Replay, and print what it took as JSON."""
    watch = Watch()

    async def run(stop: asyncio.Event) -> Report:
        return await replay(path, Setup(pipeline, on), watch, Report())

    report = run_until_signal(run)  # on the loop that the command has, too
    took_s, used = watch.took_s, resource.getrusage(resource.RUSAGE_SELF)
    told = {
        "same": report.same,
        "is_same": report.is_same,
        "ratio": watch.times_real,
        "rate": watch.left / took_s,
        "cpu_us": (used.ru_utime + used.ru_stime) * 1e6 / watch.left,
        "mib": used.ru_maxrss / 1024,
    }
    print(json.dumps(told))


def main(say: Callable[[str], None] = print) -> None:
    """Everything, as a table."""
    if len(sys.argv) > 2:
        run_one(Path(sys.argv[1]), On(sys.argv[2]))
        return
    whole = int(sys.argv[1]) if len(sys.argv) > 1 else HOUR
    heads = (f"{'packages/s':>11}", f"{'x real time':>12}", f"{'CPU us each':>12}", "largest RSS")
    say(f"{'on':>10} {'packages':>9} {' '.join(heads)}")
    with tempfile.TemporaryDirectory() as folder:
        for packages in (whole // 10, whole):
            path = Path(folder) / f"{packages}.bprec"
            record(path, packages)
            for on in (On.MEMORY, On.EMBEDDED):
                line = [sys.executable, "-m", "benchmarks.replaying", str(path), on.value]
                ran = subprocess.run(line, stdout=subprocess.PIPE, check=True, text=True)
                told = json.loads(ran.stdout)
                assert told["is_same"] and told["same"] == packages, told
                say(
                    f"{on.value:>10} {packages:>9,} {told['rate']:>11,.0f} {told['ratio']:>12,.1f} "
                    f"{told['cpu_us']:>12,.0f} {told['mib']:>7,.1f} MiB"
                )


if __name__ == "__main__":
    main()
