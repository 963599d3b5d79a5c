"""The `run` that module code gets, and its logger."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from broker_pipeline.journey import NS
from broker_pipeline.modules import Run
from broker_pipeline.observe.about import about
from broker_pipeline.observe.context import TraceContext
from broker_pipeline.observe.logs import is_set_up
from broker_pipeline.package import DataPackage
from broker_pipeline.runtime.execution.hosted import CONTROLLER, PHASE

log = logging.getLogger("broker_pipeline.module")


class PackageLog(logging.LoggerAdapter[logging.Logger]):
    """A logger that tells the package and the module with each line: as fields, and in the text too
    where a program has its own way with logs."""

    def __init__(
        self, package: DataPackage[Any], label: str, span: TraceContext | None = None
    ) -> None:
        # Not through super(): one is made for each module of each package, most are never used.
        self.logger = log
        self.extra = None
        self._package = package
        self._label = label
        self._span = span

    def process(
        self, msg: object, kwargs: MutableMapping[str, Any]
    ) -> tuple[str, MutableMapping[str, Any]]:
        """Say in fields, and in the text, what the line is about."""
        controller, _, rest = self._label.partition("/")
        phase = rest.partition("/")[0]
        # In a module server the label says where the module stands there.
        here = "" if (controller, phase) == (CONTROLLER, PHASE) else f"{controller}.{phase}"
        fields = {**about(self._package.envelope, here), "module_path": self._label}
        if self._span is not None:
            fields["trace_id"] = self._span.trace_id
        kwargs["extra"] = {**fields, **(kwargs.get("extra") or {})}
        if is_set_up():
            return str(msg), kwargs
        label = self._label.replace("%", "%%")
        return f"{msg} (package {self._package.id}, module {label})", kwargs


def run_for(
    package: DataPackage[Any],
    label: str,
    deadline_ns: int | None,
    span: TraceContext | None = None,
) -> Run:
    """The run of a package in the module of that label."""
    deadline = None if deadline_ns is None else deadline_ns / NS
    return Run(PackageLog(package, label, span), deadline)
