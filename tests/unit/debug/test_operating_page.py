"""docs/operating.md names every key of `top --json` and every finding of `doctor`."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import msgspec

from broker_pipeline.debug.operation.top import View

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "operating.md").read_text()
NAMED = set(re.findall(r"`([a-z0-9_-]+)(?:\[\])?`", PAGE))


def keys_of(kind: object) -> set[str]:
    """The keys of a struct and of those inside it."""
    found: set[str] = set()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for name, each in typing.get_type_hints(kind).items():
            found |= {name} | keys_of(each)
    for each in typing.get_args(kind):
        found |= keys_of(each)
    return found


def test_every_key_of_a_view_is_documented() -> None:
    """Scripts rely on them."""
    assert keys_of(View) - NAMED == set()


def test_every_finding_is_documented() -> None:
    """And the page names none that there is not."""
    sources = (ROOT / "broker_pipeline" / "debug").rglob("*_checks.py")
    text = "\n".join(path.read_text() for path in sources)
    names = set(re.findall(r'(?:trouble|warning|note|grade|\))\(\s*"([a-z-]+)"', text))
    assert len(names) > 30
    table = PAGE[PAGE.index("| finding |") : PAGE.index("`--json` prints one object: `pipeline`")]
    firsts = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`([a-z-]+)`", "".join(firsts))) == names
