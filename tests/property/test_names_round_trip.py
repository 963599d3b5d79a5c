"""Names of instances: any text, one token, and back."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker_pipeline.core.names import (
    INSTANCE_BYTES_MAX,
    canonical_token,
    escape_instance,
    readable_instance,
    shortened_token,
    unescape_instance,
)
from broker_pipeline.errors import ClientError

chars = st.one_of(
    st.characters(exclude_categories=["Cs"]),
    st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"]),
    st.sampled_from(". *>=_-\r\n\t\0😀é=F"),
)
anything = st.text(st.one_of(chars, st.characters(categories=["Cs"])), max_size=80)


def is_a_name(text):
    """1 to 128 bytes, and what a decoder may give: no surrogates that are text in disguise."""
    raw = text.encode("utf-8", "surrogateescape")
    same = raw.decode("utf-8", "surrogateescape") == text
    return same and 0 < len(raw) <= INSTANCE_BYTES_MAX


names = st.text(chars, min_size=1, max_size=60).filter(is_a_name)
raw_tokens = st.binary(min_size=1, max_size=60).map(lambda b: b.decode("utf-8", "surrogateescape"))


@given(names)
@example("\udcff")
@example("=41")
@example(" .*>= \r\n")
def test_any_name_survives_as_one_valid_token(name):
    """`unescape(escape(name))` is the name, and the token is a single subject token of NATS."""
    token = escape_instance(name)
    assert unescape_instance(token) == name
    assert re.fullmatch(r"[A-Za-z0-9_=-]+", token)
    assert canonical_token(token) == token


@given(names, names)
def test_no_two_names_share_a_token(one, other):
    """Different names give different tokens."""
    assert (escape_instance(one) == escape_instance(other)) == (one == other)


@given(raw_tokens)
@example("a=3D41")
@example("=ff")
@example("\udced\udca0\udc80")
def test_whatever_a_raw_producer_wrote_has_one_canonical_token(written):
    """It names the same instance as what was written, and is canonical itself."""
    token = canonical_token(written)
    assert canonical_token(token) == token
    assert unescape_instance(token) == unescape_instance(written)
    assert re.fullmatch(r"[A-Za-z0-9_=-]+", token)
    assert len(unescape_instance(shortened_token(token)).encode("utf-8", "surrogateescape")) <= 128
    readable_instance(token).encode()  # protobuf's text


@given(names)
def test_a_raw_token_and_the_sdk_meet_in_one_instance(name):
    """The name as it stands, half escaped or wholly escaped: one canonical token, the SDK's."""
    raw = name.encode("utf-8", "surrogateescape")
    wholly = "".join(f"={byte:02X}" for byte in raw)
    assert canonical_token(wholly) == escape_instance(name)
    if "=" not in name:
        assert canonical_token(name) == escape_instance(name)


@given(anything)
def test_a_name_is_taken_or_refused_with_a_client_error(name):
    """Empty, too long, or lone surrogates: ClientError and nothing else."""
    try:
        token = escape_instance(name)
    except ClientError:
        return
    assert unescape_instance(token) == name


def test_the_bound_is_128_bytes_and_not_characters():
    """128 bytes are taken, 129 are not; an emoji has four."""
    assert escape_instance("a" * 128) == "a" * 128
    assert unescape_instance(escape_instance("😀" * 32)) == "😀" * 32
    for name in ("", "a" * 129, "😀" * 32 + "a", "\ud800", "\udcc3\udca9"):
        with pytest.raises(ClientError, match="BP601"):
            escape_instance(name)
