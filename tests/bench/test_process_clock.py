"""What one process has used."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from bench.process_clock import Resident, process_cpu_s, resident, written_bytes


def test_the_clock_of_this_process_is_its_own() -> None:
    before = process_cpu_s(os.getpid())
    began = time.process_time()
    while time.process_time() - began < 0.02:
        pass
    assert process_cpu_s(os.getpid()) - before == pytest.approx(0.02, abs=0.01)


def test_the_clock_of_another_process_can_be_read_until_it_ends() -> None:
    child = subprocess.Popen(["sleep", "20"])
    try:
        assert 0 < process_cpu_s(child.pid) < 5
    finally:
        child.kill()
        child.wait()
    assert process_cpu_s(child.pid) == 0.0


def test_written_bytes_grow_with_what_is_written(tmp_path: Path) -> None:
    before = written_bytes(os.getpid())
    (tmp_path / "x").write_bytes(bytes(100_000))
    assert 100_000 <= written_bytes(os.getpid()) - before < 200_000


def test_memory_comes_from_the_status(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text(
        "Name:\tx y\nVmRSS:\t  30 kB\nRssAnon:\t 20 kB\nSigQ:\t0/1\n"
    )
    assert resident(7, tmp_path) == Resident(30 * 1024, 20 * 1024)
    assert resident(8, tmp_path) == Resident(0, 0)
    assert resident(7, tmp_path) + Resident(1, 2) == Resident(30 * 1024 + 1, 20 * 1024 + 2)
