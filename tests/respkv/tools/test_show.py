"""How entries look to people and to scripts."""

from __future__ import annotations

import json

import pytest

from cluster.record import RAW_ENCODING, STRING, Record, Version, encode, encode_version
from cluster.recovery import Recovery
from cluster.replica_state import state_of_copy
from cluster.slot import SYSTEM_SLOT, row_of, slot_of
from engine.codec import SLOT_MAX
from engine.drop import Marker
from engine.dump import Found
from engine.errors import CorruptionError
from engine.manifest import ALL_TAGS, FORMAT_VERSION, Drop, Manifest
from respkv.tools.show import (
    KeyFilter,
    damage_line,
    hlc_text,
    json_of,
    line_of,
    manifest_lines,
    quoted,
    time_text,
)

HLC = (1_700_000_000_123 << 16) | 7


def entry(key: bytes, version: Version, *, db: int = 3) -> Found:
    return Found(slot_of(key), row_of(db, key), True, False, encode_version(version))


def test_an_entry_is_a_line() -> None:
    found = entry(b"user:1", Version((0xABC, 17), HLC, STRING, b"Ada", 1_800_000_000_000))
    digest = row_of(3, b"user:1")[:6].hex()
    assert line_of(found) == (
        f'{slot_of(b"user:1")} {digest} 3 "user:1" string 0000000000000abc:17 '
        '2023-11-14T22:13:20.123Z+7 2027-01-15T08:00:00.000Z complete "Ada"'
    )


def test_a_deletion_a_delta_an_encoding_and_siblings_are_marked() -> None:
    key = b"k"
    assert " deletion " in line_of(entry(key, Version((1, 1), HLC, 0)))
    raw = entry(key, Version((1, 1), HLC, STRING, b"1", 0, RAW_ENCODING))
    assert ' - complete,raw "1"' in line_of(raw)
    both = Record(
        (Version((2, 1), HLC + 1, STRING, b"new"), Version((1, 1), HLC, STRING, b"old")),
        ((1, 1), (2, 1)),
    )
    found = Found(slot_of(key), row_of(0, key), False, False, encode(both))
    assert line_of(found).endswith('- delta,+1 "new"')
    versions = json.loads(json_of(found, "f"))["versions"]
    assert [version["payload"] for version in versions] == ["new", "old"]


def test_a_row_of_the_node_and_a_drop_and_what_cannot_be_decoded_are_shown() -> None:
    own = Found(
        SYSTEM_SLOT, b"databases", True, False, encode_version(Version((1, 1), HLC, STRING, b"x"))
    )
    assert line_of(own).startswith(f'{SYSTEM_SLOT} - - "databases" string ')
    marker = Found(0, b"", False, True, bytes([1, 15]))
    assert line_of(marker) == f"0-{SLOT_MAX} - 1,15 - drop - - - -"
    assert json.loads(json_of(marker, "f"))["drop"]["databases"] == [1, 15]
    row, raw = Marker(None, 3, 5).encode()
    assert line_of(Found(0, row, False, True, raw)) == "3-5 - all - drop - - - -"
    odd = Found(slot_of(b"k"), row_of(0, b"k"), True, False, b"\x01\xff")
    assert line_of(odd).endswith('"k" unknown - - - complete "\\x01\\xff"')
    assert json.loads(json_of(odd, "f"))["raw_base64"] == "Af8="


def test_an_entry_for_scripts_is_whole() -> None:
    value = b"\xff" * 100
    shown = json.loads(json_of(entry(b"k", Version((0xABC, 17), HLC, STRING, value, 5)), "x.sst"))
    assert shown["file"] == "x.sst"
    assert (shown["slot"], shown["db"], shown["key"]) == (slot_of(b"k"), 3, "k")
    (version,) = shown["versions"]
    assert (version["actor"], version["counter"]) == ("0000000000000abc", 17)
    assert (version["time_ms"], version["time_count"]) == (1_700_000_000_123, 7)
    assert version["expire_at_ms"] == 5
    assert len(version["payload_base64"]) == 136


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain", '"plain"'),
        (b'a"b\\c', '"a\\"b\\\\c"'),
        (b"\r\n\t\x00\x1b", '"\\r\\n\\t\\x00\\x1b"'),
        ("é…".encode(), '"é…"'),
        (b"\xff\xfe", '"\\xff\\xfe"'),
        ("\u202e".encode(), '"\\u202e"'),
        (b"x" * 50, '"' + "x" * 48 + '"...(50 bytes)'),
    ],
)
def test_bytes_are_escaped_and_cut(data: bytes, text: str) -> None:
    assert quoted(data, 48) == text


def test_times_beyond_the_calendar_are_numbers() -> None:
    assert time_text(1 << 60) == f"{1 << 60}ms"
    assert hlc_text(0) == "1970-01-01T00:00:00.000Z+0"


def test_a_key_is_found_in_every_database_and_no_other_is() -> None:
    chosen = KeyFilter(b"{a}b")
    version = Version((1, 1), HLC, STRING, b"")
    for db in (0, 15):
        assert chosen.passes(entry(b"{a}b", version, db=db))
        assert not chosen.is_behind(entry(b"{a}b", version, db=db))
    assert not chosen.passes(entry(b"{a}c", version))
    higher = Found(chosen.start[0], b"\xff" * 6, True, False, b"")
    assert chosen.is_behind(higher) != (chosen.start[1] == b"\xff" * 6)
    assert chosen.is_behind(Found(chosen.start[0] + 1, b"", True, False, b""))


def test_a_manifest_is_told_with_its_owner_s_state() -> None:
    recovery = Recovery(0xABC)
    recovery.clocks.own[3] = 9
    drops = [Drop(7, ALL_TAGS, 3, 5), Drop(8, 2)]
    state = state_of_copy(recovery.capture())
    made = Manifest(FORMAT_VERSION, 12, 5, [["a.sst"], ["b.sst"]], drops, state)
    lines = manifest_lines(made, is_json=False)
    assert "log_start 12" in lines
    assert "actor 0000000000000abc" in lines
    assert "writes 9" in lines
    assert "is_copy True" in lines
    assert "level 1 table b.sst" in lines
    assert "drop of slots 3 to 5, all databases, before position 7" in lines
    (line,) = manifest_lines(made, is_json=True)
    assert json.loads(line)["levels"] == [["a.sst"], ["b.sst"]]


def test_damage_stands_in_its_place() -> None:
    error = CorruptionError("x.sst", 8, 1, 2)
    assert damage_line(error, "x.sst", is_json=False).startswith("! x.sst is damaged at offset 8")
    assert json.loads(damage_line(error, "x.sst", is_json=True))["offset"] == 8
