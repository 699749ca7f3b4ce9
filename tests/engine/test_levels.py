"""The set of tables: look-ups against the list of all entries, and what a job makes of the names."""

from __future__ import annotations

import random

import msgspec
import pytest

from engine.bloom import WORD_BYTES
from engine.cache import BlockCache
from engine.codec import COMPLETE, Entry
from engine.drop import DropIndex
from engine.errors import DiskError
from engine.job import Job, JobResult
from engine.levels import Levels, PageFault, Pages, Retirement, fetch_all
from engine.manifest import ALL_TAGS, Drop
from engine.sstable import Table, TableWriter
from engine.stats import LevelStats, StoreStats
from tests.engine.toy import SETS
from tests.sim.disk import SimDisk


def key(number: int, slot: int = 1) -> bytes:
    return slot.to_bytes(2, "big") + b"a%03d" % number


class Folder:
    """A disk with tables."""

    def __init__(self) -> None:
        self.disk = SimDisk(random.Random(1))
        self.pages = Pages(self.disk, BlockCache(1 << 20), StoreStats())

    def table(self, name: str, entries: list[Entry], position_max: int = 9) -> Table:
        writer = TableWriter(
            self.disk, name, block_bytes=60, compression="none", codec=SETS, now_ms=0
        )
        for entry in entries:
            writer.add_key(*entry)
        writer.finish(0, position_max)
        table = Table.open(self.disk, name)
        self.pages.table_ids.add(table.id)
        return table

    def of_numbers(self, name: str, numbers: list[int], slot: int = 1) -> Table:
        return self.table(name, [(key(n, slot), COMPLETE, name.encode()) for n in numbers])


@pytest.fixture
def folder() -> Folder:
    return Folder()


def random_levels(rng: random.Random, folder: Folder) -> tuple[Levels, list[list[Entry]]]:
    """Levels, and the entries of each table or level from newest to oldest."""
    layers: list[list[Entry]] = []
    levels: list[list[Table]] = []
    for level in range(4):
        tables: list[Table] = []
        if level == 0:
            for number in range(3):
                layer = random_entries(rng)
                layers.append(layer)
                tables.append(folder.table(f"0-{number}", layer))
        else:
            layer = random_entries(rng)
            layers.append(layer)
            cuts = sorted(rng.sample(range(1, len(layer)), min(2, len(layer) - 1)))
            for number, (a, b) in enumerate(zip([0, *cuts], [*cuts, len(layer)], strict=True)):
                tables.append(folder.table(f"{level}-{number}", layer[a:b]))
        levels.append(tables if level != 2 or rng.random() < 0.5 else [])
        if not levels[-1]:
            layers.pop()
    return Levels(levels), layers


def random_entries(rng: random.Random) -> list[Entry]:
    numbers = sorted(rng.sample(range(40), rng.randrange(2, 20)))
    return [(key(n), rng.randrange(2), bytes(rng.sample(b"abcdef", 2))) for n in numbers]


@pytest.mark.parametrize("seed", range(40))
def test_look_ups_join_down_to_the_first_complete_entry(seed: int) -> None:
    rng = random.Random(seed)
    folder = Folder()
    levels, layers = random_levels(rng, folder)
    for number in range(-1, 42):
        wanted = key(number) if number >= 0 else b"\0\0"
        expected: bytes | None = None
        for layer in layers:
            for found, flags, raw in layer:
                if found == wanted:
                    expected = raw if expected is None else SETS.join(expected, raw)
                    if flags & COMPLETE:
                        break
            else:
                continue
            break
        assert levels.lookup(wanted, folder.pages, SETS) == expected


def test_one_table_of_a_deeper_level_is_asked(folder: Folder) -> None:
    run = [folder.of_numbers(f"{n}", [n, n + 5]) for n in range(0, 90, 10)]
    levels = Levels([[], run])
    assert levels.lookup(key(45), folder.pages, SETS) == b"40"
    assert folder.pages.stats.table_reads == 1
    # Between two tables, and beyond the last: no page is read, with a filter that says yes.
    for table in run:
        table.words = (b"\xff" * WORD_BYTES, 1)
    for number in (47, 99):
        assert levels.lookup(key(number), folder.pages, SETS) is None
    assert folder.pages.stats.table_reads <= 2


def test_drops_hide_what_was_made_before_them(folder: Folder) -> None:
    old = folder.table("old", [(key(1), COMPLETE, b"o"), (key(1, slot=2), COMPLETE, b"o")], 5)
    new = folder.table("new", [(key(1), 0, b"n")], 9)
    levels = Levels([[new], [old]])

    def found(*drops: Drop, slot: int = 1) -> bytes | None:
        return levels.lookup(key(1, slot), folder.pages, SETS, DropIndex(drops), ord("a"))

    assert found() == b"no"
    assert found(Drop(5, ord("a"))) == b"no"
    assert found(Drop(6, ord("a"))) == b"n"
    assert found(Drop(6, ord("b"))) == b"no"
    assert found(Drop(10, ord("a"))) is None
    assert found(Drop(6, ALL_TAGS, 2, 2)) == b"no"
    assert found(Drop(6, ALL_TAGS, 2, 2), slot=2) is None
    assert found(Drop(6, ALL_TAGS, 1, 1)) == b"n"


def test_tables_of_a_deeper_level_must_not_overlap(folder: Folder) -> None:
    tables = [folder.of_numbers("1", [1, 5]), folder.of_numbers("2", [5, 9])]
    Levels([tables])
    with pytest.raises(AssertionError):
        Levels([[], tables])


@pytest.mark.parametrize("seed", range(20))
def test_slots_are_found_wherever_they_lie(seed: int) -> None:
    rng = random.Random(seed)
    folder = Folder()
    slots: set[int] = set()

    def table(name: str, low: int, high: int) -> Table:
        held = sorted(rng.sample(range(low, high), min(2, high - low)))
        slots.update(held)
        return folder.table(name, [(key(3, slot), COMPLETE, b"x") for slot in held])

    newest = [table(f"0-{n}", 0, 30) for n in range(2)]
    run = [table(f"1-{n}", 10 * n, 10 * n + 10) for n in range(3)]
    levels = Levels([newest, run])
    for slot in range(31):
        expected = min((other for other in slots if other >= slot), default=40)
        assert levels.next_slot(slot, 40, folder.pages) == expected
        assert levels.holds_slot(slot) or slot not in slots
        runs = levels.runs_of(slot)
        found = {t.name for run in runs for t in run}
        prefix = slot.to_bytes(2, "big")
        assert found == {
            t.name for t in levels.tables if t.meta.key_min[:2] <= prefix <= t.meta.key_max[:2]
        }


# What jobs make of them


def after(
    levels: Levels, kind: str, inputs: list[str], level: int, made: list[str]
) -> list[list[str]]:
    job = Job(kind, inputs, "x.sst", 0, 0, [], 100, "none", False, 0)
    job = msgspec.structs.replace(job, level=level)
    return levels.names_after(job, JobResult(made, 0))


def test_the_names_after_a_job(folder: Folder) -> None:
    levels = Levels(
        [
            [folder.of_numbers("n1", [1, 50]), folder.of_numbers("n2", [2, 60])],
            [folder.of_numbers("b", [10, 19]), folder.of_numbers("d", [30, 39])],
            [folder.of_numbers("deep", [0, 99])],
        ]
    )
    assert after(levels, "flush", ["log"], 0, ["f"])[0] == ["f", "n1", "n2"]
    assert after(levels, "flush", ["log"], 0, []) == levels.names
    merged = after(levels, "compact", ["n1", "n2", "b", "d"], 1, ["x", "y"])
    assert merged == [[], ["x", "y"], ["deep"]]
    # Into the gap that its inputs leave, whatever is around it; in level 0 in the place of the input.
    assert after(levels, "compact", ["b"], 1, ["x", "y"])[1] == ["x", "y", "d"]
    assert after(levels, "compact", ["d"], 1, ["x", "y"])[1] == ["b", "x", "y"]
    assert after(levels, "compact", ["d"], 1, [])[1] == ["b"]
    assert after(levels, "compact", ["n2"], 0, ["x"])[0] == ["n1", "x"]
    assert after(levels, "compact", ["n1"], 0, ["x"])[0] == ["x", "n2"]
    assert after(levels, "compact", ["d", "deep"], 2, ["x"]) == [["n1", "n2"], ["b"], ["x"]]
    assert after(levels, "move", ["deep"], 3, []) == [["n1", "n2"], ["b", "d"], [], ["deep"]]
    assert after(levels, "remove", ["n2", "deep"], 0, []) == [["n1"], ["b", "d"]]
    assert after(levels, "remove", ["n1", "n2", "b", "d", "deep"], 0, []) == [[]]


def test_what_is_moved_stands_by_its_key(folder: Folder) -> None:
    levels = Levels(
        [
            [folder.of_numbers("c", [20, 29])],
            [folder.of_numbers("b", [10, 19]), folder.of_numbers("d", [30, 39])],
        ]
    )
    assert after(levels, "move", ["c"], 1, []) == [[], ["b", "c", "d"]]
    assert levels.stats()[1] == LevelStats(2, sum(t.meta.file_bytes for t in levels.levels[1]), 4)


# Pages and their keepers


def test_a_page_of_a_table_that_is_closed_is_not_kept(folder: Folder) -> None:
    table = folder.of_numbers("t", [1])
    folder.disk.faults.is_cold = True
    with pytest.raises(PageFault) as caught:
        folder.pages.block(table, 0)
    caught.value.fetch()
    folder.pages.table_ids.discard(table.id)
    caught.value.arrive()
    assert len(folder.pages.cache) == 0


def faults_of(folder: Folder, places: list[tuple[Table, int]]) -> list[PageFault]:
    folder.disk.faults.is_cold = True
    faults = []
    for table, number in places:
        with pytest.raises(PageFault) as caught:
            folder.pages.block(table, number)
        faults.append(caught.value)
    return faults


def test_pages_that_are_fetched_together_are_those_that_were_asked_for(folder: Folder) -> None:
    one, two = folder.of_numbers("one", list(range(20))), folder.of_numbers("two", list(range(30)))
    assert one.block_count > 3
    places = [(two, 3), (one, 2), (two, 0), (one, 2), (one, 0)]
    faults = faults_of(folder, places)
    fetch_all(faults)
    for fault in faults:
        fault.arrive()
    assert len(folder.pages.cache) == 4
    for table, number in places:
        expected = table.load(number, cached_only=False)
        assert expected is not None
        assert folder.pages.block(table, number).to_list() == expected.to_list()


def test_a_page_that_several_wait_for_is_read_once(folder: Folder) -> None:
    one = folder.of_numbers("one", list(range(20)))
    faults = faults_of(folder, [(one, 1), (one, 2), (one, 1), (one, 1)])
    folder.disk.faults.read_error_in = 3
    fetch_all(faults)
    for fault in faults:
        fault.arrive()
    assert folder.disk.faults.read_error_in == 1, "two reads"


def test_a_page_that_cannot_be_read_fails_those_who_wait_for_it_and_no_others(
    folder: Folder,
) -> None:
    one, gone = folder.of_numbers("one", list(range(20))), folder.of_numbers("gone", [1])
    faults = faults_of(folder, [(one, 1), (one, 2), (one, 1), (gone, 0)])
    folder.disk.remove("gone")
    folder.disk.faults.read_error_in = 1
    fetch_all(faults)
    for failing in (faults[0], faults[2], faults[3]):
        with pytest.raises(DiskError):
            failing.arrive()
    faults[1].arrive()
    assert len(folder.pages.cache) == 1


def test_what_is_held_is_not_due(folder: Folder) -> None:
    one, two = folder.of_numbers("1", [1]), folder.of_numbers("2", [2])
    retirement = Retirement()
    retirement.hold([one, two])
    retirement.hold([one])
    retirement.add([one, two])
    assert retirement.due() == []
    retirement.release([one, two])
    assert retirement.due() == [two]
    assert retirement.all() == [one]
    retirement.release([one])
    assert retirement.due() == [one]
    assert retirement.due() == []
