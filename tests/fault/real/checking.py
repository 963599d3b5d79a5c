"""The simulation's checkers on the log of a run with real processes, one instance after the other.

Instances share nothing but the plan and the log's time, and none ends by itself in these runs: so
each is replayed alone, which keeps memory bounded and uses all processors.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.port import Message
from broker_pipeline.core.lanes import LANES
from tests.fault.checks import Checks
from tests.fault.executor import Begun
from tests.fault.model import Model
from tests.fault.modules import POISON, orders
from tests.fault.network import Weather
from tests.fault.real.fast import FastChain
from tests.fault.real.pipeline import KINDS, pipeline
from tests.fault.real.recording import SUBJECTS, recorded
from tests.fault.scenario import Scenario, Send, Source

SHOWN = 10
"""Violations of an instance that are kept."""
_POISON_ERROR = "PoisonPackageError"


@dataclass
class Verdict:
    """What one instance's log says."""

    token: str
    violations: list[str] = field(default_factory=list)
    packages: int = 0
    innocents: int = 0


class _Often(Counter[int]):
    """Often, whatever the message."""

    def __missing__(self, key: int) -> int:
        return 1 << 20


class _Unknown(Begun):
    """Runs that nobody counted: enough of them to be called poison."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = _Often()


def _scenario() -> Scenario:
    """As far as the checkers look at it."""
    return Scenario(
        seed=0,
        kinds=KINDS,
        pipelines=[(0.0, pipeline)],
        sources=[Source("raw", (Send(0.0, "", "data"),))],
        faults=[],
        weather=Weather(),
        calm_at=0.0,
        window_s=120.0,
        snapshot_s=0.0,
        state_every_s=0.0,
        controllers=2,
        workers=[],
        lanes=LANES,
        slots=1,
    )


class AllInline:
    """In the place of `payloads.Payloads`: what these runs send is small, so none is an object."""

    def of(self, message: Message) -> bytes:
        """The payload of an arrival."""
        return message.data

    def whole(self, package: pb.DataPackage) -> pb.DataPackage:
        """A package with its payload in place, which is where it is."""
        assert not package.HasField("reference")
        return package

    def check(self, log: list[Message], window_s: float) -> list[str]:
        """There is nothing to remove."""
        return []


def check_instance(
    directory: Path,
    token: str,
    acked: dict[bytes, list[int]],
    unknown: frozenset[bytes],
    faults: int,
) -> Verdict:
    """All promises, over the log of one instance."""
    verdict = Verdict(token)
    log = recorded(directory, token)
    model = Model(SUBJECTS, chain=FastChain)
    for message in log:
        model.feed(message)
    poisoned = {
        package.id
        for message in log
        if message.subject.startswith(SUBJECTS.out)
        and (package := pb.DataPackage.FromString(message.data)).errors
        and package.errors[-1].type == _POISON_ERROR
    }
    # How often the broker delivered a message is not in its log: a package may be called poison
    # where workers were killed; how many that should not have been is reported.
    injected = Counter({"faults": faults}) if faults else Counter()
    checks = Checks(_scenario(), log, model, _Unknown(), acked, injected, AllInline(), None)
    verdict.violations += checks.run()
    arrivals = checks.arrivals
    verdict.packages = len(checks.left)
    verdict.innocents = sum(
        POISON not in orders(arrivals[each].data).values() for each in poisoned if each in arrivals
    )
    _each_payload_once(checks, acked, unknown, verdict)
    if not model.drained:
        verdict.violations.append("the model says that packages are still inside")
    verdict.violations = [f"{token}: {each}" for each in verdict.violations[:SHOWN]]
    return verdict


def _each_payload_once(
    checks: Checks, acked: dict[bytes, list[int]], unknown: frozenset[bytes], verdict: Verdict
) -> None:
    """What was sent and acknowledged came out once; what may have been stored, at most once."""
    out = Counter(
        checks.arrivals[package.id].data
        for _, package in checks.left
        if package.id in checks.arrivals
    )
    for data in acked:
        if out[data] != 1:
            verdict.violations.append(f"{data!r} was acknowledged and came out {out[data]} times")
    for data, count in out.items():
        if data not in acked and (data not in unknown or count != 1):
            verdict.violations.append(f"{data!r} came out {count} times and was never acknowledged")


def check_all(
    directory: Path,
    tokens: list[str],
    acked: dict[str, dict[bytes, list[int]]],
    unknown: list[bytes],
    faults: int,
) -> list[Verdict]:
    """All instances, on all processors."""
    doubtful = frozenset(unknown)
    jobs = min(len(tokens), os.cpu_count() or 1)
    if not tokens:
        return []
    with ProcessPoolExecutor(jobs, mp_context=get_context("forkserver")) as pool:
        futures = [
            pool.submit(check_instance, directory, token, acked.get(token, {}), doubtful, faults)
            for token in tokens
        ]
        return [future.result() for future in futures]
