"""How two payloads differ, told by what they are: text by lines, data by fields, the rest by bytes.
Pure.

What is equal when it is read is equal: the order of keys and the spelling of numbers say nothing.
"""

from __future__ import annotations

import contextlib
import difflib
import math
from array import array
from collections.abc import Iterator
from typing import Any

import msgspec
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message

from broker_pipeline import codecs
from broker_pipeline.codecs import Format

FIELDS_MAX = 20
"""Fields that are told of one payload; of the others only that there are more."""
DIFF_LINES_MAX = 2_000
"""Lines of text that are compared line by line; longer ones are told by their first difference."""
TOLD_LINES_MAX = 40
"""Lines that are told of a comparison."""
VALUE_CHARS_MAX = 120
"""Of a value as it is told."""
SAMPLES_MAX = 1 << 20
"""Samples from which the level of audio is told."""
HEX_BYTES = 8
"""Bytes that are shown from the first difference on."""

_ABSENT = object()


def payload_difference(
    old: bytes, old_type: str, new: bytes, new_type: str, types: codecs.Types
) -> tuple[str, ...]:
    """How the payloads differ, a line each; empty where they are the same.

    Args:
        old: the recorded bytes.
        old_type: their content type.
        new: the replayed ones.
        new_type: theirs.
        types: payload types by name, for protobuf messages; those that are not known are bytes.
    """
    lines = [] if old_type == new_type else [f"content type: {old_type!r} -> {new_type!r}"]
    if old == new:
        return tuple(lines)
    # Bytes of which nobody said anything are read as what the others are.
    formats = {codecs.format_of(each) for each in (old_type, new_type) if each}
    if formats == {Format.TEXT}:
        return tuple(lines + _text(old, new))
    if len(formats) == 1 and formats != {Format.RAW}:
        read = [_read(old, old_type or new_type, types), _read(new, new_type or old_type, types)]
        if not any(each is _ABSENT for each in read):
            with contextlib.suppress(RecursionError):  # nested deeper than anybody reads
                return tuple(lines + _fields(*read))
    return tuple(lines + _bytes(old, old_type, new, new_type))


def field_differences(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """`(path, old, new)` of every field that differs; what is missing is the text `absent`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            here = f"{path}.{key}" if path else str(key)
            yield from field_differences(here, old.get(key, _ABSENT), new.get(key, _ABSENT))
    elif isinstance(old, list) and isinstance(new, list):
        for index in range(max(len(old), len(new))):
            before = old[index] if index < len(old) else _ABSENT
            after = new[index] if index < len(new) else _ABSENT
            yield from field_differences(f"{path}[{index}]", before, after)
    elif not _same(old, new):
        yield path, old, new


def shown(value: object) -> str:
    """A value on one line, cut where it is long."""
    return _cut("absent" if value is _ABSENT else repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= VALUE_CHARS_MAX else f"{text[:VALUE_CHARS_MAX]}... ({len(text)})"


def _same(old: object, new: object) -> bool:
    """Whether two leaves are equal: NaN is what it is, and True is no 1."""
    if isinstance(old, float) and isinstance(new, float) and math.isnan(old):
        return math.isnan(new)
    return isinstance(old, bool) is isinstance(new, bool) and old == new


def _read(raw: bytes, content_type: str, types: codecs.Types) -> Any:
    """The payload as plain data; _ABSENT where it cannot be read."""
    try:
        match codecs.format_of(content_type):
            case Format.JSON:
                return msgspec.json.decode(raw)
            case Format.MSGPACK:
                return msgspec.msgpack.decode(raw)
            case Format.PROTOBUF:
                kind = types.get(codecs.split_content_type(content_type)[1])
                if kind is not None and issubclass(kind, Message):
                    message = kind.FromString(raw)
                    # Unknown fields are in no dictionary, and deterministic bytes have them.
                    exact = message.SerializeToString(deterministic=True)
                    return {**MessageToDict(message, preserving_proto_field_name=True), "": exact}
    except (msgspec.MsgspecError, DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        pass
    return _ABSENT


def _fields(old: Any, new: Any) -> list[str]:
    found = list(field_differences("", old, new))
    if len(found) > 1:  # the whole message says nothing that its fields do not
        found = [each for each in found if each[0] != ""] or found
    lines = [
        f"{_cut(path) or 'data'}: {shown(a)} -> {shown(b)}" for path, a, b in found[:FIELDS_MAX]
    ]
    if len(found) > FIELDS_MAX:
        lines.append(f"and {len(found) - FIELDS_MAX} fields more")
    return lines


def _text(old: bytes, new: bytes) -> list[str]:
    before, after = (raw.decode(errors="backslashreplace").splitlines() for raw in (old, new))
    if before == after or max(len(before), len(after)) > DIFF_LINES_MAX:
        return _bytes(old, "", new, "")
    if len(before) <= 1 and len(after) <= 1:
        return [f"- {_cut(''.join(before))}", f"+ {_cut(''.join(after))}"]
    compared = difflib.unified_diff(before, after, "recorded", "replayed", lineterm="", n=2)
    lines = [_cut(line) for line in compared]
    if len(lines) > TOLD_LINES_MAX:
        lines[TOLD_LINES_MAX:] = [f"and {len(lines) - TOLD_LINES_MAX} lines more"]
    return lines


def _bytes(old: bytes, old_type: str, new: bytes, new_type: str) -> list[str]:
    common = min(len(old), len(new))
    at = first_difference(old[:common], new[:common])
    lines = [] if len(old) == len(new) else [f"{len(old):,} bytes -> {len(new):,} bytes"]
    if at is not None:
        end = at + HEX_BYTES
        lines.append(f"from byte {at:,}: {old[at:end].hex(' ')} -> {new[at:end].hex(' ')}")
    elif len(old) != len(new):
        lines.append(f"the first {common:,} bytes are the same")
    if old_type.startswith("audio/") and new_type.startswith("audio/"):
        before, after = level(old), level(new)
        lines.append(f"level: {before:.1f} dB -> {after:.1f} dB of full scale (as 16-bit PCM)")
    return lines


def first_difference(old: bytes, new: bytes) -> int | None:
    """Where two payloads of one length differ first; None: nowhere. By halves: comparing slices is
    a thousand times as fast as comparing bytes."""
    if old == new:
        return None
    low, high = 0, len(old)
    while high - low > 1:
        middle = (low + high) // 2
        if old[low:middle] == new[low:middle]:
            low = middle
        else:
            high = middle
    return low


def level(raw: bytes) -> float:
    """The RMS level of little-endian 16-bit samples, dB of full scale; -inf is silence."""
    samples = array("h")
    samples.frombytes(raw[: min(len(raw) // 2, SAMPLES_MAX) * 2])
    if memoryview(b"\x01\x00").cast("h")[0] != 1:
        samples.byteswap()
    if not samples:
        return -math.inf
    power = sum(sample * sample for sample in samples) / len(samples)
    return 10 * math.log10(power / 2**30) if power else -math.inf
