"""What `doctor` checks of the broker itself: its version, its room, its clock and its intervals."""

from __future__ import annotations

import re
from collections.abc import Iterator

from broker_pipeline.broker.connection import PING_INTERVAL_S, PINGS_OUTSTANDING
from broker_pipeline.broker.introspection import Room
from broker_pipeline.broker.monitoring import ServerSettings
from broker_pipeline.core.names import LEASE_TTL_S
from broker_pipeline.core.retention import MESSAGES_MIN
from broker_pipeline.debug.operation.findings import Facts, Finding, note, trouble, warning
from broker_pipeline.debug.operation.units import duration, size
from broker_pipeline.journey import NS

VERSION_MIN = (2, 14, 5)
NEARLY = 0.75
"""From this share of a limit on it is said."""
ALMOST = 0.95
"""From this share on it is trouble: writes are about to be refused."""
FAR_S = 0.1
"""A broker that takes longer to answer slows everything that waits for an ack."""
CLOCK_S = 0.5
"""A difference between the clocks of two machines that shows in journeys and in late ticks."""
NOTICED_S = PING_INTERVAL_S * (PINGS_OUTSTANDING + 1)
"""After so long a role has noticed that its broker is gone."""
FLUSHED_S = 2.0
"""What is acknowledged and not on the disk for longer than this is more than a moment."""


def check_broker(facts: Facts) -> Iterator[Finding]:
    """All about the server and the account."""
    yield from _version(facts)
    for room in facts.broker.rooms:
        yield from _room(room)
    yield from _payload(facts)
    yield from _distance(facts)
    yield from _clocks(facts)
    yield from _window(facts)
    if facts.settings is None:
        yield note(
            "not-visible",
            "how soon the broker notices a dead peer (ping_interval) and when it writes to its "
            "disk (sync_interval) is not visible to clients",
            "give nats-server `http: 127.0.0.1:8222` and doctor --monitor http://127.0.0.1:8222",
        )
    else:
        yield from _settings(facts, facts.settings)


def _version(facts: Facts) -> Iterator[Finding]:
    broker = facts.broker
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", broker.version)
    if numbers and tuple(map(int, numbers.groups())) < VERSION_MIN:
        least = ".".join(map(str, VERSION_MIN))
        yield trouble(
            "server-old",
            f"nats-server {broker.version} is older than {least}",
            f"upgrade it to nats-server {least} or later",
        )
    if (broker.features or {}).get("js_ack_fc_v2"):
        yield trouble(
            "ack-format",
            "the broker has the feature flag js_ack_fc_v2 on, which breaks readers of nats-py 2.16",
            "put `feature_flags { js_ack_fc_v2: false }` into its configuration; restart it",
        )


def _room(room: Room) -> Iterator[Finding]:
    tier = f" of {room.tier}" if room.tier else ""
    limits = (
        ("storage", room.storage_bytes, room.storage_bytes_max, size, "max_file"),
        ("memory", room.memory_bytes, room.memory_bytes_max, size, "max_mem"),
        ("streams", room.streams, room.streams_max, str, "max_streams"),
        ("consumers", room.consumers, room.consumers_max, str, "max_consumers"),
    )
    for what, used, most, spelt, setting in limits:
        if most is not None and used >= most * NEARLY:
            grade = trouble if used >= most * ALMOST else warning
            yield grade(
                "account-full",
                f"the account uses {spelt(used)} of {spelt(most)} {what}{tier}",
                f"raise the account's {setting}, or delete streams that are not needed",
            )


def _payload(facts: Facts) -> Iterator[Finding]:
    least = MESSAGES_MIN * facts.broker.max_payload
    bound = facts.in_force.log_bytes_max
    if bound is not None and bound < least:
        yield trouble(
            "log-small",
            f"log_bytes_max is {size(bound)}, less than {MESSAGES_MIN} of the largest messages "
            f"that the broker takes (max_payload, {size(facts.broker.max_payload)})",
            f"give the pipeline a log_bytes_max of {size(least)} or more, or lower max_payload",
        )


def _distance(facts: Facts) -> Iterator[Finding]:
    took_s = facts.broker.round_trip_s
    if took_s > FAR_S:
        yield warning(
            "broker-far",
            f"the broker took {duration(took_s)} to answer from here",
            "run the roles near the broker; if they are, see what else uses its machine",
        )


def _clocks(facts: Facts) -> Iterator[Finding]:
    if facts.looks is None:
        return
    names = []
    clock = facts.clock
    if clock is not None and abs(clock.ahead_s) - clock.bound_s > CLOCK_S:
        names.append(f"this machine by {_apart(-clock.ahead_s)}")
    reading = facts.looks[1]
    for status in reading.statuses:
        # It was read within the time that answers were waited for, before the broker's clock was.
        ahead_s = (status.at - reading.at_ns) / NS
        if status.at and abs(ahead_s) > CLOCK_S + reading.took_s:
            names.append(f"{status.role} {status.name} by {_apart(ahead_s)}")
    if names:
        yield warning(
            "clocks-differ",
            f"clocks differ from the broker's: {'; '.join(names)}",
            "let the machines keep time (NTP); order does not depend on it, the times in journeys "
            "do, and deadlines are noticed that much later",
        )


def _apart(ahead_s: float) -> str:
    return f"{duration(abs(ahead_s))} {'ahead' if ahead_s > 0 else 'behind'}"


def _window(facts: Facts) -> Iterator[Finding]:
    log = facts.log
    least = max(LEASE_TTL_S, NOTICED_S)
    if log is not None and log.duplicate_window_s <= least:
        yield trouble(
            "dedup-window",
            f"the log remembers message ids for {log.duplicate_window_s:g} s; a stale leader or "
            f"worker may repeat itself for {least:g} s: packages could be doubled",
            f"deploy again, which sets it: broker-pipeline deploy {facts.target}",
        )


def _settings(facts: Facts, settings: ServerSettings) -> Iterator[Finding]:
    if settings.unhealthy:
        yield trouble(
            "broker-unhealthy",
            f"nats-server says that it is not well: {settings.unhealthy}",
            "see its log; after its disk was full it stores nothing until it is restarted",
        )
    window_s = facts.log.duplicate_window_s if facts.log is not None else None
    if window_s is not None and settings.noticed_s > window_s / 2:
        grade = trouble if settings.noticed_s >= window_s else warning
        yield grade(
            "ping-interval",
            f"the broker notices a paused peer after up to {settings.noticed_s:g} s (ping_interval "
            f"{settings.ping_interval_s:g} s, ping_max {settings.pings_max}); message ids are "
            f"remembered for {window_s:g} s, and what such a peer sends after that is doubled",
            'put `ping_interval: "5s"` and `ping_max: 2` into its configuration',
        )
    replicas = facts.log.replicas if facts.log is not None else 1
    if settings.sync_interval_s and replicas == 1:
        grade = warning if settings.sync_interval_s > FLUSHED_S else note
        yield grade(
            "fsync",
            f"what is acknowledged may not be on the disk for {settings.sync_interval_s:g} s "
            "(sync_interval), and is kept on this server only: a power failure may take it",
            "put `sync_interval: always` into its configuration, or keep the log on 3 servers: "
            f"broker-pipeline deploy {facts.target} --replicas 3",
        )
    used, most = settings.storage_bytes, settings.storage_bytes_max
    if most and used >= most * NEARLY:
        grade = trouble if used >= most * ALMOST else warning
        yield grade(
            "server-full",
            f"streams use {size(used)} of the {size(most)} that the server may (max_file_store)",
            "raise max_file_store, or delete streams that are not needed",
        )
