"""Secrets taken out of what is recorded: by the name of what holds them, and by their shape.

Rather too much than too little: what is called `key` is masked whatever it holds.
"""

from __future__ import annotations

import re

MASK = "***"
WINDOW = 2048
"""Characters of a text that are looked at; what is shown of it is less."""

_WORDS = (
    "token", "secret", "passw", "passphrase", "passcode", "pwd", "key", "auth", "credential",
    "cookie", "session", "dsn", "private", "signature", "jwt", "bearer", "otp",
    "connectionstring", "connection_string",
)  # fmt: skip
_PASS = r"(?<![a-z])pass(?![a-z])"
"""As a word of a name: DB_PASS, user-pass; not in what it is a part of, as in compass."""
_VALUE = r"""(?:"[^"]*(?:"|\Z)|'[^']*(?:'|\Z)|[^\s,;&"'}\])]+)"""
# A shape, what stands in its place, and what must be in a text before it is worth looking for:
# most texts hold none of it, and regular expressions are slow at finding nothing.
_SHAPES = (
    (r"-----BEGIN [^-]*-----.*?(?:-----END [^-]*-----|\Z)", MASK, ("-----begin ",)),
    (r"(://)[^\s\"'<>]*@", rf"\1{MASK}@", ("://",)),
    (
        r"((?:authorization|cookie)s?[\"']?\s{0,8}[:=]\s{0,8})[^\r\n]+",
        rf"\1{MASK}",
        ("authorization", "cookie"),
    ),
    (
        r"\b(bearer|basic|digest|negotiate|token)(\s{1,8})[^\s\"',;]+",
        rf"\1\2{MASK}",
        ("bearer", "basic", "digest", "negotiate", "token"),
    ),
    (
        rf"((?:{'|'.join(_WORDS)})[\w.-]{{0,64}}[\"']?\s{{0,8}}[:=]\s{{0,8}}){_VALUE}",
        rf"\1{MASK}",
        _WORDS,
    ),
    (
        rf"({_PASS}[\w.-]{{0,64}}[\"']?\s{{0,8}}[:=]\s{{0,8}}){_VALUE}",
        rf"\1{MASK}",
        ("pass",),
    ),
)
_COMPILED = [
    (re.compile(shape, re.IGNORECASE | re.DOTALL), instead, signs)
    for shape, instead, signs in _SHAPES
]


def is_secret(name: str) -> bool:
    """Whether what has this name is kept to itself."""
    lowered = name[:WINDOW].lower()
    return any(word in lowered for word in _WORDS) or re.search(_PASS, lowered) is not None


def masked(text: str) -> str:
    """A text without what looks like a secret; only its first WINDOW characters."""
    found = text[:WINDOW]
    if len(text) > WINDOW:  # what is cut through has lost its shape
        found = found[: max(map(found.rfind, " \n\t,;&\"'")) + 1] or found[: WINDOW // 2]
    lowered = found.lower()
    for shape, instead, signs in _COMPILED:
        if any(sign in lowered for sign in signs):
            found = shape.sub(instead, found)
    return found
