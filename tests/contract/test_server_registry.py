"""Module servers announce themselves, and callers find them, on both brokers."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.broker.memory import MemoryBroker, MemoryServer
from broker_pipeline.broker.port import Broker
from broker_pipeline.core.names import SERVER_BUCKET, SERVER_TTL_S, servers_prefix
from broker_pipeline.external import registry
from broker_pipeline.external.registry import Announcement, Announcer, Watch, listed
from tests.contract.waiting import Connect, until


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides every few milliseconds."""
    monkeypatch.setattr(registry, "ANNOUNCE_S", 0.02)
    monkeypatch.setattr(registry, "LOOK_S", 0.01)


def announcer(broker: Broker, address: str = "10.0.0.1:50051", name: str = "asr") -> Announcer:
    """Of a server with something in every field."""
    what = service.Description(
        name=name, version="7", server=f"s-{address}", capacity=4, stateful=True
    )
    load = service.Load(running=2, waiting=1, run_time_ns=5_000)
    return Announcer(broker, what, address, lambda: load, tls=True)


class Seen:
    """What a watch has told."""

    def __init__(self, broker: Broker, name: str = "asr") -> None:
        self.servers: Mapping[str, Announcement] = {}
        self.told = 0
        self.watch = Watch(broker, name, self._changed)

    def _changed(self, servers: Mapping[str, Announcement]) -> None:
        self.servers = servers
        self.told += 1

    @property
    def addresses(self) -> list[str]:
        """Of all servers."""
        return sorted(each.address for each in self.servers.values())


async def test_a_server_is_found_as_it_announced_itself(
    broker: Broker, open_connection: Connect
) -> None:
    """Under its own id, whoever came first, and before anything was ever deployed."""
    seen = Seen(await open_connection())
    await seen.watch.start()
    one = announcer(broker)
    await one.start()
    await until(lambda: seen.servers)
    assert seen.servers == {
        one.id: Announcement(
            name="asr", address="10.0.0.1:50051", server="s-10.0.0.1:50051", version="7",
            capacity=4, running=2, waiting=1, run_time_ns=5_000, tls=True, stateful=True,
        )
    }  # fmt: skip
    assert await listed(broker) == list(seen.servers.values())
    await one.withdraw()
    await seen.watch.close()


async def test_servers_come_and_go(broker: Broker, open_connection: Connect) -> None:
    """Each change is told once, and a server that withdraws is gone at once, not after a while."""
    seen = Seen(await open_connection())
    await seen.watch.start()
    servers = [announcer(broker, f"h{n}:1") for n in range(3)]
    for each in servers:
        await each.start()
    await until(lambda: seen.addresses == ["h0:1", "h1:1", "h2:1"])
    await servers[1].withdraw()
    await until(lambda: seen.addresses == ["h0:1", "h2:1"])
    told = seen.told
    assert told <= 4
    for each in servers:
        await each.withdraw()
    await until(lambda: not seen.servers)
    await seen.watch.close()
    assert await listed(broker) == []


async def test_a_server_that_is_killed_is_forgotten(
    broker: Broker, open_connection: Connect
) -> None:
    """When the value's time is over."""
    await broker.ensure_bucket(SERVER_BUCKET, ttl_s=0.5)
    other = await open_connection()
    seen = Seen(broker)
    await seen.watch.start()
    dies, lives = announcer(other, "dies:1"), announcer(broker, "lives:1")
    await dies.start()
    await lives.start()
    await until(lambda: seen.addresses == ["dies:1", "lives:1"])
    await other.close()
    await until(lambda: seen.addresses == ["lives:1"])
    for each in (dies, lives):
        await each.withdraw()
    await seen.watch.close()


async def test_only_servers_of_the_module_are_found(broker: Broker) -> None:
    """Also where one module's name begins as another's, or has dots and stars in it."""
    seen = {name: Seen(broker, name) for name in ("asr", "asr.big", "a*", "asr big")}
    servers = [announcer(broker, f"{n}:1", name) for n, name in enumerate(seen)]
    for watch in seen.values():
        await watch.watch.start()
    for each in servers:
        await each.start()
    await until(lambda: all(each.servers for each in seen.values()))
    assert [each.addresses for each in seen.values()] == [["0:1"], ["1:1"], ["2:1"], ["3:1"]]
    assert [each.name for each in await listed(broker)] == ["a*", "asr", "asr big", "asr.big"]
    for each in servers:
        await each.withdraw()
    for watch in seen.values():
        await watch.watch.close()


@pytest.mark.parametrize(
    "value",
    [b"", b"garbage", b"[" * 100_000, b'{"name":"asr"}', b'{"name":"other","address":"h:1"}',
     b'{"name":"asr","address":"","capacity":1}', b'{"name":"asr","address":"h:1","capacity":-1}'],
)  # fmt: skip
async def test_what_is_no_announcement_is_left_out(
    broker: Broker, value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """With one word about it; the servers beside it are found."""
    seen = Seen(broker)
    one = announcer(broker)
    await one.start()
    await until(lambda: _has_bucket(broker))
    await broker.kv_put(SERVER_BUCKET, servers_prefix("asr") + "0bad", value)
    await seen.watch.start()
    await until(lambda: seen.servers)
    await until(lambda: one.failed.done() or caplog.text.count("is no server of module 'asr'"))
    looks = seen.watch._refused
    assert looks == {"0bad"} and seen.addresses == ["10.0.0.1:50051"]
    assert caplog.text.count("is no server of module 'asr'") == 1
    await one.withdraw()
    await seen.watch.close()


async def _has_bucket(broker: Broker) -> bool:
    return bool(await listed(broker))


async def test_more_servers_than_are_called_are_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And again when it was over in between."""
    monkeypatch.setattr(registry, "SERVERS_MAX", 1)
    seen = Seen(MemoryServer().connect())
    there, looks = ["a", "b"], 0

    async def ids(broker: Broker, prefix: str) -> list[str]:
        nonlocal looks
        looks += 1
        return there

    async def read(server: str) -> registry._Found:
        return registry._Found(server, Announcement(name="asr", address="h:1"))

    monkeypatch.setattr(registry, "_ids", ids)
    monkeypatch.setattr(seen.watch, "_read", read)
    await seen.watch.start()
    for times in (1, 2):
        there = ["a", "b"]
        begun = looks
        await until(lambda begun=begun: looks > begun + 3)
        assert caplog.text.count("has more than 1 servers") == times
        there = ["a"]
        begun = looks
        await until(lambda begun=begun: looks > begun + 1)
    await seen.watch.close()


async def test_without_the_broker_the_servers_stay_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And also for a while after it is back with nothing in it, until they could say so again."""
    memory = MemoryServer()
    broker = _Cut(memory.connect(reconnect=True))
    seen = Seen(broker)  # type: ignore[arg-type]
    one = announcer(memory.connect(reconnect=True))
    await one.start()
    await seen.watch.start()
    await until(lambda: seen.servers)
    broker.asked, broker.cut = 0, True
    await until(lambda: broker.asked > 3)
    assert seen.addresses == ["10.0.0.1:50051"]
    await one.withdraw()
    broker.asked, broker.cut = 0, False
    await until(lambda: broker.asked > 3)
    assert seen.addresses == ["10.0.0.1:50051"]
    assert seen.watch._gone_from > 0
    seen.watch._gone_from -= SERVER_TTL_S
    await until(lambda: not seen.servers)
    await seen.watch.close()


async def test_an_announcer_waits_for_the_broker() -> None:
    """It says so when the broker comes, and again when that has lost everything."""
    memory = MemoryServer()
    broker = _Cut(memory.connect(reconnect=True))
    broker.cut = True
    one = announcer(broker)  # type: ignore[arg-type]
    await one.start()
    await until(lambda: broker.asked > 3)
    looker = memory.connect()
    assert await listed(looker) == []
    broker.cut = False
    await until(lambda: listed(looker))
    await looker.kv_erase(SERVER_BUCKET, servers_prefix("asr") + one.id)
    await until(lambda: listed(looker))
    broker.cut = True
    await one.withdraw()  # in a bounded time, though nobody answers
    assert not one.failed.done() or one.failed.cancelled()


async def test_a_task_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw ends looking, and `failed` says so."""
    seen = Seen(MemoryServer().connect())

    async def broken(broker: Broker, prefix: str) -> list[str]:
        raise ZeroDivisionError

    monkeypatch.setattr(registry, "_ids", broken)
    await seen.watch.start()
    await until(seen.watch.failed.done)
    assert isinstance(seen.watch.failed.exception(), ZeroDivisionError)
    await seen.watch.close()


class _Cut:
    """A broker's keys behind a network that can be cut."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self.cut = False
        self.asked = 0

    def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
        async def ask(*args: object, **options: object) -> object:
            self.asked += 1
            if self.cut:
                raise registry.BrokerError("cut")
            return await getattr(self._broker, name)(*args, **options)

        return ask
