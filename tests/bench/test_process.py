"""The accounting of CPU time and memory, on a `/proc` that the test writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import process
from bench.process import TICKS_PER_S, CpuTime, compiled_modules, parse_memory, parse_stat


def write_process(
    proc: Path, pid: int, parent: int, ticks: tuple[int, int, int, int], name: str = "server"
) -> None:
    """Write the files of one process; `ticks` are utime, stime, cutime and cstime."""
    before = [str(number) for number in range(1, 10)]  # pgrp to cmajflt, which nobody reads.
    after = ["20", "0", "1", "0", "12345"]
    fields = [str(pid), f"({name})", "S", str(parent), *before, *map(str, ticks), *after]
    directory = proc / str(pid)
    directory.mkdir()
    (directory / "stat").write_text(" ".join(fields) + "\n")
    (directory / "status").write_text(
        f"Name:\t{name}\nVmHWM:\t{pid * 100} kB\nVmRSS:\t{pid * 10} kB\n"
    )


@pytest.mark.parametrize("name", ["server", "two words", "a) R 9 (b", ""])
def test_stat_is_read_behind_any_name(tmp_path: Path, name: str) -> None:
    write_process(tmp_path, 7, 3, (100, 20, 3000, 400), name)
    stat = parse_stat((tmp_path / "7" / "stat").read_text())
    assert stat.parent == 3
    assert stat.cpu == CpuTime(3100 / TICKS_PER_S, 420 / TICKS_PER_S)


def test_stat_agrees_with_the_operating_system() -> None:
    ours = parse_stat(Path("/proc/self/stat").read_text())
    times = os.times()
    assert ours.parent == os.getppid()
    assert ours.cpu.user_s == pytest.approx(times.user + times.children_user, abs=0.05)
    assert ours.cpu.system_s == pytest.approx(times.system + times.children_system, abs=0.05)


def test_cpu_of_a_tree_has_descendants_and_ended_children_and_no_others(tmp_path: Path) -> None:
    write_process(tmp_path, 1, 0, (1, 1, 1, 1))
    write_process(tmp_path, 10, 1, (100, 10, 7, 5))
    write_process(tmp_path, 11, 10, (200, 20, 0, 0))
    write_process(tmp_path, 12, 11, (400, 40, 0, 0))
    write_process(tmp_path, 20, 1, (9999, 9999, 9999, 9999))
    (tmp_path / "meminfo").write_text("not a process")
    cpu = process.tree_cpu(10, tmp_path)
    assert cpu.user_s == pytest.approx(707 / TICKS_PER_S)
    assert cpu.system_s == pytest.approx(75 / TICKS_PER_S)
    assert cpu.total_s == pytest.approx(782 / TICKS_PER_S)


def test_cpu_does_not_change_when_a_child_ends_and_is_waited_for(tmp_path: Path) -> None:
    live, ended = tmp_path / "live", tmp_path / "ended"
    for directory in (live, ended):
        directory.mkdir()
    write_process(live, 10, 1, (100, 10, 0, 0))
    write_process(live, 11, 10, (200, 20, 30, 3))
    write_process(ended, 10, 1, (100, 10, 230, 23))
    assert process.tree_cpu(10, live) == process.tree_cpu(10, ended)


def test_the_time_of_a_real_ended_child_is_counted() -> None:
    before = process.tree_cpu(os.getpid())
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    # Its user and its system time are whole ticks of 10 ms each, at both ends.
    assert (process.tree_cpu(os.getpid()) - before).total_s >= 0.15


def test_an_ended_root_has_used_nothing(tmp_path: Path) -> None:
    write_process(tmp_path, 11, 10, (200, 20, 0, 0))
    assert process.tree_cpu(10, tmp_path) == CpuTime(0.0, 0.0)


def test_resident_memory_is_the_sum_of_the_tree(tmp_path: Path) -> None:
    write_process(tmp_path, 10, 1, (0, 0, 0, 0))
    write_process(tmp_path, 11, 10, (0, 0, 0, 0))
    write_process(tmp_path, 12, 1, (0, 0, 0, 0))
    assert process.resident_bytes(10, tmp_path) == (100 + 110) * 1024
    assert process.peak_bytes(10, tmp_path) == 1000 * 1024
    assert process.peak_bytes(99, tmp_path) == 0


def test_memory_of_a_process_that_ended_is_nothing() -> None:
    assert parse_memory("Name:\tserver\nState:\tZ (zombie)\n") == (0, 0)


def test_compiled_modules_are_those_of_the_packages_alone() -> None:
    maps = """\
7f00-7f01 r-xp 00000000 fe:00 1    /repo/engine/bloom.cpython-311-x86_64-linux-gnu.so
7f01-7f02 r--p 00001000 fe:00 1    /repo/engine/bloom.cpython-311-x86_64-linux-gnu.so
7f02-7f03 r-xp 00000000 fe:00 2    /repo/0123abc__mypyc.cpython-311-x86_64-linux-gnu.so
7f03-7f04 r-xp 00000000 fe:00 3    /repo/.venv/lib/hiredis/hiredis.cpython-311.so
7f04-7f05 r-xp 00000000 fe:00 4    /usr/lib/other__mypyc.cpython-311.so
7f05-7f06 r-xp 00000000 fe:00 5    /repo/engine/a name with spaces.so
7f06-7f07 r--p 00000000 fe:00 6    /repo/engine/table.data
7f07-7f08 rw-p 00000000 00:00 0    [heap]
7f08-7f09 rw-p 00000000 00:00 0
"""
    assert compiled_modules(maps, [Path("/repo/engine"), Path("/repo/respkv")]) == [
        "0123abc__mypyc.cpython-311-x86_64-linux-gnu.so",
        "a name with spaces.so",
        "bloom.cpython-311-x86_64-linux-gnu.so",
    ]
    assert compiled_modules(maps, [Path("/elsewhere/engine")]) == []
