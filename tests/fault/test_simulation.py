"""A slice of the fault simulation, its regression seeds, and that it can fail: see `make fault`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.fault.mutations import planted
from tests.fault.running import repeat_with
from tests.fault.simulation import simulate

SLICE = range(40)
REGRESSIONS = {
    662: "a full log whose last messages were all outputs was closed for ever",
    1068: "a full log whose last messages were all outputs was closed for ever",
    67: "a leader that was told to stop as its output was refused claimed that it was stored",
    5131: "a SUCCESS that came after the log had called the package poison left its state behind",
    461: "innocent packages were called poison beside one that kills its workers",
    608: "innocent packages were called poison beside one that kills its workers",
    174: "a producer whose payload could not be stored never got to its end",
    227: "one that had waited for room was repeated for ever when its ack was lost",
    254: "a state whose result was not the first to be stored was gone on from",
}
FOUND_FAST = {
    "an early leaver holds up the order": 10,
    "overflow drops the newest": 10,
    "first wins lets older pass": 10,
    "the leader publishes without ids": 15,
    "two lead and do not decide alike": 10,
    "what changes while a snapshot is saved is forgotten": 30,
    "a worker acks before it publishes": 10,
    "a state is kept after an error": 20,
    "a number is taken twice": 10,
    "a purge ignores what states need": 40,
    "a purge ignores what consumers need": 40,
    "a purge ignores what the snapshot refers to": 40,
    "ingress never opens again": 40,
    "an attempt is not recorded": 20,
    "suspects are not serialised": 30,
    "what waits never grows old": 10,
    "a worker trusts its own clock": 15,
    "a lane is nobodys": 10,
    "a sweep ignores what is inside": 20,
    "a sweep does not wait for the window": 10,
    "a package goes on before its payload is stored": 10,
    "a recorded input is run again without its payload": 40,
    "a takeover forgets what was counted": 10,
    "what overflows still waits": 10,
    "what is applied again is counted again": 10,
}


@pytest.mark.parametrize("seed", SLICE)
def test_every_promise_is_kept_whatever_fails(seed: int) -> None:
    """One outcome each, order by mode, states as folded, nothing stuck: for each seed's faults."""
    report = simulate(seed)
    assert not report.violations, f"{report.violations[:3]}\nrepeat: {repeat_with(seed)}"


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_what_a_seed_once_found_stays_mended(seed: int) -> None:
    """Seeds that have found a bug."""
    report = simulate(seed)
    assert not report.violations, f"{REGRESSIONS[seed]}: {report.violations[:3]}"


@pytest.mark.parametrize("name", FOUND_FAST)
def test_a_planted_bug_is_found(name: str) -> None:
    """The simulation fails when the program is wrong. All: `python -m tests.fault --mutations`."""
    with planted(name):
        assert any(simulate(seed).violations for seed in range(FOUND_FAST[name]))


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_seed_gives_one_and_the_same_run(hash_seed: str) -> None:
    """The trace is the same in another process, with other hashes, after other seeds."""
    seeds = (11, 49, 106)
    code = (
        "import sys; from tests.fault.simulation import simulate\n"
        "print(*(simulate(int(seed)).trace for seed in sys.argv[1:]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", code, *map(str, reversed(seeds))]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.split() == [simulate(seed).trace for seed in reversed(seeds)]
