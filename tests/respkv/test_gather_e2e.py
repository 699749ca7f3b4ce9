"""Commands on the whole keyspace of clusters of real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from bench.ports import free_ports

START_S = 40.0


@contextmanager
def nodes_of(folder: Path, count: int) -> Iterator[tuple[list[int], list[subprocess.Popen[bytes]]]]:
    """A cluster, each node a process of its own. Its client ports, and the processes."""
    ports = free_ports(count)
    names = [chr(ord("a") + number) for number in range(count)]
    lines = ["[cluster]", 'name = "gather"', "[memory]", 'bytes_max = "64MiB"']
    for name, port in zip(names, ports, strict=True):
        lines += ["[[node]]", f'name = "{name}"', 'host = "127.0.0.1"', f"port = {port}"]
        lines += [f'data_dir = "{folder}/{name}"']
    config = folder / "cluster.toml"
    config.write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "respkv", "serve", "--config", str(config), "--node"]
    children = [
        subprocess.Popen([*command, name], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        for name in names
    ]
    try:
        until_s = time.monotonic() + START_S
        for number, port in enumerate(ports):
            while not _writes(port, number):
                assert time.monotonic() < until_s, "the cluster does not start"
                time.sleep(0.1)
        yield ports, children
    finally:
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        for child in children:
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _writes(port: int, number: int) -> bool:
    """Whether a node takes writes of many slots, so that all others are there too."""
    try:
        with redis.Redis(port=port, socket_timeout=5) as client:
            for at in range(50):
                client.set(f"start:{number}:{at}", "v")
                client.delete(f"start:{number}:{at}")
    except redis.RedisError:
        return False
    return True


@pytest.mark.parametrize("count", [3, 5])
def test_all_processes_see_one_keyspace(tmp_path: Path, count: int) -> None:
    with nodes_of(tmp_path, count) as (ports, children):
        clients = [redis.Redis(port=port, socket_timeout=20) for port in ports]
        keys = {b"key:%d" % number for number in range(500)}
        for at, key in enumerate(sorted(keys)):
            clients[at % count].set(key, "v")
        for client in clients:
            assert client.dbsize() == 500
            assert set(client.keys()) == keys
            assert set(client.scan_iter(count=50)) == keys
            assert client.randomkey() in keys
        port = redis.Redis(port=ports[0] + 100, socket_timeout=20)
        assert 0 < port.dbsize() < 500
        children[1].kill()
        children[1].wait()
        assert set(clients[0].scan_iter(count=50)) == keys
        assert clients[2].dbsize() == 500
        assert clients[2].flushall()
        assert clients[0].dbsize() == 0
        assert clients[0].keys() == []
        for client in [*clients, port]:
            client.close()
