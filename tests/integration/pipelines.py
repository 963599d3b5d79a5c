"""Pipelines that the role processes of these tests import."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

import msgspec

from broker_pipeline import (
    Controller,
    ExecutionModule,
    ExternalModule,
    Mode,
    ModuleOptions,
    Phase,
    Pipeline,
    StatefulModule,
)

WORK_NS = 300_000
"""What a package costs: enough that a kill finds some running."""


def _work() -> None:
    end = time.perf_counter_ns() + WORK_NS
    while time.perf_counter_ns() < end:
        pass


class Upper(ExecutionModule[bytes]):
    """Upper case; a number that ends in 7 leaves as EXIT, one that ends in 9 as ERROR."""

    def execute(self, package: Any, run: Any) -> None:
        """One package."""
        _work()
        if package.data.endswith(b"7"):
            run.exit("seven")
        if package.data.endswith(b"9"):
            raise ValueError("nine")
        package.data = package.data.upper()


class Total(msgspec.Struct):
    """How many, and their sum."""

    count: int = 0
    total: int = 0


class Sum(StatefulModule[bytes, Total]):
    """Adds up the numbers; one that ends in 7 leaves as EXIT, with its state."""

    def initial_state(self) -> Total:
        """Nothing."""
        return Total()

    def execute(self, package: Any, run: Any, state: Total) -> Total:
        """One package."""
        state.count += 1
        state.total += int(package.data.rpartition(b" ")[2])
        if package.data.endswith(b"9"):
            raise ValueError("nine")
        if package.data.endswith(b"7"):
            run.exit("seven", state=state)
        package.data += b" -> %d %d" % (state.count, state.total)
        return state


ordered = Pipeline(
    "ordered",
    [
        Controller(
            "tidy",
            mode=Mode.ORDER_BY_SEQUENCE,
            max_workers=64,
            phases=[Phase("upper", [Upper()], ack_wait_s=1.0, max_deliver=20)],
        )
    ],
)
chained = Pipeline(
    "chained",
    [
        Controller(
            "sum",
            mode=Mode.NOT_PARALLEL,
            phases=[Phase("add", [Sum()], ack_wait_s=1.0, max_deliver=20)],
        ),
        Controller(
            "tidy",
            mode=Mode.ORDER_BY_SEQUENCE,
            phases=[Phase("upper", [Upper()], ack_wait_s=1.0, max_deliver=20)],
        ),
    ],
)


class UpperBatch(ExecutionModule[bytes]):
    """What `Upper` does, to many at once; a nine is raised and fails nobody else."""

    options = ModuleOptions(max_batch=16, max_delay_ms=2.0, timeout_s=30.0)

    def execute_batch(self, packages: Any, runs: Any) -> None:
        """One batch."""
        _work()
        for package, run in zip(packages, runs, strict=True):
            package.attributes["batch"] = str(len(packages))
            if package.data.endswith(b"7"):
                run.leave("seven")
            elif package.data.endswith(b"9"):
                raise ValueError("nine")
            else:
                package.data = package.data.upper()


batched = Pipeline(
    "batched",
    [
        Controller(
            "tidy",
            mode=Mode.ORDER_BY_SEQUENCE,
            max_workers=64,
            phases=[Phase("upper", [UpperBatch()], ack_wait_s=1.0, max_deliver=20)],
        )
    ],
)


class Seen(StatefulModule[bytes, Total]):
    """Counts, and writes each execution into the file that the environment names."""

    def initial_state(self) -> Total:
        """Nothing."""
        return Total()

    def execute(self, package: Any, run: Any, state: Total) -> Total:
        """One package."""
        state.count += 1
        line = f"{os.getpid()} {package.instance} {package.data.decode()}\n"
        with open(os.environ["SEEN_IN"], "a") as file:
            file.write(line)  # one write of a short line: whole, whoever else appends
        package.data += b" is number %d" % state.count
        return state


seen = Pipeline(
    "seen",
    [Controller("c", mode=Mode.NOT_PARALLEL, phases=[Phase("p", [Seen()], ack_wait_s=1.0)])],
)


class Pass(ExecutionModule[bytes]):
    """Does nothing."""

    def execute(self, package: Any, run: Any) -> None:
        """Nothing."""


relay = Pipeline(
    "relay",
    [Controller("c", mode=Mode.NO_ORDER, phases=[Phase("p", [Pass()])])],
)


class Killer(ExecutionModule[bytes]):
    """Kills its process where it is told to."""

    def execute(self, package: Any, run: Any) -> None:
        """One package."""
        _work()
        if package.data == b"poison":
            os.kill(os.getpid(), signal.SIGKILL)


poisoned = Pipeline(
    "poisoned",
    [
        Controller(
            "c",
            mode=Mode.ORDER_BY_SEQUENCE,
            phases=[Phase("p", [Killer()], ack_wait_s=0.5, max_deliver=4)],
        )
    ],
)


class Heavy(msgspec.Struct):
    """A state that no message holds."""

    count: int = 0
    ballast: bytes = b""


class Weigh(StatefulModule[bytes, Heavy]):
    """Says how many it has seen, and how often this process has run it."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def initial_state(self) -> Heavy:
        """Three megabytes."""
        return Heavy(0, random.Random(0).randbytes(3_000_000))

    def execute(self, package: Any, run: Any, state: Heavy) -> Heavy:
        """One package."""
        self.runs += 1
        state.count += 1
        package.data = b"%d %d" % (state.count, self.runs)
        return state


heavy = Pipeline(
    "heavy",
    [Controller("c", mode=Mode.NOT_PARALLEL, phases=[Phase("p", [Weigh()], ack_wait_s=1.0)])],
)


class Broken(ExecutionModule[bytes]):
    """Cannot be set up."""

    def setup(self) -> None:
        """Fail."""
        raise RuntimeError("no model")


broken = Pipeline("broken", [Controller("c", phases=[Phase("p", [Broken()])])])

small = Pipeline(
    "small",
    [
        Controller(
            "c",
            mode=Mode.ORDER_BY_SEQUENCE,
            max_workers=16,
            phases=[Phase("p", [Pass()], ack_wait_s=2.0)],
        )
    ],
    log_bytes_max=4 << 20,
)

bridged = Pipeline(
    "bridged",
    [
        Controller(
            "tidy",
            mode=Mode.ORDER_BY_SEQUENCE,
            max_workers=64,
            phases=[
                Phase(
                    "upper",
                    [
                        ExternalModule(
                            "upper", target=os.environ.get("MODULE_SERVER", "127.0.0.1:50051")
                        )
                    ],
                    ack_wait_s=1.0,
                    max_deliver=20,
                )
            ],
        )
    ],
)


class Turn(ExecutionModule[bytes]):
    """Changes a payload that begins with C."""

    def execute(self, package: Any, run: Any) -> None:
        """One package."""
        _work()
        if package.data.startswith(b"C"):
            package.data = package.data[:0:-1]


bulky = Pipeline(
    "bulky",
    [
        Controller(
            "c",
            mode=Mode.ORDER_BY_SEQUENCE,
            max_workers=4,
            phases=[
                Phase("one", [Turn()], ack_wait_s=1.0, max_deliver=20),
                Phase("two", [Pass()], ack_wait_s=1.0, max_deliver=20),
            ],
        )
    ],
    replay_window_s=120.0,
)

MODULE_SERVER = os.environ.get("MODULE_SERVER", "127.0.0.1:50051")
distant = Pipeline(
    "distant",
    [
        Controller(
            "c",
            mode=Mode.ORDER_BY_SEQUENCE,
            max_workers=4,
            phases=[Phase("p", [ExternalModule("Turn", target=MODULE_SERVER)], ack_wait_s=2.0)],
        )
    ],
)
between = Pipeline(
    "between",
    [
        Controller(
            "c",
            mode=Mode.ORDER_BY_SEQUENCE,
            max_workers=2,
            phases=[
                Phase(
                    "p",
                    [
                        Turn(name="before"),
                        ExternalModule("Turn", target=MODULE_SERVER),
                        Turn(name="behind"),
                    ],
                    ack_wait_s=2.0,
                )
            ],
        )
    ],
)
