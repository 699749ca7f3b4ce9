"""What a client may be told, and what clients do against a server."""

import contextlib
import random
import socket
import threading
from collections.abc import Iterator

import hiredis

from bench.connection import Address
from bench.failover_clients import Clients, Session


def session() -> Session:
    return Session(3, random.Random(1))


def test_a_read_answers_what_was_acknowledged_last() -> None:
    one = session()
    one.written(b"k", b"1")
    one.written(b"k", b"2")
    assert one.may_be(b"k", b"2")
    assert not one.may_be(b"k", b"1")
    assert not one.may_be(b"k", None)


def test_a_write_that_failed_may_have_happened() -> None:
    one = session()
    one.written(b"k", b"1")
    one.write_failed(b"k", b"2")
    assert one.may_be(b"k", b"1")
    assert one.may_be(b"k", b"2")
    one.written(b"k", b"3")
    assert not one.may_be(b"k", b"2")


def test_a_key_whose_only_write_failed_may_be_absent() -> None:
    one = session()
    one.write_failed(b"k", b"1")
    assert one.may_be(b"k", None)
    assert one.next_read() == b"k"


def test_values_are_never_written_twice() -> None:
    one = session()
    writes = [one.next_write() for _ in range(500)]
    assert len({value for _, value in writes}) == 500
    assert len({name for name, _ in writes}) < 500


@contextlib.contextmanager
def store(*, forgets: bool = False, refuses: bool = False) -> Iterator[Address]:
    """A server that keeps what it is given, or forgets it, or refuses to write."""
    data: dict[bytes, bytes] = {}

    def answer(words: list[bytes]) -> bytes:
        if words[0] == b"SET":
            if refuses:
                return b"-NOREPLICAS no\r\n"
            if not forgets:
                data[words[1]] = words[2]
            return b"+OK\r\n"
        if words[0] == b"GET":
            value = data.get(words[1])
            return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)
        return b"-ERR unknown command\r\n"  # redis-py asks about itself, and takes a refusal.

    def serve_one(connection: socket.socket) -> None:
        reader = hiredis.Reader()
        with connection, contextlib.suppress(OSError):
            while received := connection.recv(1 << 16):
                reader.feed(received)
                while (words := reader.gets()) is not False:
                    connection.sendall(answer(words))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve_one, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()


def run(address: Address) -> tuple[Clients, list[int]]:
    clients = Clients([address], 4)
    middle: list[int] = []
    clients.run(400, lambda: middle.append(len(clients.seen.operations)))
    clients.close()
    return clients, middle


def test_clients_do_their_share_and_the_middle_is_told() -> None:
    with store() as address:
        clients, middle = run(address)
        assert 200 <= middle[0] < 400
        assert len(clients.seen.operations) == 400
        assert sum(each.is_write for each in clients.seen.operations) == 200
        assert clients.seen.errors == {}
        assert clients.seen.wrong == []
        further = clients.write_further(10)
        clients.close()
    assert len(further) == 10
    assert clients.values()[b"further:9"] == b"value:9"
    assert len(clients.seen.operations) == 400


def test_a_store_that_forgets_is_found_out() -> None:
    with store(forgets=True) as address:
        clients, _ = run(address)
    assert clients.seen.errors == {}
    assert len(clients.seen.wrong) == 200


def test_refused_writes_are_errors_and_hold_nothing() -> None:
    with store(refuses=True) as address:
        clients, _ = run(address)
    assert clients.seen.errors.total() == 200
    assert clients.seen.wrong == []
    assert clients.values() == {}


def test_a_server_that_is_gone_is_an_error_and_no_retry() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    clients, _ = run(address)
    assert clients.seen.errors.total() == 400
