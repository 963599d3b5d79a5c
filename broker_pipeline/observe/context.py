"""Where a package stands in its trace: W3C trace context, and span ids that follow from it.

No role keeps spans while a package is on its way: the journey is the trace (docs/adr/0026). Who
runs a part of it, and who tells of it later, work out the same ids from the same names. So user
code may hang its own spans below a module's before anybody has made that one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

from broker_pipeline._proto.v1 import data_package_pb2 as pb

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
TRACESTATE_CHARS_MAX = 512
"""A longer one is dropped, as the standard allows: headers count for the broker's limit."""

# Version ff is none. Of later versions these four fields are all that may be relied upon.
_TRACEPARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?"
)
_TRACEPARENT_CHARS_MAX = 128
_TRACESTATE = re.compile(r"[ -~\t]+")
# Go's standard library writes the names of headers this way, whatever it is given.
_TITLED_PARENT, _TITLED_STATE = "Traceparent", "Tracestate"
_SAMPLED = 1
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span that others may hang below.

    Attributes:
        trace_id: 32 hexadecimal digits.
        span_id: 16 of them.
        sampled: whether the trace is recorded.
        state: `tracestate`, as it came.
    """

    trace_id: str
    span_id: str
    sampled: bool = True
    state: str = ""

    @property
    def traceparent(self) -> str:
        """As a header says it."""
        return f"00-{self.trace_id}-{self.span_id}-0{int(self.sampled)}"

    def child(self, key: str) -> TraceContext:
        """The span of that name below this one; equal keys give equal ids. Of a trace that is not
        recorded nobody tells, so one span stands for all."""
        if not self.sampled:
            return self
        return TraceContext(
            self.trace_id, _digest(f"{self.span_id}/{key}"), self.sampled, self.state
        )


def carried(headers: Mapping[str, str]) -> dict[str, str] | None:
    """What goes on with a package of a message's headers; None where that is nothing.

    Bad ones count as none: a role that copied them could be stopped by them.
    """
    if not headers:
        return None
    parent = headers.get(TRACEPARENT) or headers.get(_TITLED_PARENT)
    if parent is None or parse_traceparent(parent) is None:
        return None
    found = {TRACEPARENT: parent}
    state = headers.get(TRACESTATE) or headers.get(_TITLED_STATE)
    if state and len(state) <= TRACESTATE_CHARS_MAX and _TRACESTATE.fullmatch(state):
        found[TRACESTATE] = state
    return found


def parse(headers: Mapping[str, str]) -> TraceContext | None:
    """The span that a message's headers name; None where they name none."""
    found = carried(headers)
    if found is None:
        return None
    return parse_traceparent(found[TRACEPARENT], found.get(TRACESTATE, ""))


def parse_traceparent(text: str, state: str = "") -> TraceContext | None:
    """The span that a `traceparent` names; None where it is malformed."""
    match = _TRACEPARENT.fullmatch(text) if len(text) <= _TRACEPARENT_CHARS_MAX else None
    if match is None or (match[1] == "00" and match[5]):
        return None
    return TraceContext(match[2], match[3], bool(int(match[4], 16) & _SAMPLED), state)


def derived(pipeline: str, shard: int, package: int, arrived: int) -> TraceContext:
    """The trace of a package that came without one: its root span."""
    high = _digest(f"{pipeline}/{shard}")
    trace_id = f"{high}{chance(package, arrived):016x}"
    return package_span(TraceContext(trace_id, ""), pipeline, shard, package)


def chance(package: int, arrived: int) -> int:
    """The lower half of a derived trace id: 64 bits that look random, in half a microsecond.

    The mixing of SplitMix64 (Steele et al., "Fast splittable pseudorandom number generators").
    """
    mixed = (arrived + package * 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)


def package_span(context: TraceContext, pipeline: str, shard: int, package: int) -> TraceContext:
    """The package's own span, the root of its journey, in the trace of `context`.

    Of the trace and the package alone: a derived one is its own parent in headers.
    """
    span_id = _digest(f"{context.trace_id}/{pipeline}/{shard}/{package}")
    return TraceContext(context.trace_id, span_id, context.sampled, context.state)


def span_in_phase(
    headers: Mapping[str, str], envelope: pb.DataPackage, phase: str
) -> TraceContext | None:
    """The span of a phase that a package is in, by the headers that it came with; None for most."""
    found = parse(headers)
    if found is None or not found.sampled:
        return found
    package = package_span(found, envelope.pipeline, envelope.shard, envelope.id)
    return phase_span(controller_span(package, envelope.controllers[-1].name), phase)


def controller_span(package: TraceContext, controller: str) -> TraceContext:
    """A controller's span, below the package's."""
    return package.child(f"controller/{controller}")


def phase_span(controller: TraceContext, phase: str) -> TraceContext:
    """A phase's span, below its controller's."""
    return controller.child(f"phase/{phase}")


def module_span(parent: TraceContext, position: int, module: str) -> TraceContext:
    """A module's span, below that of the phase, the server or the module around it.

    Args:
        position: how many modules stand before it in the record there.
    """
    return parent.child(f"module/{position}/{module}")


def server_span(module: TraceContext) -> TraceContext:
    """A module server's span, below that of the external module that its caller has."""
    return module.child("server")


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()
