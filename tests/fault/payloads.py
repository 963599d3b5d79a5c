"""Large payloads of a run: what was put, what was removed and when, and whether it might be."""

from __future__ import annotations

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.port import Message
from broker_pipeline.core.names import HEADER_CONTENT_TYPE, Subjects, payload_bucket
from broker_pipeline.journey import NS
from tests.fault.network import Network
from tests.fault.scenario import NAME

SUBJECTS = Subjects(NAME)
BUCKET = payload_bucket(NAME)
SPEAKS_OF_ONE = BUCKET.encode()


class Payloads:
    """Watches the bucket.

    Attributes:
        put: every payload that ever was, by the object's name.
        wrong: what must not be.
    """

    def __init__(self, network: Network, stream: str) -> None:
        self.put: dict[str, bytes] = {}
        self.wrong: list[str] = []
        self._network = network
        self._removed: dict[str, tuple[int, int]] = {}
        self._bucket = bucket = network.server.object_bucket(BUCKET)
        real_set, real_erase = bucket.set, bucket.erase
        log = network.server.stream(stream)

        def put(key: str, data: bytes | None, now: float, time: int = 0) -> int:
            if key in self.put or data is None:
                self.wrong.append(f"object {key} was written twice, or deleted by name")
            self.put[key] = data or b""
            network.injected["payload by reference"] += 1
            return real_set(key, data, now, time)

        def erase(key: str) -> None:
            self._removed[key] = network.now_ns(), log.state.first_seq
            network.injected["payload swept"] += 1
            real_erase(key)

        bucket.set, bucket.erase = put, erase  # type: ignore[method-assign]

    @property
    def left(self) -> int:
        """How many are there."""
        return len(self._bucket.keys(self._network.loop.time()))

    def of(self, message: Message) -> bytes:
        """The payload of an arrival."""
        if HEADER_CONTENT_TYPE not in message.headers:
            return message.data
        return self.whole(pb.DataPackage.FromString(message.data)).data

    def whole(self, package: pb.DataPackage) -> pb.DataPackage:
        """A package with its payload in place."""
        if package.HasField("reference"):
            if package.data:
                self.wrong.append(f"package {package.id} has a payload and a reference")
            package.data = self.put[package.reference.object]
            package.ClearField("reference")
        return package

    def check(self, log: list[Message], window_s: float) -> list[str]:
        """None was removed while a package that refers to it was inside, or had left less than a
        window ago, or could be read in the log."""
        outs: dict[int, Message] = {}
        speak: list[tuple[Message, int, str]] = []
        for message in log:
            is_out = message.subject.startswith(SUBJECTS.out)
            if not is_out and SPEAKS_OF_ONE not in message.data:
                continue
            package = pb.DataPackage.FromString(message.data)
            package_id = package.id or message.stream_seq
            if is_out:
                outs[package_id] = message
            if package.HasField("reference"):
                speak.append((message, package_id, package.reference.object))
        for message, package_id, name in speak:
            out = outs.get(package_id)
            # A number's repeat never leaves; and what is written of a package behind its leaving
            # is a slow worker's, and nobody's.
            if out is not None and message.stream_seq <= out.stream_seq:
                self._check(message, out, name, window_s)
        return self.wrong

    def _check(self, message: Message, out: Message, name: str, window_s: float) -> None:
        if name not in self.put:
            self.wrong.append(f"message {message.stream_seq} refers to {name}, which never was")
        if name not in self._removed:
            return
        at, first_seq = self._removed[name]
        if at < out.time:
            self.wrong.append(f"{name} was removed while its package was inside")
        elif at < out.time + int(window_s * NS):
            self.wrong.append(
                f"{name} was removed {(at - out.time) / NS:g} s after its package left"
            )
        if message.stream_seq >= first_seq:
            self.wrong.append(
                f"{name} was removed while message {message.stream_seq} referred to it"
            )
