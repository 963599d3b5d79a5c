"""What `doctor` found, as text and as JSON. Pure."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

import msgspec

from broker_pipeline.debug.operation.findings import Facts, Finding, Severity
from broker_pipeline.debug.operation.units import duration

WIDTH = 100
HANG = " " * 10
KEY_LENGTH = 56


def as_text(facts: Facts, findings: Sequence[Finding]) -> str:
    """For a person: what was looked at, then each finding with its remedy."""
    lines = [_looked_at(facts)]
    for each in findings:
        lines += ["", *_wrapped(f"{each.severity.value.upper():9} ", each.what)]
        lines += _wrapped(f"{HANG}-> ", each.remedy)
    return "\n".join([*lines, "", _summary(findings)])


def as_json(facts: Facts, findings: Sequence[Finding]) -> str:
    """For programs; the keys are documented in docs/operating.md."""
    clock = facts.clock
    told = {
        "pipeline": facts.plan.pipeline,
        "target": facts.target,
        "deployed": facts.deployed is not None,
        "broker": {
            "server": facts.broker.server,
            "version": facts.broker.version,
            "cluster": facts.broker.cluster,
            "api_level": facts.broker.api_level,
            "max_payload": facts.broker.max_payload,
            "round_trip_s": facts.broker.round_trip_s,
            "clock_ahead_s": None if clock is None else clock.ahead_s,
            "clock_bound_s": None if clock is None else clock.bound_s,
        },
        "findings": findings,
        "counts": _counts(findings),
    }
    return msgspec.json.encode(told).decode()


def _looked_at(facts: Facts) -> str:
    broker = facts.broker
    # A server that was given no name has its key for one.
    name = f" {broker.server!r}" if len(broker.server) < KEY_LENGTH else ""
    parts = [
        f"nats-server {broker.version}{name}, API level {broker.api_level}",
        f"{duration(broker.round_trip_s)} away",
    ]
    if facts.clock is not None:
        parts.append(f"clock {facts.clock.ahead_s * 1e3:+.1f} ms")
    if facts.looks is not None:
        reading = facts.looks[1]
        roles = Counter(each.role.value for each in reading.statuses)
        parts += [f"{count} {role}{'s' * (count > 1)}" for role, count in sorted(roles.items())]
    return f"{facts.plan.pipeline}: {', '.join(parts)}"


def _wrapped(head: str, text: str) -> list[str]:
    """Commands in it can still be copied: words are not broken. What others have named may hold
    what a terminal would take for a command."""
    text = "".join(each if each.isprintable() else "?" for each in text)
    return textwrap.wrap(
        text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _counts(findings: Sequence[Finding]) -> dict[str, int]:
    return {severity.value: sum(f.severity is severity for f in findings) for severity in Severity}


def _summary(findings: Sequence[Finding]) -> str:
    counts = _counts(findings)
    if not counts[Severity.TROUBLE] and not counts[Severity.WARNING]:
        return "all is well"
    plural = {Severity.TROUBLE: "troubles", Severity.WARNING: "warnings", Severity.NOTE: "notes"}
    return ", ".join(
        f"{count} {severity if count == 1 else plural[Severity(severity)]}"
        for severity, count in counts.items()
        if count
    )
