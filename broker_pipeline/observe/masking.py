"""Secrets taken out of what is recorded: by the name of what holds them, and by their shape.

Rather too much than too little: what is called `key` is masked whatever it holds.
"""

from __future__ import annotations

import re

MASK = "***"
WINDOW = 2048
"""Characters of a text that are looked at; what is shown of it is less."""

_WORDS = (
    "token|secret|passw|passphrase|pwd|key|auth|credential|cookie|session|dsn|private|signature|"
    "jwt|bearer|otp|connection.?string"
)
_NAME = re.compile(_WORDS, re.IGNORECASE)
_VALUE = r"""(?:"[^"]*(?:"|\Z)|'[^']*(?:'|\Z)|[^\s,;&"'}\])]+)"""
_SHAPES = (
    (re.compile(r"-----BEGIN [^-]*-----.*?(?:-----END [^-]*-----|\Z)", re.DOTALL), MASK),
    (re.compile(r"(://)[^\s\"'<>]*@"), rf"\1{MASK}@"),
    (
        re.compile(r"((?:authorization|cookie)s?[\"']?\s{0,8}[:=]\s{0,8})[^\r\n]+", re.IGNORECASE),
        rf"\1{MASK}",
    ),
    (
        re.compile(r"\b(bearer|basic|digest|negotiate|token)(\s{1,8})[^\s\"',;]+", re.IGNORECASE),
        rf"\1\2{MASK}",
    ),
    (
        re.compile(
            rf"((?:{_WORDS})[\w.-]{{0,64}}[\"']?\s{{0,8}}[:=]\s{{0,8}}){_VALUE}", re.IGNORECASE
        ),
        rf"\1{MASK}",
    ),
)


def is_secret(name: str) -> bool:
    """Whether what has this name is kept to itself."""
    return _NAME.search(name[:WINDOW]) is not None


def masked(text: str) -> str:
    """A text without what looks like a secret; only its first WINDOW characters."""
    found = text[:WINDOW]
    if len(text) > WINDOW:  # what is cut through has lost its shape
        found = found[: max(map(found.rfind, " \n\t,;&\"'")) + 1] or found[: WINDOW // 2]
    for shape, instead in _SHAPES:
        found = shape.sub(instead, found)
    return found
