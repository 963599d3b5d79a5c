"""Real nats-servers, one or a cluster of three, that can be killed and paused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

from broker_pipeline.broker import _guardian
from broker_pipeline.broker.embedded import find_server

START_TIMEOUT_S = 20.0
POLL_S = 0.02
_CONFIG = """\
server_name: "{name}"
listen: "127.0.0.1:{port}"
http: "127.0.0.1:{monitor}"
ping_interval: "5s"
ping_max: 2
feature_flags {{ js_ack_fc_v2: false }}
jetstream {{
  store_dir: {directory}
  sync_interval: "1s"
  limits {{ default_max_consumers: -1 }}
}}
"""
# Without `no_advertise` clients learn the servers' own addresses, and go round the proxies.
_CLUSTER = """\
cluster {{
  name: bp
  listen: "127.0.0.1:{port}"
  no_advertise: true
  routes: [{routes}]
}}
"""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


class Server:
    """One nats-server on a store of its own; it ends with this process, however that ends."""

    def __init__(self, directory: Path, name: str, cluster: str = "") -> None:
        self.name = name
        self.port = free_port()
        self.monitor = free_port()
        self.pid = 0
        self._directory = directory / name
        self._cluster = cluster
        self._guardian: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; returns when it accepts connections."""
        self._directory.mkdir(parents=True, exist_ok=True)
        config = self._directory / "nats-server.conf"
        store = json.dumps(str(self._directory))
        config.write_text(
            _CONFIG.format(name=self.name, port=self.port, monitor=self.monitor, directory=store)
            + self._cluster
        )
        with (self._directory / "log").open("ab") as log:
            self._guardian = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", _guardian.__file__, str(os.getpid()), "5"),
                *(find_server(), "--config", str(config)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self._guardian.stdout is not None
        self.pid = int(await self._guardian.stdout.readline())
        async with asyncio.timeout(START_TIMEOUT_S):
            while not await self.answers():  # noqa: ASYNC110 - other processes bring it about
                await asyncio.sleep(POLL_S)

    async def answers(self, path: str = "/healthz?js-enabled-only=true") -> bool:
        """Whether its monitoring says that it is well."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.monitor)
        except OSError:
            return False
        try:
            writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            return b" 200 " in await reader.readline()
        except OSError:
            return False
        finally:
            writer.close()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it and wait for its end."""
        guardian, self._guardian = self._guardian, None
        if guardian is None:
            return
        self.send(signal.SIGCONT)
        self.send(number)
        await guardian.wait()
        self.pid = 0


class Servers:
    """One server, or three that keep everything three times."""

    def __init__(self, directory: Path, replicas: int) -> None:
        self.replicas = replicas
        routes = [free_port() for _ in range(replicas)]
        listed = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
        self.all = [
            Server(
                directory,
                f"s{number}",
                _CLUSTER.format(port=port, routes=listed) if replicas > 1 else "",
            )
            for number, port in enumerate(routes, 1)
        ]

    @property
    def url(self) -> str:
        """All addresses, without any proxy."""
        return ",".join(f"nats://127.0.0.1:{server.port}" for server in self.all)

    async def start(self) -> None:
        """Start all; returns when JetStream is ready on all."""
        await asyncio.gather(*(server.start() for server in self.all))
        async with asyncio.timeout(START_TIMEOUT_S):
            for server in self.all:
                while not await server.answers("/healthz"):  # noqa: ASYNC110 - other processes bring it about
                    await asyncio.sleep(POLL_S)

    async def end(self) -> None:
        """End all."""
        await asyncio.gather(*(server.end() for server in self.all))
