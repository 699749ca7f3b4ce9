"""From measures of engines to tables and aims (core).

It runs nothing. Measures of one phase by one engine make a cell (the median of the rounds); cells of
respkv and LevelDB make ratios, which stand beside their aims. A missed aim is said, and is no error.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from bench.engine_child import Measure
from bench.engine_workload import GET_HIT, GET_MISS, SCAN, WRITES
from bench.report import columns, verdict

MIB: Final = 1 << 20

# respkv's figure as a multiple of LevelDB's.
PUT_PROCESS_AIM: Final = 0.5
PUT_CPU_AIM: Final = 2.0
GET_AIM: Final = 1.0

Place: TypeAlias = tuple[int, str, int, str]
"""Length of values, cache, batch (0 where it does not matter), phase."""


@dataclass(frozen=True, slots=True)
class Cell:
    """All rounds of one phase at one engine: medians."""

    place: Place
    engine: str
    ops: int
    rows: int
    serving_us: float
    process_us: float
    cpu_us: float
    wall_us: float
    settle_s: float
    write_amplification: float | None
    space_amplification: float
    peak_bytes: int
    is_settled: bool


@dataclass(frozen=True, slots=True)
class Ratio:
    """One figure of respkv over LevelDB's, with its aim."""

    place: Place
    what: str
    value: float
    aim: float | None

    @property
    def is_met(self) -> bool | None:
        """Whether the aim is reached; None where none is set."""
        return None if self.aim is None else self.value <= self.aim


def place_of(measure: Measure) -> Place:
    batch = measure.batch if measure.phase in WRITES else 0
    return measure.value_bytes, measure.cache, batch, measure.phase


def cells(measures: Iterable[Measure]) -> list[Cell]:
    """Summarize the rounds, grouped by place, in the order in which the places first came."""
    groups: dict[Place, dict[str, list[Measure]]] = {}
    for each in measures:
        groups.setdefault(place_of(each), {}).setdefault(each.engine, []).append(each)
    return [
        _cell(place, engine, rounds)
        for place, engines in groups.items()
        for engine, rounds in engines.items()
    ]


def _cell(place: Place, engine: str, rounds: Sequence[Measure]) -> Cell:
    def median_us(seconds: Iterable[float]) -> float:
        return statistics.median(seconds) / rounds[0].ops * 1e6

    writes = [each.written_bytes / each.user_bytes for each in rounds if each.user_bytes]
    return Cell(
        place=place,
        engine=engine,
        ops=rounds[0].ops,
        rows=rounds[0].rows,
        serving_us=median_us(each.serving_s for each in rounds),
        process_us=median_us(each.process_s for each in rounds),
        cpu_us=median_us(each.cpu_s for each in rounds),
        wall_us=median_us(each.wall_s for each in rounds),
        settle_s=statistics.median(each.settle_s for each in rounds),
        write_amplification=statistics.median(writes) if writes else None,
        space_amplification=statistics.median(e.folder_bytes / e.live_bytes for e in rounds),
        peak_bytes=max(each.peak_bytes for each in rounds),
        is_settled=all(each.is_settled for each in rounds),
    )


def ratios(found: Iterable[Cell]) -> list[Ratio]:
    """Compare respkv with LevelDB where there is an aim and both were measured."""
    by_engine: dict[Place, dict[str, Cell]] = {}
    for cell in found:
        by_engine.setdefault(cell.place, {})[cell.engine] = cell
    result = []
    for place, engines in by_engine.items():
        ours, theirs = engines.get("respkv"), engines.get("leveldb")
        if ours is None or theirs is None:
            continue
        serving = ours.serving_us / theirs.serving_us
        if place[3] in WRITES:
            process, cpu = ours.process_us / theirs.process_us, ours.cpu_us / theirs.cpu_us
            result.append(Ratio(place, "serving process", process, PUT_PROCESS_AIM))
            result.append(Ratio(place, "serving thread alone", serving, None))
            result.append(Ratio(place, "CPU of all", cpu, PUT_CPU_AIM))
        elif place[3] == GET_MISS or (place[3] == GET_HIT and place[1] == "large"):
            result.append(Ratio(place, "serving thread", serving, GET_AIM))
    return result


def disagreements(found: Iterable[Cell]) -> list[str]:
    """Name the scans in which the engines did not see the same number of rows."""
    rows: dict[Place, dict[str, int]] = {}
    for cell in found:
        if cell.place[3] == SCAN:
            rows.setdefault(cell.place, {})[cell.engine] = cell.rows
    return [
        f"{place_text(place)}: the engines saw different numbers of rows: {counts}"
        for place, counts in rows.items()
        if len(set(counts.values())) > 1
    ]


def place_text(place: Place) -> str:
    value_bytes, cache, batch, phase = place
    batched = f", batches of {batch}" if batch else ""
    return f"{phase}, values of {value_bytes}, {cache} cache{batched}"


def table(found: Iterable[Cell]) -> str:
    """The table of everything."""
    heading = ["value", "phase", "cache", "batch", "engine", "ops", "thread us", "process us"]
    lines = [[*heading, "CPU us", "wall us", "rest s", "written x", "space x", "peak MiB"]]
    for cell in found:
        value_bytes, cache, batch, phase = cell.place
        amplification = cell.write_amplification
        lines.append(
            [
                str(value_bytes),
                phase,
                cache,
                str(batch or "-"),
                cell.engine,
                str(cell.ops),
                f"{cell.serving_us:.2f}",
                f"{cell.process_us:.2f}",
                f"{cell.cpu_us:.2f}",
                f"{cell.wall_us:.2f}",
                f"{cell.settle_s:.1f}" + ("" if cell.is_settled else "*"),
                "-" if amplification is None else f"{amplification:.2f}",
                f"{cell.space_amplification:.2f}",
                f"{cell.peak_bytes / MIB:.0f}",
            ]
        )
    return columns(lines)


def ratio_lines(found: Iterable[Ratio]) -> list[str]:
    return [
        f"{place_text(each.place)}: {each.what} respkv / leveldb {each.value:.2f},"
        f" {verdict(f'<= {each.aim}', is_met=each.is_met)}"
        for each in found
    ]


def text(measures: Sequence[Measure]) -> str:
    """Everything that is printed about the measures."""
    found = cells(measures)
    notes = disagreements(found)
    if not all(cell.is_settled for cell in found):
        notes.append("* background work had not ended in time: the rest is not counted")
    return "\n".join([table(found), *notes, "", *ratio_lines(ratios(found)), ""])
