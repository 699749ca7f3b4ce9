"""What is read of the machine."""

import pytest

from bench.machine import Activity, other_share, parse_busy_s, parse_cpu_model
from bench.process import TICKS_PER_S


def test_busy_time_is_all_but_idle_and_waiting_for_disks() -> None:
    #              user nice system idle iowait irq softirq steal guest
    text = "cpu  1000 200 30 77777 888 50000 600000 4 0 0\ncpu0 5 5 5 5 5 5 5 5 0 0\n"
    assert parse_busy_s(text) == pytest.approx(651234 / TICKS_PER_S)


@pytest.mark.parametrize(
    ("busy_s", "own_s", "share"), [(8.0, 8.0, 0.0), (10.0, 8.0, 0.1), (7.9, 8.0, 0.0)]
)
def test_what_others_used_is_a_share_of_all_cores(
    busy_s: float, own_s: float, share: float
) -> None:
    before = Activity(at_s=100.0, busy_s=50.0, own_s=20.0)
    after = Activity(at_s=110.0, busy_s=50.0 + busy_s, own_s=20.0 + own_s)
    assert other_share(before, after, core_count=2) == pytest.approx(share)


def test_cpu_model() -> None:
    assert parse_cpu_model("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\n") == "Some CPU @ 3 GHz"
    assert parse_cpu_model("processor\t: 0\n") == "unknown"
