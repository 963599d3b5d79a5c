"""What a target says, and what is refused."""

from __future__ import annotations

import pytest

from broker_pipeline.target_address import TargetAddress, parse_target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpu:50051", TargetAddress("host", "gpu", 50051)),
        ("10.0.0.1:1", TargetAddress("host", "10.0.0.1", 1)),
        ("[::1]:65535", TargetAddress("host", "::1", 65535)),
        ("a.b-c_d.example.:80", TargetAddress("host", "a.b-c_d.example.", 80)),
        ("dns:///asr.example:50051", TargetAddress("dns", "asr.example", 50051)),
        ("DNS:///asr:50051", TargetAddress("dns", "asr", 50051)),
        ("dns:///[fe80::1]:50051", TargetAddress("dns", "fe80::1", 50051)),
        ("registry:///asr", TargetAddress("registry", "asr")),
        ("registry:///asr big/ü.*", TargetAddress("registry", "asr big/ü.*")),
    ],
)
def test_a_target_is_taken_apart(text: str, expected: TargetAddress) -> None:
    """Host, name or registry."""
    assert parse_target(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has no port"),
        ("gpu", "has no port"),
        (":1", "no usable host"),
        ("gpu:", "the port ''"),
        ("gpu:0", "the port '0'"),
        ("gpu:65536", "the port '65536'"),
        ("gpu:" + "9" * 5000, "which is none"),
        ("gpu:²", "the port '²'"),
        ("gpu:-1", "the port '-1'"),
        ("::1:50051", "brackets"),
        ("[::1]", "several colons"),
        ("[gpu]:1", "no IPv6 address"),
        ("-gpu:1", "no usable host"),
        ("g pu:1", "no usable host"),
        ("x" * 254 + ":1", "no usable host"),
        ("http://gpu:1", "the scheme 'http'"),
        ("unix:///tmp/socket", "the scheme 'unix'"),
        ("dns://gpu:1", "three slashes"),
        ("dns:///gpu", "has no port"),
        ("registry://asr", "three slashes"),
        ("registry:///", "0 bytes"),
        ("registry:///" + "x" * 129, "129 bytes"),
        ("registry:///\ud800", "UTF-8"),
        (None, "is no text"),
    ],
)
def test_a_bad_target_is_refused(text: str, why: str) -> None:
    """Saying what is wrong with it, and what would be right."""
    with pytest.raises(ValueError, match="expected 'host:port'") as caught:
        parse_target(text)
    assert why in str(caught.value)
