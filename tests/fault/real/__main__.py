"""`python -m tests.fault.real`: real servers and roles under faults that a seed draws."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import uvloop

from tests.fault.real.report import levels_off, summary
from tests.fault.real.running import Settings, run

RATES = {1: 350.0, 3: 220.0}
"""Packages a second: about half of what two processors do with everything on them."""
EVERY_S = 5.0


def main() -> int:
    """See `--help`."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault.real", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="what is sent and what goes wrong")
    parser.add_argument("--packages", type=int, default=100_000, help="how many")
    parser.add_argument("--replicas", type=int, choices=(1, 3), help="1, 3; else both")
    parser.add_argument("--rate", type=float, default=0.0, help="packages a second")
    parser.add_argument("--every", type=float, default=EVERY_S, help="seconds between two faults")
    parser.add_argument("--poison", type=int, default=1, help="packages that kill their workers")
    parser.add_argument("--stateful-workers", type=int, default=3, help="of the three")
    parser.add_argument("--no-faults", action="store_true", help="for comparison")
    parser.add_argument("--minutes", type=float, default=0.0, help="soak for so long")
    parser.add_argument("--curves", type=Path, help="write memory and fds there, as CSV")
    asked = parser.parse_args()
    replicas = [asked.replicas] if asked.replicas else [1] if asked.minutes else [1, 3]
    wrong = 0
    for each in replicas:
        settings = Settings(
            seed=asked.seed,
            packages=asked.packages,
            replicas=each,
            rate=asked.rate or RATES[each],
            fault_every_s=asked.every,
            poison=asked.poison,
            stateful_workers=asked.stateful_workers,
            sample_s=5.0 if asked.minutes else 1.0,
            faults=not asked.no_faults,
            curves=asked.curves,
            minutes=asked.minutes,
        )
        result = uvloop.run(run(settings))
        if asked.minutes:
            result.violations += levels_off(result)
        print(summary(result), flush=True)
        wrong += len(result.violations)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
