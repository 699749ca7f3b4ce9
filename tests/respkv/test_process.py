"""What the operating system says of this process: plausible, since nothing else can be known."""

from __future__ import annotations

import os

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
