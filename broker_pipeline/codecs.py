"""Payload to bytes and back, chosen by content type. Never pickle, or anything else that runs code.

| a value of type          | becomes                     | content type                         |
| ------------------------ | --------------------------- | ------------------------------------ |
| bytes                    | itself                      | as it was, else octet-stream         |
| str                      | UTF-8                       | `text/plain; charset=utf-8`          |
| msgspec.Struct           | MessagePack, or JSON        | `application/msgpack; type=NAME`     |
| dict, list, numbers, ... | MessagePack, or JSON        | `application/msgpack`                |
| protobuf message         | its wire format             | `application/x-protobuf; type=NAME`  |

JSON is taken where the package's content type says JSON already.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import msgspec
from google.protobuf.message import DecodeError, Message

from broker_pipeline.errors import PayloadError

OCTET_STREAM = "application/octet-stream"
TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
MSGPACK = "application/msgpack"
PROTOBUF = "application/x-protobuf"

Types = Mapping[str, type]
"""Payload types by the name that a content type's `type` parameter carries."""

_pack = msgspec.msgpack.Encoder().encode
_dump = msgspec.json.Encoder().encode


class Format(Enum):
    """What kind of bytes a content type announces."""

    RAW = "raw"
    TEXT = "text"
    JSON = "json"
    MSGPACK = "msgpack"
    PROTOBUF = "protobuf"


def split_content_type(content_type: str) -> tuple[str, str]:
    """Return the media type, in lower case, and the value of its `type` parameter or ''."""
    media, _, parameters = content_type.partition(";")
    for parameter in parameters.split(";"):
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "type":
            return media.strip().lower(), value.strip().strip('"')
    return media.strip().lower(), ""


def format_of(content_type: str) -> Format:
    """Return the format that a content type announces; what is unknown is raw bytes."""
    if not content_type:
        return Format.RAW
    media, _ = split_content_type(content_type)
    if media.startswith("text/"):
        return Format.TEXT
    if media == JSON or media.endswith("+json"):
        return Format.JSON
    if media in (MSGPACK, "application/x-msgpack", "application/vnd.msgpack"):
        return Format.MSGPACK
    if media in (PROTOBUF, "application/protobuf"):
        return Format.PROTOBUF
    return Format.RAW


def encode(value: object, content_type: str = "") -> tuple[bytes, str]:
    """Return the bytes of a payload and the content type that describes them.

    Args:
        value: bytes, str, a msgspec.Struct, plain data, or a protobuf message.
        content_type: what the package says so far; kept where it fits the value.

    Raises:
        PayloadError: a value of a type that has no encoding.
    """
    current = format_of(content_type)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), content_type if current is Format.RAW else OCTET_STREAM
    if isinstance(value, str) and current is not Format.JSON:
        try:
            return value.encode(), content_type if current is Format.TEXT else TEXT
        except UnicodeEncodeError as error:
            raise PayloadError(f"a payload of type 'str' is not text: {error}") from error
    if isinstance(value, Message):
        name = value.DESCRIPTOR.full_name
        return value.SerializeToString(deterministic=True), f"{PROTOBUF}; type={name}"
    label = f"; type={type(value).__name__}" if isinstance(value, msgspec.Struct) else ""
    try:
        if current is Format.JSON:
            return _dump(value), f"{split_content_type(content_type)[0]}{label}"
        return _pack(value), f"{MSGPACK}{label}"
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise PayloadError(
            f"a payload of type {type(value).__name__!r} cannot be encoded: {error}; expected "
            f"bytes, str, a msgspec.Struct, plain data or a protobuf message",
            type=type(value).__name__,
        ) from error


def decode(raw: bytes, content_type: str, expected: type | None, types: Types) -> Any:
    """Return the payload that `raw` holds.

    Args:
        raw: the bytes.
        content_type: what they are.
        expected: the type that the reader asks for; None leaves the choice to the content type.
            bytes and str always give the bytes as they are, and as UTF-8 text.
        types: the payload types that are known by name.

    Raises:
        PayloadError: the bytes are not what the content type or the reader says.
    """
    if expected is bytes:
        return raw
    announced = format_of(content_type)
    if expected is None:
        if announced is Format.RAW:
            return raw
        named = types.get(split_content_type(content_type)[1])
        expected = str if announced is Format.TEXT else named
    try:
        if expected is str:
            return raw.decode()
        if expected is not None and issubclass(expected, Message):
            if announced in (Format.RAW, Format.PROTOBUF):
                return expected.FromString(raw)
        elif announced is Format.JSON:
            return msgspec.json.decode(raw, type=expected or Any)
        elif announced is Format.MSGPACK:
            return msgspec.msgpack.decode(raw, type=expected or Any)
    except (msgspec.MsgspecError, DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PayloadError(
            f"a payload of {len(raw)} bytes with content type {content_type!r} does not decode to "
            f"{'plain data' if expected is None else expected.__name__}: {error}",
            content_type=content_type,
        ) from error
    if expected is None:
        return raw
    raise PayloadError(
        f"a payload with content type {content_type!r} was asked for as {expected.__name__}; "
        f"expected MessagePack, JSON or protobuf: set the content type where the payload is made",
        content_type=content_type,
    )


def matches(value: object, expected: type | None) -> bool:
    """Whether a decoded payload can serve a reader that asks for `expected`."""
    return expected is None or isinstance(value, expected)
