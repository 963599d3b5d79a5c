"""Writing a package's payload into a file, as it was at one place of its way."""

from __future__ import annotations

from pathlib import Path

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.debug.inspection.history import PackageHistory
from broker_pipeline.debug.inspection.payloads import save
from broker_pipeline.errors import PayloadGoneError, RecordingError, SelectionError

ARRIVAL, END = "arrival", "end"


def save_payload(history: PackageHistory, at: str, path: Path) -> str:
    """Write the payload.

    Args:
        at: 'arrival'; CONTROLLER.PHASE: as that phase got it; 'end': the latest there is.

    Returns:
        A line that says what was written.

    Raises:
        SelectionError: there is no such place on its way.
        RecordingError: the file cannot be written.
        PayloadGoneError: the payload is not there any more.
    """
    envelope = _envelope_at(history, at)
    if envelope.HasField("reference"):
        raise PayloadGoneError(
            f"the payload of package {history.package_id!r} at {at!r} is not there any more: it "
            f"was object {envelope.reference.object!r}; take it from another place, or from a "
            f"recording"
        )
    try:
        return save(envelope.data, envelope.content_type, path)
    except OSError as error:
        raise RecordingError(
            f"the payload cannot be written to {str(path)!r}: {error}; choose another file",
            path=str(path),
        ) from error


def _envelope_at(history: PackageHistory, at: str) -> pb.DataPackage:
    places = {f"{each.controller}.{each.phase}": each.envelope for each in history.inputs}
    if history.arrived is not None:
        places[ARRIVAL] = history.arrived
    places[END] = history.latest
    if at not in places:
        raise SelectionError(
            f"package {history.package_id!r} has no payload at {at!r}; expected one of "
            f"{', '.join(repr(each) for each in sorted(places))}",
            at=at,
        )
    return places[at]
