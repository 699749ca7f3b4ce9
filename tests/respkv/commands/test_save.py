"""Commands that make durable or wait: step by step with `Alone`, and once with a real server and its worker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.differential.wire import Connection, Reply
from tests.respkv.commands.alone import START_NS, Alone
from tests.servers import respkv_server

START_S = START_NS // 10**9


@pytest.fixture
def alone() -> Iterator[Alone]:
    node = Alone()
    yield node
    node.close()


def numbers(reply: Reply | None) -> list[int]:
    assert reply is not None
    return [int(item.text) for item in reply.items]


def test_save_answers_when_the_log_is_durable(alone: Alone) -> None:
    alone.ask("SET k v")
    alone.ns = 60 * 10**9
    assert alone.ask("SAVE") is None
    assert alone.node.store.log.synced < alone.node.store.log.position
    reply = alone.work()
    assert reply is not None
    assert reply.text == b"OK"
    assert alone.node.store.log.synced == alone.node.store.log.position
    assert alone.text("LASTSAVE") == b"%d" % (START_S + 60)
    assert alone.info("persistence")["rdb_changes_since_last_save"] == "0"


def test_save_cannot_be_unblocked(alone: Alone) -> None:
    other = alone.connect()
    assert alone.ask("SAVE") is None
    reply = alone.ask("CLIENT UNBLOCK 1", session=other)
    assert reply is not None
    assert reply.text == b"0"


def test_wait_ends_with_its_time(alone: Alone) -> None:
    assert alone.ask("WAIT 1 100") is None
    assert alone.pass_time(0.09) is None
    reply = alone.pass_time(0.02)
    assert reply is not None
    assert reply.raw == b":0\r\n"


def test_wait_without_a_time_ends_by_unblock(alone: Alone) -> None:
    other = alone.connect()
    for how, raw in (
        ("TIMEOUT", b":0\r\n"),
        ("ERROR", b"-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n"),
    ):
        assert alone.ask("WAIT 1 0") is None
        assert alone.pass_time(10**6) is None
        alone.ask(f"CLIENT UNBLOCK 1 {how}", session=other)
        reply = alone.pass_time(0)
        assert reply is not None
        assert reply.raw == raw


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("junk 0 0", "ERR value is not an integer or out of range"),
        ("2 0 0", "ERR value is out of range, value must between 0 and 1"),
        ("-1 0 0", "ERR value is out of range, value must between 0 and 1"),
        ("1 junk 0", "ERR value is out of range, must be positive"),
        ("1 -1 0", "ERR value is out of range, must be positive"),
        ("1 0 junk", "ERR timeout is not an integer or out of range"),
        ("1 0 -1", "ERR timeout is negative"),
        ("1 0", "ERR wrong number of arguments for 'waitaof' command"),
    ],
)
def test_waitaof_checks_its_arguments(alone: Alone, words: str, line: str) -> None:
    assert alone.text(f"WAITAOF {words}") == b"-" + line.encode()


def test_waitaof_answers_at_once_what_is_durable_already(alone: Alone) -> None:
    alone.work()
    assert numbers(alone.ask("WAITAOF 1 0 0")) == [1, 0]
    alone.ask("SET k v")
    assert numbers(alone.ask("WAITAOF 0 0 0")) == [0, 0]


def test_waitaof_waits_for_a_sync_of_its_own_writes(alone: Alone) -> None:
    alone.ask("SET k v")
    assert alone.ask("WAITAOF 1 0 0") is None
    assert numbers(alone.work()) == [1, 0]
    assert alone.node.store.log.synced == alone.node.store.log.position


def test_waitaof_sees_writes_of_its_own_tick(alone: Alone) -> None:
    alone.work()
    commands = [[b"SET", b"k", b"v"], [b"WAITAOF", b"1", b"0", b"0"]]
    alone.node.runner.serve(alone.session, commands, alone.node.begin_tick())
    alone.node.front.finish(alone.node.now_ms())
    reply = alone.reply()
    assert reply is not None
    assert reply.text == b"OK"
    assert alone.reply() is None
    assert numbers(alone.work()) == [1, 0]


def test_waitaof_for_replicas_ends_with_its_time_and_tells_of_the_sync(alone: Alone) -> None:
    alone.ask("SET k v")
    assert alone.ask("WAITAOF 1 1 100") is None
    assert alone.work() is None
    assert numbers(alone.pass_time(0.2)) == [1, 0]
    alone.ask("SET k w")
    assert alone.ask("WAITAOF 1 1 100") is None
    assert numbers(alone.pass_time(0.2)) == [0, 0]


def test_a_sync_ends_no_later_wait(alone: Alone) -> None:
    alone.ask("SET k v")
    assert alone.ask("WAITAOF 1 0 100") is None
    assert numbers(alone.pass_time(0.2)) == [0, 0]
    assert alone.ask("WAIT 1 0") is None
    assert alone.work() is None


def test_waitaof_does_not_wait_inside_multi(alone: Alone) -> None:
    alone.work()
    for part in ("MULTI", "WAITAOF 1 1 0", "SET k v", "WAITAOF 1 1 0"):
        alone.ask(part)
    reply = alone.ask("EXEC")
    assert reply is not None
    assert [item.raw for item in reply.items] == [
        b"*2\r\n:1\r\n:0\r\n",
        b"+OK\r\n",
        b"*2\r\n:0\r\n:0\r\n",
    ]


def test_background_saves_have_the_words_of_redis(alone: Alone) -> None:
    alone.ask("SET k v")
    assert alone.text("BGSAVE") == b"Background saving started"
    assert alone.text("BGSAVE") == b"-ERR Background save already in progress"
    assert alone.text("BGSAVE SCHEDULE") == b"-ERR Background save already in progress"
    assert alone.text("BGREWRITEAOF") == b"Background append only file rewriting scheduled"
    assert alone.text("BGREWRITEAOF") == b"Background append only file rewriting scheduled"
    fields = alone.info("persistence")
    assert (fields["rdb_bgsave_in_progress"], fields["aof_rewrite_in_progress"]) == ("1", "1")


def test_a_rewrite_alone_has_the_words_of_redis(alone: Alone) -> None:
    assert alone.text("BGREWRITEAOF") == b"Background append only file rewriting started"
    assert alone.text("BGREWRITEAOF") == (
        b"-ERR Background append only file rewriting already in progress"
    )
    assert alone.text("BGSAVE SCHEDULE") == b"Background saving scheduled"


def test_a_save_of_nothing_is_done_at_once(alone: Alone) -> None:
    alone.text("BGSAVE")
    alone.node.jobs._freeze_for_save()
    assert not alone.node.saves.is_running("save")
    assert not alone.node.store.frozen


def test_a_save_does_not_stall_the_node(alone: Alone) -> None:
    alone.ask("SET k v")
    alone.node.store.freeze()
    alone.ask("SET l w")
    alone.text("BGSAVE")
    alone.node.jobs._freeze_for_save()
    assert len(alone.node.store.frozen) == 1
    assert not alone.node.store.is_stalled
    assert alone.node.saves.wants_freeze, "it comes after the one that is under way"


def test_a_real_server_saves(tmp_path: Path) -> None:
    with respkv_server("--set", "log.fsync=no", data_dir=tmp_path / "data") as server:
        connection = Connection(server.host, server.port, timeout_s=20)

        def info() -> dict[str, str]:
            lines = connection.ask(b"INFO", b"persistence").text.decode().split("\r\n")
            return dict(line.split(":", 1) for line in lines if ":" in line)

        try:
            for number in range(100):
                connection.ask(b"SET", b"key:%d" % number, b"value")
            assert info()["log_synced_position"] == "0"
            assert [item.text for item in connection.ask(b"WAITAOF", b"1", b"0", b"0").items] == [
                b"1",
                b"0",
            ]
            assert info()["log_synced_position"] == info()["log_position"]
            connection.ask(b"SET", b"last", b"value")
            assert connection.ask(b"SAVE").text == b"OK"
            assert info()["log_synced_position"] == info()["log_position"]
            saved_s = int(connection.ask(b"LASTSAVE").text)
            time.sleep(1.1)
            assert connection.ask(b"BGSAVE").text == b"Background saving started"
            deadline = time.monotonic() + 20
            while info()["rdb_bgsave_in_progress"] == "1":
                assert time.monotonic() < deadline
                time.sleep(0.02)
            fields = info()
            assert (fields["flushes"], fields["tables"], fields["rdb_saves"]) == ("1", "1", "2")
            assert fields["log_flushed_position"] == fields["log_position"]
            assert fields["rdb_last_bgsave_status"] == "ok"
            assert int(connection.ask(b"LASTSAVE").text) > saved_s
            assert connection.ask(b"GET", b"key:42").text == b"value"
        finally:
            connection.close()
