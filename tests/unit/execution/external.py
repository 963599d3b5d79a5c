"""External modules for tests."""

from __future__ import annotations

from typing import Any

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.journey import STATUS_TO_PB
from broker_pipeline.modules import (
    ExternalModule,
    ExternalOptions,
)
from broker_pipeline.package import DataPackage
from tests.unit.fake_relay import Servers

from .conftest import package

SUCCESS, ERROR = STATUS_TO_PB["SUCCESS"], STATUS_TO_PB["ERROR"]


def asr(**more: Any) -> ExternalModule:
    options = more.pop("options", None) or ExternalOptions(**more.pop("call", {}))
    return ExternalModule("asr", target="registry:///asr", options=options, **more)


def answers(*responses: Any) -> Any:
    """One after the other."""
    left = list(responses)
    return lambda package, state: left.pop(0)


def read(finished: Any) -> Any:
    return DataPackage.wrap(finished.envelope).controllers[-1].phases[-1]


async def one(start: Any, behave: Any, module: Any = None, **options: Any) -> Any:
    """Run one package; what came back."""
    desk = await start(module or asr(), relays=Servers(behave), **options)
    return (await desk.run(package(b"raw")))[0]


def nested(levels: int) -> pb.ModuleRecord:
    record = pb.ModuleRecord(name="deepest")
    for _ in range(levels - 1):
        record = pb.ModuleRecord(name="m", sub_modules=[record])
    return record
