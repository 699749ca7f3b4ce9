"""The servers that other tests start: they come up, they say why when they do not, and they are gone afterwards."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from .servers import RunningServer, ServerDidNotStart, redis_server, respkv_server


def ask(server: RunningServer, request: bytes) -> bytes:
    with socket.create_connection((server.host, server.port), timeout=5) as client:
        client.sendall(request)
        return client.recv(4096)


def test_redis_comes_up_and_is_gone_afterwards() -> None:
    with redis_server("--databases", "4") as server:
        assert ask(server, b"SELECT 3\r\nSELECT 4\r\n").startswith(b"+OK\r\n-ERR")
        assert server.process.poll() is None
    assert server.process.poll() == 0
    assert not server.directory.exists()


def test_respkv_keeps_its_data_where_it_is_told(tmp_path: Path) -> None:
    for expected in (b"$-1\r\n", b"$5\r\nvalue\r\n"):
        with respkv_server(data_dir=tmp_path / "data") as server:
            assert ask(server, b"GET key\r\n") == expected
            assert ask(server, b"SET key value\r\n") == b"+OK\r\n"
        assert server.process.poll() == 0


def test_a_server_that_does_not_start_says_why() -> None:
    with (
        pytest.raises(ServerDidNotStart, match="nosuch-setting"),
        redis_server("--nosuch-setting", "1"),
    ):
        pass
