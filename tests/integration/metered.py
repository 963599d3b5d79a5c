"""A pipeline that uses all that is measured, for the roles of `test_metrics`."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from broker_pipeline import (
    CombinationModule,
    ConditionModule,
    Controller,
    ExecutionModule,
    ExternalModule,
    Mode,
    ModuleOptions,
    Phase,
    Pipeline,
)
from tests.integration.pipelines import Sum, UpperBatch

WORK_NS = 300_000


class Busy(ExecutionModule[bytes]):
    """Works; a number that ends in 7 leaves as EXIT, one that ends in 9 as ERROR."""

    def execute(self, package: Any, run: Any) -> None:
        """One package."""
        end = time.perf_counter_ns() + WORK_NS
        while time.perf_counter_ns() < end:
            pass
        if package.data.endswith(b"7"):
            run.exit("seven")
        if package.data.endswith(b"9"):
            raise ValueError("nine")


class Alone(Busy):
    """One package at a time; what ends in 5 is late."""

    options = ModuleOptions(use_mutex=True, timeout_s=0.3)

    def execute(self, package: Any, run: Any) -> None:
        """One package."""
        super().execute(package, run)
        if package.data.endswith(b"55"):
            threading.Event().wait(0.35)


class Ends(ConditionModule[bytes]):
    """Whether a number is even."""

    def condition(self, package: Any) -> bool:
        """Of its last digit."""
        return package.data[-1] % 2 == 0


metered = Pipeline(
    "metered",
    [
        Controller(
            "first",
            mode=Mode.ORDER_BY_SEQUENCE,
            max_workers=16,
            phases=[
                Phase(
                    "mix",
                    [
                        CombinationModule([Busy(), Alone()], name="both"),
                        Ends(Busy(name="even"), None, name="ends"),
                    ],
                    ack_wait_s=1.0,
                    max_deliver=20,
                ),
                Phase("batch", [UpperBatch()], ack_wait_s=1.0, max_deliver=20),
            ],
        ),
        Controller(
            "second",
            mode=Mode.NOT_PARALLEL,
            phases=[Phase("add", [Sum()], ack_wait_s=1.0, max_deliver=20)],
        ),
        Controller(
            "third",
            mode=Mode.FIRST_WINS,
            max_workers=4,
            queue_size=2,
            phases=[
                Phase(
                    "far",
                    [
                        ExternalModule(
                            "upper", target=os.environ.get("MODULE_SERVER", "127.0.0.1:50051")
                        )
                    ],
                    ack_wait_s=1.0,
                    max_deliver=20,
                )
            ],
        ),
    ],
    log_bytes_max=256 << 20,
)
