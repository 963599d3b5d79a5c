"""Certificates, keys and tokens that cannot be used, and addresses that are not private."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from broker_pipeline.errors import CredentialsError
from broker_pipeline.external.credentials import (
    channel_credentials,
    channel_options,
    is_loopback,
    plaintext_warning,
    read_token,
    server_credentials,
    token_metadata,
)
from broker_pipeline.modules import Tls


def test_without_files_both_sides_speak_plaintext() -> None:
    """None is what plain channels and ports are made of."""
    assert channel_credentials(None) is None
    assert server_credentials(None, None, None) is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: channel_credentials(Tls(ca=path)), "holds no certificates"),
        (lambda path: channel_credentials(Tls(cert=path)), "no key"),
        (lambda path: channel_credentials(Tls(cert=path, key=path)), "not usable together"),
        (lambda path: server_credentials(path, None, None), "no key"),
        (lambda path: server_credentials(None, path, None), "no cert"),
        (lambda path: server_credentials(None, None, path), "no certificate of its own"),
        (lambda path: server_credentials(path, path, None), "not usable together"),
        (read_token, "holds no token"),
    ],
)
def test_a_file_that_is_something_else_is_named(
    tmp_path: Path, make: Callable[[str], object], said: str
) -> None:
    """BP514, the file, and what is wrong with it."""
    path = tmp_path / "file.pem"
    path.write_text("this is\nno PEM file")
    with pytest.raises(CredentialsError, match=said) as raised:
        make(str(path))
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: channel_credentials(Tls(ca=path)),
        lambda path: server_credentials(path, path, None),
        read_token,
    ],
)
def test_a_file_that_is_not_there_is_named(tmp_path: Path, make: Callable[[str], object]) -> None:
    """BP514 with the operating system's reason."""
    with pytest.raises(CredentialsError, match="No such file"):
        make(str(tmp_path / "nothing"))


def test_a_token_is_the_only_line_of_its_file(tmp_path: Path) -> None:
    """The end of the line does not belong to it; callers send it as a bearer token."""
    path = tmp_path / "token"
    path.write_text("s3cret\n")
    assert read_token(str(path)) == "s3cret"
    assert token_metadata("s3cret") == (("authorization", "Bearer s3cret"),)
    assert token_metadata(None) == ()


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:50051", "127.9.0.1:1", "localhost:50051", "[::1]:50051", "::1", "unix:/tmp/x",
     "dns:///localhost:50051"],
)  # fmt: skip
def test_what_stays_on_the_machine_needs_no_warning(address: str) -> None:
    """Loopback addresses and Unix sockets."""
    assert is_loopback(address)
    assert plaintext_warning(address, tls=False) is None


@pytest.mark.parametrize(
    "address", ["0.0.0.0:50051", "[::]:50051", "10.0.0.1:1", "gpu-1:50051", "dns:///gpu:50051"]
)
def test_plaintext_to_a_network_is_said_loudly(address: str) -> None:
    """With the address and the way out; with TLS there is nothing to say."""
    assert not is_loopback(address)
    for serving in (False, True):
        line = plaintext_warning(address, tls=False, serving=serving)
        assert line is not None and line.startswith("PLAINTEXT") and address in line
        assert plaintext_warning(address, tls=True, serving=serving) is None
    assert "the token" in (plaintext_warning(address, tls=False, token=True) or "")


def test_the_name_in_a_certificate_may_be_told() -> None:
    """For servers that are reached under another name than the one they bear."""
    assert ("grpc.ssl_target_name_override", "gpu") in channel_options(Tls(server_name="gpu"))
    assert not any("override" in key for key, _ in channel_options())
