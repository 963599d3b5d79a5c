"""The bytes of requests and answers, written from what is bytes already.

A protobuf message is the concatenation of its fields, so a request is its small fields, then the
package. Building it from messages would copy each package twice more.
"""

from __future__ import annotations

from broker_pipeline._proto.v1 import module_service_pb2 as service

_LENGTH_DELIMITED = 2
"""How protobuf marks a field that is a message, in the low bits before it."""
OVERHEAD_BYTES = 128
"""More than what a request needs besides its package and its state."""


def _field(number: int) -> bytes:
    return bytes([number << 3 | _LENGTH_DELIMITED])


_REQUESTS = _field(service.StreamRequest.REQUESTS_FIELD_NUMBER)
_PACKAGE = _field(service.RunRequest.PACKAGE_FIELD_NUMBER)
_RESPONSES = _field(service.StreamResponse.RESPONSES_FIELD_NUMBER)


def request(
    call: int, package: bytes, timeout_ns: int, state: bytes | None, traceparent: str = ""
) -> bytes:
    """A `RunRequest`."""
    head = _head(call, timeout_ns, state, traceparent)
    return b"".join((head, _PACKAGE, _varint(len(package)), package))


def append_request(
    parts: list[bytes],
    call: int,
    package: bytes,
    timeout_ns: int,
    state: bytes | None,
    traceparent: str = "",
) -> None:
    """Add a request to the parts of a `StreamRequest`."""
    head = _head(call, timeout_ns, state, traceparent)
    size = _varint(len(package))
    length = _varint(len(head) + 1 + len(size) + len(package))
    parts += (_REQUESTS, length, head, _PACKAGE, size, package)


def append_response(parts: list[bytes], response: bytes) -> None:
    """Add an answer to the parts of a `StreamResponse`."""
    parts += (_RESPONSES, _varint(len(response)), response)


def _head(call: int, timeout_ns: int, state: bytes | None, traceparent: str) -> bytes:
    head = service.RunRequest(call=call, timeout_ns=timeout_ns, state=state)
    if traceparent:
        head.traceparent = traceparent
    return head.SerializeToString()


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
