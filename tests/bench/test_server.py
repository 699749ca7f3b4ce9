"""How the servers are started."""

import sys
from pathlib import Path

from bench.server import PORTS, command_line, free_port


def test_respkv_gets_its_settings_one_by_one() -> None:
    line = command_line("respkv", ("127.0.0.1", 7001), Path("/d"), ["a.b=1", "c.d=2"])
    assert line[0] == sys.executable
    assert " ".join(line[1:]) == (
        "-m respkv serve --port 7001 --data-dir /d --set a.b=1 --set c.d=2"
    )


def test_redis_keeps_a_log_like_respkv_and_listens_here_only() -> None:
    line = command_line("redis", ("127.0.0.1", 7001), Path("/d"), ["--maxclients", "9"])
    assert line == [
        *("redis-server", "--bind", "127.0.0.1", "--port", "7001", "--dir", "/d"),
        *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        *("--maxclients", "9"),
    ]


def test_a_free_port_is_in_the_range() -> None:
    assert free_port() in PORTS
