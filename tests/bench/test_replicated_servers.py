"""How three servers are described, started and asked."""

import tomllib
from pathlib import Path

import hiredis
import pytest

from bench import replicated_servers
from bench.connection import ConnectionEnded
from bench.replicated_servers import (
    Member,
    ask,
    cluster_toml,
    read_route,
    wait_until_serving,
)
from bench.server import ServerNotReady
from tests.bench.scripted_server import scripted


def test_the_file_of_a_cluster() -> None:
    members = [Member("a", 7001, Path("/data/a")), Member("b", 7002, Path("/data/b"))]
    document = tomllib.loads(cluster_toml(members))
    assert document["cluster"] == {"name": "bench", "n": 3, "r": 2, "w": 2}
    assert document["log"] == {"fsync": "everysec"}
    assert document["node"][1] == {
        "name": "b",
        "host": "127.0.0.1",
        "port": 7002,
        "data_dir": "/data/b",
    }


def test_the_cluster_port_is_a_hundred_above() -> None:
    assert Member("a", 7001, Path()).cluster_address == ("127.0.0.1", 7101)


def test_nested_replies_and_errors() -> None:
    with scripted([b"*2\r\n*1\r\n:5\r\n", b"$1\r\nx\r\n"], closes=False) as address:
        assert ask(address, b"X") == [[5], b"x"]
    with scripted([b"-ERR no\r\n"], closes=False) as address:
        assert isinstance(ask(address, b"X"), hiredis.ReplyError)
    with scripted([b"*2\r\n"], closes=True) as address, pytest.raises(ConnectionEnded):
        ask(address, b"X")


def test_a_route_is_read_from_a_cluster_port() -> None:
    reply = b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\nlocalhost\r\n:7101\r\n"
    with scripted([reply], closes=False) as address:
        (one,) = read_route(address)
    assert one.address == ("localhost", 7101)


def test_a_cluster_that_refuses_writes_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicated_servers, "FORM_WAIT_S", 0.2)
    monkeypatch.setattr(replicated_servers, "ANSWER_WAIT_S", 0.1)
    with (
        scripted([b"-NOREPLICAS no\r\n"], closes=True) as address,
        pytest.raises(ServerNotReady, match="the cluster"),
    ):
        wait_until_serving(address)
