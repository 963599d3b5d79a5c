"""Times, sizes and rates as people read them, short enough for a column."""

from __future__ import annotations

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
STEP = 1024


def duration(seconds: float) -> str:
    """Seconds, in the unit that suits: at most 6 characters below 1,000 days."""
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if not seconds:
        return "0 s"
    if seconds < 0.00095:
        return f"{seconds * 1e6:.0f} us"
    for number, unit in ((seconds * 1e3, "ms"), (seconds, "s")):
        if number < 9.95:
            return f"{number:.1f} {unit}"
        if number < (999.5 if unit == "ms" else 99.5):
            return f"{number:.0f} {unit}"
    for length, unit in ((MINUTE_S, "m"), (HOUR_S, "h")):
        if seconds < 99.5 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / DAY_S:.0f} d"


def size(count: float) -> str:
    """Bytes, in the unit that suits."""
    for unit in UNITS[:-1]:
        if count < STEP - 0.5:
            whole = unit == UNITS[0] or count >= 99.95
            return f"{count:.0f} {unit}" if whole else f"{count:.1f} {unit}"
        count /= STEP
    return f"{count:.1f} {UNITS[-1]}"


def number(value: float) -> str:
    """A count or a rate: at most 5 characters below a million millions."""
    if value < 0:
        return f"-{number(-value)}"
    if value and value < 9.95:
        return f"{value:.1f}".removesuffix(".0")
    for length, unit in ((1, ""), (1e3, "k"), (1e6, "M")):
        if value < 999.5 * length:
            scaled = value / length
            return f"{scaled:.1f}{unit}" if unit and scaled < 99.95 else f"{scaled:.0f}{unit}"
        if unit == "" and value < 9_999.5:
            return f"{value:.0f}"
    return f"{value / 1e9:.0f}G"
