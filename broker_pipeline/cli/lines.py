"""A package as one line that a person reads."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from broker_pipeline import codecs
from broker_pipeline.debug.printable import printable
from broker_pipeline.errors import PayloadError, PayloadGoneError
from broker_pipeline.journey import NS, Outcome
from broker_pipeline.package import DataPackage


def short_line(package: DataPackage[Any]) -> str:
    """When it left, from which instance, how, after how long, and with what. No terminal obeys it,
    whatever producers and modules wrote."""
    end = package.end_time_ns
    left = datetime.fromtimestamp(end / NS).strftime("%H:%M:%S.%f")[:-3]
    took_s = max(0, end - package.start_time_ns) / NS
    outcome = package.outcome.value if package.outcome else ""
    said = " ".join(_said(package).split())
    head = f"{left} {package.instance} #{package.sequence} {outcome:8} {took_s:7.3f} s"
    return printable(f"{head}  {said}".rstrip())


def _said(package: DataPackage[Any]) -> str:
    if package.outcome is Outcome.ERROR and package.errors:
        error = package.errors[-1]
        where = f" in {error.path}" if error.path else ""
        return f"{error.type}: {error.message}{where}"
    if package.outcome is Outcome.EXIT:
        return package.reason
    return _payload(package)


def _payload(package: DataPackage[Any]) -> str:
    kind = package.content_type
    try:
        data = package.data
    except (PayloadError, PayloadGoneError) as error:
        return f"<{error}>"
    if codecs.format_of(kind) is codecs.Format.RAW:
        return f"<{len(data):,} bytes{' of ' + kind if kind else ''}>"
    return data if isinstance(data, str) else repr(data)
