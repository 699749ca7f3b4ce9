"""What is printed about an open-loop run, and its command line."""

import dataclasses

import pytest

from bench import openloop, openloop_report
from bench.memory_group import GroupRefused
from bench.openloop_generator import Sent
from bench.openloop_report import Result
from bench.openloop_schedule import Load
from bench.openloop_watch import Sample
from bench.ping import Latency
from bench.process_clock import Resident

MS = 1_000_000
LOAD = Load(1000, 0.2, 100, 64, 0.9, 10, 0.5, 2)


def result(quiet_us: int = 1000, busy_us: int = 5000, *, rss: int = 120 << 20) -> Result:
    """Two windows were quiet; in the third and the fourth there was a flush."""
    windows = [{quiet_us: 50}, {quiet_us: 50}, {busy_us: 50}, {busy_us: 50}]
    sent = Sent(
        0, windows, {quiet_us: 100}, {busy_us: 100}, {100: 200}, 200, 200, cpu_s=0.02, wall_s=0.2
    )
    looks = [(0, 0), (100, 0), (200, 1)]
    samples = [
        Sample(at * MS, flushes, 0, 0, 0, 7, 0.0, Resident(rss, rss // 2)) for at, flushes in looks
    ]
    return openloop_report.result(LOAD, sent, samples, Latency(9, 0.1, 0.2, 40.0), 100 << 20)


def test_quiet_and_busy_are_told_apart() -> None:
    one = result()
    assert [(row.what, row.count) for row in one.rows] == [
        ("all", 200),
        ("quiet", 100),
        ("flush or compaction", 100),
        ("GET", 100),
        ("SET", 100),
    ]
    assert one.busy_ratio == 5.0
    assert (one.flushes, one.compactions, one.busy_s) == (1, 0, 0.1)
    assert (one.answered_per_s, one.generator_share) == pytest.approx((1000.0, 0.1))


def test_aims_that_are_met() -> None:
    lines = openloop_report.aim_lines(result())
    assert lines == [
        "p99 during flush or compaction: 5.0 times as long, aim <= 10: met",
        "Longest pause, as PING sees it: 40.0 ms (p99 0.20 ms), aim <= 50 ms: met",
        "Resident memory of both processes: at most 120 MiB (60 MiB without files)"
        " at memory.bytes_max 100 MiB, aim <= 150 MiB: met",
    ]


def test_aims_that_are_missed() -> None:
    one = dataclasses.replace(result(1000, 11_000, rss=151 << 20), ping=Latency(1, 1, 1, 51))
    assert all(line.endswith("missed") for line in openloop_report.aim_lines(one))


def test_without_busy_times_there_is_no_comparison() -> None:
    one = result()
    one = dataclasses.replace(
        one, rows=[*one.rows[:2], openloop_report.Row.of("x", {}), *one.rows[3:]]
    )
    assert one.busy_ratio is None
    assert "no comparison" in openloop_report.aim_lines(one)[0]
    assert "-" in openloop_report.text(one)


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({}, True),
        ({"unanswered_count": 1}, False),
        ({"error_count": 1}, False),
        ({"gave_up": True}, False),
    ],
)
def test_a_rate_holds_when_all_is_answered(change: dict[str, int], holds: bool) -> None:
    assert dataclasses.replace(result(), **change).holds is holds  # type: ignore[arg-type]


def test_a_rate_does_not_hold_when_answers_are_late() -> None:
    assert result(1000, 100_000).holds
    assert not result(1000, 101_000).holds


def test_a_late_generator_is_named() -> None:
    one = result()
    assert "TOO FAR" not in openloop_report.text(one)
    late = dataclasses.replace(one, lag=openloop_report.Row.of("lag", {11_000: 1}))
    assert "TOO FAR" in openloop_report.text(late)


def test_what_went_wrong_is_said() -> None:
    one = dataclasses.replace(
        result(),
        gave_up=True,
        unanswered_count=2,
        missed_count=3,
        error_count=4,
        first_error="ERR x",
    )
    text = openloop_report.text(one)
    assert "gave up" in text
    assert "2 requests were not answered" in text
    assert "3 reads did not find" in text
    assert "4 errors; the first: ERR x" in text


def test_the_default_is_the_load_of_the_aim() -> None:
    (load,) = openloop.loads(openloop.parse_options([]))
    assert (load.rate, load.key_count, load.value_bytes) == (20_000, 10_000_000, 1024)
    assert (load.hot_share, load.hot_keys, load.write_share) == (0.95, 100_000, 0.5)


def test_then_cold_is_the_same_without_hot_keys() -> None:
    first, cold = openloop.loads(openloop.parse_options(["--then-cold", "--keys", "50"]))
    assert (first.hot_share, first.hot_keys) == (0.95, 1)
    assert cold.rate == first.rate // openloop.COLD_FACTOR  # Where a search begins.
    assert dataclasses.replace(first, hot_share=0.0, rate=cold.rate) == cold


def test_a_refused_group_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(limit_bytes: int) -> None:
        raise GroupRefused("no controller")

    monkeypatch.setattr(openloop, "memory_group", refuse)
    with openloop.grouped("64MiB") as prefix:
        assert prefix == []
    assert "no memory cgroup" in capsys.readouterr().out
    with openloop.grouped(None) as prefix:
        assert prefix == []


@pytest.mark.parametrize(
    "words", [["--rate", "0"], ["--hot-share", "1.5"], ["--memory", "much"], ["--writes", "-1"]]
)
def test_bad_choices_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        openloop.parse_options(words)
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err
