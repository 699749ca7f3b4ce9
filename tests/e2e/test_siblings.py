"""Siblings over real sockets: the program of docs/SIBLINGS.md on a cluster, redis-py in both protocols, redis-cli."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.clusters import RunningCluster, respkv_cluster

DOCUMENT = (Path(__file__).parents[2] / "docs" / "SIBLINGS.md").read_text()
BLOCKS = re.compile(r"```python\n(.*?)```\n\n((?:    [^\n]*\n)+)", re.DOTALL)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RunningCluster]:
    with respkv_cluster() as running:
        yield running


def connect(cluster: RunningCluster, name: str, protocol: int) -> Any:
    return redis.Redis(port=cluster[name].port, protocol=protocol, socket_timeout=10)


def test_the_document_does_what_it_says(cluster: RunningCluster) -> None:
    blocks = BLOCKS.findall(DOCUMENT)
    assert len(blocks) == 2 == DOCUMENT.count("```python")
    names: dict[str, Any] = {}
    ports = {6379: cluster["a"].port, 6380: cluster["b"].port}
    for code, shown in blocks:
        for port, actual in ports.items():
            code = code.replace(f"port={port}", f"port={actual}")
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, names)
        assert out.getvalue() == re.sub("^    ", "", shown, flags=re.MULTILINE)
    names["phone"].close()
    names["laptop"].close()


def test_redis_py_in_resp2(cluster: RunningCluster) -> None:
    with connect(cluster, "a", 2) as one, connect(cluster, "c", 2) as other:
        versions, context = one.execute_command("KV.GET", "two")
        assert versions == []
        assert one.execute_command("KV.PUT", "two", "x", "CONTEXT", context)[0] == 1
        assert other.execute_command("KV.PUT", "two", "y", "CONTEXT", context, "EX", 100)[0] == 2
        versions, context = one.execute_command("KV.GET", "two")
        assert [version[0] for version in versions] == [b"y", b"x"]
        assert versions[0][3] > versions[0][1] > 1_700_000_000_000
        assert versions[1][3] is None
        assert other.execute_command("KV.SIBLINGS", "two")[0][0][0] == 1
        assert other.execute_command("KV.RESOLVE", "two") == 1
        assert one.get("two") == b"y"
        assert one.execute_command("KV.DEL", "two") == 1


def test_redis_py_in_resp3(cluster: RunningCluster) -> None:
    with connect(cluster, "a", 3) as one, connect(cluster, "c", 3) as other:
        context = one.execute_command("KV.GET", "three")[b"context"]
        assert one.execute_command("KV.PUT", "three", "x", "CONTEXT", context)[b"siblings"] == 1
        reply = other.execute_command("KV.PUT", "three", "y", "CONTEXT", context)
        assert reply[b"siblings"] == 2
        found = one.execute_command("KV.GET", "three")
        assert [version[b"value"] for version in found[b"versions"]] == [b"y", b"x"]
        assert {*found[b"versions"][0]} == {b"value", b"time", b"dot", b"expires", b"type"}
        reply = one.execute_command("KV.PUT", "three", "z", "CONTEXT", found[b"context"])
        assert reply[b"siblings"] == 1


def test_a_wrong_context_is_a_response_error(cluster: RunningCluster) -> None:
    with connect(cluster, "b", 2) as client:
        _, context = client.execute_command("KV.PUT", "one", "x")
        with pytest.raises(redis.ResponseError, match="the context is of another key"):
            client.execute_command("KV.PUT", "other", "x", "CONTEXT", context)
        with pytest.raises(redis.ResponseError, match="the context is damaged"):
            client.execute_command("KV.DEL", "one", "CONTEXT", context[:-1])


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="not installed: redis-cli")
def test_redis_cli(cluster: RunningCluster) -> None:
    def run(*words: str) -> str:
        call = ["redis-cli", "--no-raw", "-p", str(cluster["b"].port), *words]
        return subprocess.run(call, capture_output=True, text=True, timeout=30, check=True).stdout

    run("KV.PUT", "cli", "apple")
    run("KV.PUT", "cli", "pear", "EX", "100")
    lines = run("KV.GET", "cli").split("\n")
    assert lines[0] == '1) 1) 1) "pear"'
    assert lines[5] == '   2) 1) "apple"'
    assert re.fullmatch(r'      3\) "[0-9a-f]{16}:[0-9]+"', lines[7])
    assert lines[8] == "      4) (nil)"
    context = re.fullmatch(r'2\) "([A-Za-z0-9_-]+)"', lines[10])
    assert context is not None
    assert run("KV.PUT", "cli", "both", "CONTEXT", context[1]).startswith("1) (integer) 1\n")
    assert run("GET", "cli") == '"both"\n'
