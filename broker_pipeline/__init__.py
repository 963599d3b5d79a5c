"""Pipelines over live streams on NATS JetStream. These are the public names."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from broker_pipeline.errors import BrokerPipelineError
from broker_pipeline.journey import Mode, Outcome
from broker_pipeline.modules import (
    CombinationModule,
    ConditionModule,
    ExecutionModule,
    ExternalModule,
    ExternalOptions,
    ModuleOptions,
    Run,
    StatefulModule,
    Tls,
)
from broker_pipeline.package import DataPackage
from broker_pipeline.pipeline import Controller, Phase, Pipeline

if TYPE_CHECKING:
    from broker_pipeline.client.client import Client, connect
    from broker_pipeline.client.instance import Instance
    from broker_pipeline.runtime.module_server import serve

__version__ = "0.1.0"

__all__ = [
    "BrokerPipelineError",
    "Client",
    "CombinationModule",
    "ConditionModule",
    "Controller",
    "DataPackage",
    "ExecutionModule",
    "ExternalModule",
    "ExternalOptions",
    "Instance",
    "Mode",
    "ModuleOptions",
    "Outcome",
    "Phase",
    "Pipeline",
    "Run",
    "StatefulModule",
    "Tls",
    "__version__",
    "connect",
    "serve",
]


# The client brings nats-py along, and serving gRPC; declaring a pipeline needs neither.
_LATE = {
    "connect": "broker_pipeline.client.client",
    "Client": "broker_pipeline.client.client",
    "Instance": "broker_pipeline.client.instance",
    "serve": "broker_pipeline.runtime.module_server",
}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(import_module(_LATE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
