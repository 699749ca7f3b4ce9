"""The tools' client: addresses, and a server that does not do what is hoped."""

from __future__ import annotations

import socket
import threading

import pytest

from respkv.tools.client import Address, Client, ClientError, parse_url


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", Address("h", 6379, 0)),
        ("redis://h:1/2", Address("h", 1, 2)),
        ("redis://:pa%40ss@[::1]:7/", Address("::1", 7, 0, "", "pa@ss")),
        ("redis://u:p@h/15", Address("h", 6379, 15, "u", "p")),
    ],
)
def test_urls(url: str, address: Address) -> None:
    assert parse_url(url) == address


@pytest.mark.parametrize(
    "url", ["", "h:1", "http://h", "redis://", "redis://h/x", "redis://h:x", "rediss://h"]
)
def test_wrong_urls(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_url(url)


def test_an_address_shows_no_password() -> None:
    assert str(parse_url("redis://u:secret@[::1]:7/3")) == "redis://[::1]:7/3"


def client_of(replies: bytes) -> Client:
    """A client of a server that says this, and then closes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        peer, _ = listener.accept()
        peer.recv(1 << 16)
        peer.sendall(replies)
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(1 << 16):
            pass
        peer.close()
        listener.close()

    threading.Thread(target=serve, daemon=True).start()
    return Client(Address("127.0.0.1", listener.getsockname()[1], 0), timeout_s=5)


def test_replies_come_in_order_and_errors_among_them() -> None:
    client = client_of(b"+OK\r\n:1\r\n-WRONGTYPE no\r\n$2\r\nhi\r\n")
    one, error, text = client.pipeline([("A",), ("B", b"x", 1), ("C",)])
    assert (one, text) == (1, b"hi")
    assert str(error) == "WRONGTYPE no"
    client.close()


def test_a_refusal_and_a_closed_connection_are_told() -> None:
    with pytest.raises(ClientError, match="refused SELECT: NOAUTH who"):
        client_of(b"-NOAUTH who\r\n")
    client = client_of(b"+OK\r\n")
    with pytest.raises(ClientError, match="closed the connection"):
        client.ask("PING")
    client.close()


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(ClientError, match=f"cannot connect to redis://127.0.0.1:{port}/0"):
        Client(Address("127.0.0.1", port, 0))
