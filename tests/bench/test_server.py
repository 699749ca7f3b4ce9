"""How the servers are started."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench import server
from bench.server import ServerNotReady, command_line, failure_text, running


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


def test_a_server_that_does_not_come_up_leaves_its_last_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> list[str]:
        return [sys.executable, "-S", "-c", "raise SystemExit('no room')"]

    monkeypatch.setattr(server, "command_line", broken)
    with pytest.raises(ServerNotReady) as failed, running("redis"):
        pass
    assert failure_text(failed.value) == (
        "ServerNotReady: redis did not become ready\n"
        "redis ended with status 1; it wrote:\nno room\n"
    )


def test_an_error_without_a_server_is_told_alone() -> None:
    assert failure_text(subprocess.SubprocessError("bad")) == "SubprocessError: bad"
