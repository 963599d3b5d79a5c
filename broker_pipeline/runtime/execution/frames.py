"""What a worker and the process of a module say to each other: length-prefixed MessagePack."""

from __future__ import annotations

import struct
from typing import IO, Any

import msgspec

from broker_pipeline.errors import ModuleProcessError

# Above any payload that a broker takes (nats-server: 64 MiB), with room for journey and state.
FRAME_BYTES_MAX = 128 * 1024 * 1024
_LENGTH = struct.Struct(">I")


class Request(msgspec.Struct, array_like=True):
    """Run the module on a package. `left_ns`: until its deadline; `traceparent`: of the module."""

    package: bytes
    left_ns: int | None = None
    state: bytes | None = None
    traceparent: str = ""


class Reply(msgspec.Struct, array_like=True):
    """What became of it, or of the module's setup.

    Attributes:
        kind: ready, success, exit or error.
        state: the state after the package; None for one that is not changed.
        error: a protobuf Error.
    """

    kind: str
    data: bytes = b""
    content_type: str = ""
    attributes: dict[str, str] = {}
    message: str = ""
    reason: str = ""
    state: bytes | None = None
    error: bytes = b""


def write(stream: IO[bytes], message: Request | Reply) -> None:
    """Send a frame. Raises ModuleProcessError for one that is too large."""
    raw = msgspec.msgpack.encode(message)
    if len(raw) > FRAME_BYTES_MAX:
        raise ModuleProcessError(
            f"a message of {len(raw)} bytes is too large for a module's process; expected at most "
            f"{FRAME_BYTES_MAX}: make the payload or the state smaller",
            size=len(raw),
        )
    stream.write(_LENGTH.pack(len(raw)))
    stream.write(raw)
    stream.flush()


def read(stream: IO[bytes]) -> bytes | None:
    """The next frame; None at the end of the stream, also in the middle of a frame."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(head)
    if size > FRAME_BYTES_MAX:
        return None  # not one of our frames: the stream is of no use any more
    raw = stream.read(size)
    return raw if len(raw) == size else None


def pack_state(state: object) -> bytes:
    """A state as bytes: its own, or MessagePack."""
    return bytes(state) if isinstance(state, bytes) else msgspec.msgpack.encode(state)


def unpack_state(raw: bytes, kind: type | None) -> Any:
    """The state that `raw` holds; without a declared type it is bytes."""
    if kind is None or kind is bytes:
        return raw
    return msgspec.msgpack.decode(raw, type=kind)
