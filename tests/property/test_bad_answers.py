"""What comes from a broker, or from whoever answers in its place: a value or a documented error."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from spoiling import HOSTILE, spoiled

from broker_pipeline import Controller, Phase, Pipeline, StatefulModule
from broker_pipeline.broker import headers
from broker_pipeline.broker.api import ConsumerInfo, JetStreamApi, StreamInfo
from broker_pipeline.broker.fast_ingest import FastIngestPublisher
from broker_pipeline.broker.lease import Lease
from broker_pipeline.broker.memory import MemoryServer
from broker_pipeline.broker.publish import _parse_ack
from broker_pipeline.broker.pull import Puller, delivery
from broker_pipeline.core import snapshot
from broker_pipeline.core.machine import Machine
from broker_pipeline.core.names import STATE_BUCKET, module_bucket, module_key, snapshot_key
from broker_pipeline.errors import (
    BrokerError,
    BrokerPipelineError,
    PublishRefusedError,
    StateError,
)
from broker_pipeline.runtime.snapshots import SnapshotStore
from broker_pipeline.runtime.states import StateKeeper

V1 = "$JS.ACK.BP_demo_0.c=p.1.7.3.1700000000000000000.5"
V2 = "$JS.ACK.hub.ACC.BP_demo_0.c=p.1.7.3.1700000000000000000.5"
BLOCK = b"NATS/1.0 409 Message Size Exceeds MaxBytes\r\nNats-Pending-Messages: 5\r\nA: b\r\n\r\n"
ACK = b'{"stream":"BP_demo_0","seq":7,"duplicate":true}'
FLOW_ACK = b'{"type":"ack","seq":3,"msgs":200}'
REFUSAL = b'{"error":{"code":503,"err_code":10077,"description":"full"}}'
STORED = (
    b'{"message":{"subject":"s","seq":1,"hdrs":"","data":"eA==","time":"2026-01-01T00:00:00Z"}}'
)


def text(raw: bytes) -> str:
    """As a connection hands subjects over."""
    return raw.decode("utf-8", "surrogateescape")


class FakeConnection:
    """What pullers and publishers need of a connection, and what was sent over it."""

    def __init__(self, answer: bytes = b"") -> None:
        self.nc = SimpleNamespace(
            new_inbox=lambda: "_INBOX.x",
            request=self._request,
            is_closed=False,
            max_payload=1 << 20,
        )
        self.answer = answer
        self.up = asyncio.Event()
        self.url, self.reconnect, self.closing = "fake", False, False

    async def _request(self, subject: str, payload: bytes, timeout: float) -> Any:
        return SimpleNamespace(data=self.answer)

    async def subscribe(self, subject: str, take: Any) -> Any:
        """Nobody publishes to it."""

    async def send(self, *message: Any) -> None:
        """Nobody hears it."""

    def attach(self, link: Any) -> None:
        """It is never told."""

    def detach(self, link: Any) -> None:
        """Nothing was attached."""


@given(spoiled(st.just(BLOCK)))
@example(b"NATS/1.0 \xd9\xa3\xd9\xa3\xd9\xa3\r\n\r\n")
def test_a_spoiled_header_block_is_headers_and_a_status(block: bytes) -> None:
    """Never an error: it is read where an exception would end the connection."""
    found = headers.parse(block)
    assert all(isinstance(text, str) for pair in found.items() for text in pair)
    code, words = headers.status(block)
    assert 0 <= headers.number(code) < 10**18
    assert isinstance(words, str)


names = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"), min_size=1
)
values = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))


@given(st.dictionaries(names, values.map(str.strip), max_size=5))
def test_headers_survive_their_block(given_headers: dict[str, str]) -> None:
    """What is sent is what is read."""
    assert headers.parse(headers.encode(None, given_headers)) == given_headers


@given(spoiled(st.sampled_from([V1.encode(), V2.encode(), V2.encode() + b".token"])))
@example(b"$JS.ACK.")
@example(V1.encode() + b".more")
def test_a_spoiled_ack_subject_is_a_delivery_or_a_broker_error(reply: bytes) -> None:
    """Of 9 tokens, of 11 or more, and of any other number."""
    try:
        message, consumer, number = delivery("s", text(reply), b"x", None)
    except BrokerError:
        return
    assert message.reply == text(reply)
    assert {type(each) for each in (message.stream_seq, message.time, number)} == {int}
    assert isinstance(consumer, str)


def test_both_forms_of_ack_subjects_say_the_same() -> None:
    """The longer one may have more tokens behind."""
    for reply in (V1, V2, V2 + ".token"):
        message, consumer, number = delivery("s", reply, b"x", None)
        assert (message.delivered, message.stream_seq, message.pending) == (1, 7, 5)
        assert (consumer, number, message.time) == ("c=p", 3, 1_700_000_000_000_000_000)


@given(spoiled(st.sampled_from([ACK, REFUSAL, b""])), spoiled(st.just(b"NATS/1.0 503\r\n\r\n")))
@example(b"", b"NATS/1.0 5o3\r\n\r\n")
@example(b'{"stream":"\xff"}', b"")
def test_a_spoiled_acknowledgement_is_one_or_a_refusal(data: bytes, head: bytes) -> None:
    """Whoever waits for it gets one of the two."""
    with contextlib.suppress(PublishRefusedError):
        assert isinstance(_parse_ack("s", data, head).seq, int)


RUNNERS: list[asyncio.Runner] = []


@pytest.fixture(scope="module", autouse=True)
def _one_loop_for_all() -> Iterator[None]:
    """A new one for each example would take most of the time."""
    with asyncio.Runner() as runner:
        RUNNERS.append(runner)
        yield
        RUNNERS.remove(runner)


def in_a_loop(work: Any) -> Any:
    """Run a coroutine with a bound."""
    return RUNNERS[-1].run(asyncio.wait_for(work, 30))


@given(
    st.lists(
        st.tuples(
            spoiled(st.sampled_from([FLOW_ACK, REFUSAL, b'{"batch":"x","count":1}', b""])),
            spoiled(st.just(b"NATS/1.0 503\r\n\r\n")),
        ),
        max_size=4,
    )
)
def test_spoiled_answers_to_fast_ingest_never_raise(answers: list[tuple[bytes, bytes]]) -> None:
    """They come where an exception would end the connection: the publisher goes on or fails."""

    async def run() -> None:
        publisher = FastIngestPublisher(FakeConnection(), "BP_demo_0")  # type: ignore[arg-type]
        session = await publisher._begin()
        for data, head in answers:
            publisher._on_answer(f"_INBOX.x.{session.token}.200.fail.1.1.$FI", "", data, head)
        assert publisher._error is None or isinstance(publisher._error, BrokerError)
        publisher._disarm()

    in_a_loop(run())


@given(
    st.lists(
        st.tuples(
            spoiled(st.sampled_from([b"", V1.encode(), V2.encode()])),
            st.one_of(st.none(), spoiled(st.just(BLOCK))),
        ),
        max_size=4,
    )
)
@example([(b"", BLOCK.replace(b": 5", b": many"))])
def test_spoiled_deliveries_never_raise(deliveries: list[tuple[bytes, bytes | None]]) -> None:
    """The reading goes on, or ends with a BrokerError."""

    async def run() -> None:
        connection: Any = FakeConnection()
        puller = Puller(
            connection, JetStreamApi(connection), "S", "c", lambda _: None, credit=9, bytes_max=99
        )
        for reply, block in deliveries:
            puller._take("s", text(reply), b"x", block)
        if puller.failed.done():
            assert isinstance(puller.failed.exception(), BrokerError)
        await asyncio.sleep(0)

    in_a_loop(run())


@given(spoiled(st.sampled_from([STORED, REFUSAL, b"{}"])))
@example(STORED.replace(b"eA==", b"e"))
@example(STORED.replace(b"2026-01-01", b"yesterday"))
def test_a_spoiled_answer_of_the_api_is_an_answer_or_a_broker_error(answer: bytes) -> None:
    """About streams, consumers and messages."""

    async def run() -> None:
        api = JetStreamApi(FakeConnection(answer))  # type: ignore[arg-type]
        asked = (
            lambda: api.request("X", None, ConsumerInfo),
            lambda: api.request("X", None, StreamInfo),
            lambda: api.stored_message("S", {"seq": 1}),
        )
        for ask in asked:
            with contextlib.suppress(BrokerError):
                await ask()

    in_a_loop(run())


@given(spoiled(st.just(b'{"holder":"me","term":3}')))
@example(b'{"holder":"\xff"}')
@example(HOSTILE[17])
def test_a_lease_that_cannot_be_read_is_a_strangers(record: bytes) -> None:
    """It vanishes with its time to live; whoever competes waits for that."""

    async def run() -> None:
        broker = MemoryServer().connect()
        await broker.ensure_bucket("leases", ttl_s=2)
        await broker.kv_put("leases", "a", record)
        lease = Lease(broker, "leases", "a", holder="me", ttl_s=2)
        assert await lease.acquire() in (True, False)
        await broker.close()

    in_a_loop(run())


@given(st.data())
def test_a_stored_snapshot_that_is_spoiled_is_refused_or_loaded(data: st.DataObject) -> None:
    """The key of the bucket with the places of the parts: a clear error, never a hanging leader."""
    head = snapshot.Chain().take(Machine()).head
    places = data.draw(st.lists(st.integers(-(2**63), 2**64 - 1), max_size=2))
    valid = msgspec.msgpack.encode((7, head, places))
    stored = data.draw(st.one_of(st.just(valid), spoiled(st.just(valid))))

    async def run() -> None:
        broker = MemoryServer().connect()
        await broker.ensure_bucket(STATE_BUCKET)
        await broker.kv_put(STATE_BUCKET, snapshot_key("demo", 0), stored)
        with contextlib.suppress(BrokerPipelineError):
            assert isinstance(await SnapshotStore(broker, "demo", 0).load(), Machine)
        await broker.close()

    in_a_loop(run())


class Sum(StatefulModule[bytes, int]):
    """Adds up."""

    def initial_state(self) -> int:
        """Nothing."""
        return 0

    def execute(self, package: Any, run: Any, state: int) -> int:
        """One more."""
        return state + 1


PHASE = Phase("p", [Sum()])
STATEFUL = Pipeline("demo", [Controller("c", phases=[PHASE])])


@given(spoiled(st.just(msgspec.msgpack.encode((5, 1, 6, {"Sum": b"\x07"})))))
@example(msgspec.msgpack.encode((5, 1, 6, {"Sum": HOSTILE[14]})))
def test_a_stored_state_that_is_spoiled_is_computed_again_or_refused(stored: bytes) -> None:
    """StateError is the package's ERROR; anything else would end the worker."""

    async def run() -> None:
        broker = MemoryServer().connect()
        await broker.ensure_bucket(module_bucket("demo"))
        await broker.kv_put(module_bucket("demo"), module_key(0, "c", "p", "a"), stored)
        keeper = StateKeeper(broker, "demo", 0, STATEFUL.controllers[0], PHASE)
        found = await keeper._load("a", 5, 3)
        with contextlib.suppress(StateError):
            assert isinstance(keeper._decode(found), dict)
        await broker.close()

    in_a_loop(run())


def test_a_connection_survives_a_reply_subject_that_is_no_text() -> None:
    """Anybody may publish to an inbox with any bytes as the reply: the connection lives."""
    from broker_pipeline.broker.connection import _Client

    taken: list[tuple[str, str]] = []
    client = _Client()
    client.takers[1] = lambda subject, reply, data, head: taken.append((subject, reply))
    asyncio.run(client._process_msg(1, b"s\xff", b"r\xff", b"", b""))
    assert taken == [("s\udcff", "r\udcff")]
