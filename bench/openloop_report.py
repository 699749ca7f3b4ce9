"""From an open-loop run to what is printed about it (core).

Aims: the 99th percentile while the server flushes or compacts is at most ten times that of quiet
times; no pause is longer than 50 ms; resident memory of both processes stays within 1.5 times the
setting. Missed aims are said, and are no error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.openloop_generator import Sent
from bench.openloop_histogram import merged, percentile_ms
from bench.openloop_schedule import Load
from bench.openloop_watch import Sample, busy_periods, split
from bench.ping import Latency
from bench.report import columns, verdict

MIB: Final = 1 << 20
BUSY_RATIO_AIM: Final = 10.0
PAUSE_AIM_MS: Final = 50.0
MEMORY_RATIO_AIM: Final = 1.5
# Beyond this the figures are the generator's and not the server's.
LAG_P99_MAX_MS: Final = 10.0
# What counts as holding a rate.
HOLD_P99_MS: Final = 100.0
SHARES: Final = (0.5, 0.99, 0.999, 1.0)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of percentiles; None where there were no such requests."""

    what: str
    count: int
    percentiles_ms: tuple[float | None, ...]

    @classmethod
    def of(cls, what: str, counts: Mapping[int, int]) -> Row:
        shown = tuple(percentile_ms(counts, share) for share in SHARES)
        return cls(what, sum(counts.values()), shown)

    @property
    def p99_ms(self) -> float | None:
        return self.percentiles_ms[1]


@dataclass(frozen=True, slots=True)
class Result:
    """Everything about one run."""

    load: Load
    rows: list[Row]  # All, quiet, busy, GET, SET.
    lag: Row
    answered_per_s: float
    unanswered_count: int
    missed_count: int
    error_count: int
    first_error: str
    gave_up: bool
    generator_share: float
    busy_s: float
    flushes: int
    compactions: int
    stalls: int
    ping: Latency
    memory_bytes_max: int
    rss_bytes: int
    anonymous_bytes: int

    @property
    def busy_ratio(self) -> float | None:
        """The 99th percentile in busy times over that in quiet ones; None if there was only one kind."""
        quiet, busy = self.rows[1].p99_ms, self.rows[2].p99_ms
        return busy / quiet if busy is not None and quiet else None

    @property
    def is_generator_late(self) -> bool:
        return (self.lag.p99_ms or 0.0) > LAG_P99_MAX_MS

    @property
    def holds(self) -> bool:
        """Whether the server answers as fast as it is asked."""
        p99_ms = self.rows[0].p99_ms
        is_complete = not (self.gave_up or self.unanswered_count or self.error_count)
        return is_complete and p99_ms is not None and p99_ms <= HOLD_P99_MS


def result(
    load: Load, sent: Sent, samples: Sequence[Sample], ping: Latency, memory_bytes_max: int
) -> Result:
    """Put a run together."""
    periods = busy_periods(samples)
    quiet, busy = split(sent.windows, sent.began_ns, periods)
    first, last = samples[0], samples[-1]
    return Result(
        load=load,
        rows=[
            Row.of("all", merged(sent.windows)),
            Row.of("quiet", quiet),
            Row.of("flush or compaction", busy),
            Row.of("GET", sent.reads),
            Row.of("SET", sent.writes),
        ],
        lag=Row.of("lag", sent.lags),
        answered_per_s=sent.answered_count / sent.wall_s,
        unanswered_count=sent.unanswered_count,
        missed_count=sent.missed_count,
        error_count=sent.error_count,
        first_error=sent.first_error,
        gave_up=sent.gave_up,
        generator_share=sent.cpu_s / sent.wall_s,
        busy_s=sum(end - begin for begin, end in periods) / 1e9,
        flushes=last.flushes - first.flushes,
        compactions=last.compactions - first.compactions,
        stalls=last.stalls - first.stalls,
        ping=ping,
        memory_bytes_max=memory_bytes_max,
        rss_bytes=max(each.memory.rss_bytes for each in samples),
        anonymous_bytes=max(each.memory.anonymous_bytes for each in samples),
    )


def text(one: Result) -> str:
    """Everything that is printed about one run."""
    lines = [title(one.load), "", table(one.rows), "", *notes(one), *aim_lines(one), ""]
    return "\n".join(lines)


def title(load: Load) -> str:
    return (
        f"{load.rate} requests/s for {load.seconds:g} s, {load.write_share:.0%} writes,"
        f" {load.key_count} keys with values of {load.value_bytes},"
        f" {load.hot_share:.0%} of requests to {load.hot_keys} hot keys,"
        f" {load.connection_count} connections"
    )


def table(rows: Sequence[Row]) -> str:
    lines = [["requests", "count", "p50 ms", "p99 ms", "p99.9 ms", "most ms"]]
    for row in rows:
        shown = ("-" if each is None else f"{each:.2f}" for each in row.percentiles_ms)
        lines.append([row.what, str(row.count), *shown])
    return columns(lines)


def notes(one: Result) -> list[str]:
    lag_p99, lag_most = one.lag.percentiles_ms[1] or 0.0, one.lag.percentiles_ms[3] or 0.0
    lines = [
        f"Generator: {one.generator_share:.0%} of a core; behind its schedule by"
        f" {lag_p99:.2f} ms (p99), {lag_most:.2f} ms (most)"
        + ("; TOO FAR: these latencies are partly its own" if one.is_generator_late else ""),
        f"Server: {one.answered_per_s:.0f} answers/s, {one.flushes} flushes,"
        f" {one.compactions} compactions, busy with them {one.busy_s:.1f} s, {one.stalls} stalls",
    ]
    if one.gave_up:
        lines.append("The generator gave up: what waits to be sent grew without end.")
    if one.unanswered_count:
        lines.append(f"{one.unanswered_count} requests were not answered in time.")
    if one.missed_count:
        lines.append(f"{one.missed_count} reads did not find their key.")
    if one.error_count:
        lines.append(f"{one.error_count} errors; the first: {one.first_error}")
    return lines


def aim_lines(one: Result) -> list[str]:
    ratio = one.busy_ratio
    if ratio is None:
        busy = "no comparison: only one kind of time was seen"
    else:
        words = verdict(f"<= {BUSY_RATIO_AIM:g}", is_met=ratio <= BUSY_RATIO_AIM)
        busy = f"{ratio:.1f} times as long, {words}"
    pause = verdict(f"<= {PAUSE_AIM_MS:g} ms", is_met=one.ping.most_ms <= PAUSE_AIM_MS)
    limit = MEMORY_RATIO_AIM * one.memory_bytes_max
    memory = verdict(f"<= {limit / MIB:.0f} MiB", is_met=one.rss_bytes <= limit)
    return [
        f"p99 during flush or compaction: {busy}",
        f"Longest pause, as PING sees it: {one.ping.most_ms:.1f} ms"
        f" (p99 {one.ping.p99_ms:.2f} ms), {pause}",
        f"Resident memory of both processes: at most {one.rss_bytes / MIB:.0f} MiB"
        f" ({one.anonymous_bytes / MIB:.0f} MiB without files)"
        f" at memory.bytes_max {one.memory_bytes_max / MIB:.0f} MiB, {memory}",
    ]


def to_plain(one: Result) -> dict[str, Any]:
    """For JSON."""
    return {
        **dataclasses.asdict(one),
        "busy_ratio": one.busy_ratio,
        "is_generator_late": one.is_generator_late,
        "holds": one.holds,
    }
