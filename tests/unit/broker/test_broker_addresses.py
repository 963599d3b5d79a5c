"""What is an address of a broker."""

from __future__ import annotations

import pytest

from broker_pipeline.broker.addresses import broker_addresses, without_credentials
from broker_pipeline.broker.jetstream import connect
from broker_pipeline.errors import BrokerUnavailableError, ClientError


@pytest.mark.parametrize(
    "url",
    [
        "nats://127.0.0.1:4222",
        "nats://user:word@host",
        "tls://[::1]:4222",
        "host:4222",
        "wss://host/path",
    ],
)
def test_addresses_are_taken_as_they_are(url: str) -> None:
    """With and without a scheme, alone and several."""
    assert broker_addresses(url) == [url]
    assert broker_addresses(f"{url}, nats://b:1") == [url, "nats://b:1"]


@pytest.mark.parametrize(
    "address", ["", "nats://", "nats://h:99999", "nats://h:abc", "nats://h:0", "http://h:4222"]
)
def test_what_is_none_is_said(address: str) -> None:
    """Also where it is one of several."""
    for url in (address, f"nats://a:1,{address}"):
        with pytest.raises(ClientError, match=r"is no address of a broker.*nats://HOST:PORT"):
            broker_addresses(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://bob:hunter2@h:4222", "nats://h:4222"),
        ("nats://token@h,tls://a:b@c:1", "nats://h,tls://c:1"),
        ("bob:hunt@er2@h", "h"),
        ("nats://h:4222", "nats://h:4222"),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    """Errors are logged, and end on screens."""
    assert without_credentials(url) == shown


async def test_no_error_shows_a_password() -> None:
    """Neither of an address that is none nor of a broker that is away."""
    for url in ("nats://bob:hunter2@h:0", "nats://bob:hunter2@127.0.0.1:1"):
        with pytest.raises((ClientError, BrokerUnavailableError)) as raised:
            await connect(url, reconnect=False, name="test")
        assert "hunter2" not in f"{raised.value} {raised.value.values}"
