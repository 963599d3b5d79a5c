"""What a run says at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.fault.real.running import Result
from tests.fault.real.watching import growth_per_minute

RSS_GROWTH_MB_MIN = 0.5
"""A role whose memory grows faster over the second half of a soak has not levelled off."""
FDS_GROWTH_MIN = 0.2
POINTS = 6
SHOWN = 30


def quantile(values: Sequence[float], share: float) -> float:
    """Of some values; nan of none."""
    if not values:
        return float("nan")
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def summary(result: Result) -> str:
    """As text."""
    settings = result.settings
    left = sum(result.outcomes.values())
    lines = [
        (
            f"seed {settings.seed}, R{settings.replicas}: {result.sent} packages sent "
            f"({result.unknown} without an answer), {left} left, at {result.rate:.0f}/s; the log "
            f"has {result.messages} messages, {result.log_mb:.0f} MB"
        ),
        "outcomes: " + _counts(result.outcomes),
        f"faults: {sum(result.faults.values())}: " + _counts(result.faults),
    ]
    if result.skipped:
        lines.append("skipped, for there was nobody to do it to: " + _counts(result.skipped))
    for what, times in (
        ("all", [took for took, _ in result.takeovers]),
        ("no other fault within 5 s", [took for took, alone in result.takeovers if alone]),
    ):
        lines.append(
            f"takeovers, kill to next emission ({what}): {len(times)}: "
            f"p50 {quantile(times, 0.5):.2f} s, p99 {quantile(times, 0.99):.2f} s, "
            f"max {max(times, default=float('nan')):.2f} s"
        )
    lines += [
        (
            f"redeliveries: {result.redeliveries}; called poison and were not: "
            f"{sum(each.innocents for each in result.verdicts)}"
        ),
        f"drained {result.drained_s:.1f} s after the last fault and send; processor time with "
        "nothing to do: "
        + ", ".join(f"{name} {share:.1%}" for name, share in sorted(result.idle_cpu.items())),
        "ends of processes: "
        + "; ".join(f"{name}: {_counts(ends)}" for name, ends in result.ends.items()),
        *_curves(result),
        f"took {result.took_s:.0f} s, of which checking {result.checked_s:.0f} s",
    ]
    if result.violations:
        lines.append(f"VIOLATIONS: {len(result.violations)}")
        lines += [f"  {each}" for each in result.violations[:SHOWN]]
        lines.append(f"  repeat it with: {command(result)}")
    else:
        lines.append(
            "0 lost, 0 double, 0 out of order: every package has one outcome, as the model says"
        )
    return "\n".join(lines)


def command(result: Result) -> str:
    """What repeats the run."""
    each = result.settings
    text = f"python -m tests.fault.real --seed {each.seed} --replicas {each.replicas}"
    if each.minutes:
        return f"{text} --minutes {each.minutes:g}"
    return f"{text} --packages {each.packages} --rate {each.rate:g} --every {each.fault_every_s:g}"


def _counts(counts: Counter[str] | Counter[int] | dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def _curves(result: Result) -> list[str]:
    """Memory and file descriptors of each process at several times, and how they grew."""
    assert result.watch is not None
    lines = ["rss MB / fds over time; growth per minute from the middle third to the last:"]
    for name, samples in sorted(result.watch.by_name().items()):
        step = max(1, len(samples) // POINTS)
        points = [samples[index] for index in range(step - 1, len(samples), step)]
        text = "  ".join(
            f"{each.at_s:.0f}s:{each.cost.rss_mb:.0f}/{each.cost.fds}" for each in points
        )
        rss = growth_per_minute(samples, lambda cost: cost.rss_mb)
        fds = growth_per_minute(samples, lambda cost: cost.fds)
        lines.append(f"  {name:13} {text}  growth {rss:+.2f} MB, {fds:+.2f} fds")
    return lines


def levels_off(result: Result) -> list[str]:
    """The roles that do not, after a soak; the servers' memory follows what the log holds."""
    assert result.watch is not None
    found = []
    for name, samples in sorted(result.watch.by_name().items()):
        if name.startswith("s"):
            continue
        rss = growth_per_minute(samples, lambda cost: cost.rss_mb)
        fds = growth_per_minute(samples, lambda cost: cost.fds)
        if rss > RSS_GROWTH_MB_MIN or fds > FDS_GROWTH_MIN:
            found.append(
                f"{name} does not level off: {rss:+.2f} MB and {fds:+.2f} fds a minute; expected "
                f"at most {RSS_GROWTH_MB_MIN} and {FDS_GROWTH_MIN}"
            )
    return found
