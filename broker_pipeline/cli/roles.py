"""Commands that run roles: up, controller, worker, bridge."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from broker_pipeline.cli.observing import ErrorDetail, Format, Level, TraceRatio, TracesUrl
from broker_pipeline.cli.options import (
    DEFAULT_URL,
    MetricsHost,
    MetricsPort,
    Target,
    Url,
    note,
    say,
)
from broker_pipeline.observe.metering import DEFAULT_HOST, Exposure, metering

DEFAULT_PORT = 4222
INSTANCES_MAX = 10_000
"""Of an instance six series: with more a scrape takes longer than it should."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (up, controller, worker, bridge):
        app.command()(command)


Slots = Annotated[
    int | None,
    typer.Option(
        min=1, help="Packages at the same time in each phase.", show_default="one a processor"
    ),
]


def up(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET...",
            help="Pipelines, each as package.module:attribute.",
            show_default=False,
        ),
    ],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where the broker listens; 0 takes a free port.")
    ] = DEFAULT_PORT,
    store: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep streams here.", show_default="until it ends"),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1, help="Worker processes a pipeline; phases with a state run in the first."
        ),
    ] = 1,
    slots: Slots = None,
    traces: TracesUrl = None,
    trace_ratio: TraceRatio = None,
    error_detail: ErrorDetail = None,
    log_format: Format = None,
    log_level: Level = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = DEFAULT_HOST,
) -> None:
    """Run everything on this machine: a broker, controllers, workers and bridges.

    Module servers that a pipeline needs are started apart from it. With --metrics-port each process
    serves its own metrics, on ports from there on; each says which.

    Prints `broker: nats://...`, and `ready` when all of them are. Ctrl-C drains.

    Example: broker-pipeline up examples.shout:pipeline --port 4222
    """
    from broker_pipeline.observe.setting_up import set_up
    from broker_pipeline.runtime.lifecycle import DRAINING, run_until_signal
    from broker_pipeline.runtime.supervisor import run_up

    set_up("up", log_format, log_level, detail=error_detail, traces=traces, ratio=trace_ratio)

    async def run(stop: asyncio.Event) -> None:
        await run_up(
            targets,
            port=port,
            store=store,
            workers=workers,
            slots=slots,
            exposure=Exposure(metrics_port, metrics_host),
            stop=stop,
            announce=say,
        )

    run_until_signal(run, hint=DRAINING)


def controller(
    target: Target,
    url: Url = DEFAULT_URL,
    traces: TracesUrl = None,
    trace_ratio: TraceRatio = None,
    log_format: Format = None,
    log_level: Level = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = DEFAULT_HOST,
    metrics_instances: Annotated[
        int,
        typer.Option(
            min=0,
            max=INSTANCES_MAX,
            help="Count each of so many instances apart; the rest is instance='(other)'.",
        ),
    ] = 0,
) -> None:
    """Lead a pipeline, or stand by to take over; start as many as you like.

    Deploys the pipeline if nothing of it is deployed yet.

    Example: broker-pipeline controller examples.shout:pipeline

    With a trace of every tenth package, and of every ERROR: broker-pipeline controller
    examples.shout:pipeline --traces http://127.0.0.1:4318 --trace-ratio 0.1
    """
    from broker_pipeline.client.client import connect
    from broker_pipeline.client.deploy import deploy_if_absent
    from broker_pipeline.observe import logs
    from broker_pipeline.observe.setting_up import set_up, traced_journeys
    from broker_pipeline.runtime.lifecycle import DRAINING, once_ready, run_until_signal
    from broker_pipeline.runtime.roles import run_controller
    from broker_pipeline.target import load_target

    set_up("controller", log_format, log_level, traces=traces)
    pipeline = load_target(target)
    logs.about(pipeline.name)

    async def run(stop: asyncio.Event) -> None:
        async with connect(url, name="broker-pipeline controller") as client:
            line = await deploy_if_absent(client.broker, pipeline, target)
        if line:
            note(line)
        exposure = Exposure(metrics_port, metrics_host, metrics_instances)
        async with metering(exposure, role="controller", announce=say) as meter:
            await run_controller(
                url,
                pipeline.name,
                stop,
                announce=once_ready(say),
                meter=meter,
                traces=decided,
                instances=exposure.instances,
            )

    with traced_journeys(pipeline.name, traces, trace_ratio) as decided:
        run_until_signal(run, hint=DRAINING)


def worker(
    target: Target,
    phases: Annotated[
        list[str] | None,
        typer.Option(
            "--phase",
            metavar="CONTROLLER.PHASE",
            help="Run this phase; may be given several times.",
            show_default="all but external ones",
        ),
    ] = None,
    slots: Slots = None,
    url: Url = DEFAULT_URL,
    traces: TracesUrl = None,
    error_detail: ErrorDetail = None,
    log_format: Format = None,
    log_level: Level = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = DEFAULT_HOST,
) -> None:
    """Run the modules of a pipeline; start as many as the load needs.

    Phases of nothing but ExternalModules are left to bridges, unless they are named.

    SIGTERM and Ctrl-C drain: what has begun is finished, the rest goes to other workers.

    Example: broker-pipeline worker examples.shout:pipeline --phase tidy.upper

    To see what a failing module held: broker-pipeline worker examples.shout:pipeline
    --error-detail locals,versions
    """
    from broker_pipeline.observe import logs
    from broker_pipeline.observe.setting_up import set_up, traced_modules
    from broker_pipeline.runtime.lifecycle import DRAINING, once_ready, run_until_signal
    from broker_pipeline.runtime.roles import run_worker
    from broker_pipeline.runtime.worker import WorkerEnd, choose
    from broker_pipeline.target import load_target

    set_up("worker", log_format, log_level, detail=error_detail, traces=traces)
    pipeline = load_target(target)
    logs.about(pipeline.name)
    choose(pipeline, phases)  # a name that is none is refused before anything is connected

    async def run(stop: asyncio.Event) -> WorkerEnd:
        exposure = Exposure(metrics_port, metrics_host)
        async with metering(exposure, role="worker", announce=say) as meter:
            return await run_worker(
                url,
                pipeline,
                stop,
                phases=phases or None,
                slots=slots,
                target=target,
                announce=once_ready(say),
                meter=meter,
            )

    with traced_modules("worker", traces):
        end = run_until_signal(run, hint=DRAINING)
    _begin_anew_after(end, "worker")


def bridge(
    target: Target,
    phases: Annotated[
        list[str] | None,
        typer.Option(
            "--phase",
            metavar="CONTROLLER.PHASE",
            help="Relay this phase; may be given several times.",
            show_default="all external ones",
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            min=1, help="Packages with servers at most, in each phase.", show_default="1000"
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    error_detail: ErrorDetail = None,
    log_format: Format = None,
    log_level: Level = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = DEFAULT_HOST,
) -> None:
    """Relay packages to module servers; start as many as the load needs.

    Runs the phases that hold nothing but ExternalModules. While no server is there packages wait in
    the broker. SIGTERM and Ctrl-C drain: what a server has is finished, the rest goes to others.
    Without a timeout_s that takes as long as the server says that it works on the package.

    Example: broker-pipeline bridge my_talks:pipeline --phase talk.asr
    """
    from broker_pipeline.observe import logs
    from broker_pipeline.observe.setting_up import set_up
    from broker_pipeline.runtime.lifecycle import DRAINING, once_ready, run_until_signal
    from broker_pipeline.runtime.roles import run_bridge
    from broker_pipeline.runtime.worker import WorkerEnd, choose_external
    from broker_pipeline.target import load_target

    set_up("bridge", log_format, log_level, detail=error_detail)
    pipeline = load_target(target)
    logs.about(pipeline.name)
    choose_external(pipeline, phases)  # refused before anything is connected

    async def run(stop: asyncio.Event) -> WorkerEnd:
        exposure = Exposure(metrics_port, metrics_host)
        async with metering(exposure, role="bridge", announce=say) as meter:
            return await run_bridge(
                url,
                pipeline,
                stop,
                phases=phases or None,
                slots=slots,
                announce=once_ready(say),
                meter=meter,
            )

    _begin_anew_after(run_until_signal(run, hint=DRAINING), "bridge")


def _begin_anew_after(end: object, role: str) -> None:
    from broker_pipeline.runtime.worker import WorkerEnd

    if end is WorkerEnd.RESTART:
        note(f"too many slots are lost in modules that do not come back: the {role} begins anew")
        logging.shutdown()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
