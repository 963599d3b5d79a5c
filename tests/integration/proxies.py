"""The proxies as they are shipped in infra/, before echo servers: for tests and benchmarks."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc

from broker_pipeline._proto.v1 import module_service_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2_grpc as stubs

ROOT = Path(__file__).parents[2]
FILES = {
    "nginx": "infra/nginx/module-servers.conf",
    "haproxy": "infra/haproxy/module-servers.cfg",
    "envoy": "infra/envoy/module-servers.yaml",
}
SERVERS = 3
"""As many stand in the files."""
BOUND_S = 30.0


Edit = Callable[[str], str]
"""What a test changes in a shipped file."""


def find(name: str) -> str | None:
    """The program, on the path or where Debian and PyPI put it."""
    folders = [os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", f"{sys.prefix}/bin"]
    return shutil.which(name, path=os.pathsep.join(folders))


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class EchoServer:
    """tests/integration/echo_server.py as a process."""

    def __init__(self, port: int = 0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.echo_server", "--port", str(port)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.name = f"echo-{self.port}"
        self.address = f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self.process.kill()
        with self.process:
            self.process.wait(BOUND_S)


@contextmanager
def echo_servers() -> Iterator[list[EchoServer]]:
    """So many servers; whoever kills one puts another into its place in the list."""
    servers = [EchoServer() for _ in range(SERVERS)]
    try:
        yield servers
    finally:
        for server in servers:
            server.kill()


def local_copy(
    name: str, directory: Path, ports: Sequence[int], edit: Edit = str
) -> tuple[Path, int]:
    """The shipped file with other ports, and edited; gives the proxy's port, too."""
    text = edit((ROOT / FILES[name]).read_text())
    port = free_port()
    places = {
        50060: port,
        9901: free_port(),
        **dict(zip((50061, 50062, 50063), ports, strict=True)),
    }
    # In one go: a free port may hold the digits of a shipped one.
    shipped = "|".join(map(str, places))
    text = re.sub(shipped, lambda found: str(places[int(found[0])]), text)
    if name == "nginx":  # what Debian's build would keep under /run and /var
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
        text = text.replace("http {", f"http {{ {paths}")
        text = f"daemon off; pid {directory}/nginx.pid; error_log stderr;\n{text}"
    path = directory / Path(FILES[name]).name
    path.write_text(text)
    return path, port


def command(name: str, path: Path, *, check: bool = False) -> list[str]:
    """What runs a proxy with this file, or has it check the file."""
    program = find(name)
    assert program is not None
    if name == "nginx":
        # -e: the log that it opens before it has read the file.
        return [program, "-e", "stderr", "-p", str(path.parent), *["-t"] * check, "-c", str(path)]
    if name == "haproxy":
        return [program, *["-c"] * check, "-f", str(path)]
    several = ["--use-dynamic-base-id", "--log-level", "warning", "--concurrency", "2"]
    return [program, *several, *["--mode", "validate"] * check, "-c", str(path)]


@contextmanager
def running(
    name: str,
    directory: Path,
    ports: Sequence[int],
    *,
    edit: Edit = str,
    credentials: grpc.ChannelCredentials | None = None,
) -> Iterator[str]:
    """A proxy before servers at these ports; gives its address when it passes calls on."""
    path, port = local_copy(name, directory, ports, edit)
    address = f"127.0.0.1:{port}"
    log = path.with_suffix(".log")
    with log.open("w") as lines:
        process = subprocess.Popen(command(name, path), stdout=lines, stderr=lines)
    try:
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 50)]
        if credentials is None:
            opened = grpc.insecure_channel(address, options=options)
        else:
            opened = grpc.secure_channel(address, credentials, options=options)
        with opened as channel:
            stub = stubs.ModuleServiceStub(channel)  # type: ignore[no-untyped-call]
            stub.Describe(pb.DescribeRequest(), wait_for_ready=True, timeout=BOUND_S)
        yield address
    except grpc.RpcError as error:
        raise AssertionError(f"{name} did not begin: {log.read_text()[-2000:]}") from error
    finally:
        process.terminate()
        process.wait(BOUND_S)
