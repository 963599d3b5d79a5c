"""The log as it grows: kept on disk by instance, and looked at for what the run must know now."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import IO

import msgspec

from broker_pipeline.broker.port import Broker, Message, Subscription
from broker_pipeline.core.names import HEADER_NUMBER, HEADER_PRODUCER, Subjects, stream_name
from tests.fault.scenario import NAME

SUBJECTS = Subjects(NAME)
SHARED = "shared"
"""Where messages go that belong to no instance: plans and ticks."""
_SIZE = struct.Struct("<I")
Kept = tuple[str, bytes, dict[str, str], int, int]
"""Subject, data, headers, stream sequence, time."""
_decode = msgspec.msgpack.Decoder(list[Kept]).decode
BATCH = 400
"""Messages kept of an instance before they are written."""


class Recording:
    """Reads everything from the first message on.

    Attributes:
        expected: packages that must leave: arrivals, but for a number's repeats.
        left: packages that left.
        queued: messages in the workers' queues.
        left_at: when each left, seconds, by the broker's clock.
        gaps: sequences that were not read after the one before.
    """

    def __init__(self, directory: Path) -> None:
        self.expected = 0
        self.left = 0
        self.queued = 0
        self.bytes = 0
        self.last_seq = 0
        self.last_out_at = 0.0
        self.left_at: list[float] = []
        self.gaps: list[tuple[int, int]] = []
        self.outcomes: dict[str, int] = {}
        self._numbers: set[tuple[str, str, str]] = set()
        self._directory = directory
        self._kept: dict[str, list[Kept]] = {}
        self._files: dict[str, IO[bytes]] = {}
        directory.mkdir(parents=True, exist_ok=True)

    async def begin(self, broker: Broker) -> Subscription:
        """Read along."""
        return await broker.read(stream_name(NAME), f"{SUBJECTS.prefix}>", self._take)

    def _take(self, message: Message) -> None:
        subject = message.subject
        if message.stream_seq != self.last_seq + 1:
            self.gaps.append((self.last_seq, message.stream_seq))
        self.last_seq = message.stream_seq
        self.bytes += len(message.data)
        token = subject.rpartition(".")[2]
        if subject.startswith(SUBJECTS.ctl_in):
            self._arrived(message, token)
        elif subject.startswith(SUBJECTS.out):
            self.left += 1
            self.left_at.append(message.time / 1e9)
            self.last_out_at = time.time()
            outcome = subject.split(".")[4]
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        elif subject.startswith(SUBJECTS.work):
            self.queued += 1
        elif subject in (SUBJECTS.plan, SUBJECTS.tick):
            token = SHARED
        kept = self._kept.setdefault(token, [])
        kept.append(
            (subject, message.data, dict(message.headers), message.stream_seq, message.time)
        )
        if len(kept) >= BATCH:
            self._write(token, kept)

    def _arrived(self, message: Message, token: str) -> None:
        name = message.headers.get(HEADER_PRODUCER)
        if name is not None:
            key = (token, name, message.headers[HEADER_NUMBER])
            if key in self._numbers:
                return
            self._numbers.add(key)
        self.expected += 1

    def _write(self, token: str, kept: list[Kept]) -> None:
        if token not in self._files:
            self._files[token] = (self._directory / token).open("ab")
        data = msgspec.msgpack.encode(kept)
        self._files[token].write(_SIZE.pack(len(data)) + data)
        kept.clear()

    def end(self) -> list[str]:
        """Write what is left; the tokens of all instances."""
        for token, kept in self._kept.items():
            self._write(token, kept)
        self.close()
        return [token for token in self._files if token != SHARED]

    def close(self) -> None:
        """Close the files; what is not written is lost."""
        for file in self._files.values():
            file.close()


def recorded(directory: Path, token: str) -> list[Message]:
    """An instance's messages, and those that belong to no instance, in the log's order."""
    found: list[Message] = []
    for name in (token, SHARED):
        path = directory / name
        if not path.exists():
            continue
        with path.open("rb") as file:
            while size := file.read(_SIZE.size):
                batch = _decode(file.read(*_SIZE.unpack(size)))
                found += [
                    Message(subject, data, headers, seq, at)
                    for subject, data, headers, seq, at in batch
                ]
    return sorted(found, key=lambda message: message.stream_seq)
