"""What a gRPC status other than OK says about a call: one row each."""

from __future__ import annotations

from enum import Enum
from typing import Any

import grpc


class Verdict(Enum):
    """What becomes of a call that ended with a status."""

    SERVER_FAILED = "the server could not answer: another one may"
    PACKAGE_FAILED = "the package is refused for what it is: ERROR"
    REFUSED = "the server refuses this caller: it is no server for us until somebody mends it"
    TIMED_OUT = "the deadline has passed"


VERDICTS: dict[grpc.StatusCode, Verdict] = {
    grpc.StatusCode.CANCELLED: Verdict.SERVER_FAILED,
    grpc.StatusCode.UNKNOWN: Verdict.SERVER_FAILED,
    grpc.StatusCode.INVALID_ARGUMENT: Verdict.PACKAGE_FAILED,
    grpc.StatusCode.DEADLINE_EXCEEDED: Verdict.TIMED_OUT,
    grpc.StatusCode.NOT_FOUND: Verdict.PACKAGE_FAILED,
    grpc.StatusCode.ALREADY_EXISTS: Verdict.PACKAGE_FAILED,
    grpc.StatusCode.PERMISSION_DENIED: Verdict.REFUSED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Verdict.SERVER_FAILED,
    grpc.StatusCode.FAILED_PRECONDITION: Verdict.PACKAGE_FAILED,
    grpc.StatusCode.ABORTED: Verdict.SERVER_FAILED,
    grpc.StatusCode.OUT_OF_RANGE: Verdict.PACKAGE_FAILED,
    grpc.StatusCode.UNIMPLEMENTED: Verdict.REFUSED,  # every server has `Run`: this is none
    grpc.StatusCode.INTERNAL: Verdict.SERVER_FAILED,
    grpc.StatusCode.UNAVAILABLE: Verdict.SERVER_FAILED,
    grpc.StatusCode.DATA_LOSS: Verdict.SERVER_FAILED,
    grpc.StatusCode.UNAUTHENTICATED: Verdict.REFUSED,
}
"""Of `Run`. The end of a stream says nothing about one package: there PACKAGE_FAILED and TIMED_OUT
count as SERVER_FAILED, and UNIMPLEMENTED says that the server has `Run` only."""
DETAILS_MAX = 500
"""So much of what a server says stands in an error."""


def verdict(code: grpc.StatusCode | None) -> Verdict:
    """Of one call's status; a number that gRPC does not know is as UNKNOWN."""
    return VERDICTS.get(code, Verdict.SERVER_FAILED) if code is not None else Verdict.SERVER_FAILED


def told(code: Any, details: str | None) -> str:
    """A status for people."""
    name = getattr(code, "name", code)
    return f"{name}: {details[:DETAILS_MAX]}" if details else str(name)
