"""The part of the JetStream adapter that looks: consumers, streams, the server itself."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import nats.errors

from broker_pipeline.broker import provision
from broker_pipeline.broker.api import (
    UNREADABLE,
    Answer,
    JetStreamApi,
    StreamInfo,
    message_or_none,
    state_of,
)
from broker_pipeline.broker.asking import Asking
from broker_pipeline.broker.connection import FLUSH_TIMEOUT_S, Connection, cancellable
from broker_pipeline.broker.introspection import (
    Answerer,
    BrokerFacts,
    BucketSpec,
    ConsumerState,
    Difference,
    Presence,
    Room,
    StreamSurvey,
)
from broker_pipeline.broker.port import Message, StreamSpec
from broker_pipeline.errors import NotFoundError
from broker_pipeline.journey import NS

CONSUMERS_PAGE = 256
"""The server's: so many consumers in one answer."""
NAMES_PAGE = 1024
"""The server's: so many names of streams in one answer."""
USER_INFO = "$SYS.REQ.USER.INFO"
"""What any account may ask the server that it is connected to."""
USER_INFO_S = 1.0
UNLIMITED = -1


class _Place(msgspec.Struct, frozen=True):
    stream_seq: int = 0


class _Consumer(Answer, frozen=True):
    name: str = ""
    config: dict[str, Any] = msgspec.field(default_factory=dict)
    delivered: _Place = _Place()
    ack_floor: _Place = _Place()
    num_pending: int = 0
    num_ack_pending: int = 0
    num_redelivered: int = 0
    num_waiting: int = 0


class _Consumers(Answer, frozen=True):
    """One page of a stream's consumers; of several servers, those that answered."""

    total: int = 0
    consumers: list[_Consumer] = msgspec.field(default_factory=list)


class _Names(Answer, frozen=True):
    total: int = 0
    streams: list[str] | None = None


class _Limits(msgspec.Struct, frozen=True):
    max_memory: int = UNLIMITED
    max_storage: int = UNLIMITED
    max_streams: int = UNLIMITED
    max_consumers: int = UNLIMITED


class _Level(msgspec.Struct, frozen=True):
    level: int = 0


class _Tier(msgspec.Struct, frozen=True):
    memory: int = 0
    storage: int = 0
    streams: int = 0
    consumers: int = 0
    limits: _Limits = _Limits()


class _Account(Answer, frozen=True):
    memory: int = 0
    storage: int = 0
    streams: int = 0
    consumers: int = 0
    limits: _Limits = _Limits()
    tiers: dict[str, _Tier] = msgspec.field(default_factory=dict)
    api: _Level = _Level()


class _Replica(msgspec.Struct, frozen=True):
    current: bool = False
    offline: bool = False


class _Cluster(msgspec.Struct, frozen=True):
    leader: str = ""
    replicas: list[_Replica] = msgspec.field(default_factory=list)


class _Surveyed(StreamInfo, frozen=True):
    cluster: _Cluster | None = None


class _Server(msgspec.Struct, frozen=True):
    feature_flags: dict[str, bool] | None = None


class _UserInfo(msgspec.Struct, frozen=True):
    server: _Server = _Server()


class JetStreamLooks:
    """`Introspection` on one connection to nats-server."""

    def __init__(self, connection: Connection, api: JetStreamApi) -> None:
        self._connection = connection
        self._api = api
        self._asking = Asking(connection, api)

    async def consumer_states(self, stream: str) -> dict[str, ConsumerState]:
        """See `Broker.consumer_states`."""
        # In this order: what is stored between the two answers counts as needed.
        last_seq = (await self._api.stream_state(stream)).last_seq
        states: dict[str, ConsumerState] = {}
        offset, total = 0, 1
        while offset < total:
            body = {"offset": offset}
            page = await self._api.request(f"CONSUMER.LIST.{stream}", body, _Consumers)
            states |= {each.name: _state(each, last_seq) for each in page.consumers}
            offset, total = offset + CONSUMERS_PAGE, page.total
        return states

    async def survey(self, wanted: StreamSpec | BucketSpec) -> StreamSurvey | None:
        """See `Broker.survey`."""
        config = _config(wanted)
        path = f"STREAM.INFO.{config['name']}"
        try:
            info = await self._api.request(path, None, _Surveyed)
        except NotFoundError:
            return None
        found = info.config
        max_bytes = found.get("max_bytes", UNLIMITED)
        peers = info.cluster.replicas if info.cluster is not None else []
        return StreamSurvey(
            state_of(info.state),
            tuple(found.get("subjects") or ()),
            max_bytes if max_bytes >= 0 else None,
            found.get("duplicate_window", 0) / NS,
            found.get("num_replicas", 1),
            1 + sum(each.current and not each.offline for each in peers),
            tuple(
                Difference(key, config[key], found.get(key))
                for key in provision.differences(config, found)
            ),
        )

    async def stream_names(self) -> list[str]:
        """See `Broker.stream_names`."""
        names: list[str] = []
        offset, total = 0, 1
        while offset < total:
            page = await self._api.request("STREAM.NAMES", {"offset": offset}, _Names)
            names += page.streams or []
            offset, total = offset + NAMES_PAGE, page.total
        return sorted(names)

    async def next_message(self, stream: str, filter: str, *, start_seq: int) -> Message | None:
        """See `Broker.next_message`."""
        body = {"seq": max(1, start_seq), "next_by_subj": filter}
        return await message_or_none(self._api.stored_message(stream, body))

    async def facts(self) -> BrokerFacts:
        """See `Broker.facts`."""
        account = await self._api.request("INFO", None, _Account)
        info = self._connection.info
        asked = time.perf_counter()  # uvloop's clock has milliseconds
        try:
            await cancellable(self._connection.nc.flush(int(FLUSH_TIMEOUT_S)))
        except (nats.errors.Error, OSError) as error:
            raise self._connection.gone() from error
        return BrokerFacts(
            server=str(info.get("server_name", "")),
            version=str(info.get("version", "")),
            cluster=str(info.get("cluster", "")),
            api_level=account.api.level,
            max_payload=self._connection.nc.max_payload,
            round_trip_s=time.perf_counter() - asked,
            rooms=tuple(_rooms(account)),
            features=await self._features(),
        )

    async def _features(self) -> dict[str, bool] | None:
        try:
            reply = await self._api.ask(USER_INFO, b"", USER_INFO_S)
            return msgspec.json.decode(reply.data, type=_UserInfo).server.feature_flags
        except (nats.errors.Error, *UNREADABLE):
            return None  # an older server, or one that forbids it

    # -- asking ---------------------------------------------------------------------------------
    async def be_present(self, subject: str) -> None:
        """See `Broker.be_present`."""
        await self._asking.answer(subject, lambda _: b"")

    async def presence(self, subject: str, *, timeout_s: float) -> Presence:
        """See `Broker.presence`."""
        return await self._asking.presence(subject, timeout_s)

    async def answer(self, subject: str, answerer: Answerer) -> None:
        """See `Broker.answer`."""
        await self._asking.answer(subject, answerer)

    async def ask_all(self, subject: str, data: bytes, *, wait_s: float) -> list[bytes]:
        """See `Broker.ask_all`."""
        return await self._asking.ask_all(subject, data, wait_s)


def _state(found: _Consumer, last_seq: int) -> ConsumerState:
    config = found.config
    # The floor stays at its own last message: behind it nothing may be waiting.
    idle = not found.num_pending and not found.num_ack_pending
    max_deliver = config.get("max_deliver", UNLIMITED)
    return ConsumerState(
        name=found.name,
        durable=bool(config.get("durable_name")),
        filter=str(config.get("filter_subject", "")),
        ack_wait_s=config.get("ack_wait", 0) / NS,
        max_ack_pending=config.get("max_ack_pending", 0),
        max_deliver=max_deliver if max_deliver > 0 else None,
        pending=found.num_pending,
        ack_pending=found.num_ack_pending,
        redelivered=found.num_redelivered,
        waiting=found.num_waiting,
        delivered_seq=found.delivered.stream_seq,
        floor_seq=found.ack_floor.stream_seq,
        needs=max(last_seq if idle else 0, found.ack_floor.stream_seq) + 1,
    )


def _config(wanted: StreamSpec | BucketSpec) -> provision.Config:
    if isinstance(wanted, StreamSpec):
        return provision.stream_config(wanted)
    config = provision.object_bucket_config if wanted.objects else provision.bucket_config
    return config(wanted.name, wanted.ttl_s, None)


def _rooms(account: _Account) -> list[Room]:
    tiers: dict[str, _Tier | _Account] = {**account.tiers} or {"": account}
    return [
        Room(
            tier,
            used.storage,
            _limit(used.limits.max_storage),
            used.memory,
            _limit(used.limits.max_memory),
            used.streams,
            _limit(used.limits.max_streams),
            used.consumers,
            _limit(used.limits.max_consumers),
        )
        for tier, used in tiers.items()
    ]


def _limit(value: int) -> int | None:
    return value if value > UNLIMITED else None
