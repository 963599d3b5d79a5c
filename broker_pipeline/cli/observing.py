"""Options that the commands of roles share for what is told of them: logs, traces, errors."""

from __future__ import annotations

from typing import Annotated

import typer

from broker_pipeline.observe.logs import LogFormat, LogLevel

Format = Annotated[
    LogFormat | None,
    typer.Option(
        "--log-format",
        envvar="BROKER_PIPELINE_LOG_FORMAT",
        case_sensitive=False,
        help="How events are written to standard error.",
        show_default="text on a terminal, else json",
    ),
]
Level = Annotated[
    LogLevel | None,
    typer.Option(
        "--log-level",
        envvar="BROKER_PIPELINE_LOG_LEVEL",
        case_sensitive=False,
        help="From which level on.",
        show_default="info",
    ),
]
TracesUrl = Annotated[
    str | None,
    typer.Option(
        "--traces",
        metavar="URL",
        envvar="BROKER_PIPELINE_TRACES",
        help="Send traces to this OTLP receiver over HTTP, such as http://127.0.0.1:4318.",
        show_default="OTEL_EXPORTER_OTLP_ENDPOINT, or none",
    ),
]
TraceRatio = Annotated[
    float | None,
    typer.Option(
        "--trace-ratio",
        envvar="BROKER_PIPELINE_TRACE_RATIO",
        min=0.0,
        max=1.0,
        help="Trace this part of the packages that come without a trace; ERRORs always.",
        show_default="0.01 where traces are sent",
    ),
]
ErrorDetail = Annotated[
    str | None,
    typer.Option(
        "--error-detail",
        metavar="WHAT[,WHAT]",
        envvar="BROKER_PIPELINE_ERROR_DETAIL",
        help="Record with errors: locals, environment, versions; secrets are masked.",
        show_default="nothing",
    ),
]
