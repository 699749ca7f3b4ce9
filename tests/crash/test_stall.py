"""A worker that is slow, or lost, holds up writes at most: reads go on, and nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash.server import Server
from tests.crash.workload import Connection, Writer, info

pytestmark = pytest.mark.timeout(180)

WAIT_S = 30.0


@pytest.fixture(params=["always", "everysec"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path, [f"log.fsync={request.param}", "memory.bytes_max=16MiB"])
    made.start()
    try:
        yield made
    finally:
        made.kill()


def start_writers(server: Server) -> list[Writer]:
    # Large values, so that flushes come soon.
    writers = [Writer(b"w%d" % n, random.Random(f"stall-{n}"), 20_000) for n in range(3)]
    for writer in writers:
        writer.start(server.port)
    return writers


def await_that(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it never happens"
        time.sleep(0.01)


def await_flushes(connection: Connection, count: int) -> None:
    await_that(lambda: int(info(connection)["flushes"]) >= count)


def stop_and_check(server: Server, writers: list[Writer]) -> None:
    for writer in writers:
        writer.stop()
    for writer in writers:
        writer.join()
    for _ in range(2):
        connection = Connection(server.port)
        for writer in writers:
            writer.check(connection)
        connection.close()
        server.kill()
        server.start()


def test_while_a_flush_hangs_writes_wait_and_reads_go_on(server: Server) -> None:
    connection = Connection(server.port)
    connection.ask(b"SET", b"key", b"value")
    writers = start_writers(server)
    await_that(lambda: server.worker_pid() is not None)
    worker = server.worker_pid()
    assert worker is not None
    os.kill(worker, signal.SIGSTOP)
    try:
        await_that(lambda: info(connection)["is_stalled"] == "1")
        time.sleep(0.2)
        before = sum(writer.acknowledged for writer in writers)
        cpu_s = server.cpu_s()
        time.sleep(1)
        assert connection.ask(b"GET", b"key") == b"value"
        assert sum(writer.acknowledged for writer in writers) == before, "writes do not wait"
        assert server.cpu_s() - cpu_s < 0.5, "it waits by running"
    finally:
        os.kill(worker, signal.SIGCONT)
    await_that(lambda: sum(writer.acknowledged for writer in writers) > before + 1000)
    assert int(info(connection)["stalls"]) > 0
    connection.close()
    stop_and_check(server, writers)


def test_a_worker_that_is_killed_is_replaced(server: Server) -> None:
    connection = Connection(server.port)
    writers = start_writers(server)
    for _ in range(3):
        await_that(lambda: server.job() != "")
        worker = server.worker_pid()
        if worker is not None:
            os.kill(worker, signal.SIGKILL)
        await_flushes(connection, int(info(connection)["flushes"]) + 2)
    assert int(info(connection)["worker_restarts"]) > 0
    connection.close()
    stop_and_check(server, writers)
    connection = Connection(server.port)
    names = {path.name for path in server.data_dir.iterdir()}
    assert not [name for name in names if name.endswith(".tmp")], "a lost job left something behind"
    connection.close()
