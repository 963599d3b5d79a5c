"""Addresses of brokers, looked at before anything is asked of them."""

from __future__ import annotations

from urllib.parse import urlsplit

from broker_pipeline.errors import ClientError

SCHEMES = frozenset({"nats", "tls", "ws", "wss"})


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
                f"{address!r} is no address of a broker; expected nats://HOST:PORT, or several "
                f"with commas between them: correct it",
                url=url,
            )
    return addresses
