"""Snapshots: how long the leader stands still for one, with many instances and a steady load.

Ours, a slice at a time, beside one that is always whole, in one run. Every event is of another
instance than the last, round and round: the worst case for slices. Time is CPU time, for that of
others on the machine is not ours.
"""

from __future__ import annotations

import gc
import resource
import sys
import time
from statistics import median

from broker_pipeline.core import snapshot
from broker_pipeline.core.events import Arrived, Completed, Deployed
from broker_pipeline.core.machine import Machine
from broker_pipeline.core.plan import compile_plan
from broker_pipeline.journey import NS, Mode, Outcome
from broker_pipeline.modules import ExecutionModule
from broker_pipeline.pipeline import Controller, Phase, Pipeline
from broker_pipeline.runtime.leader import SNAPSHOT_INTERVAL_S

RATE = 8_000
"""Events a second: what one leader was seen to do."""
SECONDS = 20
WHOLES = 3
START_NS = 1_700_000_000 * NS


class Nothing(ExecutionModule[bytes]):
    """The plan needs one."""

    def execute(self, package: object, run: object) -> None:
        """Nothing."""


class Load:
    """A machine with so many instances, and events for one after the other."""

    def __init__(self, instances: int) -> None:
        controller = Controller(
            "c", [Phase("p", [Nothing()])], mode=Mode.ORDER_BY_SEQUENCE, max_workers=4
        )
        plan = compile_plan(Pipeline("bench", [controller]))
        self.machine = Machine()
        self.machine.step(Deployed(1, START_NS, plan))
        self._tokens = [f"meeting-{number:06}" for number in range(instances)]
        self._place = 0
        self._inside: dict[str, tuple[int, int]] = {}
        self._sequences = dict.fromkeys(self._tokens, 0)
        while self._place < instances:
            self.step()

    def step(self) -> None:
        """An arrival for the next instance, or what it is waiting for."""
        machine = self.machine
        token = self._tokens[self._place % len(self._tokens)]
        self._place += 1
        seq = machine.applied + 1
        now = START_NS + self._place * NS // RATE
        if (inside := self._inside.pop(token, None)) is None:
            self._sequences[token] += 1
            self._inside[token] = (seq, self._sequences[token])
            machine.step(Arrived(seq, now, token, "producer-0123456789", self._sequences[token]))
        else:
            epoch = machine.instances[token].epoch
            machine.step(Completed(seq, now, token, epoch, *_done(inside)))


def _done(inside: tuple[int, int]) -> tuple[int, str, int, Outcome, int]:
    return inside[0], "c", inside[1], Outcome.SUCCESS, 1


def sliced(load: Load) -> tuple[list[float], list[float], tuple[bytes, list[bytes]]]:
    """SECONDS of load with snapshots when the leader would take them: the CPU and the wall time of
    each but the first, and what is stored at the end."""
    machine, chain = load.machine, snapshot.Chain()
    parts = chain.take(machine).parts
    took, wall = [], []
    head, since = b"", 0
    for number in range(RATE * SECONDS):
        load.step()
        due = number - since >= SNAPSHOT_INTERVAL_S * RATE
        if due or len(machine.changed) >= snapshot.CHANGED_MAX:
            since = number
            begun, cpu = time.perf_counter(), time.process_time()
            taken = chain.take(machine)
            took.append(time.process_time() - cpu)
            wall.append(time.perf_counter() - begun)
            head, parts = taken.head, parts[len(parts) - taken.kept :] + taken.parts
    return took, wall, (head, parts)


def whole(machine: Machine) -> list[float]:
    """The CPU time of snapshots that hold all."""
    took = []
    for _ in range(WHOLES):
        cpu = time.process_time()
        snapshot.Chain().take(machine)
        took.append(time.process_time() - cpu)
    return took


def measure(instances: int) -> None:
    """One line of the table."""
    load = Load(instances)
    gc.collect()
    took, wall, (head, parts) = sliced(load)
    cpu = time.process_time()
    snapshot.restore(snapshot.read_head(head), parts)
    restored = time.process_time() - cpu
    wholes = whole(load.machine)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{instances:9,} {len(took):6} {median(took) * 1e3:8.1f} {max(took) * 1e3:8.1f} "
        f"{max(wall) * 1e3:9.1f} {median(wholes) * 1e3:8.1f} "
        f"{median(wholes) / median(took):6.1f}x {restored * 1e3:9.0f} "
        f"{sum(map(len, parts)) / 2**20:7.1f} {len(head) / 1024:6.1f} {memory:8.0f}",
        flush=True,
    )


def main() -> None:
    """See `benchmarks/README.md`."""
    print(f"{RATE} events/s, each of another instance, for {SECONDS} s; CPU ms")
    print(
        "instances  taken   median      max  max wall    whole  ratio   restore  MB st.  KB hd"
        "  MB mem."
    )
    for instances in map(int, sys.argv[1:] or ("1000", "10000", "100000")):
        measure(instances)


if __name__ == "__main__":
    main()
