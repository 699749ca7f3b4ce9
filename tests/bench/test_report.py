"""Summaries, ratios, aims and tables."""

import dataclasses
import json

import pytest

from bench import report
from bench.load import Workload
from bench.machine import Facts
from bench.report import Run, Spread

GET = Workload("GET", 1, 1000)
SET = Workload("SET", 16, 1000)


def run(
    server: str, workload: Workload, number: int, cpu_us: float, hit_rate: float | None = None
) -> Run:
    """A run of a million requests, so that its seconds are microseconds per operation."""
    return Run(
        server=server,
        round_number=number,
        workload=workload,
        request_count=1_000_000,
        user_s=cpu_us * 0.75,
        system_s=cpu_us * 0.25,
        throughput=1000.0 * number,
        p50_ms=0.5,
        p99_ms=1.5,
        hit_rate=hit_rate,
        other_share=0.01,
        is_settled=True,
    )


def pair(
    workload: Workload, ours: list[float], theirs: list[float], hits: float | None = None
) -> list[Run]:
    runs = []
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True), start=1):
        runs += [
            run("respkv", workload, number, a, hits),
            run("redis", workload, number, b, hits),
        ]
    return runs


def test_a_cell_has_medians_and_extremes() -> None:
    (one,) = report.cells([run("redis", SET, n, cpu) for n, cpu in enumerate([8, 4, 12], start=1)])
    assert one.cpu_us == Spread(8, 4, 12)
    assert one.user_us == Spread(6, 3, 9)
    assert one.system_us == Spread(2, 1, 3)
    assert one.throughput == Spread(2000, 1000, 3000)
    assert one.cpu_s_least == 4
    assert one.hit_rate is None


def test_cells_keep_workloads_and_servers_apart() -> None:
    summaries = report.cells([*pair(SET, [4, 4], [2, 2]), *pair(GET, [9, 9], [6, 6], 1.0)])
    found = [(each.workload, each.server, each.cpu_us.median) for each in summaries]
    assert found == [
        (SET, "respkv", 4),
        (SET, "redis", 2),
        (GET, "respkv", 9),
        (GET, "redis", 6),
    ]


def test_a_ratio_is_of_medians_with_the_extremes_of_single_rounds() -> None:
    (ratio,) = report.ratios(pair(SET, [4, 6, 5], [4, 2, 5]), {16: 2.0})
    assert ratio.cpu == Spread(median=5 / 4, least=1.0, most=3.0)


@pytest.mark.parametrize(
    ("workload", "ours", "hits", "is_met"),
    [
        (GET, 15.0, 1.0, True),
        (GET, 15.1, 1.0, False),
        (GET, 15.0, 0.99, True),
        (GET, 15.0, 0.989, False),
        (GET, 15.0, None, False),
        (SET, 20.0, None, True),
        (SET, 20.1, None, False),
        (Workload("SET", 4, 1000), 1.0, None, None),
    ],
)
def test_aims(workload: Workload, ours: float, hits: float | None, is_met: bool | None) -> None:
    (ratio,) = report.ratios(pair(workload, [ours], [10.0], hits), report.RATIO_AIMS)
    assert ratio.is_met is is_met


def test_one_round_that_misses_its_keys_fails_the_aim() -> None:
    runs = pair(GET, [10, 10, 10], [10, 10, 10], 1.0)
    runs[2] = dataclasses.replace(runs[2], hit_rate=0.5)
    (ratio,) = report.ratios(runs, {1: 1.5})
    assert ratio.is_met is False


def test_one_round_that_did_not_count_its_hits_fails_the_aim() -> None:
    runs = pair(GET, [10, 10], [10, 10], 1.0)
    runs[0] = dataclasses.replace(runs[0], hit_rate=None)
    (ratio,) = report.ratios(runs, {1: 1.5})
    assert ratio.is_met is False


def test_one_server_alone_has_no_ratio() -> None:
    assert report.ratios([run("respkv", SET, 1, 5.0)], report.RATIO_AIMS) == []


def test_ratio_lines_say_met_or_missed() -> None:
    runs = [*pair(SET, [4, 6], [4, 4]), *pair(GET, [9, 9], [3, 3], 0.5)]
    assert report.ratio_lines(report.ratios(runs, {1: 4.0, 16: 2.0})) == [
        "SET at pipeline 16: CPU respkv / redis 1.25 (1.00-1.50), aim <= 2.0: met",
        "GET at pipeline 1: CPU respkv / redis 3.00 (3.00-3.00), aim <= 4.0: missed"
        " (GET found less than 99 % of its keys, or did not count)",
    ]
    (line,) = report.ratio_lines(report.ratios(pair(SET, [4], [4]), {}))
    assert line.endswith("1.00 (1.00-1.00), no aim")


def test_columns_line_up_on_the_right() -> None:
    assert report.columns([["a", "long"], ["wide", "b"]]) == "   a  long\nwide     b"


def test_the_table_shows_hits_short_runs_and_unsettled_ones() -> None:
    runs = [*pair(SET, [1.9], [2.1]), *pair(GET, [9.0], [8.0], 0.9987)]
    runs[0] = dataclasses.replace(runs[0], is_settled=False)
    lines = report.table_text("A title", runs, {}).splitlines()
    assert lines[0] == "A title"
    assert "1.90 (1.90-1.90)*" in lines[3]
    assert lines[3].endswith(" -")
    assert "2.10 (2.10-2.10) " in lines[4]
    assert lines[5].endswith(" 99.87")
    assert lines[7] == "* a run used less than 2 s of CPU time: clock ticks matter"
    assert lines[8].startswith("1 runs ended with a server still busy")


@pytest.mark.parametrize(("most", "word"), [(0.05, "quiet"), (0.06, "noise was seen")])
def test_noise_is_named(most: float, word: str) -> None:
    text = report.noise_text([0.0, 0.01, most], (0.5, 0, 0), (1.25, 0, 0))
    assert text == (
        f"Other programs used 1.0 % of the machine during a run (at most {100 * most:.1f} %):"
        f" {word}. Load average 0.50 before, 1.25 after."
    )


@pytest.mark.parametrize(
    ("versions", "compiled", "words"),
    [
        ({"redis": "7.0.15"}, [], "not run"),
        ({"respkv": "0.1.0"}, [], "none"),
        ({"respkv": "0.1.0"}, ["a.so", "b.so"], "a.so, b.so"),
    ],
)
def test_facts_say_what_was_compiled(
    versions: dict[str, str], compiled: list[str], words: str
) -> None:
    facts = Facts("2030-01-01", "CPU", 2, "6.1", "CPython 3.11", versions, compiled)
    assert f"compiled modules of respkv: {words}\n" in report.facts_text(facts)


def test_json_holds_every_run() -> None:
    runs = pair(SET, [4, 6], [4, 4])
    document = json.loads(report.to_json(report.cell_json(runs, {16: 2.0})))
    assert [each["user_s"] for each in document["runs"]] == [3.0, 3.0, 4.5, 3.0]
    assert document["cells"][0]["workload"] == {"command": "SET", "pipeline": 16, "key_count": 1000}
    assert document["ratios"][0]["is_met"] is True
