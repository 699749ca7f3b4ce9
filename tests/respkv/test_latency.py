"""The latency monitor: what it keeps, and what its reports say."""

from __future__ import annotations

from respkv.latency import SAMPLES_MAX, LatencyMonitor, Sample, graph, report

MS = 1_000_000


class Watch:
    def __init__(self, threshold_ms: int) -> None:
        self.now_s = 1000.0
        self.monitor = LatencyMonitor(lambda: self.now_s)
        self.monitor.configure(threshold_ms)

    def samples(self, name: str) -> list[Sample]:
        return list(self.monitor.events[name].samples)


def test_only_what_reaches_the_threshold_is_kept() -> None:
    watch = Watch(5)
    watch.monitor.add("loop", 5 * MS - 1)
    assert not watch.monitor.events
    watch.monitor.add("loop", 5 * MS)
    assert watch.samples("loop") == [Sample(1000, 5)]


def test_switched_off_it_keeps_nothing_new() -> None:
    watch = Watch(5)
    watch.monitor.add("loop", 7 * MS)
    watch.monitor.configure(0)
    watch.now_s += 1
    watch.monitor.add("loop", 10**15)
    assert not watch.monitor.is_on
    assert watch.samples("loop") == [Sample(1000, 7)]


def test_the_longest_of_a_second_is_kept() -> None:
    watch = Watch(1)
    for elapsed_ms in (5, 9, 7):
        watch.monitor.add("loop", elapsed_ms * MS)
    watch.now_s += 1
    watch.monitor.add("loop", 3 * MS)
    assert watch.samples("loop") == [Sample(1000, 9), Sample(1001, 3)]
    assert watch.monitor.events["loop"].worst_ms == 9


def test_samples_are_bounded_and_the_worst_is_remembered() -> None:
    watch = Watch(1)
    watch.monitor.add("loop", 900 * MS)
    for _ in range(SAMPLES_MAX):
        watch.now_s += 1
        watch.monitor.add("loop", 2 * MS)
    assert [sample.elapsed_ms for sample in watch.samples("loop")] == [2] * SAMPLES_MAX
    assert watch.monitor.events["loop"].worst_ms == 900


def test_reset_counts_the_events_that_there_were() -> None:
    watch = Watch(1)
    for name in ("loop", "command", "aof-write"):
        watch.monitor.add(name, MS)
    assert watch.monitor.reset(["loop", "loop", "nosuch"]) == 1
    assert list(watch.monitor.events) == ["command", "aof-write"]
    assert watch.monitor.reset() == 2
    assert watch.monitor.reset() == 0


def test_the_graph_has_a_line_for_each_sample() -> None:
    watch = Watch(1)
    watch.monitor.add("loop", 4 * MS)
    watch.now_s += 3
    watch.monitor.add("loop", 8 * MS)
    drawn = graph("loop", watch.monitor.events["loop"], 1005)
    assert drawn.splitlines() == [
        "loop: 4 to 8 ms in the last 2, at most 8 ms ever",
        "",
        "       5 s ago        4 ms " + 20 * "#",
        "       2 s ago        8 ms " + 40 * "#",
    ]


def test_the_report_tells_of_nothing_of_silence_and_of_events() -> None:
    watch = Watch(0)
    assert "is off" in report(watch.monitor)
    watch.monitor.configure(5)
    assert "nothing has taken 5 ms" in report(watch.monitor)
    watch.monitor.add("command", 10 * MS)
    watch.now_s += 10
    watch.monitor.add("command", 20 * MS)
    first, advice = report(watch.monitor).splitlines()
    assert first == (
        "command: 2 times, one in 10.0 s, 15 ms on average (deviation 5 ms), at most 20 ms."
    )
    assert "SLOWLOG" in advice
