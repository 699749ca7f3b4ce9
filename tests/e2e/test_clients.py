"""Real clients against a real node: redis-py, redis-cli, redis-benchmark, ioredis, node-redis, unchanged.

Not what single commands answer (`tests/respkv`), nor whether it is what Redis answers
(`tests/differential`): what these clients send on their own, at connect, for hints, for completion,
must be understood. Every process has a time limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.cache import CacheConfig

from tests.servers import RunningServer, respkv_server

NODE_FOLDER = Path(__file__).parent / "node"
COMMAND_S = 30
BENCHMARK_S = 60
INSTALL_S = 300
ESCAPES = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")
PROTOCOLS = pytest.mark.parametrize("protocol", [2, 3])


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with respkv_server() as running:
        yield running


@pytest.fixture(autouse=True)
def _empty(server: RunningServer) -> None:
    with connect(server) as client:
        client.flushall()


@contextlib.contextmanager
def connect(server: RunningServer, **options: Any) -> Iterator[Any]:
    """A redis-py client. Any: its methods' types mix synchronous and asynchronous results."""
    client = redis.Redis(
        host=server.host, port=server.port, socket_timeout=10, decode_responses=True, **options
    )
    try:
        yield client
    finally:
        client.close()


def calls(client: Any, command: str) -> int:
    """How often the server has run a command."""
    return int(client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


# redis-py


@PROTOCOLS
def test_redis_py(server: RunningServer, protocol: int) -> None:
    with connect(server, protocol=protocol, client_name="tester") as client:
        assert client.ping()
        assert client.client_info()["name"] == "tester"
        assert client.client_info()["resp"] == str(protocol)
        assert client.set("k", "v", ex=100, nx=True)
        assert client.set("k", "w", nx=True) is None
        assert 95 <= client.ttl("k") <= 100
        assert client.mset({"a": 1, "b": 2})
        assert client.mget("a", "b", "absent") == ["1", "2", None]
        assert client.incrbyfloat("a", 0.5) == 1.5
        assert set(client.scan_iter(match="?", count=2)) == {"a", "b", "k"}
        assert client.delete("a", "b") == 2
        with pytest.raises(redis.ResponseError, match="not an integer"):
            client.incr("k")


@PROTOCOLS
@pytest.mark.parametrize("transaction", [False, True])
def test_redis_py_pipeline(server: RunningServer, protocol: int, transaction: bool) -> None:
    with connect(server, protocol=protocol) as client:
        pipeline = client.pipeline(transaction=transaction)
        for number in range(100):
            pipeline.set(f"k{number}", number)
            pipeline.get(f"k{number}")
        assert pipeline.execute()[1::2] == [str(number) for number in range(100)]
        pipeline.set("word", "w").incr("word").get("word")
        replies = pipeline.execute(raise_on_error=False)
        assert replies[0] is True
        assert isinstance(replies[1], redis.ResponseError)
        assert replies[2] == "w"


def test_redis_py_watch(server: RunningServer) -> None:
    with connect(server) as client, client.pipeline() as pipeline:
        client.set("k", 1)
        pipeline.watch("k")
        client.set("k", 2)
        pipeline.multi()
        pipeline.set("k", 3)
        with pytest.raises(redis.WatchError):
            pipeline.execute()
        assert client.get("k") == "2"

        def increment(pipe: Any) -> None:
            value = int(pipe.get("k"))
            pipe.multi()
            pipe.set("k", value + 1)

        assert client.transaction(increment, "k") == [True]
        assert client.get("k") == "3"


def test_redis_py_client_side_cache(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # It wants Redis 7.4, whose commands it does not need; respkv says that it is 7.0.
    monkeypatch.setattr(redis.connection.CacheProxyConnection, "MIN_ALLOWED_VERSION", "7.0.0")
    with (
        connect(server) as writer,
        connect(server, protocol=3, cache_config=CacheConfig()) as reader,
    ):
        writer.set("k", "old")
        before = calls(writer, "get")
        assert [reader.get("k") for _ in range(5)] == ["old"] * 5
        assert calls(writer, "get") == before + 1
        writer.set("k", "new")
        deadline = time.monotonic() + 5
        while reader.get("k") != "new":
            assert time.monotonic() < deadline, "the cached value was never invalidated"


@PROTOCOLS
def test_redis_py_asyncio(server: RunningServer, protocol: int) -> None:
    async def use() -> None:
        client = redis.asyncio.Redis(
            host=server.host, port=server.port, protocol=protocol, decode_responses=True
        )
        async with client:
            await asyncio.gather(*(client.set(f"k{n}", n) for n in range(50)))
            assert await asyncio.gather(*(client.get(f"k{n}") for n in range(50))) == [
                str(n) for n in range(50)
            ]
            for transaction in (False, True):
                async with client.pipeline(transaction=transaction) as pipeline:
                    pipeline.set("k", 1)
                    pipeline.incr("k")
                    pipeline.get("k")
                    replies = await pipeline.execute()
                assert replies == [True, 2, "2"]

    async def in_time() -> None:
        await asyncio.wait_for(use(), COMMAND_S)

    asyncio.run(in_time())


def test_redis_py_monitor(server: RunningServer) -> None:
    with connect(server) as client, connect(server) as watcher, watcher.monitor() as monitor:
        client.get("watched")
        seen: list[str] = []
        while not any("watched" in command for command in seen):
            seen.append(monitor.next_command()["command"])
        assert seen[-1] == "GET watched"


def test_a_client_that_is_killed_connects_again(server: RunningServer) -> None:
    with connect(server) as client, connect(server) as killer:
        assert client.set("k", "v")
        assert killer.client_kill_filter(_id=client.client_id()) == 1
        assert client.get("k") == "v"


# redis-cli


def cli(server: RunningServer, *args: str, stdin: bytes = b"") -> str:
    """What redis-cli says; it must end by itself."""
    result = subprocess.run(
        ["redis-cli", "-h", server.host, "-p", str(server.port), *args],
        input=stdin, capture_output=True, timeout=COMMAND_S, check=False,
    )  # fmt: skip
    said = result.stdout.decode() + result.stderr.decode()
    assert result.returncode == 0, said
    return said


@contextlib.contextmanager
def endless_cli(server: RunningServer, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    """A redis-cli that goes on until it is stopped."""
    process = subprocess.Popen(
        ["redis-cli", "-h", server.host, "-p", str(server.port), *args], stdout=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(COMMAND_S)


def read_until(fd: int, wanted: bytes, seconds: float = 10) -> bytes:
    """What comes from a descriptor until `wanted` is in it, without colours and movements of the cursor."""
    got = b""
    deadline = time.monotonic() + seconds
    while wanted not in got:
        ready, _, _ = select.select([fd], [], [], max(0, deadline - time.monotonic()))
        data = os.read(fd, 65536) if ready else b""
        assert data, f"no {wanted!r} in {got!r}"
        got = ESCAPES.sub(b"", got + data)
    return got


@needs("redis-cli")
class TestRedisCli:
    def test_one_command(self, server: RunningServer) -> None:
        assert cli(server, "SET", "k", "v") == "OK\n"
        assert cli(server, "-3", "GET", "k") == "v\n"
        assert cli(server, "-n", "3", "GET", "k") == "\n"
        assert cli(server, "-e", "--no-raw", "INCR", "n") == "(integer) 1\n"
        assert "summary" in cli(server, "COMMAND", "DOCS", "set")
        assert "CLIENT <subcommand>" in cli(server, "CLIENT", "HELP")

    def test_several_commands(self, server: RunningServer) -> None:
        assert cli(server, stdin=b"MULTI\nSET k 1\nINCR k\nEXEC\n") == "OK\nQUEUED\nQUEUED\nOK\n2\n"
        assert cli(server, "-r", "3", "INCR", "n") == "1\n2\n3\n"

    def test_pipe(self, server: RunningServer) -> None:
        count = 5000
        data = b"".join(b"SET key:%d value\r\n" % number for number in range(count))
        said = cli(server, "--pipe", stdin=data)
        assert f"errors: 0, replies: {count}" in said
        assert cli(server, "DBSIZE") == f"{count}\n"

    def test_scan(self, server: RunningServer) -> None:
        cli(server, "MSET", "user:1", "a", "user:2", "b", "other", "c")
        assert sorted(cli(server, "--scan", "--pattern", "user:*").split()) == ["user:1", "user:2"]
        assert len(cli(server, "--scan").split()) == 3

    @pytest.mark.parametrize(("option", "unit"), [("--bigkeys", "bytes"), ("--memkeys", "bytes")])
    def test_largest_keys(self, server: RunningServer, option: str, unit: str) -> None:
        cli(server, "MSET", "small", "x", "large", "x" * 10_000)
        said = cli(server, option)
        assert "Sampled 2 keys in the keyspace" in said
        assert "Biggest string found" in said
        line = next(line for line in said.splitlines() if line.startswith("Biggest string found"))
        assert "large" in line
        assert unit in line

    def test_latency(self, server: RunningServer) -> None:
        low, high, average, samples = cli(server, "--latency", "-i", "1", "--raw").split()
        assert 0 <= float(low) <= float(average) <= float(high)
        assert int(samples) > 10

    def test_stat(self, server: RunningServer) -> None:
        cli(server, "MSET", "a", "1", "b", "2")
        with endless_cli(server, "--stat", "-i", "0.01") as process:
            assert process.stdout is not None
            said = b""
            while said.count(b"\n") < 4:
                said += read_until(process.stdout.fileno(), b"\n")
        head, columns, first, second = said.decode().split("\n")[:4]
        assert "data" in head
        assert columns.split() == ["keys", "mem", "clients", "blocked", "requests", "connections"]
        assert first.split()[0] == second.split()[0] == "2"

    def test_monitor(self, server: RunningServer) -> None:
        with endless_cli(server, "MONITOR") as process:
            assert process.stdout is not None
            read_until(process.stdout.fileno(), b"OK\n")
            cli(server, "GET", "watched")
            read_until(process.stdout.fileno(), b'"GET" "watched"\n')


class Terminal:
    """redis-cli in a terminal of its own, as a person would use it."""

    def __init__(self, server: RunningServer) -> None:
        self._fd, slave = pty.openpty()
        # Without a width redis-cli would ask the terminal where its cursor is.
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 400, 0, 0))
        environment = os.environ | {"TERM": "xterm", "HOME": str(server.directory), "FAKETTY": "1"}
        self._process = subprocess.Popen(
            ["redis-cli", "-h", server.host, "-p", str(server.port)],
            stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.prompt = f"{server.host}:{server.port}> ".encode()
        self._got = b""

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def expect(self, wanted: bytes) -> bytes:
        """What the terminal shows up to `wanted`. What is typed before a prompt may be lost."""
        if wanted not in self._got:
            self._got += read_until(self._fd, wanted)
        said, _, self._got = self._got.partition(wanted)
        return said

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(COMMAND_S)
        os.close(self._fd)


@pytest.fixture
def terminal(server: RunningServer) -> Iterator[Terminal]:
    terminal = Terminal(server)
    try:
        terminal.expect(terminal.prompt)
        yield terminal
    finally:
        terminal.close()


@needs("redis-cli")
class TestInteractiveRedisCli:
    def test_commands_are_answered(self, terminal: Terminal) -> None:
        terminal.type(b"set greeting hello\r")
        terminal.expect(b"OK\r\n")
        terminal.expect(terminal.prompt)
        terminal.type(b"get greeting\r")
        terminal.expect(b'"hello"\r\n')
        terminal.expect(terminal.prompt)
        terminal.type(b"select 3\r")
        terminal.expect(terminal.prompt[:-2] + b"[3]> ")

    def test_the_rest_of_the_syntax_is_hinted_at(self, terminal: Terminal) -> None:
        terminal.type(b"set ")
        terminal.expect(
            b"key value [NX|XX] [GET] [EX seconds|PX milliseconds|EXAT unix-time-seconds"
        )
        terminal.type(b"k v\r")
        terminal.expect(b"OK\r\n")
        terminal.expect(terminal.prompt)
        terminal.type(b"bitfield ")
        terminal.expect(
            b"key [GET encoding offset|[OVERFLOW WRAP|SAT|FAIL] SET encoding offset value|INCRBY "
            b"encoding offset increment"
        )

    def test_names_are_completed(self, terminal: Terminal) -> None:
        terminal.type(b"getra\t")
        terminal.expect(b"GETRANGE")
        terminal.type(b"\x15client no-e\t")  # Control-U empties the line.
        terminal.expect(b"CLIENT NO-EVICT")

    def test_help_shows_what_is_declared(self, terminal: Terminal) -> None:
        terminal.type(b"help getdel\r")
        said = terminal.expect(b"group: string")
        assert b"GETDEL key" in said
        assert b"summary: " in said
        assert b"since: 6.2.0" in said
        terminal.expect(terminal.prompt)
        terminal.type(b"help @connection\r")
        terminal.expect(b"CLIENT KILL")


# redis-benchmark


@needs("redis-benchmark")
@pytest.mark.parametrize("pipeline", [1, 16])
def test_redis_benchmark(server: RunningServer, pipeline: int) -> None:
    result = subprocess.run(
        [
            *("redis-benchmark", "-h", server.host, "-p", str(server.port), "-t", "ping,set,get,incr,mset"),
            *("-n", "3000", "-c", "20", "-r", "100", "-P", str(pipeline), "--csv"),
        ],
        capture_output=True, text=True, timeout=BENCHMARK_S, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line.split('","') for line in result.stdout.splitlines()]
    rates = {row[0].strip('"'): float(row[1].strip('"')) for row in rows if row[1][0].isdigit()}
    assert list(rates) == ["PING_INLINE", "PING_MBULK", "SET", "GET", "INCR", "MSET (10 keys)"]
    assert all(rate > 0 for rate in rates.values())
    assert "WARNING" not in result.stderr
    with connect(server) as client:
        assert client.dbsize() == 200  # key:000000000000 and counter:000000000000 to 99.


# Node.js


@pytest.fixture(scope="module")
def node_modules() -> None:
    """The packages of package-lock.json, installed once into a folder that git ignores."""
    if (NODE_FOLDER / "node_modules" / ".package-lock.json").exists():
        return
    result = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=NODE_FOLDER, capture_output=True, text=True, timeout=INSTALL_S, check=False,
    )  # fmt: skip
    if result.returncode:
        pytest.skip(f"npm cannot install the Node.js clients: {result.stderr.strip()[-200:]}")


@needs("node", "npm")
@pytest.mark.usefixtures("node_modules")
@pytest.mark.parametrize("script", ["ioredis.js", "node_redis.js"])
def test_node_js(server: RunningServer, script: str) -> None:
    result = subprocess.run(
        ["node", script, str(server.port)],
        cwd=NODE_FOLDER, capture_output=True, text=True, timeout=COMMAND_S, check=False,
    )  # fmt: skip
    assert result.stdout == "ok\n", result.stdout + result.stderr
