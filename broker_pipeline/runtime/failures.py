"""Packages that a phase cannot run, or whose results cannot be stored: ERROR, and why."""

from __future__ import annotations

from collections.abc import Callable

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.errors import (
    BrokerPipelineError,
    PayloadTooLargeError,
    PoisonPackageError,
)
from broker_pipeline.journey import STATUS_TO_PB, Status
from broker_pipeline.pipeline import Controller, Phase
from broker_pipeline.runtime.ages import pass_over
from broker_pipeline.runtime.execution.failure import describe
from broker_pipeline.runtime.oversize import shortened

ROOM_BYTES = 4096
"""What stays free of the broker's limit: headers, and what the journey gains behind a phase."""
_ERROR = STATUS_TO_PB[Status.ERROR]


class Failures:
    """Writes failures of one phase into packages."""

    def __init__(
        self,
        controller: Controller,
        phase: Phase,
        *,
        worker: str,
        host: str,
        now_ns: Callable[[], int],
    ) -> None:
        self._controller = controller.name
        self._phase = phase.name
        self._worker = worker
        self._host = host
        self._now_ns = now_ns

    def note(self, envelope: pb.DataPackage, error: BrokerPipelineError) -> None:
        """The package failed in this phase, for this reason."""
        path = f"{self._controller}/{self._phase}"
        failure = describe(error, host=self._host, worker=self._worker, path=path)
        failure.traceback = ""  # it would show our files, which are not at fault
        envelope.errors.append(failure)
        self.require_record(envelope)

    def require_record(self, envelope: pb.DataPackage) -> None:
        """A failed package says in which phase it failed, also where that could not begin."""
        phases = envelope.controllers[-1].phases
        if not phases or phases[-1].name != self._phase:
            phases.add(
                name=self._phase,
                status=_ERROR,
                worker=self._worker,
                start_time_ns=self._now_ns(),
            )

    def pass_over(self, envelope: pb.DataPackage) -> None:
        """The package is too old to be run: OUTDATED in this phase, with no module in it."""
        pass_over(envelope, self._phase, self._worker, self._now_ns())

    def check_size(self, size: int, bytes_max: int) -> None:
        """Raises PayloadTooLargeError where a result would not fit, or not with what follows."""
        if size > bytes_max - ROOM_BYTES:
            raise PayloadTooLargeError(
                f"a result of phase {self._phase!r} has {size} bytes with its journey; the broker "
                f"takes {bytes_max}, of which {ROOM_BYTES} stay free for what is added later; make "
                f"it smaller, or raise max_payload in the broker's configuration",
                size=size,
                bytes_max=bytes_max,
            )

    def fit(self, envelope: pb.DataPackage, bytes_max: int) -> None:
        """Take the payload out of a failed package that is too large even as it came."""
        if envelope.ByteSize() > bytes_max - ROOM_BYTES:
            shortened(envelope, bytes_max)

    def poison(self, begun: int) -> PoisonPackageError:
        """The error of a package that was begun too often."""
        return PoisonPackageError(
            f"begun {begun} times without a result: it may be killing its worker; look at "
            f"the workers' logs, then run this package alone in {self._controller}.{self._phase}",
            begun=begun,
        )
