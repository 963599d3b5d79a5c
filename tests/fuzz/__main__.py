"""Coverage-guided fuzzing of the readers: python -m tests.fuzz --seconds 60 [--target NAME].

Needs atheris, which no extra installs: it brings a fuzzer of its own. Hypothesis carries CI
(tests/property); what this finds becomes an example there.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

PROPERTY = Path(__file__).parents[1] / "property"
GRACE_S = 60.0
"""How much longer than it was told a target may take to start and to end."""


def main() -> int:
    """Run one target in this process, or each in one of its own; the number that failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--target", help="one of those that are listed without it")
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: install it beside the package to fuzz with coverage")
        return 0
    import atheris

    sys.path.insert(0, str(PROPERTY))
    with atheris.instrument_imports(include=["broker_pipeline"]):
        from tests.fuzz.targets import SEEDS, TARGETS
    if options.target:
        with tempfile.TemporaryDirectory() as corpus:
            for number, seed in enumerate(SEEDS[options.target]):
                (Path(corpus) / str(number)).write_bytes(seed)
            flags = [f"-max_total_time={options.seconds}", "-max_len=4096", "-verbosity=1"]
            atheris.Setup(
                [sys.argv[0], *flags, "-rss_limit_mb=2048", corpus], TARGETS[options.target]
            )
            atheris.Fuzz()  # it ends the process
    failed = 0
    for name in TARGETS:
        command = [sys.executable, "-m", "tests.fuzz", "--target", name]
        command += ["--seconds", str(options.seconds)]
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=options.seconds + GRACE_S, check=False
        )
        tail = ended.stderr.strip().splitlines()
        print(f"{name}: {tail[-1] if tail else ended.returncode}", flush=True)
        if ended.returncode:
            failed += 1
            print("\n".join(tail[-40:]))
    return failed


sys.exit(main())
