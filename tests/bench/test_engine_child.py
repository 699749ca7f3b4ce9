"""Each engine does all phases on a small folder, finds what it wrote, and is measured."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import trio

from bench import engine_child
from bench.engine import _steps, run_child
from bench.engine_child import WrongAnswer, folder_bytes
from bench.engine_subject import ENGINES, PACKAGES, EngineMissing, settle_by_clock, version_of
from bench.engine_workload import FILL, GET_HIT, GET_MISS, OVERWRITE, READS, SCAN, WRITES, Spec

RECORDS = 3000


def spec(engine: str, folder: Path, phases: tuple[str, ...], batch: int = 64) -> Spec:
    return Spec(
        engine=engine,
        folder=str(folder),
        record_count=RECORDS,
        value_bytes=100,
        batch=batch,
        cache="large",
        write_buffer_bytes=128 << 10,
        cache_bytes=1 << 20,
        phases=phases,
    )


def installed() -> list[str]:
    """respkv, and the libraries that are here: they are an optional dependency."""
    return [e for e in ENGINES if e == "respkv" or importlib.util.find_spec(PACKAGES[e])]


@pytest.mark.parametrize("engine", installed())
@pytest.mark.parametrize("batch", [1, 64])
def test_all_phases(engine: str, batch: int, tmp_path: Path) -> None:
    measures = run_child(spec(engine, tmp_path, (*WRITES, *READS), batch), 60)
    by_phase = {each.phase: each for each in measures}
    assert list(by_phase) == [*WRITES, *READS]
    assert by_phase[GET_HIT].rows == RECORDS
    assert by_phase[GET_MISS].rows == 0
    assert by_phase[SCAN].rows > 0
    for each in measures:
        assert 0 < each.serving_s <= each.process_s + 0.01
        assert each.process_s <= each.cpu_s + 1e-6
        assert each.is_settled
        assert each.folder_bytes > 0
        assert each.peak_bytes > 1 << 20
        is_write = each.phase in WRITES
        assert (each.written_bytes >= each.user_bytes * 0.9) if is_write else not each.user_bytes


def test_the_worker_is_counted_for_respkv(tmp_path: Path) -> None:
    (fill,) = run_child(spec("respkv", tmp_path, (FILL,)), 60)
    assert fill.cpu_s > fill.process_s + 0.005  # Flushing 3000 records takes a worker.
    assert fill.written_bytes > 1.3 * fill.user_bytes  # A log, and tables.


def test_engines_see_the_same_rows(tmp_path: Path) -> None:
    rows = set()
    for engine in installed():
        folder = tmp_path / engine
        folder.mkdir()
        rows.add(run_child(spec(engine, folder, (FILL, SCAN)), 60)[1].rows)
    assert len(rows) == 1


async def test_an_engine_that_lost_records_is_not_measured(tmp_path: Path) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(WrongAnswer, match=f"found 0 of {RECORDS}")):
        await engine_child.run(spec("respkv", tmp_path, (GET_HIT,)))


def test_a_folder_is_the_sum_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"12345")
    (tmp_path / "y").write_bytes(b"123")
    assert folder_bytes(tmp_path) == 8


async def test_quiet_is_when_the_clock_stands_still(autojump_clock: trio.testing.MockClock) -> None:
    readings = iter([0.0, 1.0, 1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0, 99.0])
    assert await settle_by_clock(lambda: False, lambda: next(readings))
    assert next(readings) == 99.0  # Quiet once, busy again, quiet twice: five pairs.


async def test_an_engine_that_never_rests_is_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert not await settle_by_clock(lambda: True, lambda: 0.0)


def test_a_missing_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "leveldb", "no_such_package_here")
    with pytest.raises(EngineMissing, match=r"no_such_package_here is not installed.*\[bench\]"):
        version_of("leveldb")


def test_a_spec_goes_through_json() -> None:
    plain = dataclasses.asdict(spec("respkv", Path("/x"), WRITES))
    assert json.loads(json.dumps(plain))["phases"] == list(WRITES)


def test_the_steps_fill_before_they_read() -> None:
    steps = [(batch, cache, phases[0]) for batch, cache, phases in _steps()]
    assert steps == [
        (1, "large", FILL),
        (64, "large", FILL),
        (64, "large", GET_HIT),
        (64, "tiny", GET_HIT),
    ]
    assert _steps()[3][2][-1] == OVERWRITE
