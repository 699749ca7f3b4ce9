"""The same scripts on a real Redis: so that what a test table expects is known to be Redis' answer.

Not the random comparison of whole servers (`tests/differential`).
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.differential.wire import Connection, Reply
from tests.servers import redis_server

needs_redis: Final = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="redis-server is not installed"
)


@contextlib.contextmanager
def redis() -> Iterator[Connection]:
    """A connection to a Redis of its own."""
    with redis_server() as server:
        connection = Connection(server.host, server.port, timeout_s=10)
        try:
            yield connection
        finally:
            connection.close()


def play(connection: Connection, script: str) -> Any:
    """As `harness.Server.play`, on an empty Redis."""
    connection.ask(b"FLUSHALL")
    reply = None
    for part in script.split(" ; "):
        reply = connection.ask(*(word.encode("latin-1") for word in shlex.split(part)))
    assert reply is not None
    return b"-" + reply.text if reply.is_error else plain(reply)


def plain(reply: Reply) -> Any:
    """A reply as nested lists, bytes and integers."""
    if isinstance(reply.value, list):
        return [plain(item) for item in reply.value]
    return int(reply.value) if reply.kind == ":" and reply.value is not None else reply.value
