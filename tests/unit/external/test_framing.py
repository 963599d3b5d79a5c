"""Requests written around packages that are bytes already."""

from __future__ import annotations

import pytest

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.core.names import servers_prefix, unescape_instance
from broker_pipeline.external.framing import OVERHEAD_BYTES, append_request, request

SIZES = [0, 1, 100, 127, 128, 129, 16_383, 16_384, 3_000_000]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("state", [None, b"", b"state"])
def test_a_request_is_what_protobuf_would_have_written(size: int, state: bytes | None) -> None:
    """Read back it is the same message, of whatever size, and no larger than was reckoned."""
    package = pb.DataPackage(id=7, data=bytes(size))
    expected = service.RunRequest(call=2**60, package=package, timeout_ns=2**62, state=state)
    raw = request(2**60, package.SerializeToString(), 2**62, state)
    assert service.RunRequest.FromString(raw) == expected
    parts: list[bytes] = [service.StreamRequest(cancelled=[1, 2]).SerializeToString()]
    for _ in range(2):
        append_request(parts, 2**60, package.SerializeToString(), 2**62, state)
    message = service.StreamRequest.FromString(b"".join(parts))
    assert list(message.requests) == [expected] * 2 and list(message.cancelled) == [1, 2]
    reckoned = package.ByteSize() + OVERHEAD_BYTES + len(state or b"")
    assert len(b"".join(parts[1:])) <= 2 * reckoned


def test_the_keys_of_a_modules_servers_are_below_its_name() -> None:
    """Whatever the name is, it is one token, and no other's."""
    assert servers_prefix("asr") == "asr."
    token = servers_prefix("asr.b*g >")[:-1]
    assert "." not in token and "*" not in token and unescape_instance(token) == "asr.b*g >"
