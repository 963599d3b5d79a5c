"""Who may speak to whom: TLS on both sides, the token, and options of channels and servers.

Files are read and checked when something starts: gRPC itself would say nothing but that no
connection comes about.
"""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path
from typing import Any

import grpc

from broker_pipeline.errors import CredentialsError
from broker_pipeline.modules import Tls

MESSAGE_BYTES_MAX = 64 << 20
"""The largest message that is taken, unless a server says otherwise: nats-server's own
highest limit of a payload, so that whatever a broker carries fits."""
SERVER_PING_S = 20
SERVER_PING_TIMEOUT_S = 10
"""A server asks a silent connection whether anybody is there, and closes it when nobody answers.
Callers do not: servers take pings for abuse by default, and heartbeats come on streams anyway."""
CALLER_PING_MIN_S = 5
"""Callers of other makes may ask us so often."""
TOKEN_KEY = "authorization"
_TOKEN_PREFIX = "Bearer "

Options = list[tuple[str, Any]]


def channel_credentials(tls: Tls | None) -> grpc.ChannelCredentials | None:
    """What a channel is made with; None: plaintext. Raises CredentialsError."""
    if tls is None:
        return None
    _check_pair(tls.cert, tls.key, "Tls(cert=..., key=...)")
    return grpc.ssl_channel_credentials(
        root_certificates=None if tls.ca is None else _authorities(tls.ca),
        private_key=None if tls.key is None else _read(tls.key, "a private key"),
        certificate_chain=None if tls.cert is None else _read(tls.cert, "a certificate"),
    )


def server_credentials(
    cert: str | None, key: str | None, client_ca: str | None
) -> grpc.ServerCredentials | None:
    """What a server is bound with; None: plaintext. Raises CredentialsError.

    Args:
        cert: the server's certificate, with those between it and its authority.
        key: its private key.
        client_ca: who must have signed the certificates that callers show; None: they show none.
    """
    _check_pair(cert, key, "a server's certificate and key")
    if cert is None or key is None:
        if client_ca is not None:
            raise CredentialsError(
                f"client certificates shall be checked with {client_ca!r} and the server has no "
                f"certificate of its own; expected both: give it a certificate and a key",
                file=client_ca,
            )
        return None
    pair = (_read(key, "a private key"), _read(cert, "a certificate"))
    authorities = None if client_ca is None else _authorities(client_ca)
    return grpc.ssl_server_credentials(
        [pair], authorities, require_client_auth=client_ca is not None
    )


def read_token(path: str) -> str:
    """The token that a file holds, in its only line. Raises CredentialsError."""
    token = _read(path, "a token").decode(errors="replace").strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise CredentialsError(
            f"the file {path!r} holds no token; expected one line of visible ASCII characters "
            f"without spaces, such as `openssl rand -hex 32` writes",
            file=path,
        )
    return token


def token_metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    """What a caller sends along with each call."""
    return () if token is None else ((TOKEN_KEY, f"{_TOKEN_PREFIX}{token}"),)


def call_metadata(token: str | None, caller: str) -> tuple[tuple[str, str], ...]:
    """What each call carries: the token, where there is one, and who calls."""
    name = caller.encode("ascii", "backslashreplace").decode().strip() or "?"
    return (*token_metadata(token), ("bp-caller", name))


def channel_options(tls: Tls | None = None) -> Options:
    """Options of every channel to a module server."""
    options: Options = [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", -1),  # the server's own limit counts
    ]
    if tls is not None and tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def server_options(message_bytes_max: int = MESSAGE_BYTES_MAX) -> Options:
    """Options of every module server."""
    return [
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.max_send_message_length", -1),  # the servicer keeps to the limit, and says so
        ("grpc.so_reuseport", 0),  # a port that is taken is an error, not shared with a stranger
        ("grpc.keepalive_time_ms", SERVER_PING_S * 1000),
        ("grpc.keepalive_timeout_ms", SERVER_PING_TIMEOUT_S * 1000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", CALLER_PING_MIN_S * 1000),
    ]


def plaintext_warning(
    address: str, *, tls: bool, token: bool = False, serving: bool = False
) -> str | None:
    """What must be said loudly of an address without TLS; None where there is nothing to say.

    Args:
        address: `host:port`, or a target such as `dns:///host:port`.
        token: whether a token is sent or asked for, which everybody on the way can read.
        serving: whether it is our own that others call.
    """
    if tls or is_loopback(address):
        return None
    what = "payloads and the token" if token else "payloads"
    if serving:
        way_out = "give it --tls-cert and --tls-key, or --host 127.0.0.1"
        who = "" if token else ", and anybody who reaches it can use it"
        return (
            f"PLAINTEXT: the module server at {address} is open to the network without TLS: "
            f"{what} can be read and changed on the way{who}; {way_out}"
        )
    return (
        f"PLAINTEXT: module servers at {address} are called without TLS: {what} can be read and "
        f"changed on the way; set ExternalOptions(tls=Tls(...))"
    )


def is_loopback(address: str) -> bool:
    """Whether nothing that is sent to an address leaves the machine."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition("/")[2]
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _check_pair(cert: str | None, key: str | None, what: str) -> None:
    if (cert is None) != (key is None):
        given, missing = ("cert", "key") if key is None else ("key", "cert")
        raise CredentialsError(
            f"{what}: there is a {given} ({cert or key!r}) and no {missing}; expected both or "
            f"neither",
            file=cert or key,
        )
    if cert is None or key is None:
        return
    _read(cert, "a certificate")
    _read(key, "a private key")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key, password=lambda: b"")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise CredentialsError(
            f"the certificate {cert!r} and the private key {key!r} are not usable together "
            f"({error}); expected PEM files of which the first certificate belongs to the key, "
            f"which has no passphrase",
            file=cert,
        ) from error


def _authorities(path: str) -> bytes:
    raw = _read(path, "certificates of authorities")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=raw.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise CredentialsError(
            f"the file {path!r} holds no certificates ({error}); expected those of the authorities "
            f"to trust, as PEM",
            file=path,
        ) from error
    return raw


def _read(path: str, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CredentialsError(
            f"the file {path!r} cannot be read ({error.strerror or error}); expected {what}: "
            f"correct the path or its permissions",
            file=path,
        ) from error
