"""Jobs: segments become a table, tables become one, and nothing half made stays behind."""

from __future__ import annotations

import random
from collections.abc import Iterable

import msgspec
import pytest

from engine.codec import COMPLETE, Entry, RecordCodec
from engine.drop import Marker, hiding
from engine.errors import CorruptionError, DiskError, MissingFileError
from engine.job import Job, JobResult, load_codec, run_job
from engine.log import CommitLog
from engine.log_format import MARKER
from engine.log_recovery import recover
from engine.manifest import ALL_TAGS, Drop
from engine.sstable import Table, TableWriter
from tests.engine.toy import REGISTERS, SETS, register
from tests.sim.disk import SimDisk

NOW_MS = 1000
LogEntry = tuple[int, int, bytes, bytes]
"""flags, slot, row, raw."""


def new_disk() -> SimDisk:
    return SimDisk(random.Random(1))


def segments_of(disk: SimDisk, *segments: Iterable[LogEntry]) -> list[str]:
    """Write a log in segments of one frame for each three entries, and return their names."""
    recovery = recover(disk, start=0, apply=lambda flags, slot, row, raw, position: None)
    log = CommitLog.open(disk, recovery)
    names = []
    for segment in segments:
        for number, entry in enumerate(segment):
            log.stage(*entry)
            if number % 3 == 2:
                log.write()
        names.append(log.roll())
    log.close()
    return names


def table_of(
    disk: SimDisk, name: str, entries: list[Entry], codec: RecordCodec, positions: tuple[int, int]
) -> str:
    writer = TableWriter(disk, name, block_bytes=200, compression="none", codec=codec)
    for entry in entries:
        writer.add_key(*entry)
    writer.finish(*positions)
    return name


def new_job(kind: str, inputs: list[str], **fields: object) -> Job:
    return msgspec.structs.replace(
        Job(
            kind=kind,
            inputs=inputs,
            output="out.sst",
            position_min=10,
            position_max=20,
            drops=[],
            block_bytes=200,
            compression="none",
            is_bottom=False,
            now_ms=NOW_MS,
        ),
        **fields,
    )


def entries_of(disk: SimDisk, name: str = "out.sst") -> list[Entry]:
    return list(Table.open(disk, name).scan())


def key(row: bytes, slot: int = 1) -> bytes:
    return slot.to_bytes(2, "big") + row


# Flush


def test_a_flush_orders_rows_and_keeps_the_last_complete_entry() -> None:
    disk = new_disk()
    names = segments_of(
        disk,
        [
            (COMPLETE, 300, b"a", b"x"),
            (COMPLETE, 1, b"b", b"1"),
            (COMPLETE, 1, b"a", b"1"),
            (COMPLETE, 1, b"b", b"12"),
        ],
        [(COMPLETE, 1, b"a", b"12"), (COMPLETE, 0, b"z", b"0")],
    )
    result = run_job(disk, new_job("flush", names), SETS)
    assert result == JobResult(["out.sst"], 4)
    assert entries_of(disk) == [
        (key(b"z", 0), COMPLETE, b"0"),
        (key(b"a"), COMPLETE, b"12"),
        (key(b"b"), COMPLETE, b"12"),
        (key(b"a", 300), COMPLETE, b"x"),
    ]
    meta = Table.open(disk, "out.sst").meta
    assert (meta.position_min, meta.position_max, meta.entry_count) == (10, 20, 4)


def test_a_flush_joins_deltas_and_says_which_entries_are_complete() -> None:
    disk = new_disk()
    names = segments_of(
        disk,
        [(0, 1, b"delta", b"b"), (COMPLETE, 1, b"base", b"b"), (0, 1, b"over", b"z")],
        [(0, 1, b"delta", b"a"), (0, 1, b"base", b"a"), (COMPLETE, 1, b"over", b"yz")],
    )
    run_job(disk, new_job("flush", names), SETS)
    assert entries_of(disk) == [
        (key(b"base"), COMPLETE, b"ab"),
        (key(b"delta"), 0, b"ab"),
        (key(b"over"), COMPLETE, b"yz"),
    ]


def test_a_flush_at_the_bottom_makes_everything_complete_and_leaves_out_the_dead() -> None:
    segment = [
        (0, 1, b"delta", register(1, b"v")),
        (COMPLETE, 1, b"dead", register(1, dead=True)),
        (COMPLETE, 1, b"late", register(1, b"v", expires_at_ms=NOW_MS)),
        (COMPLETE, 1, b"live", register(1, b"v", expires_at_ms=NOW_MS + 1)),
    ]
    disk = new_disk()
    names = segments_of(disk, segment)
    run_job(disk, new_job("flush", names, output="upper.sst"), REGISTERS)
    assert entries_of(disk, "upper.sst") == [
        (key(b"dead"), COMPLETE, register(1, dead=True)),
        (key(b"delta"), 0, register(1, b"v")),
        (key(b"late"), COMPLETE, register(1, dead=True)),
        (key(b"live"), COMPLETE, segment[3][3]),
    ]
    run_job(disk, new_job("flush", names, output="bottom.sst", is_bottom=True), REGISTERS)
    assert entries_of(disk, "bottom.sst") == [
        (key(b"delta"), COMPLETE, register(1, b"v")),
        (key(b"live"), COMPLETE, segment[3][3]),
    ]


def test_a_marker_drops_what_came_before_it_and_nothing_after() -> None:
    disk = new_disk()
    names = segments_of(
        disk,
        [(COMPLETE, 1, b"a1", b"old"), (COMPLETE, 1, b"b1", b"old"), (0, 1, b"a2", b"old")],
        [(MARKER, 0, b"", b"ac"), (0, 1, b"a2", b"n"), (COMPLETE, 1, b"c1", b"n")],
    )
    run_job(disk, new_job("flush", names), SETS)
    assert entries_of(disk) == [
        (key(b"a2"), 0, b"n"),
        (key(b"b1"), COMPLETE, b"old"),
        (key(b"c1"), COMPLETE, b"n"),
    ]


def test_a_flush_of_nothing_makes_no_table() -> None:
    disk = new_disk()
    names = segments_of(disk, [(COMPLETE, 1, b"a1", b"old"), (MARKER, 0, b"", b"a")])
    before = disk.names()
    assert run_job(disk, new_job("flush", names), SETS) == JobResult([], 0)
    assert disk.names() == before


@pytest.mark.parametrize("seed", range(40))
def test_a_flush_is_what_a_dict_would_hold(seed: int) -> None:
    rng = random.Random(seed)
    model: dict[bytes, tuple[int, bytes]] = {}
    segments: list[list[LogEntry]] = [[] for _ in range(3)]
    for segment in segments:
        for _ in range(rng.randrange(1, 40)):
            row, raw = b"%c%d" % (rng.choice(b"abc"), rng.randrange(9)), rng.randbytes(2)
            if rng.random() < 0.05:
                dropped = bytes(rng.sample(b"abc", 2))
                segment.append((MARKER, 0, b"", dropped))
                model = {k: v for k, v in model.items() if k[2] not in dropped}
                continue
            known = model.get(key(row))
            joined = SETS.join(raw, known[1] if known else b"")
            if rng.random() < 0.5:
                segment.append((COMPLETE, 1, row, joined))
                model[key(row)] = (COMPLETE, joined)
            else:
                segment.append((0, 1, row, SETS.join(raw, b"")))
                model[key(row)] = (known[0] if known else 0, joined)
    disk = new_disk()
    names = segments_of(disk, *segments)
    result = run_job(disk, new_job("flush", names), SETS)
    expected = [(k, flags, raw) for k, (flags, raw) in sorted(model.items())]
    assert (entries_of(disk) if result.tables else []) == expected
    assert result.entry_count == len(expected)


# Compaction


def three_tables(disk: SimDisk) -> list[str]:
    """Newest first; rows of the keyspaces a and b."""
    return [
        table_of(disk, "3.sst", [(key(b"a1"), 0, b"3"), (key(b"b1"), 0, b"3")], SETS, (30, 39)),
        table_of(
            disk,
            "2.sst",
            [(key(b"a1"), 0, b"2"), (key(b"a2"), 0, b"2"), (key(b"b1"), COMPLETE, b"2")],
            SETS,
            (20, 29),
        ),
        table_of(disk, "1.sst", [(key(b"a1"), 0, b"1"), (key(b"b1"), 0, b"1")], SETS, (10, 19)),
    ]


def test_a_compaction_joins_down_to_the_first_complete_entry() -> None:
    disk = new_disk()
    result = run_job(disk, new_job("compact", three_tables(disk)), SETS)
    assert result == JobResult(["out.sst"], 3)
    assert entries_of(disk) == [
        (key(b"a1"), 0, b"123"),
        (key(b"a2"), 0, b"2"),
        (key(b"b1"), COMPLETE, b"23"),
    ]
    meta = Table.open(disk, "out.sst").meta
    assert (meta.position_min, meta.position_max) == (10, 39)


def test_a_compaction_at_the_bottom_makes_everything_complete() -> None:
    disk = new_disk()
    run_job(disk, new_job("compact", three_tables(disk), is_bottom=True), SETS)
    assert [flags for _, flags, _ in entries_of(disk)] == [COMPLETE] * 3


@pytest.mark.parametrize(
    ("drops", "expected"),
    [
        # A drop takes what was written before it, from each table that ends below it.
        ([Drop(19, ord("a"))], {b"a1": b"123", b"a2": b"2", b"b1": b"23"}),
        ([Drop(20, ord("a"))], {b"a1": b"23", b"a2": b"2", b"b1": b"23"}),
        ([Drop(30, ord("a"))], {b"a1": b"3", b"b1": b"23"}),
        ([Drop(40, ord("a"))], {b"b1": b"23"}),
        ([Drop(30, ord("b"))], {b"a1": b"123", b"a2": b"2", b"b1": b"3"}),
        ([Drop(30, ord("a")), Drop(40, ord("b"))], {b"a1": b"3"}),
        ([Drop(40, ord("c"))], {b"a1": b"123", b"a2": b"2", b"b1": b"23"}),
    ],
)
def test_a_compaction_carries_out_drops(drops: list[Drop], expected: dict[bytes, bytes]) -> None:
    disk = new_disk()
    run_job(disk, new_job("compact", three_tables(disk), drops=drops), SETS)
    assert {found[2:]: raw for found, _, raw in entries_of(disk)} == expected


def test_a_compaction_of_what_was_dropped_makes_no_table() -> None:
    disk = new_disk()
    names = three_tables(disk)
    drops = [Drop(40, ord("a")), Drop(40, ord("b"))]
    assert run_job(disk, new_job("compact", names, drops=drops), SETS) == JobResult([], 0)
    assert disk.names() == sorted(names)


@pytest.mark.parametrize("is_bottom", [True, False], ids=["bottom", "upper"])
def test_the_dead_stay_as_stubs_unless_nothing_lies_below(is_bottom: bool) -> None:
    disk = new_disk()
    entries = [
        (key(b"a"), COMPLETE, register(5, b"v", expires_at_ms=NOW_MS)),
        (key(b"b"), COMPLETE, register(5, b"v", expires_at_ms=NOW_MS + 1)),
        (key(b"c"), 0, register(5, dead=True)),
    ]
    name = table_of(disk, "1.sst", entries, REGISTERS, (0, 9))
    run_job(disk, new_job("compact", [name], is_bottom=is_bottom), REGISTERS)
    stubs = [(key(b"a"), COMPLETE, register(5, dead=True)), (key(b"c"), 0, register(5, dead=True))]
    expected = [entries[1]] if is_bottom else [stubs[0], entries[1], stubs[1]]
    assert entries_of(disk) == expected


def stubs_of(position_max: int, horizon_position: int, kind: str) -> list[bytes]:
    disk = new_disk()
    dead, live = register(5, dead=True), register(5, b"v")
    if kind == "flush":
        names = segments_of(disk, [(COMPLETE, 1, b"a", dead), (0, 1, b"b", live)])
    else:
        entries = [(key(b"a"), COMPLETE, dead), (key(b"b"), 0, live)]
        names = [table_of(disk, "1.sst", entries, REGISTERS, (0, position_max))]
        names.append(table_of(disk, "0.sst", [(key(b"c"), 0, dead)], REGISTERS, (0, 1)))
    job = new_job(kind, names, is_bottom=True, position_max=position_max)
    job.horizon_position = horizon_position
    run_job(disk, job, REGISTERS)
    assert all(flags == COMPLETE for _, flags, _ in entries_of(disk))
    return [found[2:] for found, _, _ in entries_of(disk)]


@pytest.mark.parametrize("kind", ["flush", "compact"])
def test_the_dead_are_forgotten_at_the_bottom_only_up_to_the_horizon(kind: str) -> None:
    assert stubs_of(9, 9, kind) == [b"b"]
    assert stubs_of(9, 8, kind)[:2] == [b"a", b"b"]


def test_the_output_is_cut_between_keys_and_a_flush_is_not() -> None:
    disk = new_disk()
    rows = [b"a%03d" % number for number in range(300)]
    upper = [(key(row), 0, b"ab") for row in rows[::2]]
    lower = [(key(row), COMPLETE, b"bc") for row in rows]
    names = [
        table_of(disk, "2.sst", upper, SETS, (5, 9)),
        table_of(disk, "1.sst", lower, SETS, (0, 4)),
    ]
    result = run_job(disk, new_job("compact", names, table_bytes=1000), SETS)
    count = len(result.tables)
    assert count > 3
    assert result.tables == ["out.sst", *(f"out-{number}.sst" for number in range(1, count))]
    found = [entries_of(disk, name) for name in result.tables]
    assert [k[2:] for entries in found for k, _, _ in entries] == rows  # Each key once, in order.
    raws = [raw for entries in found for _, _, raw in entries]
    assert raws == [b"abc", b"bc"] * 150
    assert result.entry_count == 300
    metas = [Table.open(disk, name).meta for name in result.tables]
    assert {(meta.position_min, meta.position_max) for meta in metas} == {(0, 9)}
    assert len({meta.entry_count for meta in metas[:-1]}) == 1
    assert 900 <= metas[0].raw_bytes + 5 * metas[0].entry_count < 1100
    segment = segments_of(disk, [(COMPLETE, 1, row, b"x") for row in rows])
    assert run_job(disk, new_job("flush", segment, output="f.sst"), SETS).tables == ["f.sst"]


@pytest.mark.parametrize("nth", range(1, 8))
@pytest.mark.parametrize("fault", ["write_error_in", "sync_error_in"])
def test_a_job_that_fails_in_a_later_table_removes_the_earlier_ones(fault: str, nth: int) -> None:
    disk = new_disk()
    entries = [(key(b"a%03d" % number), COMPLETE, b"x" * 50) for number in range(200)]
    name = table_of(disk, "1.sst", entries, SETS, (0, 9))
    setattr(disk.faults, fault, nth)
    with pytest.raises(DiskError):
        run_job(disk, new_job("compact", [name], table_bytes=1000), SETS)
    assert disk.names() == [name]


def test_a_move_and_a_removal_need_no_work() -> None:
    disk = new_disk()
    for kind in ("move", "remove"):
        assert run_job(disk, new_job(kind, ["nothing.sst"]), SETS) == JobResult([], 0)
    assert disk.names() == []


def test_a_marker_of_slots_drops_what_came_before_it_there() -> None:
    disk = new_disk()
    row, raw = Marker(None, 2, 3).encode()
    names = segments_of(
        disk,
        [(COMPLETE, slot, b"a", b"old") for slot in range(1, 5)],
        [(MARKER, 0, row, raw), (COMPLETE, 3, b"b", b"new")],
    )
    run_job(disk, new_job("flush", names), SETS)
    assert [found for found, _, _ in entries_of(disk)] == [key(b"a"), key(b"b", 3), key(b"a", 4)]


def test_a_drop_that_was_carried_out_is_not_asked_of_the_output_again() -> None:
    """Else a table of which it hides a part by its slots would be rewritten for ever."""
    disk = new_disk()
    entries = [(key(b"a", slot), COMPLETE, b"x") for slot in range(1, 6)]
    name = table_of(disk, "1.sst", entries, SETS, (0, 9))
    drops = [Drop(20, ALL_TAGS, 2, 4), Drop(30, ALL_TAGS, 7, 8), Drop(40, ord("b"))]
    run_job(disk, new_job("compact", [name], drops=drops), SETS)
    assert [found for found, _, _ in entries_of(disk)] == [key(b"a"), key(b"a", 5)]
    meta = Table.open(disk, "out.sst").meta
    assert meta.position_max == 20  # Not the others': they hide nothing here.
    assert hiding(drops, [meta]) == []


# What goes wrong


def test_a_job_can_be_repeated_under_another_name() -> None:
    disk = new_disk()
    names = three_tables(disk)
    run_job(disk, new_job("compact", names), SETS)
    run_job(disk, new_job("compact", names, output="again.sst"), SETS)
    assert entries_of(disk, "again.sst") == entries_of(disk)


@pytest.mark.parametrize("fault", ["write_error_in", "sync_error_in", "capacity_bytes"])
@pytest.mark.parametrize("kind", ["flush", "compact"])
def test_a_failed_job_leaves_nothing_behind_and_succeeds_later(kind: str, fault: str) -> None:
    disk = new_disk()
    names = segments_of(disk, [(COMPLETE, 1, b"a", b"x")])
    if kind == "compact":
        names = three_tables(disk)
    before = disk.names()
    setattr(disk.faults, fault, 1)
    with pytest.raises(DiskError):
        run_job(disk, new_job(kind, names), SETS)
    assert disk.names() == before
    disk.faults.capacity_bytes = None
    assert run_job(disk, new_job(kind, names), SETS).tables == ["out.sst"]


def test_a_missing_or_damaged_input_is_an_error_and_leaves_no_table() -> None:
    disk = new_disk()
    names = three_tables(disk)
    with pytest.raises(MissingFileError):
        run_job(disk, new_job("compact", [*names, "0.sst"]), SETS)
    disk.flip_bit("1.sst", disk.size("1.sst") - 20)
    with pytest.raises(CorruptionError):
        run_job(disk, new_job("compact", names), SETS)
    segment = segments_of(disk, [(COMPLETE, 1, b"a", b"x")])[0]
    disk.flip_bit(segment, disk.size(segment) - 1)
    with pytest.raises(CorruptionError):
        run_job(disk, new_job("flush", [segment]), SETS)
    assert [name for name in disk.names() if not name.endswith(".log")] == sorted(names)


def test_a_damaged_block_is_left_out_and_told() -> None:
    disk = new_disk()
    names = three_tables(disk)
    whole = run_job(disk, new_job("compact", names), SETS)
    disk.remove("out.sst")
    disk.flip_bit("1.sst", 3)
    result = run_job(disk, new_job("compact", names), SETS)
    (damage,) = result.damages
    assert (damage.name, damage.offset) == ("1.sst", 0)
    assert result.entry_count <= whole.entry_count
    assert whole.damages == []


def test_a_job_survives_its_encoding() -> None:
    job = new_job("compact", ["b.sst", "a.sst"], drops=[Drop(1, 2)], is_bottom=True)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(job), type=Job) == job


def test_a_codec_is_loaded_by_its_path() -> None:
    assert load_codec("tests.engine.toy:SETS") is SETS
