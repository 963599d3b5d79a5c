"""What runs packages elsewhere, as those see it who have packages: no gRPC in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.modules import ExternalModule


class WithdrawnError(Exception):
    """A call was taken back before a server had it (`Relay.withdraw`): it may begin elsewhere."""


@dataclass(slots=True)
class Answer:
    """A server's answer to one package, checked: its status is SUCCESS, EXIT or ERROR.

    Attributes:
        response: as it came.
        server: the server's name, as it stands in errors.
        sent_ns: when it was sent, on `time.monotonic_ns`.
        received_ns: when the answer was there.
    """

    response: service.RunResponse
    server: str
    sent_ns: int
    received_ns: int


@dataclass(frozen=True, slots=True)
class RelayState:
    """How the way to a module's servers stands.

    Attributes:
        servers: how many there are by state: `good`, `full` (they have what they take), `away`
            (they take none, or are not reached), `ejected`, `probing`.
        calls: packages that are on their way.
        sent: those among them that a server has.
        credit: how many packages the servers take at once.
        repeats: packages given to another server, so far, for one that had them failed.
        ejections: how often a server was ejected, so far.
    """

    servers: dict[str, int]
    calls: int
    sent: int
    credit: int
    repeats: int
    ejections: int


class Relay(Protocol):
    """The way of one `ExternalModule` to its servers. All on the event loop that made it."""

    async def start(self) -> None:
        """Begin to look for servers; does not wait for any.

        Raises: DeclarationError, ModuleMismatchError where it can be told that it will never work.
        """

    async def call(
        self,
        package: pb.DataPackage,
        *,
        state: bytes | None,
        deadline_ns: int | None,
        traceparent: str = "",
    ) -> Answer:
        """Have a package run: on another server where one fails and the package may be run again.

        Cancelling it cancels the call.

        Args:
            package: as the server shall get it; not changed, and not to be changed meanwhile.
            state: of a module with a state; None: the beginning.
            deadline_ns: on `time.monotonic_ns`; None: no bound.
            traceparent: the span of the call; '': it is not traced.

        Raises:
            ModuleUnreachableError: no server could be given it by the deadline; none has begun it.
            ModuleServerError: a server failed that may have begun it.
            ModuleMismatchError: the servers refuse it for good.
            ModuleTimeoutError: the deadline has passed at a server.
            WithdrawnError: see `withdraw`.
        """

    def withdraw(self) -> None:
        """Have no call wait any more, now and from now on: for the end of a worker.

        Those that no server has, and later ones for which there is no room, end with
        WithdrawnError; those that a server has go on.
        """

    @property
    def room(self) -> int:
        """How many more packages servers would take now."""

    @property
    def servers(self) -> int:
        """How many servers are there that could be given packages, busy ones included."""

    @property
    def failed(self) -> BaseException | None:
        """What nobody foresaw and ended its work: its calls raise it, and there is never room."""

    def state(self) -> RelayState:
        """How it stands now; to be asked now and then."""

    async def close(self) -> None:
        """Let go of the servers; calls that are outstanding end with an error."""


RelayFactory = Callable[[ExternalModule, Callable[[], None]], Relay]
"""Makes the relay of a module; calls its second argument, on the loop, when `room` has grown."""
