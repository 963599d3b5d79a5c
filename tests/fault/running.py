"""Many seeds, over several processes; and how it is told."""

from __future__ import annotations

import gc
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from tests.fault import (  # noqa: F401 - they register their own
    age_mutations,
    lane_mutations,
    log_mutations,
    payload_mutations,
    tally_mutations,
    worker_mutations,
)
from tests.fault.mutations import MUTATIONS, planted
from tests.fault.simulation import Report, simulate

COLLECT_EVERY = 20
SHOWN = 6


def repeat_with(seed: int) -> str:
    """The one command that repeats a failure."""
    return f"make fault SEEDS=1 FIRST_SEED={seed}"


def run_seed(seed: int) -> Report:
    """One seed, with the garbage of others out of the way now and then."""
    report = simulate(seed)
    if seed % COLLECT_EVERY == 0:
        gc.collect()
    return report


def run_many(seeds: Iterable[int], jobs: int) -> Iterator[Report]:
    """The reports, as they come."""
    if jobs == 1:
        yield from map(run_seed, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(run_seed, seeds, chunksize=8)


def tell_failure(report: Report) -> None:
    """What went wrong, and how to see it again."""
    print(f"\nseed {report.seed}: {len(report.violations)} violations", flush=True)
    for violation in report.violations[:SHOWN]:
        print(f"  {violation}")
    if len(report.violations) > SHOWN:
        print(f"  ... and {len(report.violations) - SHOWN} more")
    print(f"  repeat it with: {repeat_with(report.seed)}", flush=True)


def run(first: int, count: int, jobs: int) -> int:
    """Run seeds and tell; the process's exit code."""
    begun = time.monotonic()
    injected: Counter[str] = Counter()
    total: Counter[str] = Counter()
    virtual_s = 0.0
    failed = []
    for number, report in enumerate(run_many(range(first, first + count), jobs), start=1):
        injected.update(report.injected)
        total.update(packages=report.packages, messages=report.messages, turns=report.turns)
        virtual_s += report.virtual_s
        if report.violations:
            failed.append(report.seed)
            tell_failure(report)
        if number % 50 == 0 and sys.stdout.isatty():
            print(f"\r{number} of {count} seeds, {len(failed)} failed", end="", flush=True)
    took_s = time.monotonic() - begun
    print("\ninjected:")
    for kind, times in sorted(injected.items(), key=lambda each: -each[1]):
        print(f"  {times:8} {kind}")
    print(
        f"{count} schedules from seed {first}: {total['packages']} packages, {total['messages']} "
        f"messages, {total['turns']} turns, {virtual_s:.0f} virtual seconds in {took_s:.0f} s "
        f"({count / took_s * 60:.0f} schedules a minute)"
    )
    if failed:
        print(f"{len(failed)} FAILED: {', '.join(map(str, sorted(failed)[:20]))}")
        return 1
    print("every promise was kept")
    return 0


def find_mutation(task: tuple[str, int, int]) -> tuple[str, int | None, str]:
    """The first seed that finds a planted bug."""
    name, first, count = task
    for seed in range(first, first + count):
        with planted(name):
            report = simulate(seed)
        gc.collect()
        if report.violations:
            return name, seed, report.violations[0]
    return name, None, ""


def run_mutations(first: int, count: int, jobs: int) -> int:
    """Plant every bug, and say which seed found it."""
    tasks = [(name, first, count) for name in MUTATIONS]
    missed = 0
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for name, seed, violation in pool.imap(find_mutation, tasks):
            missed += seed is None
            found = f"seed {seed}" if seed is not None else "NOT FOUND"
            print(f"{name:48} {found:12} {violation[:100]}", flush=True)
    print(f"{len(tasks) - missed} of {len(tasks)} planted bugs were found")
    return 1 if missed else 0
