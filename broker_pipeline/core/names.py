"""Names, subjects and message ids: the log's address book.

| subject (after `bp.<pipeline>.<shard>.`)    | carries                                    |
| ------------------------------------------- | ------------------------------------------ |
| `ctl.in.<instance>`                         | packages from producers                    |
| `ctl.done.<controller>.<instance>`          | completions and early exits                |
| `ctl.tick`                                  | time that passed; whether gaps are paused  |
| `ctl.plan`                                  | deployed plans                             |
| `work.<controller>.<phase>.<instance>`      | the queue of a phase                       |
| `work.<controller>.<phase>.<lane>.<instance>` | the same of a stateful phase             |
| `out.<outcome>.<instance>`                  | packages that left                         |

Producers publish to `bp.<pipeline>.in.<instance>`; the stream files it under `ctl.in`.
"""

from __future__ import annotations

import re
from functools import lru_cache

from broker_pipeline.core.lanes import lane_of
from broker_pipeline.errors import ClientError
from broker_pipeline.journey import Outcome

INSTANCE_BYTES_MAX = 128
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
TOKENS_CACHED = 4096
"""Instances whose names and tokens are at hand: the leader needs them for each package."""
_ESCAPE = re.compile(rb"=([0-9A-F]{2})")
_FSDECODED = re.compile(r"[^\ud800-\udc7f\udd00-\udfff]*").fullmatch
_TOKEN = [chr(b) if b in _PLAIN else f"={b:02X}" for b in range(256)]

# Headers of messages to ctl.in.
HEADER_MSG_ID = "Nats-Msg-Id"
HEADER_CONTENT_TYPE = "Content-Type"
HEADER_PRODUCER = "Bp-Producer"
HEADER_NUMBER = "Bp-Number"
HEADER_CONTROL = "Bp-Control"
CONTROL_OPEN = "open"
CONTROL_CLOSE = "close"
TICK_PAUSE = b"pause gaps"
TICK_RESUME = b"resume gaps"


def escape_instance(instance: str) -> str:
    """An instance's name as one subject token; letters, digits, '-' and '_' stand as they are.

    Every other byte of its UTF-8 becomes `=XX`. `unescape_instance` is the exact inverse.

    Raises:
        ClientError: an empty name, one over 128 bytes, or one that is no text: surrogates, but for
            those by which Python writes bytes that are no UTF-8 (`os.fsdecode`).
    """
    raw = _raw_of(instance)
    if not 0 < len(raw) <= INSTANCE_BYTES_MAX:
        raise ClientError(
            f"the instance name {instance[:40]!r} has {len(raw)} bytes; expected 1 to "
            f"{INSTANCE_BYTES_MAX} bytes of UTF-8",
            instance=instance,
        )
    return "".join([_TOKEN[byte] for byte in raw])


def _raw_of(instance: str) -> bytes:
    try:
        return instance.encode()
    except UnicodeEncodeError:
        raw = instance.encode("utf-8", "surrogateescape") if _FSDECODED(instance) else b""
    if raw.decode("utf-8", "surrogateescape") != instance:  # it would share another's token
        raise ClientError(
            f"the instance name {instance[:40]!r} is no text: it holds lone surrogates; expected "
            f"text that can be written as UTF-8",
            instance=instance,
        )
    return raw


def unescape_instance(token: str) -> str:
    """The name that a token stands for. What is no escape stands for itself: raw producers may
    publish to any token."""
    raw = token.encode("utf-8", "surrogateescape")
    if b"=" in raw:
        raw = _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), raw)
    return raw.decode("utf-8", "surrogateescape")


@lru_cache(TOKENS_CACHED)
def canonical_token(token: str) -> str:
    """The one token for the instance that `token` names, however a raw producer wrote it."""
    raw = unescape_instance(token).encode("utf-8", "surrogateescape")
    return "".join([_TOKEN[byte] for byte in raw])


def shortened_token(token: str) -> str:
    """A canonical token, cut to the longest name that an instance may have."""
    if len(token) <= INSTANCE_BYTES_MAX:
        return token
    raw = unescape_instance(token).encode("utf-8", "surrogateescape")
    return "".join([_TOKEN[byte] for byte in raw[:INSTANCE_BYTES_MAX]])


@lru_cache(TOKENS_CACHED)
def readable_instance(token: str) -> str:
    """The name that a token stands for; the token itself where that name is not valid UTF-8,
    which protobuf asks for."""
    name = unescape_instance(token)
    return token if any("\ud800" <= char <= "\udfff" for char in name) else name


class Subjects:
    """The subjects of one shard of a pipeline."""

    __slots__ = (
        "_outcomes",
        "ctl",
        "ctl_done",
        "ctl_in",
        "out",
        "pipeline",
        "plan",
        "prefix",
        "shard",
        "stream",
        "tick",
        "work",
    )

    def __init__(self, pipeline: str, shard: int = 0) -> None:
        self.pipeline = pipeline
        self.shard = shard
        self.stream = stream_name(pipeline, shard)
        self.prefix = f"bp.{pipeline}.{shard}."
        self.ctl = f"{self.prefix}ctl.>"
        self.ctl_in = f"{self.prefix}ctl.in."
        self.ctl_done = f"{self.prefix}ctl.done."
        self.tick = f"{self.prefix}ctl.tick"
        self.plan = f"{self.prefix}ctl.plan"
        self.work = f"{self.prefix}work."
        self.out = f"{self.prefix}out."
        self._outcomes = {each: f"{self.out}{each.value.lower()}." for each in Outcome}

    def arrival(self, token: str) -> str:
        """Where the stream files what producers publish for an instance."""
        return f"{self.ctl_in}{token}"

    def completion(self, controller: str, token: str) -> str:
        """Where a worker publishes what comes back to a controller."""
        return f"{self.ctl_done}{controller}.{token}"

    def queue(self, controller: str, phase: str, token: str, lanes: int) -> str:
        """The queue of a phase; `lanes` as its `PhasePlan` says."""
        if lanes:
            return f"{self.work}{controller}.{phase}.{lane_of(token, lanes)}.{token}"
        return f"{self.work}{controller}.{phase}.{token}"

    def consumers(self, controller: str, phase: str, lanes: int) -> list[tuple[str, str]]:
        """The consumers of a phase's queue, each with its filter: one, or one a lane."""
        queue = f"{self.work}{controller}.{phase}"
        if not lanes:
            return [(consumer_name(controller, phase), f"{queue}.>")]
        return [(lane_consumer(controller, phase, n), f"{queue}.{n}.>") for n in range(lanes)]

    def members(self, controller: str, phase: str) -> str:
        """Before their names, the keys of the workers that run a stateful phase (LEASE_BUCKET)."""
        return f"{lease_key(self.pipeline, self.shard)}.{controller}.{phase}."

    def outcome(self, outcome: Outcome, token: str) -> str:
        """Where packages with this outcome leave."""
        return self._outcomes[outcome] + token


def ingress_subject(pipeline: str, token: str) -> str:
    """The public subject that producers publish to."""
    return f"bp.{pipeline}.in.{token}"


def log_subjects(pipeline: str, shard: int = 0, *, ingress: bool = True) -> tuple[str, ...]:
    """What a shard's log stores; without `ingress` no producer's packages."""
    own = f"bp.{pipeline}.{shard}.>"
    return (own, ingress_subject(pipeline, "*")) if ingress else (own,)


def stream_name(pipeline: str, shard: int = 0) -> str:
    """The stream that is a shard's log."""
    return f"BP_{pipeline}_{shard}"


STATE_BUCKET = "bp_state"
"""Deployed plans and the heads of snapshots, for all pipelines."""
LEASE_BUCKET = "bp_leases"
"""Who leads which shard and runs which stateful phase, for all pipelines; its values vanish when
their writers are silent."""
LEASE_TTL_S = 2.0
"""A leader that is silent for so long has lost its shard, and a worker its lanes. Far below the
dedup window."""

SERVER_BUCKET = "bp_module_servers"
"""Which module servers there are, for all pipelines; their values vanish when they are silent."""
SERVER_TTL_S = 5.0
"""A module server that is silent for so long is not there any more. Longer than a broker takes to
come back, so that a short outage changes nothing."""


def plan_key(pipeline: str) -> str:
    """The key of the deployed plan."""
    return f"{pipeline}.plan"


def snapshot_key(pipeline: str, shard: int) -> str:
    """The key of a shard's newest snapshot's head."""
    return f"{pipeline}.{shard}.snapshot"


def lease_key(pipeline: str, shard: int) -> str:
    """The key of a shard's lease."""
    return f"{pipeline}.{shard}"


def servers_prefix(module: str) -> str:
    """Before their ids, the keys of the servers of a module (SERVER_BUCKET). Raises ClientError
    where the name is longer than an instance's may be."""
    return f"{escape_instance(module)}."


def presence_subject(pipeline: str, shard: int, holder: str) -> str:
    """Where the holder of a shard's lease answers while it is connected. No stream stores it: the
    log takes what begins with `bp.`."""
    token = "".join([_TOKEN[byte] for byte in holder.encode()])
    return f"bp-presence.{pipeline}.{shard}.{token}"


def status_subject(pipeline: str) -> str:
    """Where all roles of a pipeline say how they are doing. No stream stores it."""
    return f"bp-status.{pipeline}"


def server_status_subject(module: str) -> str:
    """Where all servers of a module say how they are doing. No stream stores it. Raises ClientError
    where the name is longer than an instance's may be."""
    return f"bp-server-status.{escape_instance(module)}"


def snapshot_stream(pipeline: str, shard: int = 0) -> str:
    """The stream that holds the parts of a shard's snapshots."""
    return f"BPS_{pipeline}_{shard}"


def snapshot_subject(pipeline: str, shard: int = 0) -> str:
    """Where the parts of a shard's snapshots are published."""
    return f"bps.{pipeline}.{shard}.part"


def module_bucket(pipeline: str) -> str:
    """Stored states of stateful modules."""
    return f"bp_modules_{pipeline}"


def module_key(shard: int, controller: str, phase: str, token: str) -> str:
    """The key of an instance's states in a phase."""
    return f"{shard}.{controller}.{phase}.{token}"


def object_bucket(pipeline: str) -> str:
    """The objects of a pipeline: states that are larger than a message may be (docs/adr/0014)."""
    return f"bp_states_{pipeline}"


def payload_bucket(pipeline: str) -> str:
    """Payloads that are too large for a message, as objects (docs/adr/0023)."""
    return f"bp_payloads_{pipeline}"


def payload_mark_key(pipeline: str, shard: int) -> str:
    """The key that says how far the cleaning of payloads has come (STATE_BUCKET)."""
    return f"{pipeline}.{shard}.payloads"


def attempts_bucket(pipeline: str) -> str:
    """How often packages were begun that came more than twice (docs/adr/0013)."""
    return f"bp_attempts_{pipeline}"


ATTEMPTS_TTL_S = 86_400.0
"""So long a record of attempts is kept after the last of them. A package that waits for its next
attempt for a day may be tried a few times more."""


def attempts_key(shard: int, controller: str, phase: str, stream_seq: int) -> str:
    """The key of the attempts at the message `stream_seq` of a phase's queue."""
    return f"{shard}.{controller}.{phase}.{stream_seq}"


def consumer_name(controller: str, phase: str) -> str:
    """The durable consumer of a phase's queue. '=' is in no name, so no two phases share one."""
    return f"{controller}={phase}"


def lane_consumer(controller: str, phase: str, lane: int) -> str:
    """The durable consumer of a lane of a stateful phase's queue."""
    return f"{controller}={phase}={lane}"


# The '~' keeps our message ids apart from those that producers choose: one stream remembers both.


def dispatch_id(package_id: int, controller: str, phase: str) -> str:
    """The message id of a package's entry into a phase's queue: it can be stored once."""
    return f"~w.{package_id}.{controller}.{phase}"


def completion_id(package_id: int, controller: str) -> str:
    """The message id of a package's return to a controller."""
    return f"~d.{package_id}.{controller}"


def emission_id(package_id: int) -> str:
    """The message id of a package's leaving: one package, one outcome."""
    return f"~o.{package_id}"
