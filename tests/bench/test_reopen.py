"""Starting again: real servers on small folders, and what is made of their times."""

import os
import signal
import sys
from pathlib import Path

import pytest

from bench import openloop, reopen, restart
from bench.load import LoadFailed
from bench.openloop import run_and_tell
from bench.reopen import CLEAN, CRASH, Start, measure, measure_empty, summaries, text
from bench.restart import RunningServer, started
from bench.server import ServerNotReady

MIB = 1 << 20


def start(count: int, after: str, opened_s: float, ready_s: float, log_mib: int = 10) -> Start:
    return Start(count, after, opened_s, ready_s, log_mib * MIB, 1000, 0, count)


def test_starts_are_summed_up_by_size_and_kind() -> None:
    starts = [
        start(10, CLEAN, 0.5, 0.6),
        start(10, CLEAN, 0.9, 1.0),
        start(10, CLEAN, 0.7, 0.8),
        start(10, CRASH, 2.0, 3.0),
    ]
    clean, crash = summaries(starts, 0.2)
    assert (clean.ready_s, clean.ready_most_s) == (0.8, 1.0)
    assert clean.store_s == pytest.approx(0.5)
    assert clean.store_ms_per_mib == pytest.approx(50)
    assert (crash.after, crash.ready_s) == (CRASH, 3.0)


def test_beside_little_log_there_is_no_rate() -> None:
    (one,) = summaries([start(10, CLEAN, 0.5, 0.6, log_mib=0)], 0.2)
    assert one.store_ms_per_mib is None


@pytest.mark.parametrize(
    ("after", "ready_s", "words"),
    [
        (CLEAN, 2.0, "aim <= 2 s: met"),
        (CLEAN, 2.1, "aim <= 2 s: missed"),
        (CRASH, 5.0, "aim <= 5 s: met"),
        (CRASH, 5.1, "aim <= 5 s: missed"),
    ],
)
def test_aims_are_for_a_million(after: str, ready_s: float, words: str) -> None:
    assert words in text(summaries([start(1_000_000, after, 1.0, ready_s)], 0.2))
    other = text(summaries([start(100_000, after, 1.0, ready_s)], 0.2))
    assert words not in other
    assert "The aims are for 1000000 records." in other


def test_a_server_is_reopened_after_a_stop_and_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = []

    def kill(server: RunningServer) -> int:
        statuses.append(end(server))
        return statuses[-1]

    end = RunningServer.kill
    monkeypatch.setattr(RunningServer, "kill", kill)
    clean, crash = measure(tmp_path, 2000, 1000, 1, [])
    assert statuses == [-signal.SIGKILL] * 2  # After the writes, and after the start that followed.
    assert (clean.after, crash.after) == (CLEAN, CRASH)
    assert clean.log_entries == 2000
    assert crash.log_entries == 3000
    assert crash.log_bytes > clean.log_bytes > 2000 * 100
    for each in (clean, crash):
        assert each.key_count == 2000
        assert 0 < each.opened_s <= each.ready_s


def test_an_empty_folder_gives_the_base_and_the_facts(tmp_path: Path) -> None:
    empty_s, facts = measure_empty(tmp_path, 1, [])
    assert 0 < empty_s < 30
    assert list(facts.versions) == ["respkv"]


def test_missing_records_are_no_result(tmp_path: Path) -> None:
    with (
        started(tmp_path, log=tmp_path / "log") as server,
        pytest.raises(LoadFailed, match="0 of 5 records"),
    ):
        reopen.look(server, 5, CLEAN)


def test_a_server_that_does_not_come_up_leaves_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> list[str]:
        return [sys.executable, "-S", "-c", "raise SystemExit('no room')"]

    monkeypatch.setattr(restart, "command_line", broken)
    with pytest.raises(ServerNotReady) as failed, started(tmp_path, log=tmp_path / "log"):
        pass
    assert failed.value.__notes__ == ["no room\n"]


def test_a_prefix_stands_before_the_command_and_the_server_is_gone_afterwards(
    tmp_path: Path,
) -> None:
    prefix = ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(tmp_path / "pid")]
    with started(tmp_path / "data", log=tmp_path / "log", prefix=prefix) as server:
        assert int((tmp_path / "pid").read_text()) == server.pid
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_an_open_loop_against_a_real_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--keys 500 --rate 300 --seconds 1 --value-bytes 100 --memory 16MiB --connections 2"
    options = openloop.parse_options(words.split())
    with started(tmp_path, log=tmp_path / "log", settings=["memory.bytes_max=16MiB"]) as server:
        openloop.write_keys(server.address, 500, 100, 100_000)
        (load,) = openloop.loads(options)
        (result,) = run_and_tell(server, load, options)
    assert result.rows[0].count == 300
    assert (result.missed_count, result.error_count, result.unanswered_count) == (0, 0, 0)
    assert result.rss_bytes > result.anonymous_bytes > 10 * MIB
    assert "300 requests/s for 1 s" in capsys.readouterr().out


def test_a_disk_without_room_is_refused(tmp_path: Path) -> None:
    options = openloop.parse_options(["--keys", str(10**12)])
    with pytest.raises(LoadFailed, match="MiB are needed"):
        openloop.check_room(tmp_path, options)
