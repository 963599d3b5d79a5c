"""Values of user code as text, without running any of it: no `__repr__`, no property, no iterator.

What is read is what Python itself keeps: the content of its own types, and the attributes of other
objects. So nothing here fails or hangs because of what a value is.
"""

from __future__ import annotations

import datetime
import decimal
import itertools
import pathlib
import types
import uuid
import zoneinfo
from collections import deque
from collections.abc import Iterator
from typing import Any, cast

from broker_pipeline.observe.masking import MASK, WINDOW, is_secret, masked

VALUE_CHARS_MAX = 1024
"""Of one variable."""
LEAF_CHARS_MAX = 256
"""Of one text, number or name in it."""
ITEMS_MAX = 20
"""Of a container or an object, at each level."""
DEPTH_MAX = 4
NODES_MAX = 2_000
"""Values that are looked at by one writer: bounds the time, whatever they hold."""
INT_BITS_MAX = 512
"""Writing a large number as decimal digits takes longer than all else."""

_PLAIN = (
    datetime.datetime, datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID,
    pathlib.PosixPath, pathlib.PurePosixPath, pathlib.WindowsPath, pathlib.PureWindowsPath, range,
    complex,
)  # fmt: skip
_ZONES = (types.NoneType, datetime.timezone, zoneinfo.ZoneInfo)
_CUT = "..."


class Writer:
    """Writes the values of one error."""

    def __init__(self) -> None:
        self._nodes = 0
        self._room = 0

    def write(self, value: object) -> str:
        """A value, secrets masked, in at most VALUE_CHARS_MAX characters."""
        self._room = VALUE_CHARS_MAX
        try:
            text = self._text(value, 0)
        except Exception as error:  # Python's own types, changed while they are read
            text = f"<cannot be read: {type(error).__name__}>"
        return text if len(text) <= VALUE_CHARS_MAX else text[: VALUE_CHARS_MAX - 3] + _CUT

    def _text(self, value: object, depth: int) -> str:
        self._nodes += 1
        if self._nodes > NODES_MAX or self._room <= 0:
            return _CUT
        kind = type(value)
        if value is None or kind is bool:
            return str(value)
        if (leaf := _leaf(value, kind)) is not None:
            self._room -= len(leaf)
            return leaf
        if depth >= DEPTH_MAX:
            return f"<{_name(kind)}>"
        if issubclass(kind, dict):
            return self._mapping(cast(dict[Any, Any], value), kind, depth)
        for base, left, right in _SEQUENCES:
            if issubclass(kind, base):
                return self._sequence(value, base, left, right, kind, depth)
        return self._object(value, kind, depth)

    def _sequence(
        self, value: Any, base: Any, left: str, right: str, kind: type, depth: int
    ) -> str:
        size = base.__len__(value)
        first = list(itertools.islice(base.__iter__(value), ITEMS_MAX))
        if size == 2 and type(first[0]) in (str, bytes) and _is_secret(first[0]):
            inner = f"{self._text(first[0], depth + 1)}, {MASK}"  # a pair, as headers are
        else:
            inner = ", ".join(self._text(each, depth + 1) for each in first)
        if size > len(first):
            inner += f", {_CUT} {size} in all"
        named = "" if kind is base else _name(kind)
        return f"{named}{left}{inner}{right}"

    def _mapping(self, value: dict[Any, Any], kind: type, depth: int) -> str:
        size = dict.__len__(value)
        first = list(itertools.islice(dict.items(value), ITEMS_MAX))
        parts = [
            f"{self._text(key, depth + 1)}: {self._named(key, value, depth)}"
            for key, value in first
        ]
        if size > len(first):
            parts.append(f"{_CUT} {size} in all")
        named = "" if kind is dict else _name(kind)
        return f"{named}{{{', '.join(parts)}}}"

    def _object(self, value: object, kind: type, depth: int) -> str:
        parts = [
            f"{name[:LEAF_CHARS_MAX]}={self._named(name, each, depth)}"
            for name, each in itertools.islice(_attributes(value, kind), ITEMS_MAX)
        ]
        return f"<{' '.join([_name(kind), ', '.join(parts)]).rstrip()}>"

    def _named(self, name: object, value: object, depth: int) -> str:
        return MASK if _is_secret(name) else self._text(value, depth + 1)


_SEQUENCES: tuple[tuple[Any, str, str], ...] = (
    (list, "[", "]"),
    (tuple, "(", ")"),
    (set, "{", "}"),
    (frozenset, "{", "}"),
    (deque, "deque[", "]"),
)


def _is_secret(name: object) -> bool:
    kind, start = type(name), slice(0, LEAF_CHARS_MAX)
    if issubclass(kind, str):
        return is_secret(str.__getitem__(cast(str, name), start))
    if issubclass(kind, bytes):
        return is_secret(bytes.__getitem__(cast(bytes, name), start).decode("latin-1"))
    return False


def _leaf(value: Any, kind: type) -> str | None:
    """What holds no other values; None for what does."""
    if issubclass(kind, str):
        size = str.__len__(value)
        text = masked(str.__getitem__(value, slice(0, WINDOW + 1)))
        shown = str.__repr__(text[:LEAF_CHARS_MAX])
        return shown if size <= LEAF_CHARS_MAX else f"{shown}{_CUT} {size} characters"
    if issubclass(kind, int):
        bits = int.bit_length(value)
        return int.__repr__(value) if bits <= INT_BITS_MAX else f"<int of {bits} bits>"
    if issubclass(kind, float):
        return float.__repr__(value)
    if issubclass(kind, bytes | bytearray):
        base: Any = bytes if issubclass(kind, bytes) else bytearray
        size = base.__len__(value)
        head = bytes(base.__getitem__(value, slice(0, 2 * LEAF_CHARS_MAX)))
        text = masked(head.decode("latin-1"))[: LEAF_CHARS_MAX // 2]
        shown = repr(text.encode("latin-1", "replace"))
        return shown if size <= LEAF_CHARS_MAX // 2 else f"{shown}{_CUT} {size} bytes"
    if kind in _PLAIN and type(getattr(value, "tzinfo", None)) in _ZONES:
        return masked(repr(value))[:LEAF_CHARS_MAX]
    if kind in (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType):
        name = value.__name__
        return f"<{_name(kind)} {name}>" if type(name) is str else f"<{_name(kind)}>"
    if issubclass(kind, type):
        return f"<class {_name(value)}>"
    return None


def _attributes(value: object, kind: type) -> Iterator[tuple[str, object]]:
    """What an object holds, as Python keeps it: its dictionary and its slots."""
    for base in kind.__mro__:
        own = type.__dict__["__dict__"].__get__(base)
        for name, member in list(own.items())[: 10 * ITEMS_MAX]:
            if type(member) is types.MemberDescriptorType and type(name) is str:
                try:
                    yield name, member.__get__(value, kind)
                except AttributeError:  # a slot that is empty
                    continue
            elif name == "__dict__" and type(member) is types.GetSetDescriptorType:
                held = member.__get__(value, kind)
                if type(held) is dict:
                    yield from [(k, v) for k, v in list(held.items()) if type(k) is str]


def _name(kind: type) -> str:
    own = type.__dict__
    module, name = own["__module__"].__get__(kind), own["__qualname__"].__get__(kind)
    shown = name if module == "builtins" else f"{module}.{name}"
    return str(shown)[:LEAF_CHARS_MAX]
