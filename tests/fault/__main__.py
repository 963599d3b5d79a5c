"""`python -m tests.fault`: run seeds of the simulation, or look whether it finds planted bugs."""

from __future__ import annotations

import argparse
import sys

from tests.fault.running import run, run_mutations

MUTATION_SEEDS = 400


def main() -> int:
    """See `--help`."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many schedules")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--mutations", action="store_true", help="plant bugs and find them")
    asked = parser.parse_args()
    if asked.mutations:
        return run_mutations(asked.first, min(asked.seeds, MUTATION_SEEDS), asked.jobs)
    return run(asked.first, asked.seeds, 1 if asked.seeds == 1 else asked.jobs)


if __name__ == "__main__":
    sys.exit(main())
