"""Publishing files chunk by chunk: as audio, in real time where that is asked for, or as bytes."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from broker_pipeline.client import audio
from broker_pipeline.client.instance import Instance
from broker_pipeline.client.pipelining import each_in_order
from broker_pipeline.errors import ClientError

T = TypeVar("T")

STDIN = "-"
CHUNK_MS = 100
CHUNK_BYTES = 32 << 10


@dataclass(frozen=True)
class Source:
    """A file that is about to be published.

    Args:
        name: the file's name, or '-' for standard input.
        open: begins reading; each chunk becomes a package.
        content_type: what the chunks are; '' for bytes of which nobody knows.
        bytes_per_s: how fast the bytes were spoken; 0 where they are no audio.
        chunks: how many there will be; None where nobody knows.
    """

    name: str
    open: Callable[[], Iterator[bytes]]
    content_type: str = ""
    bytes_per_s: float = 0.0
    chunks: int | None = None


@dataclass
class Published:
    """What was stored."""

    packages: int = 0
    bytes: int = 0
    seconds: float = 0.0
    first_id: str = ""
    last_id: str = ""

    def __str__(self) -> str:
        if not self.packages:
            return "published nothing: there was nothing to read"
        packages = "1 package" if self.packages == 1 else f"{self.packages:,} packages"
        return (
            f"published {packages}, {self.bytes:,} bytes in {self.seconds:.1f} s: "
            f"{self.first_id} to {self.last_id}"
        )


def sources(
    files: Sequence[str],
    *,
    chunk_ms: int | None,
    chunk_bytes: int | None,
    rate: int,
    realtime: bool,
) -> list[Source]:
    """How each file will be read; every file is looked at before the first is sent.

    A file whose name says audio is read as such, and so is every file when `chunk_ms` is given;
    standard input is then PCM, mono s16le at `rate`. With `chunk_bytes` every file is bytes.

    Raises:
        ClientError: the options do not go together, or a file cannot be opened.
        AudioFileError: a file cannot be read as audio.
    """
    if chunk_ms is not None and chunk_bytes is not None:
        raise ClientError("--chunk-ms and --chunk-bytes were given; expected one of them")
    for label, value in (
        ("--chunk-ms", chunk_ms),
        ("--chunk-bytes", chunk_bytes),
        ("--rate", rate),
    ):
        if value is not None and value < 1:
            raise ClientError(f"{label} is {value!r}; expected at least 1")
    if not audio.chunk_size(rate, chunk_ms or CHUNK_MS):
        raise ClientError(
            f"{chunk_ms or CHUNK_MS!r} ms at {rate!r} samples a second hold no whole sample; "
            "expected at least one: give a longer --chunk-ms, or a higher --rate"
        )
    found = []
    for name in files:
        is_audio = chunk_bytes is None and (chunk_ms is not None or audio.is_audio_name(name))
        if not is_audio and realtime:
            raise ClientError(
                f"{name!r} is not read as audio, and --realtime needs to know how fast it was "
                "spoken; give --chunk-ms to read it as audio, or leave --realtime out"
            )
        if is_audio:
            found.append(_audio_source(name, rate, chunk_ms or CHUNK_MS))
        else:
            found.append(_bytes_source(name, chunk_bytes or CHUNK_BYTES))
    return found


async def publish(
    room: Instance,
    sources: Sequence[Source],
    *,
    realtime: bool,
    stop: asyncio.Event,
    progress: Callable[[Source], None] = lambda source: None,
) -> Published:
    """Send all chunks of all sources, one source after the other, until `stop` is set.

    Args:
        realtime: a chunk is sent when its last sample would have been spoken.
        progress: called for each chunk that is stored.
    """
    done = Published()
    loop = asyncio.get_running_loop()
    begun = loop.time()

    async def send(item: tuple[Source, bytes]) -> str:
        source, chunk = item
        return await room.send(chunk, content_type=source.content_type)

    chunks = _paced(sources, realtime, stop)
    async with (
        contextlib.aclosing(chunks),
        contextlib.aclosing(each_in_order(send, chunks)) as sent,
    ):
        async for (source, chunk), package_id in sent:
            done.packages += 1
            done.bytes += len(chunk)
            done.first_id = done.first_id or package_id
            done.last_id = package_id
            progress(source)
    done.seconds = loop.time() - begun
    return done


async def _paced(
    sources: Sequence[Source], realtime: bool, stop: asyncio.Event
) -> AsyncGenerator[tuple[Source, bytes], None]:
    loop = asyncio.get_running_loop()
    due = loop.time()
    stopping = asyncio.ensure_future(stop.wait())
    try:
        for source in sources:
            chunks = source.open()
            while not stop.is_set():
                reading = _in_thread(partial(next, chunks, None))
                await asyncio.wait((reading, stopping), return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    return
                chunk = reading.result()
                if chunk is None:
                    break
                if realtime:
                    due += len(chunk) / source.bytes_per_s
                    await asyncio.wait((stopping,), timeout=max(0.0, due - loop.time()))
                    if stop.is_set():
                        return
                yield source, chunk
    finally:
        stopping.cancel()


def _in_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """Run in a thread that nobody waits for at the end: a read from a terminal may never return."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type] # None only where T has it

    def run() -> None:
        try:
            result, error = function(), None
        except Exception as raised:  # handed over to whoever awaits
            result, error = None, raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="read file", daemon=True).start()
    return future


def _audio_source(name: str, rate: int, chunk_ms: int) -> Source:
    size = audio.chunk_size(rate, chunk_ms)
    content_type, bytes_per_s = audio.content_type_of(rate), float(rate * audio.SAMPLE_BYTES)
    if name == STDIN:
        return Source(name, lambda: _read(STDIN, size), content_type, bytes_per_s)
    count = math.ceil(audio.duration_s(name) * bytes_per_s / size)
    return Source(
        name,
        lambda: audio.read_chunks(name, rate=rate, chunk_ms=chunk_ms),
        content_type,
        bytes_per_s,
        count,
    )


def _bytes_source(name: str, size: int) -> Source:
    if name == STDIN:
        return Source(name, lambda: _read(STDIN, size))
    path = Path(name)
    try:
        with path.open("rb"):
            total = path.stat().st_size
    except OSError as error:
        raise ClientError(
            f"the file {name!r} cannot be opened: {error.strerror}; expected a file that may be "
            "read, or '-' for standard input",
            path=name,
        ) from error
    return Source(name, lambda: _read(name, size), chunks=math.ceil(total / size))


def _read(name: str, size: int) -> Iterator[bytes]:
    """Chunks of `size` bytes, the last one shorter. Standard input is read as it comes."""
    descriptor = 0 if name == STDIN else os.open(name, os.O_RDONLY)
    try:
        pending = bytearray()
        while block := os.read(descriptor, size - len(pending)):
            pending += block
            if len(pending) == size:
                yield bytes(pending)
                pending.clear()
        if pending:
            yield bytes(pending)
    finally:
        if name != STDIN:
            os.close(descriptor)
