"""A part of a recording, as a recording."""

from __future__ import annotations

from pathlib import Path

from msgspec import structs

from broker_pipeline.debug.recordings.recorded import (
    ARRIVAL,
    CLOSING,
    COMPLETION,
    OPENING,
    RecordedEvent,
)
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.debug.recordings.selection import Selection


def narrow(recording: Recording, selection: Selection, path: Path) -> None:
    """Write what is selected of a recording into a new one.

    Ticks and plans are taken as they are, openings and closings with their instance. A package that
    has not left has no sequence id yet: it is taken where none is asked for.

    Raises:
        RecordingError: there is such a file, or one of the two cannot be read or written.
    """
    said = f"{recording.meta.selection or 'everything'}; of that {selection}"
    meta = structs.replace(recording.meta, selection=said)
    with Recording.create(path, meta) as part:
        for event in recording.events():
            if _takes(recording, selection, event):
                part.add_event(event)
        for outcome in recording.outcomes():
            arrival = recording.arrival_of(outcome.package_id)
            if arrival is not None and _takes(recording, selection, arrival):
                part.add_outcome(outcome)


def _takes(recording: Recording, selection: Selection, event: RecordedEvent) -> bool:
    if event.kind in (OPENING, CLOSING):
        return selection.takes_instance(event.instance)
    if event.kind not in (ARRIVAL, COMPLETION):
        return True
    arrival: RecordedEvent | None = event
    if event.kind == COMPLETION:
        arrival = recording.arrival_of(event.package_id)
    if arrival is None or not selection.takes_instance(arrival.instance):
        return False
    outcome = recording.recorded_outcome(arrival.stream_seq)
    if outcome is None:
        anything = not selection.by_sequence and not selection.outcomes
        return anything and selection.takes_time(arrival.time_ns)
    return selection.takes(arrival.instance, outcome.sequence, arrival.time_ns, outcome.outcome)
