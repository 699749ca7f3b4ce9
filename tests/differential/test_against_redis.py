"""respkv answers as Redis 7.0 does: every command of the tables, at least 200 times, byte for byte.

The short form of `python -m tests.differential`: one round in each protocol, from a fixed seed.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import RunningServer, redis_server, respkv_server

from .catalog import COMMANDS
from .runner import Round
from .side import Side

SEED = "7"


@pytest.fixture(scope="module")
def redis() -> Iterator[RunningServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def respkv() -> Iterator[RunningServer]:
    with respkv_server() as server:
        yield server


@pytest.mark.timeout(300)
@pytest.mark.parametrize("resp", [2, 3])
def test_respkv_answers_as_redis_does(
    redis: RunningServer, respkv: RunningServer, resp: int
) -> None:
    left = Side("redis", redis.host, redis.port, resp)
    right = Side("respkv", respkv.host, respkv.port, resp)
    one = Round(left, right, SEED, COMMANDS)
    try:
        one.run()
    finally:
        left.close()
        right.close()
    report = "\n\n".join(f"seed {SEED}, RESP{resp}, {finding}" for finding in one.findings)
    assert not one.found, f"{report}\n\ndifferences by command: {dict(one.found)}"
    assert one.coverage.shortfalls(COMMANDS) == []
