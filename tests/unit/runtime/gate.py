"""A module that holds what enters it, and pipelines of such modules."""

from __future__ import annotations

import threading
from typing import Any

from broker_pipeline import Controller, ExecutionModule, Mode, Phase, Pipeline


class Gate(ExecutionModule[bytes]):
    """Counts what enters, and holds it until it is opened."""

    def __init__(self, *, is_open: bool = True, name: str | None = None) -> None:
        super().__init__(name=name)
        self.entered: list[bytes] = []
        self.opened = threading.Event()
        if is_open:
            self.opened.set()

    def execute(self, package: Any, run: Any) -> None:
        """Wait."""
        self.entered.append(package.data)
        self.opened.wait(30)
        if package.data == b"exit":
            run.exit("as told")
        if package.data == b"grow":
            package.data = b"x" * 20_000


def pipeline(*modules: Any, mode: Mode = Mode.ORDER_BY_SEQUENCE, **options: Any) -> Pipeline:
    """One controller with a phase for each module."""
    phases = [Phase(f"p{n}", [module], **options) for n, module in enumerate(modules)]
    return Pipeline("demo", [Controller("c", mode=mode, phases=phases)])
