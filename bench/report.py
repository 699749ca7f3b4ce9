"""From runs to what is printed and saved (core).

It runs nothing. Runs of one workload by one server make a cell; the cells of two servers make a
ratio, which is printed beside its aim. An aim that is missed is said and is no error: the figures
are for readers.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.load import Workload
from bench.machine import NOISE_SHARE_MAX, Facts

# respkv's CPU time for one operation, as a multiple of Redis', by pipeline length.
RATIO_AIMS: Mapping[int, float] = {1: 1.5, 16: 2.0}
HIT_RATE_MIN = 0.99
CPU_S_MIN = 2.0


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the load generator against one server."""

    server: str
    round_number: int
    workload: Workload
    request_count: int
    user_s: float
    system_s: float
    throughput: float
    p50_ms: float
    p99_ms: float
    hit_rate: float | None
    other_share: float
    is_settled: bool

    @property
    def cpu_s(self) -> float:
        return self.user_s + self.system_s

    def per_operation_us(self, seconds: float) -> float:
        return seconds / self.request_count * 1e6


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some rounds, with the extremes beside it."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        sample = list(values)
        return cls(statistics.median(sample), min(sample), max(sample))

    def text(self, digits: int) -> str:
        return f"{self.median:.{digits}f} ({self.least:.{digits}f}-{self.most:.{digits}f})"


@dataclass(frozen=True, slots=True)
class Cell:
    """All rounds of one workload at one server."""

    server: str
    workload: Workload
    request_count: int
    cpu_us: Spread
    user_us: Spread
    system_us: Spread
    throughput: Spread
    p50_ms: Spread
    p99_ms: Spread
    hit_rate: Spread | None
    cpu_s_least: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """respkv's CPU time per operation over Redis'.

    The middle is the ratio of the medians; the extremes are those of single rounds.
    """

    workload: Workload
    cpu: Spread
    aim: float | None
    are_keys_found: bool

    @property
    def is_met(self) -> bool | None:
        """Whether the aim is reached; None where none is set."""
        if self.aim is None:
            return None
        return self.are_keys_found and self.cpu.median <= self.aim


def cell(runs: Sequence[Run]) -> Cell:
    """Summarize the rounds of one workload at one server."""
    first = runs[0]
    rates = [run.hit_rate for run in runs if run.hit_rate is not None]

    def spread(value: Callable[[Run], float]) -> Spread:
        return Spread.of(value(run) for run in runs)

    return Cell(
        server=first.server,
        workload=first.workload,
        request_count=first.request_count,
        cpu_us=spread(lambda run: run.per_operation_us(run.cpu_s)),
        user_us=spread(lambda run: run.per_operation_us(run.user_s)),
        system_us=spread(lambda run: run.per_operation_us(run.system_s)),
        throughput=spread(lambda run: run.throughput),
        p50_ms=spread(lambda run: run.p50_ms),
        p99_ms=spread(lambda run: run.p99_ms),
        # A round that did not count its hits must not hide behind those that did.
        hit_rate=Spread.of(rates) if len(rates) == len(runs) else None,
        cpu_s_least=min(run.cpu_s for run in runs),
    )


def cells(runs: Iterable[Run]) -> list[Cell]:
    """Summarize all runs, in the order in which their workloads and servers first ran."""
    groups: dict[tuple[Workload, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.workload, run.server), []).append(run)
    return [cell(group) for group in groups.values()]


def ratios(runs: Sequence[Run], aims: Mapping[int, float]) -> list[Ratio]:
    """Compare the two servers, workload by workload; empty when only one of them ran."""
    by_place = {(run.workload, run.server, run.round_number): run for run in runs}
    by_cell = {(each.workload, each.server): each for each in cells(runs)}
    found = []
    for workload in dict.fromkeys(run.workload for run in runs):
        ours, theirs = by_cell.get((workload, "respkv")), by_cell.get((workload, "redis"))
        if ours is None or theirs is None:
            continue
        rounds = sorted({run.round_number for run in runs if run.workload == workload})
        pairs = [
            (by_place.get((workload, "respkv", number)), by_place.get((workload, "redis", number)))
            for number in rounds
        ]
        singles = [
            a.cpu_s / a.request_count / (b.cpu_s / b.request_count) for a, b in pairs if a and b
        ]
        middle = ours.cpu_us.median / theirs.cpu_us.median
        found.append(
            Ratio(
                workload=workload,
                cpu=Spread(middle, min(singles), max(singles)),
                aim=aims.get(workload.pipeline),
                are_keys_found=are_keys_found(ours) and are_keys_found(theirs),
            )
        )
    return found


def are_keys_found(one: Cell) -> bool:
    """Whether reads hit as often as they should in every round; writes look nothing up."""
    if one.workload.command != "GET":
        return True
    return one.hit_rate is not None and one.hit_rate.least >= HIT_RATE_MIN


def verdict(aim: str, *, is_met: bool | None) -> str:
    """Return the words that stand beside a figure."""
    return "no aim" if is_met is None else f"aim {aim}: {'met' if is_met else 'missed'}"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table whose first row is its heading: right-aligned, two spaces between columns."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = (
        "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return "\n".join(lines)


def cell_table(summaries: Iterable[Cell]) -> str:
    """Return the table of what each server did."""
    heading = ["command", "pipeline", "server", "requests", "CPU us/op", "user", "system"]
    rows = [[*heading, "ops/s", "p50 ms", "p99 ms", "hits %"]]
    for one in summaries:
        is_short = one.cpu_s_least < CPU_S_MIN
        hits = "-" if one.workload.command != "GET" else "not counted"
        if one.hit_rate is not None:
            hits = f"{100 * one.hit_rate.median:.2f}"
        rows.append(
            [
                one.workload.command,
                str(one.workload.pipeline),
                one.server,
                str(one.request_count),
                one.cpu_us.text(2) + ("*" if is_short else " "),
                f"{one.user_us.median:.2f}",
                f"{one.system_us.median:.2f}",
                one.throughput.text(0),
                one.p50_ms.text(3),
                one.p99_ms.text(3),
                hits,
            ]
        )
    return columns(rows)


def ratio_lines(found: Iterable[Ratio]) -> list[str]:
    """Return one line for each comparison, with its aim."""
    lines = []
    for ratio in found:
        words = verdict(f"<= {ratio.aim}", is_met=ratio.is_met)
        if not ratio.are_keys_found:
            words += (
                f" (GET found less than {100 * HIT_RATE_MIN:.0f} % of its keys, or did not count)"
            )
        lines.append(f"{ratio.workload}: CPU respkv / redis {ratio.cpu.text(2)}, {words}")
    return lines


def table_text(title: str, runs: Sequence[Run], aims: Mapping[int, float]) -> str:
    """Return everything that is printed about one set of runs."""
    summaries = cells(runs)
    notes = []
    if any(one.cpu_s_least < CPU_S_MIN for one in summaries):
        notes.append(f"* a run used less than {CPU_S_MIN:.0f} s of CPU time: clock ticks matter")
    unsettled = sum(not run.is_settled for run in runs)
    if unsettled:
        notes.append(f"{unsettled} runs ended with a server still busy: the rest is not counted")
    return "\n".join(
        [title, "", cell_table(summaries), *notes, "", *ratio_lines(ratios(runs, aims)), ""]
    )


def facts_text(facts: Facts) -> str:
    """Return the lines that say where the benchmark ran."""
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return "\n".join(
        [
            f"{facts.date}, {facts.cpu_model}, {facts.core_count} cores, Linux {facts.kernel}",
            f"{facts.python}, {versions}",
            f"compiled modules of respkv: {_compiled_text(facts)}",
            "",
        ]
    )


def _compiled_text(facts: Facts) -> str:
    if "respkv" not in facts.versions:
        return "not run"
    return ", ".join(facts.compiled) or "none"


def noise_text(
    shares: Sequence[float], load_before: Sequence[float], load_after: Sequence[float]
) -> str:
    """Return the line that says how quiet the machine was."""
    spread = Spread.of(shares)
    word = "noise was seen" if spread.most > NOISE_SHARE_MAX else "quiet"
    return (
        f"Other programs used {100 * spread.median:.1f} % of the machine during a run"
        f" (at most {100 * spread.most:.1f} %): {word}."
        f" Load average {load_before[0]:.2f} before, {load_after[0]:.2f} after."
    )


def cell_json(runs: Sequence[Run], aims: Mapping[int, float]) -> dict[str, Any]:
    """Return one set of runs as plain data: every run, the summaries and the ratios."""
    return {
        "runs": [dataclasses.asdict(run) for run in runs],
        "cells": [dataclasses.asdict(one) for one in cells(runs)],
        "ratios": [
            {**dataclasses.asdict(ratio), "is_met": ratio.is_met} for ratio in ratios(runs, aims)
        ],
    }


def to_json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2) + "\n"
