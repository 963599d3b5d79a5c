"""The `run` that module code gets, and its logger."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from broker_pipeline.journey import NS
from broker_pipeline.modules import Run
from broker_pipeline.observe.context import TraceContext
from broker_pipeline.package import DataPackage

log = logging.getLogger("broker_pipeline.module")


class PackageLog(logging.LoggerAdapter[logging.Logger]):
    """A logger that tells the package and the module with each line."""

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
        """Append the ids to the text, and give them as fields too."""
        package_id = self._package.id
        fields = {"package_id": package_id, "module_path": self._label}
        kwargs["extra"] = {**fields, **kwargs.get("extra", {})}
        return f"{msg} (package {package_id}, module {self._label.replace('%', '%%')})", kwargs


def run_for(
    package: DataPackage[Any],
    label: str,
    deadline_ns: int | None,
    span: TraceContext | None = None,
) -> Run:
    """The run of a package in the module of that label."""
    deadline = None if deadline_ns is None else deadline_ns / NS
    return Run(PackageLog(package, label, span), deadline)
