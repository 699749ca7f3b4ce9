"""CONFIG: what a setting's change brings about."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from respkv.config import Config, load
from respkv.logs import Logger, set_level
from tests.differential.wire import Connection
from tests.respkv.commands.alone import Alone
from tests.servers import respkv_server


@pytest.fixture
def alone() -> Iterator[Alone]:
    node = Alone()
    yield node
    node.close()


def test_get_is_a_map(alone: Alone) -> None:
    alone.ask("HELLO 3")
    reply = alone.ask("CONFIG GET timeout slowlog.entries_max time?ut")
    assert reply is not None
    assert (
        reply.raw
        == b"%2\r\n$7\r\ntimeout\r\n$1\r\n0\r\n$19\r\nslowlog.entries_max\r\n$3\r\n128\r\n"
    )


def test_limits_of_the_parser_hold_for_open_sessions(alone: Alone) -> None:
    alone.text("CONFIG SET proto-max-bulk-len 2mb")
    assert alone.session.parser.limits.bulk_bytes_max == 2 << 20
    assert alone.node.limits.bulk_bytes_max == 2 << 20


def test_memory_is_divided_anew(alone: Alone) -> None:
    alone.text("CONFIG SET maxmemory 64mb")
    store = alone.node.store
    # Two memtables share 16 MiB: one is filled while the other is flushed.
    assert store.settings.memtable_bytes == 8 << 20
    assert store.settings.log_bytes_max == 16 << 20
    assert (store.rows.bytes_max, store.blocks.bytes_max) == (16 << 20, 16 << 20)


def test_a_memtable_that_became_too_large_is_frozen(alone: Alone) -> None:
    for number in range(6):
        alone.ask(f"SET k{number}", bytes(1 << 20))
    assert not alone.node.store.frozen
    alone.text("CONFIG SET maxmemory 32mb")
    assert len(alone.node.store.frozen) == 1


def test_slow_log_and_latency_monitor_follow(alone: Alone) -> None:
    alone.text(
        "CONFIG SET slowlog-log-slower-than 5000 slowlog-max-len 3 latency-monitor-threshold 2"
    )
    assert alone.node.slowlog.entries_max == 3
    assert alone.node.slowlog.threshold_ns == 2_000_000
    alone.text("CONFIG SET latency-monitor-threshold 0")
    assert alone.node.slowlog.threshold_ns == 5_000_000
    assert not alone.node.latency.is_on


def test_fsync_is_switched(alone: Alone) -> None:
    assert not alone.node.commit.is_sync_wanted
    alone.text("CONFIG SET appendfsync always")
    assert alone.node.commit.is_sync_wanted
    assert alone.node.commit._wake.is_set(), "the task that syncs must look again"
    assert alone.node.commit.releasable == alone.node.store.log.synced
    alone.text("CONFIG SET appendfsync no")
    assert not alone.node.commit.is_sync_wanted


def test_the_level_of_logs_is_switched(alone: Alone) -> None:
    try:
        alone.text("CONFIG SET loglevel warning")
        assert Logger.info.__name__ == "_filtered"
        alone.text("CONFIG SET loglevel notice")
        assert Logger.info.__name__ == "info"
    finally:
        set_level("info")


def test_the_front_hears_of_its_budget(alone: Alone) -> None:
    alone.text("CONFIG SET client.commands_per_tick_max 7")
    assert alone.node.front.commands_per_tick_max == 7


def test_a_password_holds_for_new_clients(alone: Alone) -> None:
    alone.text("CONFIG SET requirepass secret")
    assert alone.text("PING") == b"PONG"
    assert alone.config.client.requirepass == "secret"
    assert alone.text("AUTH wrong").startswith(b"-WRONGPASS")
    assert alone.text("AUTH secret") == b"OK"


def test_nothing_changes_when_one_of_many_is_wrong(alone: Alone) -> None:
    line = alone.text("CONFIG SET timeout 9 slowlog-max-len junk")
    assert line.startswith(
        b"-ERR CONFIG SET failed (possibly related to argument 'slowlog-max-len')"
    )
    assert alone.config.client.idle_timeout_s == 0


def test_rewrite_is_done_by_a_thread(tmp_path: Path) -> None:
    path = tmp_path / "respkv.toml"
    path.write_text("# Ours.\n[client]\nclients_max = 50  # Few.\n")
    alone = Alone(load(str(path)))
    alone.text("CONFIG SET maxclients 60 timeout 5")
    other = alone.connect()
    assert alone.ask("CONFIG REWRITE") is None
    assert alone.ask("PING", session=other) is not None
    assert "50" in path.read_text()
    reply = alone.work()
    assert reply is not None
    assert reply.text == b"OK"
    text = path.read_text()
    assert "# Ours." in text
    assert "clients_max = 60  # Few." in text
    assert load(str(path)).client.idle_timeout_s == 5
    alone.close()


def test_rewrite_inside_multi_is_done_at_once(tmp_path: Path) -> None:
    path = tmp_path / "respkv.toml"
    path.write_text("")
    alone = Alone(load(str(path)))
    for part in ("MULTI", "CONFIG SET timeout 5", "CONFIG REWRITE"):
        alone.ask(part)
    reply = alone.ask("EXEC")
    assert reply is not None
    assert [item.text for item in reply.items] == [b"OK", b"OK"]
    assert load(str(path)).client.idle_timeout_s == 5
    alone.close()


def test_rewrite_tells_why_it_failed(tmp_path: Path) -> None:
    config = Config(path=str(tmp_path / "nosuch" / "respkv.toml"))
    alone = Alone(config)
    alone.text("CONFIG SET timeout 5")
    assert alone.ask("CONFIG REWRITE") is None
    reply = alone.work()
    assert reply is not None
    assert reply.is_error
    assert reply.text.startswith(b"ERR Rewriting config file: ")
    assert b"cannot be written" in reply.text
    alone.close()


def test_a_real_server_keeps_what_is_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "respkv.toml"
    path.write_text("[client]\nclients_max = 50\n")
    with respkv_server("--config", str(path)) as server:
        connection = Connection(server.host, server.port, timeout_s=10)
        try:
            assert connection.ask(b"CONFIG", b"SET", b"maxclients", b"60").text == b"OK"
            # Replies are held back for the disk from here on, and given up again.
            for policy in (b"always", b"no", b"always", b"everysec"):
                assert connection.ask(b"CONFIG", b"SET", b"appendfsync", policy).text == b"OK"
                assert connection.ask(b"SET", b"k", policy).text == b"OK"
            assert connection.ask(b"CONFIG", b"REWRITE").text == b"OK"
        finally:
            connection.close()
    config = load(str(path))
    assert (config.client.clients_max, config.log.fsync) == (60, "everysec")
    assert config.client.port == 6379, "what the command line gave stays there"


def test_expired_keys_go_at_the_interval_that_is_set() -> None:
    with respkv_server("--set", "expiry.interval_ms=60000") as server:
        connection = Connection(server.host, server.port, timeout_s=10)

        def expired() -> bytes:
            return (
                connection.ask(b"INFO", b"stats").text.split(b"expired_keys:")[1].split(b"\r\n")[0]
            )

        try:
            connection.ask(b"SET", b"k", b"v", b"PX", b"100")
            time.sleep(0.7)
            assert expired() == b"0"
            connection.ask(b"CONFIG", b"SET", b"expiry.interval_ms", b"20")
            deadline = time.monotonic() + 5
            while expired() == b"0":
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            connection.close()
