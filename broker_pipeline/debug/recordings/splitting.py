"""A package's bytes without its payload, and back: byte for byte the same. Pure."""

from __future__ import annotations

_DATA = 0x42
"""The tag of `DataPackage.data`: field 8, length-delimited."""
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_SHIFT_MAX = 63
"""A varint has ten bytes at most."""


def split(raw: bytes) -> tuple[bytes, int, bytes] | None:
    """A DataPackage without the field `data`, the place where that was, and the payload.

    None where the field is not there once and written as everybody writes it; then the payload
    stays in its place.
    """
    found = None
    at = 0
    try:
        while at < len(raw):
            start = at
            tag, at = _varint(raw, at)
            kind = tag & 7
            if kind == _VARINT:
                _, at = _varint(raw, at)
            elif kind == _EIGHT_BYTES:
                at += 8
            elif kind == _FOUR_BYTES:
                at += 4
            elif kind == _BYTES:
                size, begin = _varint(raw, at)
                at = begin + size
                if tag == _DATA:
                    if found is not None:
                        return None
                    found = start, begin, at
            else:
                return None
    except IndexError:
        return None
    if found is None or at != len(raw):
        return None
    start, begin, end = found
    envelope, payload = raw[:start] + raw[end:], raw[begin:end]
    return (envelope, start, payload) if join(envelope, start, payload) == raw else None


def join(envelope: bytes, at: int, payload: bytes) -> bytes:
    """What `split` took apart."""
    return b"".join((envelope[:at], b"\x42", _length(len(payload)), payload, envelope[at:]))


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > _SHIFT_MAX:
            raise IndexError


def _length(size: int) -> bytes:
    out = bytearray()
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)
