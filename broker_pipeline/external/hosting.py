"""What a module server is made of, as its two halves see each other: calls, and what runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.errors import BrokerPipelineError
from broker_pipeline.journey import STATUS_TO_PB, Status

WAITING: Any = STATUS_TO_PB[Status.WAITING]
ERROR: Any = STATUS_TO_PB[Status.ERROR]


@dataclass(slots=True, eq=False)
class Call:
    """One package that somebody waits for.

    Attributes:
        request: as it came; its package belongs to the module from now on.
        answered: takes the answer, once; called on the event loop.
        arrived_ns: when it came, on `time.monotonic_ns`.
        deadline_ns: until when somebody waits, on the same clock; None: for as long as it takes.
        over: nobody waits any more, or it is answered.
        work: the host's own.
    """

    request: service.RunRequest
    answered: Callable[[Call, service.RunResponse], None]
    arrived_ns: int
    deadline_ns: int | None = None
    over: bool = False
    work: Any = None


class ModuleHost(Protocol):
    """What runs the module. All on the event loop that started it."""

    @property
    def description(self) -> service.Description:
        """What it is; the server adds what concerns messages."""

    @property
    def window(self) -> int:
        """How many packages it would like to have now, over all callers; 0: none can run."""

    @property
    def idle(self) -> bool:
        """Whether nothing that was submitted is waiting or running, wanted or not."""

    def submit(self, calls: Sequence[Call]) -> None:
        """Run packages; each is answered, unless its call is over by then."""

    def drop(self, call: Call) -> None:
        """The call is over: if it has not begun it will not."""

    def withdraw(self) -> list[Call]:
        """Take back what has not begun; it is not answered."""

    def load(self) -> service.Load:
        """How busy it is."""


def not_begun(request: service.RunRequest) -> service.RunResponse:
    """The answer to a package for which there is no room here."""
    return service.RunResponse(call=request.call, package=request.package.id, status=WAITING)


def failed(
    request: service.RunRequest, error: BrokerPipelineError, description: service.Description
) -> service.RunResponse:
    """The answer to a package that is not run, or not any more."""
    told = pb.Error(
        type=type(error).__name__,
        message=str(error),
        worker=description.server,
        path=description.name,
    )
    return service.RunResponse(
        call=request.call, package=request.package.id, status=ERROR, errors=[told]
    )
