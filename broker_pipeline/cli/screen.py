"""Lines with colours, on standard output: without the colours where that is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text


def width() -> int:
    """How many columns there are; 80 where that is not known."""
    return Console().width


def print_lines(lines: Iterable[Text]) -> None:
    """Print them as they are, whatever the terminal's language: what it cannot show, escaped."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    console = Console(highlight=False)
    for line in lines:
        console.print(line, no_wrap=True, overflow="ignore", crop=False)
