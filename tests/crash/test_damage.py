"""A damaged table costs what is in it, in words, and not the server."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.crash.server import Server
from tests.crash.workload import Connection, Refused, info

COUNT = 400


def test_a_damaged_block_is_an_error_for_those_who_read_it(tmp_path: Path) -> None:
    server = Server(tmp_path, ["storage.compression=none"])
    server.start()
    try:
        connection = Connection(server.port)
        for number in range(COUNT):
            connection.ask(b"SET", b"key%d" % number, b"value%d;" % number * 20)
        connection.ask(b"BGSAVE")
        deadline = time.monotonic() + 20
        while info(connection)["flushes"] == "0":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        connection.close()
        server.kill()
        (table,) = server.data_dir.glob("*.sst")
        data = bytearray(table.read_bytes())
        data[data.index(b"value7;")] ^= 1
        table.write_bytes(data)
        server.start()
        connection = Connection(server.port)
        assert connection.ask(b"PING") == b"PONG"
        for _ in range(2):
            with pytest.raises(
                Refused, match=rf"^ERR the data cannot be read: {table.name} is damaged"
            ):
                connection.ask(b"GET", b"key7")
        with pytest.raises(Refused, match="is damaged at offset"):
            connection.ask(b"MGET", b"key8", b"key7")
        # A blind write needs nothing of it.
        assert connection.ask(b"SET", b"key7", b"new") == b"OK"
        assert connection.ask(b"GET", b"key7") == b"new"
        intact = 0
        for number in range(COUNT):
            try:
                connection.ask(b"GET", b"key%d" % number)
                intact += 1
            except Refused:
                continue
        assert COUNT * 0.8 < intact < COUNT
        connection.close()
    finally:
        server.kill()


def test_a_table_that_cannot_be_opened_costs_what_it_held(tmp_path: Path) -> None:
    server = Server(tmp_path, [])
    server.start()
    try:
        connection = Connection(server.port)
        for number in range(COUNT):
            connection.ask(b"SET", b"key%d" % number, b"value")
        connection.ask(b"BGSAVE")
        deadline = time.monotonic() + 20
        while info(connection)["flushes"] == "0":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        connection.close()
        server.kill()
        (table,) = server.data_dir.glob("*.sst")
        data = bytearray(table.read_bytes())
        data[-30] ^= 1
        table.write_bytes(data)
        server.start()
        connection = Connection(server.port)
        with pytest.raises(Refused, match=rf"it may have stood in {table.name}, which is damaged"):
            connection.ask(b"GET", b"key7")
        assert connection.ask(b"SET", b"new", b"v") == b"OK"
        assert connection.ask(b"GET", b"new") == b"v"
        assert info(connection)["damages"] == "1"
        assert connection.ask(b"KV.DAMAGE", b"ACCEPT") == 1
        assert connection.ask(b"GET", b"key7") is None
        assert connection.ask(b"GET", b"new") == b"v"
        connection.close()
    finally:
        server.kill()
