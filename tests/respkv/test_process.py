"""What the operating system says of this process: plausible, since nothing else can be known."""

from __future__ import annotations

import os
import subprocess
import sys

from respkv.process import RealProcess


def test_memory_grows_with_what_is_held() -> None:
    process = RealProcess()
    before = process.rss_bytes()
    held = bytearray(os.urandom(1)) * (64 << 20)
    assert process.rss_bytes() - before > 32 << 20
    assert len(held) < process.memory_total_bytes


def test_cpu_time_passes() -> None:
    process = RealProcess()
    before = process.cpu_times()
    while (
        process.cpu_times().user_s + process.cpu_times().system_s <= before.user_s + before.system_s
    ):
        sum(range(1000))
    after = process.cpu_times()
    assert after.main_user_s + after.main_system_s <= after.user_s + after.system_s + 0.1


def test_names() -> None:
    process = RealProcess()
    assert process.pid == os.getpid()
    assert process.system.startswith("Linux ")
    assert process.trim() in (True, False)


def test_the_limit_on_open_files_is_raised_as_far_as_allowed() -> None:
    """In a process of its own: the limit is the process's."""
    script = (
        "import resource; from respkv.process import allow_files;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128));"
        "print(allow_files(50), allow_files(100), resource.getrlimit(resource.RLIMIT_NOFILE)[0]);"
        "got = allow_files(256);"
        "print(got == resource.getrlimit(resource.RLIMIT_NOFILE)[0] and got in (128, 256))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.splitlines() == ["50 100 100", "True"]
