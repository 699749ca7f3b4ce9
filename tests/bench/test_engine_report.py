"""Tables and aims of the engines' benchmark, and its command line."""

import dataclasses
from pathlib import Path

import pytest

from bench import engine, engine_report
from bench.engine_child import Measure
from bench.engine_workload import FILL, GET_HIT, GET_MISS, SCAN


def measure(name: str, phase: str, us: float, *, cache: str = "large", rows: int = 7) -> Measure:
    """A million operations, so that seconds are microseconds each: all CPU is twice the process'."""
    return Measure(
        engine=name,
        value_bytes=100,
        batch=64,
        cache=cache,
        phase=phase,
        ops=1_000_000,
        rows=rows,
        serving_s=us / 2,
        process_s=us,
        cpu_s=2 * us,
        wall_s=us,
        settle_s=1.0,
        is_settled=True,
        written_bytes=300,
        user_bytes=100 if phase == FILL else 0,
        folder_bytes=150,
        live_bytes=100,
        peak_bytes=5 << 20,
    )


def both(phase: str, ours: float, theirs: float, cache: str = "large") -> list[Measure]:
    return [
        measure("respkv", phase, ours, cache=cache),
        measure("leveldb", phase, theirs, cache=cache),
    ]


def test_a_cell_has_medians_of_its_rounds() -> None:
    (cell,) = engine_report.cells([measure("respkv", FILL, us) for us in (8.0, 2.0, 4.0)])
    assert (cell.serving_us, cell.process_us, cell.cpu_us) == (2.0, 4.0, 8.0)
    assert (cell.write_amplification, cell.space_amplification) == (3.0, 1.5)
    assert cell.place == (100, "large", 64, FILL)


def test_a_read_has_no_batch_and_no_write_amplification() -> None:
    (cell,) = engine_report.cells([measure("respkv", GET_HIT, 1.0)])
    assert (cell.place[2], cell.write_amplification) == (0, None)


@pytest.mark.parametrize(
    ("ours", "theirs", "met"),
    [
        (1.0, 2.0, [True, None, True]),
        (1.1, 2.0, [False, None, True]),
        (4.1, 2.0, [False, None, False]),
    ],
)
def test_aims_of_put(ours: float, theirs: float, met: list[bool | None]) -> None:
    found = engine_report.ratios(engine_report.cells(both(FILL, ours, theirs)))
    assert [each.what for each in found] == [
        "serving process",
        "serving thread alone",
        "CPU of all",
    ]
    assert [each.is_met for each in found] == met


@pytest.mark.parametrize(
    ("phase", "cache", "count"),
    [(GET_HIT, "large", 1), (GET_HIT, "tiny", 0), (GET_MISS, "tiny", 1), (SCAN, "large", 0)],
)
def test_gets_have_an_aim_where_the_data_is_cached(phase: str, cache: str, count: int) -> None:
    found = engine_report.ratios(engine_report.cells(both(phase, 2.0, 2.0, cache)))
    assert [each.is_met for each in found] == [True] * count
    worse = engine_report.ratios(engine_report.cells(both(phase, 2.1, 2.0, cache)))
    assert [each.is_met for each in worse] == [False] * count


def test_without_leveldb_there_is_no_ratio() -> None:
    assert engine_report.ratios(engine_report.cells([measure("respkv", FILL, 1.0)])) == []


def test_scans_that_saw_other_rows_are_named() -> None:
    scans = [measure("respkv", SCAN, 1.0, rows=7), measure("rocksdb", SCAN, 1.0, rows=8)]
    (line,) = engine_report.disagreements(engine_report.cells(scans))
    assert "'respkv': 7, 'rocksdb': 8" in line
    assert engine_report.disagreements(engine_report.cells(both(SCAN, 1, 2))) == []


def test_the_text_has_everything() -> None:
    measures = [*both(FILL, 1.0, 2.0), *both(GET_HIT, 9.0, 3.0)]
    measures[0] = dataclasses.replace(measures[0], is_settled=False)
    text = engine_report.text(measures)
    assert "1.0*" in text
    assert "* background work had not ended in time" in text
    assert (
        "fill, values of 100, large cache, batches of 64:"
        " serving process respkv / leveldb 0.50, aim <= 0.5: met" in text
    )
    assert "serving thread alone respkv / leveldb 0.50, no aim" in text
    assert (
        "get hit, values of 100, large cache: serving thread respkv / leveldb 3.00, aim <= 1.0: missed"
        in text
    )


def test_engines_alternate_and_folders_are_kept_apart() -> None:
    plan = engine.plan_of(engine.parse_options(["--values", "100"]), ["respkv", "leveldb"])
    specs = list(engine.specs(plan, Path("/r")))
    assert [each.engine for each in specs] == ["respkv", "leveldb"] * 4
    assert len({each.folder for each in specs}) == 4
    assert specs[2].folder == specs[4].folder == specs[6].folder != specs[0].folder
    assert (plan.record_count, plan.write_buffer_bytes) == (1_000_000, 16 << 20)


def test_what_begins_after_the_limit_is_left_out() -> None:
    plan = engine.plan_of(engine.parse_options(["--values", "100"]), ["respkv"])
    measures, shares, left_out = engine.measure(plan, -1.0)
    assert (measures, shares, len(left_out)) == ([], [], 4)
    assert left_out[0] == "respkv, values of 100, batches of 1, large cache"


@pytest.mark.parametrize("words", [["--engines", "respkv,other"], ["--values", "8"]])
def test_bad_choices_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        engine.parse_options(words)
    assert ended.value.code == 2
    assert "error: argument" in capsys.readouterr().err
