"""A module that a walk has entered and not left."""

from __future__ import annotations

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.modules import Run
from broker_pipeline.observe.context import TraceContext
from broker_pipeline.runtime.execution.program import Step


class Entered:
    """Where a walk stands. `outer_ns`, `outer_span`: what holds again when it is left."""

    __slots__ = ("deadline_ns", "outer_ns", "outer_span", "record", "run", "start_ns", "step")

    def __init__(self, step: Step, record: pb.ModuleRecord, start_ns: int) -> None:
        self.step = step
        self.record = record
        self.start_ns = start_ns
        self.deadline_ns: int | None = None
        self.outer_ns: int | None = None
        self.outer_span: TraceContext | None = None
        self.run: Run | None = None
