"""Whether a server keeps to the protocol: its description, and each of its answers."""

from __future__ import annotations

from collections.abc import Iterable

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.core.names import payload_bucket

ERRORS_MAX = 100
"""Errors of one answer: a journey with more is no use to anybody."""
RECORDS_MAX = 1_000
"""Modules of one answer, at any depth."""
TEXT_MAX = 1 << 20
"""A message or an error is no way to move data."""
_ANSWERS = (pb.STATUS_SUCCESS, pb.STATUS_EXIT, pb.STATUS_ERROR)


def mismatch(
    description: service.Description, *, module: str, name: str | None, stateful: bool
) -> str | None:
    """What a server serves other than is declared; None where it fits or does not say.

    Args:
        module: the declared module, for the text.
        name: the name that is expected; None: any.
    """
    if name is not None and description.name and description.name != name:
        return (
            f"it serves module {description.name!r}; expected {name!r}, as it is registered: "
            f"correct the name it announces, or the target of ExternalModule {module!r}"
        )
    if description.stateful != stateful:
        has = "a state" if description.stateful else "no state"
        return (
            f"module {module!r} has {has} there; expected otherwise: declare "
            f"ExternalModule({module!r}, stateful={description.stateful})"
        )
    return None


def takes(content_types: frozenset[str], content_type: str) -> bool:
    """Whether a server with these content types takes a package of that one. Parameters, as in
    `audio/pcm; rate=16000`, count only where the server names them too."""
    if not content_types or not content_type or content_type in content_types:
        return True
    return content_type.partition(";")[0].strip() in content_types


def content_types(description: service.Description) -> frozenset[str]:
    """What a server takes; none: whatever comes."""
    return frozenset(each.strip() for each in description.content_types)


def lie(response: service.RunResponse, package: int, stateful: bool, pipeline: str) -> str | None:
    """What of an answer cannot be; None where all is well.

    Args:
        package, pipeline: of the package that was sent.
    """
    if response.package != package:
        return f"it answers package {response.package} instead of {package}"
    if response.HasField("payload") and response.payload.HasField("reference"):
        wrong = _reference_lie(response.payload, pipeline)
        if wrong is not None:
            return wrong
    status = response.status
    if status == pb.STATUS_SUCCESS and not response.modules and not response.errors:
        # The most of them, in few steps.
        return _state_lie(response, stateful) if stateful or response.HasField("state") else None
    if status == pb.STATUS_WAITING:
        return None
    if status not in _ANSWERS:
        return f"it answers with status {status}, which is neither SUCCESS, EXIT, ERROR nor WAITING"
    if status == pb.STATUS_ERROR and not response.errors:
        return "it answers ERROR and names no error"
    if len(response.errors) > ERRORS_MAX:
        return f"it answers with {len(response.errors)} errors; expected at most {ERRORS_MAX}"
    if len(response.message) > TEXT_MAX:
        return f"its message has {len(response.message)} characters; expected at most {TEXT_MAX}"
    for error in response.errors:
        if max(len(error.message), len(error.traceback)) > TEXT_MAX:
            return f"it answers with an error of more than {TEXT_MAX} characters"
    return _records_lie(response) or _state_lie(response, stateful)


def _state_lie(response: service.RunResponse, stateful: bool) -> str | None:
    has = response.HasField("state")
    if has and not stateful:
        return "it answers with a state, and the module has none"
    if stateful and not has and response.status != pb.STATUS_ERROR:
        return "it answers without the state after the package"
    return None


def _reference_lie(payload: service.Payload, pipeline: str) -> str | None:
    """Nobody reads what is not the pipeline's on the word of a server."""
    kept, bucket = payload.reference, payload_bucket(pipeline)
    if kept.bucket != bucket or not kept.object:
        return (
            f"it answers with object {kept.object[:80]!r} of bucket {kept.bucket[:80]!r}; expected "
            f"one of {bucket!r}, that of the package's pipeline"
        )
    if payload.data:
        return f"it answers with a payload of {len(payload.data)} bytes and a reference to one"
    return None


def _records_lie(response: service.RunResponse) -> str | None:
    found, errors = 0, len(response.errors)
    pending: list[Iterable[pb.ModuleRecord]] = [response.modules]
    while pending:
        for record in pending.pop():
            found += 1
            if found > RECORDS_MAX:
                return f"it answers with more than {RECORDS_MAX} modules"
            if record.error > errors:
                return f"module {record.name[:80]!r} has error {record.error} of {errors}"
            if record.sub_modules:
                pending.append(record.sub_modules)
    return None
