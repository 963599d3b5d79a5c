"""What a recording holds, as plain data and as lines."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from broker_pipeline.core.names import unescape_instance
from broker_pipeline.debug.printable import printable
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.journey import NS

INSTANCES_MAX = 20
"""Of what a recording holds, so many instances and cut lives are named."""


def report(recording: Recording) -> dict[str, Any]:
    """What it holds. Raises RecordingError where the file is damaged."""
    meta, counts = recording.meta, recording.counts()
    lives = recording.cut_lives(INSTANCES_MAX + 1)
    first, last = recording.times()
    return {
        "file": str(recording.path),
        "pipeline": meta.pipeline,
        "shard": meta.shard,
        "target": meta.target,
        "selection": meta.selection,
        "recorded_at": meta.recorded_at_ns / NS,
        "version": meta.version,
        "plan": bool(meta.plan),
        "first_time": first / NS,
        "last_time": last / NS,
        "events": counts.events,
        "outcomes": counts.outcomes,
        "instances": {
            _name(token): {"packages": arrivals, "outcomes": outcomes}
            for token, arrivals, outcomes in recording.instances(INSTANCES_MAX)
        },
        "instances_total": counts.instances,
        "payloads": counts.payloads,
        "payload_bytes": counts.payload_bytes,
        "stored_bytes": counts.stored_bytes,
        "gone": counts.gone,
        "cut": [{**life._asdict(), "instance": _name(life.instance)} for life in lives],
        "notes": list(meta.notes),
    }


def as_lines(found: dict[str, Any]) -> Iterator[str]:
    """The same for a person."""
    target = f", {found['target']}" if found["target"] else ""
    yield printable(f"{found['file']}: pipeline {found['pipeline']!r}{target}")
    yield printable(
        f"  recorded {_when(found['recorded_at'])} by version {found['version'] or '?'}: "
        f"{found['selection'] or '?'}"
    )
    events, outcomes = found["events"], found["outcomes"]
    lasted = found["last_time"] - found["first_time"]
    instances = _many(found["instances_total"], "instance")
    yield (
        f"  {_many(events.get('in', 0), 'package')} of {instances}, "
        f"{_when(found['first_time'])} to {_when(found['last_time'])} ({lasted:,.1f} s)"
    )
    left = ", ".join(f"{count:,} {name}" for name, count in sorted(outcomes.items()))
    yield f"  left: {left or 'none'}"
    others = ", ".join(f"{n:,} {kind}" for kind, n in sorted(events.items()) if kind != "in")
    yield f"  other events: {others or 'none'}{'' if found['plan'] else '; no plan'}"
    yield (
        f"  {_many(found['payloads'], 'different payload')}, {found['payload_bytes']:,} bytes, "
        f"{found['stored_bytes']:,} in the file"
    )
    for name, counts in found["instances"].items():
        yield printable(
            f"    {name}: {_many(counts['packages'], 'package')}, {counts['outcomes']:,} left"
        )
    more = found["instances_total"] - len(found["instances"])
    if more > 0:
        yield f"    and {more:,} more"
    yield from _warnings(found)


def _warnings(found: dict[str, Any]) -> Iterator[str]:
    if found["gone"]:
        yield f"  {found['gone']:,} payloads were gone when it was recorded"
    for life in found["cut"][:INSTANCES_MAX]:
        yield printable(
            f"  cut: life {life['epoch']} of {life['instance']} has {life['outcomes']:,} of "
            f"sequence ids {life['first']} to {life['last']}: states and windows of a replay differ"
        )
    if len(found["cut"]) > INSTANCES_MAX:
        yield "  and more lives that are cut"
    for line in found["notes"]:
        yield printable(f"  note: {line}")


def _many(count: int, of: str) -> str:
    return f"{count:,} {of}" if count == 1 else f"{count:,} {of}s"


def _when(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}" if seconds else "?"
    except (ValueError, OverflowError, OSError):
        return "?"


def _name(token: str) -> str:
    """An instance's name as JSON and terminals can carry it."""
    return unescape_instance(token).encode("utf-8", "backslashreplace").decode()
