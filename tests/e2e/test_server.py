"""The server as a process: how it starts, what it says, how it ends, and what it refuses to start on.

What it does with sockets in between is `tests/respkv/test_front.py`; that nothing is lost when it is killed is
`tests/crash`. Every process and socket has a time limit.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from bench.ports import free_port
from tests.servers import HOST, RunningServer, respkv_server

PATIENCE_S = 20.0
REPOSITORY = Path(__file__).resolve().parent.parent.parent


def serve(*args: str) -> subprocess.CompletedProcess[str]:
    """Run `respkv serve` until it ends by itself."""
    command = [sys.executable, "-m", "respkv", "serve", *args]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, cwd=REPOSITORY, check=False
    )


@contextlib.contextmanager
def connect(server: RunningServer) -> Iterator[socket.socket]:
    with socket.create_connection((server.host, server.port), timeout=PATIENCE_S) as client:
        yield client


def ask(client: socket.socket, command: bytes) -> bytes:
    """The one line that answers a command."""
    client.sendall(command + b"\r\n")
    line = b""
    while not line.endswith(b"\r\n"):
        data = client.recv(4096)
        assert data, "closed"
        line += data
    return line[:-2]


def rest(client: socket.socket) -> bytes:
    """Everything until the server closes."""
    received = bytearray()
    while data := client.recv(1 << 20):
        received += data
    return bytes(received)


def ended(server: RunningServer) -> int:
    return server.process.wait(PATIENCE_S)


# Starting


def test_it_says_ready_on_standard_error_once_it_serves(tmp_path: Path) -> None:
    port = free_port()
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "respkv", "serve", "--port", str(port),
                "--data-dir", str(tmp_path / "data"),
            ],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, cwd=REPOSITORY,
        )  # fmt: skip
        try:
            assert process.stderr is not None
            os.set_blocking(process.stderr.fileno(), False)
            said = b""
            deadline = time.monotonic() + PATIENCE_S
            while b"ready " not in said and time.monotonic() < deadline:
                said += process.stderr.read() or b""
                time.sleep(0.01)
            assert f"ready {HOST}:{port}\n".encode() in said
            with socket.create_connection((HOST, port), timeout=PATIENCE_S) as client:
                assert ask(client, b"PING") == b"+PONG"
        finally:
            process.terminate()
            assert process.wait(PATIENCE_S) == 0
            assert process.stderr is not None
            process.stderr.close()
    assert (tmp_path / "out").read_bytes() == b""


def test_a_folder_has_one_process(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with respkv_server(data_dir=data) as server:
        second = serve("--port", str(free_port()), "--data-dir", str(data))
        assert second.returncode == 1
        lines = second.stderr.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("respkv: the data folder is in use")
        assert f"process {server.process.pid} " in lines[0]
        with connect(server) as client:
            assert ask(client, b"PING") == b"+PONG"


def test_a_port_has_one_process(tmp_path: Path) -> None:
    with respkv_server() as server:
        second = serve("--port", str(server.port), "--data-dir", str(tmp_path / "data"))
        assert second.returncode == 1
        last = second.stderr.splitlines()[-1]
        assert last.startswith("respkv: cannot listen: ")
        assert "in use" in last
        assert "Traceback" not in second.stderr
        with connect(server) as client:
            assert ask(client, b"PING") == b"+PONG"
    # Nothing is left that would keep the folder from being used.
    with respkv_server(data_dir=tmp_path / "data") as server, connect(server) as client:
        assert ask(client, b"PING") == b"+PONG"


def test_a_unix_socket_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    command = [
        sys.executable,
        "-m",
        "respkv",
        "serve",
        "--port",
        "0",
        "--data-dir",
        str(tmp_path / "data"),
    ]
    command += ["--set", f"client.unix_socket={path}"]
    with (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=err, stderr=err, cwd=REPOSITORY
        )
        try:
            deadline = time.monotonic() + PATIENCE_S
            while f"ready unix:{path}\n" not in (tmp_path / "err").read_text():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE_S)
                client.connect(str(path))
                assert ask(client, b"PING") == b"+PONG"
        finally:
            process.terminate()
            assert process.wait(PATIENCE_S) == 0
    assert not path.exists()


# Stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_replies_are_sent(number: signal.Signals) -> None:
    with respkv_server() as server, connect(server) as client, connect(server) as idle:
        assert ask(idle, b"PING") == b"+PONG"
        value = random.Random(1).randbytes(4 << 20)
        client.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n%b\r\n" % (len(value), value))
        assert client.recv(5) == b"+OK\r\n"
        client.sendall(b"GET k\r\nGET k\r\n")
        head = b"$%d\r\n" % len(value)
        received = client.recv(len(head))  # They are on their way: more than the kernel takes.
        server.process.send_signal(number)
        time.sleep(0.2)
        received += rest(client)
        assert received == 2 * (head + value + b"\r\n")
        assert rest(idle) == b""
        assert ended(server) == 0
        assert "Traceback" not in server.stderr()


@pytest.mark.parametrize("words", [b"SHUTDOWN", b"SHUTDOWN NOSAVE", b"SHUTDOWN NOW"])
def test_shutdown(words: bytes, tmp_path: Path) -> None:
    with respkv_server(data_dir=tmp_path / "data") as server, connect(server) as client:
        assert ask(client, b"SET k v") == b"+OK"
        client.sendall(words + b"\r\n")
        assert rest(client) == b""
        assert ended(server) == 0
    with respkv_server(data_dir=tmp_path / "data") as server, connect(server) as client:
        client.sendall(b"GET k\r\n")
        assert client.recv(100) == b"$1\r\nv\r\n"


def test_a_stop_while_clients_go_on_sending() -> None:
    with respkv_server() as server, connect(server) as client:
        assert ask(client, b"PING") == b"+PONG"
        server.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(ConnectionError):
            deadline = time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline:
                client.sendall(b"PING\r\n" * 100)
                if not client.recv(1 << 16):
                    break
        assert ended(server) == 0


# Clients that are no good


def test_it_survives_noise() -> None:
    """Whatever comes, others are served, and it is neither an endless loop nor the end."""
    rng = random.Random(7)
    beginnings = [
        b"",
        b"*3\r\n$3\r\nSET\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"*-1\r\n",
        b"$5\r\n",
        b"\r\n\r\n",
        b'"',
    ]
    with respkv_server() as server, connect(server) as good:
        for _ in range(150):
            data = rng.choice(beginnings) + rng.randbytes(rng.randrange(200))
            with connect(server) as bad:
                bad.sendall(data)
                if rng.random() < 0.5:
                    bad.shutdown(socket.SHUT_WR)
                    with contextlib.suppress(ConnectionError):
                        rest(bad)
            assert ask(good, b"PING") == b"+PONG"
        used_s = _cpu_s(server.process.pid)
        time.sleep(0.3)
        assert _cpu_s(server.process.pid) - used_s < 0.15
        assert server.process.poll() is None


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_memory_stays_small_when_nobody_reads() -> None:
    """Eight clients ask for 64 times a mebibyte each, and send a lot besides."""
    with respkv_server() as server, contextlib.ExitStack() as stack:
        with connect(server) as client:
            client.sendall(
                b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n%b\r\n" % (1 << 20, bytes(1 << 20))
            )
            assert client.recv(5) == b"+OK\r\n"
        before = _resident_bytes(server.process.pid)
        for _ in range(8):
            greedy = stack.enter_context(connect(server))
            greedy.sendall(b"GET k\r\n" * 64 + b"PING\r\n" * 50_000)
        with connect(server) as client:
            for _ in range(50):
                assert ask(client, b"PING") == b"+PONG"
                time.sleep(0.01)
        assert _resident_bytes(server.process.pid) - before < 64 << 20


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_compaction_with_a_small_budget_does_not_hold_up_writes() -> None:
    """It would take days. Writes that have to wait for it have it hurry."""
    settings = ["memory.bytes_max=16MiB", "storage.compaction_bytes_per_s=1"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    with (
        respkv_server(*arguments) as server,
        redis.Redis(server.host, server.port, socket_timeout=PATIENCE_S) as client,
    ):
        deadline_s = time.monotonic() + 3 * PATIENCE_S
        number = 0
        while not client.info("respkv")["compactions"]:
            assert time.monotonic() < deadline_s, client.info("respkv")
            pipeline = client.pipeline(transaction=False)
            for _ in range(200):
                number += 1
                pipeline.set(f"{number * 7919 % 100_000}", os.urandom(10_000))
            assert all(pipeline.execute())
        assert client.info("respkv")["flushes"] > 8
