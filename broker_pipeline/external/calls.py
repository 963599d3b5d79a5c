"""A package on its way to a module server, as its caller sees it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service

if TYPE_CHECKING:
    from broker_pipeline.external.endpoints import Endpoint
    from broker_pipeline.external.picking import Standing


class Call:
    """One package on its way.

    Attributes:
        data: the package's bytes as they are sent: one of the two that follow.
        inline: with the payload in it; None: it has not been loaded.
        referring: with a reference to the payload; None: it has none.
        payload_bytes: what the reference says.
        came_ns: when it came.
        since_ns: when it began to wait.
        sent: where it is, by endpoint, under which number.
        sent_ns: when it was sent last.
        begun: whether a server that failed may have begun it.
        failures: how many such servers there were.
        error: what it ends with, should nothing better come.
        answer: an ERROR that one of several servers answered, which counts before `error`.
        avoid: who gave it back last.
        traceparent: what the server is told of its trace.
    """

    __slots__ = (
        "answer", "avoid", "begun", "came_ns", "content_type", "data", "deadline_ns", "error",
        "failures", "future", "inline", "package", "payload_bytes", "pipeline", "referring", "sent",
        "sent_ns", "since_ns", "state", "traceparent",
    )  # fmt: skip

    def __init__(
        self,
        package: pb.DataPackage,
        state: bytes | None,
        deadline_ns: int | None,
        future: asyncio.Future[tuple[service.RunResponse, str, int, int]],
        now_ns: int,
        traceparent: str = "",
    ) -> None:
        self.package = package.id
        self.pipeline = package.pipeline
        self.content_type = package.content_type
        self.data = package.SerializeToString()
        self.inline: bytes | None = self.data
        self.referring: bytes | None = None
        self.payload_bytes = 0
        if package.HasField("reference"):
            self.inline, self.referring = None, self.data
            self.payload_bytes = package.reference.size
        self.state = state
        self.traceparent = traceparent
        self.deadline_ns = deadline_ns
        self.future = future
        self.came_ns = self.since_ns = now_ns
        self.sent_ns = 0
        self.sent: dict[Endpoint, int] = {}
        self.begun = False
        self.failures = 0
        self.error: Exception | None = None
        self.answer: tuple[service.RunResponse, str, int, int] | None = None
        self.avoid: Standing | None = None

    def left_ns(self, now_ns: int) -> int:
        """What a server is told; 0: no bound."""
        return 0 if self.deadline_ns is None else max(1, self.deadline_ns - now_ns)
