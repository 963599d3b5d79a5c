"""Watch recorded speech become text, in order, through JetStream.

    python -m examples.transcribe.demo [--speed max|1.0] [--rooms N] [--stagger S] [FILE]
    python -m examples.transcribe.demo --servers 3 [--harm]

Starts a broker, controllers and workers, streams a recording in chunks of 100 ms, prints each text
as it comes, and sums up. Exit code 1, with the reason, if anything was lost, doubled or out of
order, or if more than 10 % of the words of the known recording are wrong; 2 for a file that is no
audio.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import soundfile

from broker_pipeline import Client, DataPackage, Instance, Outcome, Pipeline, connect
from examples.transcribe import report
from examples.transcribe.audio import CHUNK_MS, REFERENCE, bundled_recording, read_chunks
from examples.transcribe.pipeline import captions, remote, transcribe
from examples.transcribe.recogniser import EngineError
from examples.transcribe.report import Room
from examples.transcribe.stage import Servers, StageError, everything_up, servers_up

HERE = "examples.transcribe.pipeline"
RECOGNISER = f"{HERE}:Recognise"
HARM_AFTER = 3
"""Texts until module servers are harmed: in the middle of the recording."""
SILENT_S_MAX = 60.0
"""When nothing has left for so long, what is missing is lost."""


class Screen:
    """Texts and figures on stdout; on stderr progress, and on a terminal one passing line."""

    def __init__(self) -> None:
        self._width = shutil.get_terminal_size().columns if sys.stderr.isatty() else 0

    def line(self, text: str) -> None:
        """A line that stays."""
        self._passing("")
        print(text, flush=True)

    def note(self, text: str) -> None:
        """A line about the progress."""
        self._passing("")
        print(text, file=sys.stderr, flush=True)

    def caption(self, _: Room, package: DataPackage[Any]) -> None:
        """The text as far as it is known, dim, until the next line."""
        if package.outcome is Outcome.SUCCESS:
            self._passing(f"{package.instance}  ... {package.data}")

    def text(self, room: Room, package: DataPackage[Any]) -> None:
        """A text, with its latency."""
        if package.outcome is not Outcome.SUCCESS:
            return
        start, end = float(package.attributes["start_s"]), float(package.attributes["end_s"])
        behind = room.behind_s(package)
        latency = "   ?   " if behind is None else f"+{behind:.2f} s"
        self.line(f"{room.name:8} {start:5.1f} - {end:5.1f} s  {latency}  {package.data}")

    def _passing(self, text: str) -> None:
        if self._width:
            fits = text[-(self._width - 1) :]
            sys.stderr.write(f"\r\x1b[2K\x1b[2m{fits}\x1b[0m")
            sys.stderr.flush()


class Talk:
    """A recording that is spoken into one instance, and what leaves it."""

    def __init__(
        self, client: Client, pipeline: Pipeline, name: str, show: Callable[[Room, Any], None]
    ) -> None:
        self.room = Room(name)
        self._client = client
        self._pipeline = pipeline
        self._show = show

    async def run(self, file: Path, speed: float | None, delay_s: float) -> None:
        """Speak from `delay_s` on, at `speed` (None: as fast as it goes), until all has left."""
        await asyncio.sleep(delay_s)
        async with (
            self._client.instance(self._pipeline, self.room.name) as instance,
            asyncio.TaskGroup() as group,
        ):
            speaking = self._speak(instance, file, speed)
            speaker = group.create_task(speaking, name=f"speak to {self.room.name}")
            group.create_task(self._listen(instance, speaker), name=f"hear {self.room.name}")

    async def _speak(self, instance: Instance, file: Path, speed: float | None) -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        for number, chunk in enumerate(read_chunks(file), start=1):
            # A microphone gives a chunk when its time is over.
            due = begin + (number * CHUNK_MS / 1000 / speed if speed else 0)
            await asyncio.sleep(max(0.0, due - loop.time()))
            await instance.send(chunk)
            self.room.sent += 1
        await instance.close()

    async def _listen(self, instance: Instance, speaker: asyncio.Task[None]) -> None:
        """Take what leaves, to the end, which is known once the speaker has closed."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(SILENT_S_MAX) as patience:
                async for package in instance.results():
                    patience.reschedule(loop.time() + SILENT_S_MAX)
                    self.room.take(package)
                    self._show(self.room, package)
        except TimeoutError:
            speaker.cancel()


def harming(servers: Servers, show: Callable[[Room, Any], None]) -> Callable[[Room, Any], None]:
    """Show texts, and harm two module servers once some have come."""
    texts = 0

    def shown(room: Room, package: DataPackage[Any]) -> None:
        nonlocal texts
        show(room, package)
        if package.outcome is Outcome.SUCCESS:
            texts += 1
            if texts == HARM_AFTER:
                servers.harm()

    return shown


async def run(arguments: argparse.Namespace, file: Path, reference: str | None) -> int:
    """The whole demo; its exit code."""
    screen = Screen()
    loop = asyncio.get_running_loop()
    alone = arguments.rooms == 1 and not arguments.servers
    pipeline, name = (remote, "remote") if arguments.servers else (transcribe, "transcribe")
    targets = [f"{HERE}:{name}", *([f"{HERE}:captions"] if alone else [])]
    begun = loop.time()
    screen.note("starting nats-server, controllers and workers ...")
    async with (
        everything_up(targets, screen.note) as url,
        servers_up(url, RECOGNISER, arguments.servers, screen.note) as servers,
        connect(url) as client,
    ):
        screen.note(f"ready after {loop.time() - begun:.1f} s at {url}; streaming {file.name}")
        show = harming(servers, screen.text) if arguments.harm else screen.text
        names = [f"room-{number}" for number in range(1, arguments.rooms + 1)]
        talks = [Talk(client, pipeline, name, show) for name in names]
        beside = [Talk(client, captions, name, screen.caption) for name in names if alone]
        begun = loop.time()
        async with asyncio.TaskGroup() as group:
            for number, talk in enumerate([*talks, *beside]):
                delay = 0.0 if alone else number * arguments.stagger
                group.create_task(
                    talk.run(file, arguments.speed, delay), name=f"talk {talk.room.name}"
                )
        screen.note(f"all has left after {loop.time() - begun:.1f} s")
    rooms = [talk.room for talk in talks]
    partial = beside[0].room if beside else None
    screen.line("")
    for line in report.summary(rooms, partial, reference):
        screen.line(line)
    faults = report.faults(rooms, partial, reference)
    for fault in faults:
        screen.note(f"FAILED: {fault}")
    return 1 if faults else 0


def _number(text: str, low: float, high: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not low <= number <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from {low:g} to {high:g}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.transcribe.demo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", nargs="?", type=Path, help="audio (default: A Tale of Two Cities)")
    parser.add_argument(
        "--speed",
        type=lambda text: None if text == "max" else _number(text, 0.01, 1000),
        default=1.0,
        help="1.0 is real time; max is as fast as it goes",
    )
    parser.add_argument(
        "--rooms",
        type=lambda text: int(_number(text, 1, 1000)),
        default=1,
        help="so many instances at once; captions are given for one room only",
    )
    parser.add_argument(
        "--stagger",
        type=lambda text: _number(text, 0, 3600),
        default=1.0,
        help="seconds from the start of a room to the next one's",
    )
    parser.add_argument(
        "--servers",
        type=lambda text: int(_number(text, 0, 100)),
        default=0,
        help="recognise in so many module servers, behind gRPC; without captions",
    )
    parser.add_argument(
        "--harm",
        action="store_true",
        help="kill one module server and stop another in the middle (with --servers 3 or more)",
    )
    return parser


def _first(error: Exception) -> Exception:
    return _first(error.exceptions[0]) if isinstance(error, ExceptionGroup) else error


def main() -> int:
    """Read the command line and run."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.harm and arguments.servers < 3:
        parser.error("--harm takes two module servers away; give it --servers 3 or more")
    try:
        file = arguments.file or bundled_recording()
        next(read_chunks(file))
        reference = None if arguments.file else REFERENCE.read_text()
        return asyncio.run(run(arguments, file, reference))
    except (OSError, soundfile.LibsndfileError, EngineError) as error:
        print(f"{arguments.file or 'the demo'}: {error}", file=sys.stderr)
        return 2
    except StageError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    except ExceptionGroup as errors:
        print(f"FAILED: {_first(errors)!r}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
