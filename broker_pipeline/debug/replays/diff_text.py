"""A comparison as a person reads it, at 80 columns. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from broker_pipeline.debug.printable import printable
from broker_pipeline.debug.replays.diff import Kind
from broker_pipeline.debug.replays.diff_report import Report
from broker_pipeline.debug.replays.durations import Durations
from broker_pipeline.debug.replays.replaying import Watch
from broker_pipeline.journey import NS

LABEL_CHARS = 38
"""Of a module's path; of a longer one the end is shown."""


def summary_lines(report: Report) -> list[str]:
    """Outcomes and times, recorded beside replayed: what `replay run` says."""
    return [printable(line) for line in (*_outcomes(report), "", *_times(report))]


def diff_lines(report: Report) -> list[str]:
    """What is the same, what changed, the first differences in full, and the times."""
    counts, outcomes, first = _counts(report), _outcomes(report), _first(report)
    lines = (*counts, "", *outcomes, *first, "", *_times(report), "", _verdict(report))
    return [printable(line) for line in lines]


def _counts(report: Report) -> Iterator[str]:
    kinds = ", ".join(f"{kind} {report.kinds[kind]:,}" for kind in Kind if report.kinds[kind])
    yield f"{report.same:>10,}  the same"
    yield f"{report.changed:>10,}  changed" + (f": {kinds}" if kinds else "")
    if report.missing:
        yield f"{report.missing:>10,}  missing: they left then, and did not now"
    if report.new:
        yield f"{report.new:>10,}  new: the recording knows nothing of them"
    if report.unfinished:
        yield f"{report.unfinished:>10,}  not compared: inside when the recording ended"


def _outcomes(report: Report) -> Iterator[str]:
    yield f"{'':10}  {'recorded':>10}  {'replayed':>10}"
    for outcome, (old, new) in report.outcomes.items():
        if old or new:
            yield f"{outcome.value:>10}  {old:>10,}  {new:>10,}"


def _first(report: Report) -> Iterator[str]:
    if not report.first:
        return
    total = report.changed + report.missing + report.new
    shown = len(report.first)
    yield ""
    yield f"the first {shown} of {total:,} that differ:" if shown < total else "what differs:"
    for changed in report.first:
        yield ""
        yield f"  {changed.package}  {changed.instance!r} #{changed.sequence}"
        for difference in changed.differences:
            yield from (f"    {line}" for line in difference.told())


def _times(report: Report) -> Iterator[str]:
    labels = report.times.by_label
    if not labels:
        return
    heads = f"{'p50':>9} {'p99':>9}"
    yield f"{'':{LABEL_CHARS}}  {'recorded':>19}  {'replayed':>19}"
    yield f"{'time in':{LABEL_CHARS}}  {heads}  {heads}"
    slower = set(report.slower)
    for label, (old, new) in labels.items():
        cut = label if len(label) <= LABEL_CHARS else f"...{label[3 - LABEL_CHARS :]}"
        mark = " !" if label in slower else ""
        yield f"{cut:{LABEL_CHARS}}  {_pair(old)}  {_pair(new)}{mark}"


def _pair(durations: Durations) -> str:
    if not durations.count:
        return f"{'-':>9} {'-':>9}"
    return f"{told_ns(durations.quantile(0.5)):>9} {told_ns(durations.quantile(0.99)):>9}"


def told_ns(duration_ns: int) -> str:
    """A duration in the unit that fits."""
    for unit, size in (("s", NS), ("ms", 1_000_000), ("us", 1_000)):
        if duration_ns >= size:
            return (
                f"{duration_ns / size:.3g} {unit}"
                if duration_ns < 1000 * size
                else (f"{duration_ns / size:,.0f} {unit}")
            )
    return f"{duration_ns} ns"


def _verdict(report: Report) -> str:
    if report.stopped:
        return "broken off: what is said above is of what had left by then"
    if report.compared_nothing:
        return "nothing was compared: no package of the recording has an outcome there"
    if report.is_same:
        return "nothing has changed"
    return f"changed: {', '.join(_what_changed(report))}"


def _what_changed(report: Report) -> Iterable[str]:
    for count, one, many in (
        (report.changed, "differs", "differ"),
        (report.missing, "is missing", "are missing"),
        (report.new, "is new", "are new"),
    ):
        if count:
            yield f"{count:,} packages {many}" if count > 1 else f"1 package {one}"
    if report.slower:
        times = f"{report.slower_than:g} times as long"
        yield f"{', '.join(report.slower)} took {times} or longer"


def pace_line(watch: Watch) -> str:
    """How much was replayed, and how fast."""
    recorded_s = (watch.time_ns - watch.first_ns) / NS
    took_s = max(watch.took_s, 1e-9)
    return (
        f"replayed {watch.left:,} packages of {told_s(recorded_s)} in {told_s(took_s)}: "
        f"{watch.times_real:,.3g} times real time, {watch.left / took_s:,.0f} packages/s"
    )


def told_s(seconds: float) -> str:
    """A time as people tell it."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
