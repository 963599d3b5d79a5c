"""Pipelines and modules whose code makes spans of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from opentelemetry import trace

from broker_pipeline import (
    CombinationModule,
    Controller,
    ExecutionModule,
    ExternalModule,
    Mode,
    ModuleOptions,
    Phase,
    Pipeline,
)

tracer = trace.get_tracer("the user's")


def work(name: str, run: Any, package: Any) -> None:
    """What user code does: a span, a line in the log."""
    with tracer.start_as_current_span(f"user {name}"):
        package.data += f" {name}".encode()
    run.log.warning("worked in %s", name)
    if package.data.startswith(f"fail {name}".encode()):
        token = "s3cr3t"  # noqa: F841 - a local that is not to be seen
        wanted = {"colour": "green", "password": "hunter2"}  # noqa: F841
        raise ValueError(f"{name} was asked to")


class InThread(ExecutionModule[bytes]):
    """Runs in a slot thread."""

    def execute(self, package: Any, run: Any) -> None:
        """One package."""
        work("thread", run, package)


class OnLoop(ExecutionModule[bytes]):
    """Runs on the module loop."""

    async def execute(self, package: Any, run: Any) -> None:
        """One package."""
        work("loop", run, package)


class Apart(ExecutionModule[bytes]):
    """Runs in a process of its own."""

    options = ModuleOptions(isolation="process")

    def execute(self, package: Any, run: Any) -> None:
        """One package."""
        work("process", run, package)


class Together(ExecutionModule[bytes]):
    """Runs several packages at once."""

    options = ModuleOptions(max_batch=4)

    def execute_batch(self, packages: Sequence[Any], runs: Sequence[Any]) -> None:
        """Several packages."""
        for package, run in zip(packages, runs, strict=True):
            work("batch", run, package)


class Served(ExecutionModule[bytes]):
    """Runs in a module server."""

    def execute(self, package: Any, run: Any) -> None:
        """One package."""
        work("server", run, package)


served = CombinationModule([Served(name="inside")], name="served")

pipeline = Pipeline(
    "traced",
    [
        Controller(
            "first",
            mode=Mode.ORDER_BY_SEQUENCE,
            phases=[
                Phase("sync", [InThread(), Apart()]),
                Phase("async", [CombinationModule([OnLoop(), Together()], name="both")]),
            ],
        ),
        Controller(
            "second",
            phases=[
                Phase(
                    "out",
                    [
                        ExternalModule(
                            "served", target=os.environ.get("MODULE_SERVER", "127.0.0.1:9")
                        )
                    ],
                ),
            ],
        ),
    ],
)

plain = Pipeline(
    "plain", [Controller("only", mode=Mode.ORDER_BY_SEQUENCE, phases=[Phase("sync", [InThread()])])]
)
