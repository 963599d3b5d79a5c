"""The command that serves a module: serve."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import Annotated

import typer

from broker_pipeline.cli.observing import ErrorDetail, Format, Level, TracesUrl
from broker_pipeline.cli.options import MetricsHost, MetricsPort, note, say
from broker_pipeline.observe.metering import DEFAULT_HOST, Exposure, metering

PORT_MAX = 65535


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


Module = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="The module, as package.module:attribute: a class, an object, or a function that "
        "returns one.",
        show_default=False,
    ),
]
Host = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Where it listens; 0.0.0.0: everywhere.")
]
Port = Annotated[int, typer.Option(min=0, max=PORT_MAX, help="0 takes a free port.")]
Workers = Annotated[
    int, typer.Option(min=1, help="Processes; each has a port of its own, from --port on.")
]
Slots = Annotated[
    int | None,
    typer.Option(
        min=1, help="Packages at the same time in each process.", show_default="one a processor"
    ),
]
Name = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Under which it is found.", show_default="the module's"),
]
Announce = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The broker in which callers find it, as registry:///NAME, and from which it fetches "
        "large payloads.",
        show_default="not announced",
    ),
]
Advertise = Annotated[
    str | None,
    typer.Option(
        metavar="HOST[:PORT]",
        help="The address to announce; of several processes that of the first.",
        show_default="where it listens",
    ),
]
Cert = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="The certificate, PEM.", show_default="plaintext"),
]
Key = Annotated[
    str | None, typer.Option(metavar="FILE", help="Its private key, PEM.", show_default=False)
]
ClientCa = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Callers must show a certificate that one of these has signed.",
        show_default=False,
    ),
]
TokenFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Callers must show the token in this file.", show_default=False
    ),
]
Pipelines = Annotated[
    list[str] | None,
    typer.Option(
        "--pipeline",
        metavar="NAME",
        help="Whose large payloads it fetches and stores; may be given several times.",
        show_default="any; none where anybody may call from elsewhere",
    ),
]


def serve(
    target: Module,
    host: Host = "127.0.0.1",
    port: Port = 50051,
    workers: Workers = 1,
    slots: Slots = None,
    name: Name = None,
    announce: Announce = None,
    advertise: Advertise = None,
    tls_cert: Cert = None,
    tls_key: Key = None,
    client_ca: ClientCa = None,
    token_file: TokenFile = None,
    pipelines: Pipelines = None,
    traces: TracesUrl = None,
    error_detail: ErrorDetail = None,
    log_format: Format = None,
    log_level: Level = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = DEFAULT_HOST,
) -> None:
    """Serve a module behind gRPC, for pipelines that call it as an ExternalModule.

    SIGTERM and Ctrl-C drain: what runs is finished, the rest goes to other servers. Of several
    processes each serves its own metrics, on ports from --metrics-port on.

    Example: broker-pipeline serve examples.shout:Upper --port 50051

    Found by name, on all addresses of this machine, with TLS: broker-pipeline serve my.app:Asr
    --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem --announce nats://broker:4222
    --pipeline app
    """
    from broker_pipeline.external.credentials import read_token
    from broker_pipeline.observe.setting_up import set_up, traced_modules
    from broker_pipeline.runtime.lifecycle import DRAINING, once_ready, run_until_signal
    from broker_pipeline.runtime.module_server import Serving, run_server, run_servers
    from broker_pipeline.runtime.worker import WorkerEnd
    from broker_pipeline.target import load_module

    set_up("serve", log_format, log_level, detail=error_detail, traces=traces)
    module = load_module(target)
    token = None if token_file is None else read_token(token_file)
    options = Serving(
        host=host, port=port, slots=slots, name=name, announce=announce, advertise=advertise,
        cert=tls_cert, key=tls_key, client_ca=client_ca, token=token, pipelines=pipelines or None,
        target=target,
    )  # fmt: skip
    exposure = Exposure(metrics_port, metrics_host)

    async def run(stop: asyncio.Event) -> WorkerEnd:
        if workers > 1:
            await run_servers(
                options, workers, stop, token_file=token_file, exposure=exposure, announce=say
            )
            return WorkerEnd.DRAINED
        async with metering(exposure, role="server", announce=say) as meter:
            return await run_server(module, options, stop, announce=once_ready(say), meter=meter)

    with traced_modules("server", traces):
        end = run_until_signal(run, hint=DRAINING)
    if end is WorkerEnd.RESTART:
        note("too many slots are lost in modules that do not come back: the server begins anew")
        logging.shutdown()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
