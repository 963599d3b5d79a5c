"""What the options of a role about traces mean, and what is loaded for them."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from broker_pipeline.errors import ExtraMissingError, SettingError
from broker_pipeline.observe import error_detail, logs
from broker_pipeline.observe.logs import LogFormat, LogLevel
from broker_pipeline.observe.tracing import Traces

log = logging.getLogger(__name__)

TRACES_ENV = "BROKER_PIPELINE_TRACES"
"""Where to send traces, for this process and those that it starts."""
RATIO_ENV = "BROKER_PIPELINE_TRACE_RATIO"
"""And which part of the packages."""
DEFAULT_RATIO = 0.01
_THEIRS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PATH = "/v1/traces"


@contextmanager
def traced_journeys(pipeline: str, url: str | None, ratio: float | None) -> Iterator[Traces]:
    """What the leaders of a pipeline need for traces; at the end what is left is sent, for a
    bounded time.

    Args:
        url: the receiver; None: what OpenTelemetry's environment variables name, or nobody.
        ratio: see `Traces`; None: DEFAULT_RATIO where there is a receiver.

    Raises:
        SettingError: the URL or the ratio is none.
        ExtraMissingError: what sends traces is not installed.
    """
    if ratio is not None and not 0 <= ratio <= 1:
        raise SettingError(
            f"the ratio of packages to trace is {ratio!r}; expected 0 to 1, such as 0.01 for one "
            f"in a hundred",
            ratio=ratio,
        )
    target = _target(url)
    if target is None:
        yield Traces(pipeline, 0, ratio=ratio or 0.0)
        return
    from broker_pipeline.observe.exporting import JourneyExporter

    exporter = JourneyExporter(target, process_name())
    if ratio is None:
        ratio = DEFAULT_RATIO
    try:
        yield Traces(pipeline, 0, ratio=ratio, exporter=exporter)
    finally:
        exporter.close()


@contextmanager
def traced_modules(role: str, url: str | None) -> Iterator[None]:
    """Have spans sent that modules make themselves, in a process that runs them.

    Args:
        role: such as "worker".
        url: see `traced_journeys`.

    Raises: as `traced_journeys`.
    """
    target = _target(url)
    if target is None:
        yield
        return
    from broker_pipeline.observe.user_spans import provide

    close = provide(target, role, process_name())
    try:
        yield
    finally:
        close()


def set_up(
    role: str,
    form: LogFormat | None,
    level: LogLevel | None,
    *,
    detail: str | None = None,
    traces: str | None = None,
    ratio: float | None = None,
) -> None:
    """Have this process, and those that it starts, tell of themselves as its options say.

    Args:
        role: see `logs.set_up`, with `form` and `level`.
        detail: see `error_detail.set_up`.
        traces, ratio: see `traced_journeys`.

    Raises:
        SettingError, ExtraMissingError: one of them is none, or cannot be.
    """
    logs.set_up(role, form, level)
    error_detail.set_up(detail)
    _target(traces)  # a mistake is said once, and here
    for name, value in ((TRACES_ENV, traces), (RATIO_ENV, ratio)):
        if value is not None:
            os.environ[name] = str(value)


def process_name() -> str:
    """This process, as it stands in journeys."""
    return f"{socket.gethostname()}-{os.getpid()}"


def _target(url: str | None) -> Any:
    """What sends spans; None: nobody wants them."""
    if url is None and not any(os.environ.get(name) for name in _THEIRS):
        return None
    endpoint = None if url is None else endpoint_of(url)
    try:
        from broker_pipeline.observe.exporting import otlp
    except ImportError as error:
        missing = ExtraMissingError(
            f"traces cannot be sent: {error.name or error} is not installed; expected the extra "
            f"'traces': pip install 'broker_pipeline[traces]'",
            extra="traces",
        )
        if url is not None:
            raise missing from error
        # The variables may be meant for other programs.
        log.warning("%s", missing)
        return None
    return otlp(endpoint)


def endpoint_of(url: str) -> str:
    """Where spans are posted. Raises SettingError."""
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or True)
    except ValueError:
        named = False
    if not named:
        raise SettingError(
            f"traces are to be sent to {url!r}; expected the address of an OTLP receiver over "
            f"HTTP, such as http://127.0.0.1:4318",
            url=url,
        )
    return url if parts.path.endswith(_PATH) else f"{url.rstrip('/')}{_PATH}"
