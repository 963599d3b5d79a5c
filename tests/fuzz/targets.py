"""What is fuzzed: readers that take bytes, each with valid bytes to begin from."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable

import msgspec
from driving import World, make_plan, whole
from spoiling import travelled

from broker_pipeline import codecs
from broker_pipeline.broker import headers
from broker_pipeline.broker.publish import _parse_ack
from broker_pipeline.broker.pull import delivery
from broker_pipeline.core import snapshot
from broker_pipeline.core.envelope import Ignored, message_of, read_event, write
from broker_pipeline.core.names import (
    Subjects,
    canonical_token,
    escape_instance,
    readable_instance,
    shortened_token,
    unescape_instance,
)
from broker_pipeline.core.plan import Plan
from broker_pipeline.errors import BrokerPipelineError
from broker_pipeline.journey import Mode
from broker_pipeline.package import CONTENT_TYPE, DataPackage

PLAN = make_plan([(Mode.ORDER_BY_SEQUENCE, 2, 1), (Mode.NOT_PARALLEL, 1, 0)])
PACKAGE = travelled().SerializeToString()
SUBJECTS = Subjects("demo")


def _split(raw: bytes) -> tuple[str, bytes]:
    first, _, rest = raw.partition(b"\n")
    return first.decode("utf-8", "surrogateescape"), rest


def package(raw: bytes) -> None:
    """An envelope, read to its end."""
    try:
        found = DataPackage.from_bytes(raw)
    except BrokerPipelineError:
        return
    json.dumps(found.to_json())
    assert DataPackage.from_bytes(found.envelope.SerializeToString()).envelope == found.envelope


def log(raw: bytes) -> None:
    """A message of the log, through a machine in the middle of its work."""
    kind, data = _split(raw)
    block, _, data = data.partition(b"\n\n")
    world = World(PLAN)
    for payload in (b"1", b"2", b"3"):
        world.arrive("a", payload)
    subject = SUBJECTS.prefix + "ctl." + kind
    found = dict(headers.parse(b"NATS/1.0\r\n" + block))
    message = (SUBJECTS, subject, found, data, 9, world.now)
    try:
        event, _ = read_event(*message)
    except (Ignored, BrokerPipelineError):
        return
    for command in world.machine.step(event):
        at = command.package.source
        if at == 9:
            _, source = read_event(*message)
        else:
            _, source = world.read(world.log[at - 1])
        assert source is not None and world.machine.plan is not None
        write(world.machine.plan, 0, command, source)
        message_of(world.machine.plan, SUBJECTS, command)
    head, parts = whole(world.machine)
    snapshot.restore(snapshot.read_head(head), parts)


def plan(raw: bytes) -> None:
    """A plan."""
    try:
        found = Plan.from_bytes(raw)
    except BrokerPipelineError:
        return
    assert Plan.from_bytes(found.to_bytes()) == found


def stored(raw: bytes) -> None:
    """A snapshot whose checksums are right, whatever they are of."""
    packed, _, body = raw.partition(b"\n\n")
    try:
        head = snapshot.read_head(packed + zlib.crc32(packed).to_bytes(4, "big"))
        slices = [snapshot.Slice(snapshot.VERSION, 1, zlib.crc32(body))]
        head = msgspec.structs.replace(head, slices=slices)
        snapshot.restore(head, [body])
    except BrokerPipelineError:
        return


def names(raw: bytes) -> None:
    """Tokens and names."""
    text = raw.decode("utf-8", "surrogateescape")
    token = canonical_token(text)
    assert canonical_token(token) == token
    readable_instance(shortened_token(token)).encode()
    try:
        escaped = escape_instance(text)
    except BrokerPipelineError:
        return
    assert unescape_instance(escaped) == text


def wire(raw: bytes) -> None:
    """Header blocks, ack subjects and acknowledgements."""
    headers.parse(raw)
    code, _ = headers.status(raw)
    headers.number(code)
    reply, data = _split(raw)
    for read in (
        lambda: delivery("s", reply, data, raw),
        lambda: _parse_ack("s", data, raw),
        lambda: _parse_ack("s", raw, None),
    ):
        try:
            read()
        except BrokerPipelineError:
            continue


def payload(raw: bytes) -> None:
    """A payload of some content type."""
    kind, data = _split(raw)
    for expected in (None, str, dict):
        try:
            codecs.decode(data, kind, expected, {})
        except BrokerPipelineError:
            continue


_HEAD, _PARTS = whole(World(PLAN).machine)
TARGETS: dict[str, Callable[[bytes], None]] = {
    "package": package,
    "log": log,
    "plan": plan,
    "stored": stored,
    "names": names,
    "wire": wire,
    "payload": payload,
}
SEEDS: dict[str, list[bytes]] = {
    "package": [PACKAGE],
    "log": [
        b"done.c0.a\n\n\n" + PACKAGE,
        b"in.a\nContent-Type: " + CONTENT_TYPE.encode() + b"\n\n" + PACKAGE,
        b"in.a\nBp-Producer: p\r\nBp-Number: 2\n\nx",
        b"in.a\nBp-Control: close\n\n",
        b"plan\n\n\n" + PLAN.to_bytes(),
        b"tick\n\n\n",
    ],
    "plan": [PLAN.to_bytes()],
    "stored": [_HEAD[:-4] + b"\n\n" + b"".join(_PARTS)],
    "names": [b"room 1", b"=C3=A9", b"\xff"],
    "wire": [
        b"NATS/1.0 409 Text\r\nNats-Pending-Messages: 5\r\n\r\n",
        b"$JS.ACK.S.c.1.7.3.17.5\n" + b'{"stream":"S","seq":7}',
        b"$JS.ACK.hub.ACC.S.c.1.7.3.17.5.x\n" + b'{"error":{"err_code":1}}',
    ],
    "payload": [b"application/json\n[1]", b"application/msgpack\n\x91\x01", b"text/plain\nx"],
}
