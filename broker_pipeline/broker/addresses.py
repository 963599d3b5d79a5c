"""Addresses of brokers, looked at before anything is asked of them."""

from __future__ import annotations

from urllib.parse import urlsplit

from broker_pipeline.errors import ClientError

SCHEMES = frozenset({"nats", "tls", "ws", "wss"})


def without_credentials(url: str) -> str:
    """The addresses as they may be shown and logged: without users, passwords and tokens."""
    shown = []
    for address in url.split(","):
        scheme, divider, rest = address.rpartition("://")
        host = rest.rpartition("@")[2]
        shown.append(f"{scheme}{divider}{host}")
    return ",".join(shown)


def broker_addresses(url: str) -> list[str]:
    """The addresses in `nats://host:port,nats://host:port`.

    Raises:
        ClientError: one of them is none.
    """
    addresses = [each.strip() for each in url.split(",")]
    for address in addresses:
        try:
            parts = urlsplit(address if "://" in address else f"nats://{address}")
            known = parts.scheme in SCHEMES and bool(parts.hostname) and parts.port != 0
        except ValueError:
            known = False
        if not known:
            raise ClientError(
                f"{without_credentials(address)!r} is no address of a broker; expected "
                f"nats://HOST:PORT, or several with commas between them: correct it",
                url=without_credentials(url),
            )
    return addresses
