"""Listeners with real sockets: which addresses are listened on, and who is let in."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel

from respkv.listener import PROTECTED, TOO_MANY_CLIENTS, _is_loopback, _shown
from tests.respkv.serving import TestNode, connect, encode, make_node, serving, until

PING = encode(b"PING")


# Listening


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
async def test_several_addresses_share_a_port(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    settings = {"client.hosts": ("127.0.0.1", "::1"), "client.unix_socket": path}
    node = make_node(tmp_path, settings)
    port = node.front.listeners.listen_tcp("127.0.0.1", 0, 5)
    node.front.stop_listening()
    node.store.close()
    node.disk.close()
    async with serving(tmp_path, {**settings, "client.port": port}) as node:
        for host in ("127.0.0.1", "::1"):
            client = await connect(node, host=host)
            assert await client.ask(PING) == b"PONG"
            line = await client.ask(encode(b"CLIENT", b"INFO"))
            shown = f"[{host}]" if ":" in host else host
            assert f" laddr={shown}:{port} " in line.decode()
        client = await connect(node, path=path)
        assert await client.ask(PING) == b"PONG"
        assert f" addr={path}:0 " in (await client.ask(encode(b"CLIENT", b"INFO"))).decode()
    assert not (tmp_path / "socket").exists()


async def test_a_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(path)
    stale.close()
    async with serving(
        tmp_path, {"client.unix_socket": path, "client.unix_socket_mode": "750"}
    ) as node:
        client = await connect(node, path=path)
        assert await client.ask(PING) == b"PONG"
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o750


async def test_a_path_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    file = tmp_path / "precious"
    file.write_text("data")
    with pytest.raises(OSError, match="is there, and is no socket"):
        node.front.listeners.listen_unix(str(file), "", 5)
    assert file.read_text() == "data"
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        with pytest.raises(OSError, match="is in use"):
            node.front.listeners.listen_unix(path, "", 5)
    node.store.close()


async def test_a_port_that_is_taken(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OSError, match="in use"):
            node.front.listeners.listen_tcp("127.0.0.1", other.getsockname()[1], 5)
    node.store.close()


# Who is let in


class OneClient:
    """A listener that accepts one client from wherever a test says, or fails."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)

    def accept(self) -> Any:
        outcome = self.outcomes.pop(0) if self.outcomes else BlockingIOError()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def getsockname(self) -> Any:
        return ("192.0.2.9", 6379)

    def fileno(self) -> int:
        return -1


def accepted_from(node: TestNode, host: str) -> bytes:
    """What a client of that address hears at once. The sockets are TCP on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.settimeout(0.2)
    node.front.listeners.accept(OneClient((theirs, (host, 1234))))  # type: ignore[arg-type]
    try:
        return ours.recv(4096)
    except TimeoutError:
        return b""
    finally:
        ours.close()


async def test_protected_mode(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    assert accepted_from(node, "192.0.2.1") == PROTECTED
    assert PROTECTED.startswith(b"-DENIED ")
    assert PROTECTED.endswith(b"\r\n")
    assert PROTECTED.count(b"\n") == 1
    for host in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
        assert accepted_from(node, host) == b"", host
    node.config.client.protected_mode = False
    assert accepted_from(node, "192.0.2.1") == b""
    node.config.client.protected_mode = True
    node.config.client.requirepass = "secret"
    assert accepted_from(node, "192.0.2.1") == b""
    assert node.front.listeners.rejected_total == 1
    node.front.close_all()
    node.store.close()


async def test_no_more_clients_than_allowed(tmp_path: Path) -> None:
    async with serving(tmp_path, {"client.clients_max": 2}) as node:
        one, two = await connect(node), await connect(node)
        three = await connect(node)
        assert await three.rest() == TOO_MANY_CLIENTS
        assert node.front.listeners.rejected_total == 1
        two.close()
        await until(lambda: len(node.front.connections) == 1)
        four = await connect(node)
        assert await four.ask(PING) == await one.ask(PING) == b"PONG"


async def test_no_descriptors_left(tmp_path: Path) -> None:
    """The listeners rest until the next second: the epoll set would report them without end."""
    async with serving(tmp_path) as node:
        client = await connect(node)
        front = node.front
        listener = OneClient(OSError(errno.ECONNABORTED, "gone"), OSError(errno.EMFILE, "full"))
        front.listeners.accept(listener)  # type: ignore[arg-type]
        assert listener.outcomes == []  # One client that has gone is no reason to rest.
        waiting = await trio.open_tcp_stream("127.0.0.1", node.ready_port)
        await waiting.send_all(PING)
        ticks = front.ticks_total
        assert await client.ask(PING) == b"PONG"
        assert front.ticks_total < ticks + 50
        assert len(front.connections) == 1
        front.check_clients()
        with trio.fail_after(10):
            assert await waiting.receive_some() == b"+PONG\r\n"
        await waiting.aclose()


def test_addresses_as_clients_see_them() -> None:
    assert _shown(("127.0.0.1", 6379)) == "127.0.0.1:6379"
    assert _shown(("::1", 6379, 0, 0)) == "[::1]:6379"
    assert _is_loopback("127.1.2.3")
    assert not _is_loopback("10.127.0.1")
