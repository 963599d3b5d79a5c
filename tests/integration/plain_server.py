"""A NATS client of a plain server."""

from __future__ import annotations

import subprocess
from pathlib import Path

from broker_pipeline.broker.embedded import find_server


def spawn_plain(directory: Path, *options: str) -> subprocess.Popen[bytes]:
    """A nats-server with these options, that writes its port into `directory`."""
    return subprocess.Popen(
        [
            find_server(),
            "-a",
            "127.0.0.1",
            "-p",
            "-1",
            "--ports_file_dir",
            str(directory),
            *options,
        ],
        stderr=subprocess.DEVNULL,
    )


def port_file(directory: Path) -> str:
    """What it has written, once it has."""
    return "".join(each.read_text() for each in directory.glob("*.ports"))
