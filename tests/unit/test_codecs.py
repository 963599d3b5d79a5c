"""Payloads to bytes and back, by content type, and what is refused."""

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker_pipeline import codecs
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.errors import PayloadError


class Word(msgspec.Struct):
    """A payload."""

    text: str
    scores: list[float] = []


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text() | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: not isinstance(value, str))
JSON_WORD = f"{codecs.JSON}; type=Word"


@settings(suppress_health_check=[HealthCheck.too_slow])  # of a machine that does much else
@given(plain, st.sampled_from(["", "application/json", "application/x+json", "text/plain"]))
def test_plain_data_survives_in_messagepack_and_in_json(value, content_type):
    """Nested lists, dicts and numbers come back as they were; JSON is kept where it was said."""
    raw, said = codecs.encode(value, content_type)
    assert said == (content_type if "json" in content_type else codecs.MSGPACK)
    assert codecs.decode(raw, said, None, {}) == value


@given(st.binary(), st.sampled_from(["", "audio/pcm;rate=16000", "application/json", "text/x"]))
def test_bytes_stay_as_they_are(value, content_type):
    """Any bytes; a content type that says something else than bytes is replaced."""
    raw, said = codecs.encode(value, content_type)
    kept = codecs.format_of(content_type) is codecs.Format.RAW
    assert said == (content_type if kept else codecs.OCTET_STREAM)
    assert codecs.decode(raw, said, None, {}) == value
    for kind in (bytearray, memoryview):
        assert codecs.encode(kind(value), content_type) == (raw, said)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_is_utf8_or_a_json_string(value):
    """A text type is kept; JSON stays JSON; else it is said to be text."""
    assert codecs.encode(value, "text/x") == (value.encode(), "text/x")
    assert codecs.encode(value, "audio/pcm") == (value.encode(), codecs.TEXT)
    raw, said = codecs.encode(value, codecs.JSON)
    assert (codecs.decode(raw, said, None, {}), said) == (value, codecs.JSON)
    assert codecs.decode(value.encode(), "audio/pcm", str, {}) == value


@given(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.floats(-1e9, 1e9)))
def test_structs_carry_their_name(text, scores):
    """A reader that knows the type gets it, one that does not gets plain data."""
    word = Word(text, scores)
    for content_type in ("", codecs.JSON):
        raw, said = codecs.encode(word, content_type)
        assert said.endswith("; type=Word")
        assert codecs.decode(raw, said, None, {"Word": Word}) == word
        assert codecs.decode(raw, said, Word, {}) == word
        assert codecs.decode(raw, said, None, {}) == {"text": text, "scores": scores}
        assert codecs.decode(raw, said, bytes, {}) == raw


def test_protobuf_messages_carry_their_full_name():
    """By name, by the reader's wish, or as bytes where nobody knows the type."""
    message = pb.Error(type="E", message="m")
    raw, said = codecs.encode(message, codecs.JSON)
    assert said == "application/x-protobuf; type=broker_pipeline.v1.Error"
    assert codecs.decode(raw, said, None, {"broker_pipeline.v1.Error": pb.Error}) == message
    assert codecs.decode(raw, "", pb.Error, {}) == message
    assert codecs.decode(raw, said, None, {}) == raw


def test_a_protobuf_map_has_one_form():
    """Whatever the order in which it was filled: payloads are compared as bytes too."""
    ways = [{str(n): "x" for n in order} for order in (range(20), range(19, -1, -1))]
    assert len({codecs.encode(pb.DataPackage(attributes=way))[0] for way in ways}) == 1


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("", ("", "")),
        ("Application/JSON", ("application/json", "")),
        ('application/msgpack; v=1; Type="Word"', ("application/msgpack", "Word")),
        (" text/plain ;charset=utf-8", ("text/plain", "")),
        (";;;=", ("", "")),
    ],
)
def test_content_types_are_read_leniently(content_type, expected):
    """Case, blanks and quotes do not matter."""
    assert codecs.split_content_type(content_type) == expected


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("", "raw"),
        ("audio/pcm", "raw"),
        ("text/html", "text"),
        ("application/problem+json; charset=utf-8", "json"),
        ("application/x-msgpack", "msgpack"),
        ("application/protobuf", "protobuf"),
        ("nonsense", "raw"),
    ],
)
def test_what_is_unknown_is_raw_bytes(content_type, expected):
    """A content type announces one of five formats."""
    assert codecs.format_of(content_type).value == expected


def endless():
    """A list that holds itself."""
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value", [object(), {1: object()}, endless(), "\ud800", ["\ud800"], [2**70], lambda: 1]
)
def test_what_has_no_encoding_is_a_payload_error(value):
    """Never another exception, and never pickle."""
    with pytest.raises(PayloadError, match="BP402"):
        codecs.encode(value)


@pytest.mark.parametrize(
    ("raw", "content_type", "expected"),
    [
        (b"[" * 100_000, codecs.JSON, None),
        (b"\x91" * 100_000, codecs.MSGPACK, None),
        (b"\xff", "text/plain", None),
        (b"\xff", "", str),
        (b'"\xff"', codecs.JSON, None),
        (b"{}", JSON_WORD, Word),
        (b"\xff\xff", "", pb.Error),
        (b"x", "", Word),
        (b"x", codecs.PROTOBUF, Word),
        (b"", codecs.MSGPACK, None),
    ],
)
def test_bytes_that_are_not_what_is_said_are_a_payload_error(raw, content_type, expected):
    """The error names the content type; nothing else is raised."""
    with pytest.raises(PayloadError) as caught:
        codecs.decode(raw, content_type, expected, {})
    assert caught.value.values["content_type"] == content_type


@given(
    st.binary(max_size=40),
    st.sampled_from(["", codecs.TEXT, codecs.JSON, codecs.MSGPACK, codecs.PROTOBUF, JSON_WORD]),
    st.sampled_from([None, bytes, str, int, dict, Word, pb.Error]),
)
def test_arbitrary_bytes_decode_or_are_a_payload_error(raw, content_type, expected):
    """A value of the type that was asked for, or PayloadError."""
    try:
        value = codecs.decode(raw, content_type, expected, {"Word": Word})
    except PayloadError:
        return
    assert codecs.matches(value, expected)
