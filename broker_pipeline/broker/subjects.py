"""Subject patterns and transforms, as nats-server matches them; for the in-memory broker."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from broker_pipeline.errors import BrokerError

_WILDCARD = re.compile(r"\{\{\s*wildcard\((\d+)\)\s*\}\}", re.IGNORECASE)


# A handful of patterns each stream; the bound only keeps a test that makes thousands from growing.
@lru_cache(maxsize=4096)
def matcher(pattern: str) -> Callable[[str], re.Match[str] | None]:
    """A function that matches whole subjects; each `*` is a group."""
    tokens = {"*": r"([^.]+)", ">": r".+"}
    expression = r"\.".join(tokens.get(each, re.escape(each)) for each in pattern.split("."))
    return re.compile(expression).fullmatch


def overlap(one: str, other: str) -> bool:
    """Whether a subject can match both patterns."""
    left, right = one.split("."), other.split(".")
    for a, b in zip(left, right, strict=False):
        if ">" in (a, b):
            return True
        if a != b and "*" not in (a, b):
            return False
    return len(left) == len(right)


def transformer(source: str, destination: str) -> Callable[[str], str]:
    """A function that renames the subjects which match `source` and leaves the others.

    Raises:
        BrokerError: the destination uses a function other than `{{wildcard(n)}}`.
    """
    match = matcher(source)
    rest = _WILDCARD.sub("", destination)
    if "{{" in rest:
        raise BrokerError(
            f"the transform destination {destination!r} is not supported by the in-memory broker; "
            "expected {{wildcard(n)}} and plain tokens; use a real broker for the others",
            destination=destination,
        )

    def transform(subject: str) -> str:
        found = match(subject)
        if found is None:
            return subject
        return _WILDCARD.sub(lambda each: found.group(int(each.group(1))), destination)

    return transform
