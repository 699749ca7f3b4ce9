"""From runs on replicated stores to what is printed about them (core).

Runs of one load on one system make a cell; its figures are medians over the rounds. CPU time is that
of all servers of the system, over the operations that were answered. A cell with an error, a missed
key or an unanswered request in any round is marked, and meets no aim.

The aim: a SET on three nodes of respkv costs at most what Redis' SET with WAIT costs, at the same
pipeline, in the same run.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.openloop_histogram import percentile_ms
from bench.openloop_report import LAG_P99_MAX_MS, SHARES
from bench.process import CpuTime
from bench.replicated_load import Job, Outcome
from bench.report import CPU_S_MIN, Spread, columns, verdict

AIM: Final = "at most Redis SET with WAIT"
AIM_RATIO: Final = 1.0
CLOSED: Final = "closed loop"
FIXED: Final = "fixed rate"
# A generator that uses more of a core than this may have been the limit in a closed loop.
GENERATOR_SHARE_MAX: Final = 0.9
ERROR_TEXTS_SHOWN: Final = 3

REDIS: Final = "redis"
REDIS_WAIT: Final = "redis WAIT 1"
REDIS_WAIT_16: Final = "redis WAIT per 16"
BY_SLOT: Final = "respkv by slot"
ONE_NODE: Final = "respkv one node"
PEERS: Final = {"SET": REDIS_WAIT, "GET": REDIS}
OURS: Final = (BY_SLOT, ONE_NODE)


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """What is compared: one kind of load. The order is that of the tables."""

    mode: str
    is_read: bool
    pipeline: int

    @property
    def command(self) -> str:
        return "GET" if self.is_read else "SET"

    def __str__(self) -> str:
        return f"{self.command} at pipeline {self.pipeline}, {self.mode}"


@dataclass(frozen=True, slots=True)
class Run:
    """One load on one system. `user_s` and `system_s` are by server."""

    system: str
    place: Place
    round_number: int
    rate: int | None
    answered_count: int
    throughput: float
    user_s: tuple[float, ...]
    system_s: tuple[float, ...]
    percentiles_ms: tuple[float, ...]  # Of SHARES.
    hit_share: float | None
    missed_count: int
    unanswered_count: int
    errors: dict[str, int]
    gave_up: bool
    lag_p99_ms: float
    generator_share: float
    other_share: float
    is_settled: bool

    @property
    def cpu_s(self) -> float:
        return sum(self.user_s) + sum(self.system_s)

    @property
    def fault_count(self) -> int:
        """Requests that were not answered as they should be."""
        return self.missed_count + self.unanswered_count + sum(self.errors.values())

    @property
    def is_sound(self) -> bool:
        return not (self.fault_count or self.gave_up)

    def per_operation_us(self, seconds: float) -> float:
        return seconds / max(1, self.answered_count) * 1e6


def run_of(
    system: str,
    job: Job,
    round_number: int,
    outcome: Outcome,
    cpu: Sequence[CpuTime],
    *,
    other_share: float,
    is_settled: bool,
) -> Run:
    """Put a run together. `cpu` is what each server used for it."""
    is_read, asked = job.command == "GET", outcome.hit_count + outcome.missed_count
    return Run(
        system=system,
        place=Place(CLOSED if job.rate is None else FIXED, is_read, job.pipeline),
        round_number=round_number,
        rate=None if job.rate is None else job.pipelines_per_s * job.pipeline,
        answered_count=outcome.answered_count,
        throughput=outcome.answered_count / outcome.wall_s,
        user_s=tuple(each.user_s for each in cpu),
        system_s=tuple(each.system_s for each in cpu),
        percentiles_ms=tuple(percentile_ms(outcome.latencies, share) or 0.0 for share in SHARES),
        hit_share=outcome.hit_count / asked if is_read and asked else None,
        missed_count=outcome.missed_count,
        unanswered_count=outcome.unanswered_count,
        errors=dict(outcome.errors),
        gave_up=outcome.gave_up,
        lag_p99_ms=percentile_ms(outcome.lags, 0.99) or 0.0,
        generator_share=outcome.cpu_s / outcome.wall_s,
        other_share=other_share,
        is_settled=is_settled,
    )


@dataclass(frozen=True, slots=True)
class Cell:
    """All rounds of one load on one system."""

    system: str
    place: Place
    runs: tuple[Run, ...]

    def spread(self, value: Callable[[Run], float]) -> Spread:
        return Spread.of(value(run) for run in self.runs)

    @property
    def cpu_us(self) -> Spread:
        return self.spread(lambda run: run.per_operation_us(run.cpu_s))

    @property
    def server_us(self) -> list[float]:
        """The median of each server, in their order."""
        by_run = [
            [run.per_operation_us(sum(both)) for both in zip(run.user_s, run.system_s, strict=True)]
            for run in self.runs
        ]
        return [statistics.median(values) for values in zip(*by_run, strict=True)]

    @property
    def latencies_ms(self) -> list[float]:
        """The medians of the percentiles of SHARES."""
        by_run = [run.percentiles_ms for run in self.runs]
        return [statistics.median(values) for values in zip(*by_run, strict=True)]

    @property
    def is_sound(self) -> bool:
        return all(run.is_sound for run in self.runs)

    @property
    def hit_share(self) -> float | None:
        """The least of all rounds; None when nothing was read."""
        shares = [run.hit_share for run in self.runs if run.hit_share is not None]
        return min(shares) if len(shares) == len(self.runs) else None


@dataclass(frozen=True, slots=True)
class Ratio:
    """respkv's CPU time for one operation over that of its peer; the aim is None where none is set."""

    place: Place
    system: str
    peer: str
    cpu: Spread  # The ratio of the medians; the extremes are those of single rounds.
    ours_us: float
    peer_us: float
    aim: float | None
    are_sound: bool

    @property
    def is_met(self) -> bool | None:
        return None if self.aim is None else self.are_sound and self.cpu.median <= self.aim


def cells(runs: Iterable[Run]) -> list[Cell]:
    """Summarize all runs, by load, and then in the order in which the systems first ran."""
    groups: dict[tuple[Place, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.place, run.system), []).append(run)
    ordered = sorted(groups.items(), key=lambda one: one[0][0])
    return [Cell(system, place, tuple(group)) for (place, system), group in ordered]


def ratios(runs: Sequence[Run]) -> list[Ratio]:
    """Compare each way to use respkv with its peer, load by load; empty when only one of them ran."""
    by_name = {(one.place, one.system): one for one in cells(runs)}
    found = []
    for place in sorted({run.place for run in runs}):
        for system in OURS:
            ours = by_name.get((place, system))
            peer = by_name.get((place, PEERS[place.command]))
            if ours is not None and peer is not None:
                found.append(_ratio(ours, peer))
    return found


def _ratio(ours: Cell, peer: Cell) -> Ratio:
    theirs = {run.round_number: run.per_operation_us(run.cpu_s) for run in peer.runs}
    singles = [
        run.per_operation_us(run.cpu_s) / theirs[run.round_number]
        for run in ours.runs
        if theirs.get(run.round_number)
    ]
    middle = ours.cpu_us.median / peer.cpu_us.median
    return Ratio(
        place=ours.place,
        system=ours.system,
        peer=peer.system,
        cpu=Spread(middle, min(singles, default=middle), max(singles, default=middle)),
        ours_us=ours.cpu_us.median,
        peer_us=peer.cpu_us.median,
        aim=None if ours.place.is_read else AIM_RATIO,
        are_sound=ours.is_sound and peer.is_sound,
    )


def table(summaries: Sequence[Cell]) -> str:
    """What each system did under the loads of one mode."""
    heading = ["command", "pipeline", "system", "CPU us/op", "by server", "user", "system"]
    rows = [[*heading, "ops/s", "p50 ms", "p99 ms", "p99.9 ms", "most ms", "hits %", "generator"]]
    for one in summaries:
        user = one.spread(lambda run: run.per_operation_us(sum(run.user_s)))
        system = one.spread(lambda run: run.per_operation_us(sum(run.system_s)))
        rows.append(
            [
                one.place.command,
                str(one.place.pipeline),
                one.system,
                one.cpu_us.text(2) + _marks(one),
                "+".join(f"{each:.1f}" for each in one.server_us),
                f"{user.median:.2f}",
                f"{system.median:.2f}",
                one.spread(lambda run: run.throughput).text(0),
                *(f"{each:.2f}" for each in one.latencies_ms),
                "-" if one.hit_share is None else f"{100 * one.hit_share:.2f}",
                f"{one.spread(lambda run: run.generator_share).median:.0%}",
            ]
        )
    return columns(rows)


def ratio_lines(found: Iterable[Ratio]) -> list[str]:
    """One line for each comparison, with its aim."""
    lines = []
    for ratio in found:
        words = verdict(AIM, is_met=ratio.is_met)
        if not ratio.are_sound:
            words += " (with errors)"
        lines.append(
            f"{ratio.place}: CPU {ratio.system} {ratio.ours_us:.2f} / {ratio.peer}"
            f" {ratio.peer_us:.2f} us/op = {ratio.cpu.text(2)}, {words}"
        )
    return lines


def notes(summaries: Iterable[Cell]) -> list[str]:
    """What a reader must know to judge the figures."""
    lines = []
    for one in summaries:
        lines += [f"! {one.system}, {one.place}: {each}" for each in _faults(one)]
        lag_ms = max(run.lag_p99_ms for run in one.runs)
        if lag_ms > LAG_P99_MAX_MS:
            lines.append(
                f"{one.system}, {one.place}: the generator was {lag_ms:.0f} ms late (p99),"
                " so these latencies are partly its own"
            )
        share = one.spread(lambda run: run.generator_share).median
        if one.place.mode == CLOSED and share > GENERATOR_SHARE_MAX:
            lines.append(
                f"{one.system}, {one.place}: the generator used {share:.0%} of a core, so the"
                " operations per second may be its own limit"
            )
    return lines


def text(title: str, runs: Sequence[Run]) -> str:
    """Everything that is printed about the runs."""
    summaries = cells(runs)
    lines = [title, ""]
    for mode in (CLOSED, FIXED):
        shown = [one for one in summaries if one.place.mode == mode]
        if shown:
            lines += [_mode_title(mode, shown), "", table(shown), ""]
    if any("*" in _marks(one) for one in summaries):
        lines.append(f"* a run used less than {CPU_S_MIN:.0f} s of CPU time: clock ticks matter")
    if unsettled := sum(not run.is_settled for run in runs):
        lines.append(f"{unsettled} runs ended with a server still busy: the rest is not counted")
    lines += notes(summaries)
    if compared := ratio_lines(ratios(runs)):
        lines += ["", *compared]
    return "\n".join([*lines, ""])


def to_plain(runs: Sequence[Run]) -> dict[str, Any]:
    """For JSON: every run, and the comparisons."""
    return {
        "runs": [dataclasses.asdict(run) for run in runs],
        "ratios": [{**dataclasses.asdict(one), "is_met": one.is_met} for one in ratios(runs)],
    }


def _mode_title(mode: str, summaries: Sequence[Cell]) -> str:
    rates = {
        f"{one.place.command} at pipeline {one.place.pipeline} {one.runs[0].rate}/s": None
        for one in summaries
        if one.runs[0].rate is not None
    }
    return f"{mode}: {', '.join(rates)}" if rates else mode


def _marks(one: Cell) -> str:
    """`!` for errors, `*` for too short a run."""
    is_short = min(run.cpu_s for run in one.runs) < CPU_S_MIN
    return ("" if one.is_sound else "!") + ("*" if is_short else "")


def _faults(one: Cell) -> list[str]:
    """What went wrong in any round."""
    errors: Counter[str] = Counter()
    for run in one.runs:
        errors.update(run.errors)
    missed = sum(run.missed_count for run in one.runs)
    unanswered = sum(run.unanswered_count for run in one.runs)
    found = []
    if errors:
        shown = (
            f"{count} times {words!r}" for words, count in errors.most_common(ERROR_TEXTS_SHOWN)
        )
        found.append(f"{errors.total()} errors: {'; '.join(shown)}")
    if missed:
        found.append(f"{missed} keys were not found")
    if unanswered:
        found.append(f"{unanswered} requests were not answered in time")
    if any(run.gave_up for run in one.runs):
        found.append("the generator gave up: what waited to be sent grew without end")
    return found
