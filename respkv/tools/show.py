"""`dump`: what stands in a table, a log segment or a manifest, a line for each entry.

For people, columns with blanks between them:

    slot hash db key kind dot time expiry flags payload

    12182 8c4fd5e1a9b0 0 "user:1" string 3f0a...:17 2026-01-02T03:04:05.678Z+0 - complete "Ada" (3)

- The dot is actor and counter; the time is the hybrid timestamp: real time, and the count within it.
- Flags: `complete` or `delta`, then `raw` or `text` (how OBJECT ENCODING answers), `+2` for two siblings
  that lost to the version shown.
- Keys and payloads are escaped as in Python and JSON, and cut where they are long; the length follows.

For scripts (`--json`), an object a line, with every version and nothing cut. Bytes are a string if they
are UTF-8, else stand in base64 under a name that ends with `_base64`.

Core: entries in, text out.
"""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime
from struct import error as StructError
from typing import Any, Final

import msgspec

from cluster.record import DELETION, RAW_ENCODING, STRING, TEXT_ENCODING, Version, decode
from cluster.replica_state import ReplicaState
from cluster.slot import HASH_BYTES, SYSTEM_SLOT, TAG_OFFSET, Key, key_of, row_of, slot_of
from engine.codec import Row
from engine.drop import Marker
from engine.dump import Found
from engine.errors import CorruptionError
from engine.manifest import ALL_TAGS, Manifest
from engine.memtable import Slot

KEY_BYTES_SHOWN: Final = 64
PAYLOAD_BYTES_SHOWN: Final = 48
COLUMNS: Final = "# slot hash db key kind dot time expiry flags payload"
_TYPES: Final = {DELETION: "deletion", STRING: "string"}


class KeyFilter:
    """Passes the entries of one key, in any database. They are neighbours in a table, from `start` on."""

    def __init__(self, key: Key) -> None:
        self._slot = slot_of(key)
        self._tail = row_of(0, key)[TAG_OFFSET + 1 :]
        self._hash = row_of(0, key)[:HASH_BYTES]
        self.start = (self._slot, self._hash)

    def passes(self, found: Found) -> bool:
        row = found.row
        return (
            found.slot == self._slot
            and row.startswith(self._hash)
            and row.startswith(self._tail, TAG_OFFSET + 1)
        )

    def is_behind(self, found: Found) -> bool:
        """In a table, nothing of the key follows this entry."""
        return (found.slot, found.row[:HASH_BYTES]) > self.start


def line_of(found: Found) -> str:
    """An entry for people."""
    if found.is_marker:
        return _drop_line(Marker.decode(found.row, found.raw))
    slot, hash_text, db, key = _place_of(found.slot, found.row)
    where = f"{slot} {hash_text} {db} {quoted(key, KEY_BYTES_SHOWN)}"
    flags = ["complete" if found.is_complete else "delta"]
    versions = _versions(found.raw)
    if versions is None:
        return f"{where} unknown - - - {flags[0]} {quoted(found.raw, PAYLOAD_BYTES_SHOWN)}"
    if not versions:
        return f"{where} nothing - - - {flags[0]}"
    first = versions[0]
    flags += _encodings(first)
    if len(versions) > 1:
        flags.append(f"+{len(versions) - 1}")
    return (
        f"{where} {type_text(first)} {first.dot[0]:016x}:{first.dot[1]} {hlc_text(first.hlc)} "
        f"{time_text(first.expire_at_ms) if first.expire_at_ms else '-'} {','.join(flags)} "
        f"{quoted(first.payload, PAYLOAD_BYTES_SHOWN)}"
    )


def json_of(found: Found, file: str) -> str:
    """An entry for scripts."""
    shown: dict[str, Any] = {"file": file}
    if found.is_marker:
        marker = Marker.decode(found.row, found.raw)
        databases = None if marker.tags is None else sorted(marker.tags)
        slots = [marker.slot_min, marker.slot_max]
        return _json({**shown, "drop": {"databases": databases, "slots": slots}})
    slot, hash_text, db, key = _place_of(found.slot, found.row)
    shown |= {"slot": slot, "hash": hash_text, "db": db if isinstance(db, int) else None}
    shown |= _bytes_json("key", key)
    shown["complete"] = found.is_complete
    versions = _versions(found.raw)
    if versions is None:
        return _json({**shown, "raw_base64": b64encode(found.raw).decode()})
    shown["versions"] = [
        {
            "kind": type_text(version),
            "actor": f"{version.dot[0]:016x}",
            "counter": version.dot[1],
            "time_ms": version.hlc >> 16,
            "time_count": version.hlc & 0xFFFF,
            "expire_at_ms": version.expire_at_ms or None,
            "flags": _encodings(version),
            **_bytes_json("payload", version.payload),
        }
        for version in versions
    ]
    return _json(shown)


def _drop_line(marker: Marker) -> str:
    slots = f"{marker.slot_min}-{marker.slot_max}"
    databases = "all" if marker.tags is None else ",".join(map(str, sorted(marker.tags)))
    return f"{slots} - {databases} - drop - - - -"


def damage_line(error: CorruptionError, file: str, *, is_json: bool) -> str:
    """What stands in place of entries that cannot be read."""
    if is_json:
        return _json({"file": file, "damage": str(error), "offset": error.offset})
    return f"! {error}"


def manifest_lines(current: Manifest, *, is_json: bool) -> list[str]:
    """A manifest: for people a line for each field and table, for scripts one object."""
    fields = {
        name: value
        for name, value in msgspec.structs.asdict(current).items()
        if name not in ("levels", "drops", "state")
    }
    levels = current.levels
    drops = [
        {
            "position": drop.position,
            "database": None if drop.tag == ALL_TAGS else drop.tag,
            "slots": [drop.slot_min, drop.slot_max],
        }
        for drop in current.drops
    ]
    state = _state_json(current.state)
    if is_json:
        return [_json({"file": "manifest", **fields, "levels": levels, "drops": drops, **state})]
    lines = [f"{name} {value}" for name, value in (fields | state).items()]
    lines += [f"level {at} table {name}" for at, names in enumerate(levels) for name in names]
    lines += [
        f"drop of slots {drop.slot_min} to {drop.slot_max}, "
        f"{'all databases' if drop.tag == ALL_TAGS else f'database {drop.tag}'}, "
        f"before position {drop.position}"
        for drop in current.drops
    ]
    return lines


def quoted(data: bytes, shown_max: int) -> str:
    """Bytes in quotes, escaped, cut after `shown_max`, with their whole length behind if they are long."""
    cut = data[:shown_max]
    text = cut.decode("utf-8", "surrogateescape")
    escaped = "".join(map(_escaped, text))
    return f'"{escaped}"' + (f"...({len(data)} bytes)" if len(data) > shown_max else "")


def type_text(version: Version) -> str:
    return _TYPES.get(version.type, f"type{version.type}")


def hlc_text(hlc: int) -> str:
    return f"{time_text(hlc >> 16)}+{hlc & 0xFFFF}"


def time_text(at_ms: int) -> str:
    """A Unix time in milliseconds as ISO 8601; the number itself if the calendar does not reach so far."""
    try:
        text = datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{at_ms}ms"
    return f"{text}.{at_ms % 1000:03d}Z"


def _versions(raw: bytes) -> tuple[Version, ...] | None:
    """The versions of a record; None if these bytes are none, which no checksum tells."""
    try:
        return decode(raw).versions
    except (StructError, IndexError, ValueError):
        return None


def _place_of(slot: Slot, row: Row) -> tuple[int, str, int | str, Key]:
    """Slot, hash, database and key. Rows of the node itself have neither hash nor database."""
    if slot == SYSTEM_SLOT or len(row) <= TAG_OFFSET:
        return slot, "-", "-", row
    return slot, row[:HASH_BYTES].hex(), row[TAG_OFFSET], key_of(row)


def _encodings(version: Version) -> list[str]:
    marks = ((RAW_ENCODING, "raw"), (TEXT_ENCODING, "text"))
    return [name for mark, name in marks if version.encoding & mark]


def _state_json(state: bytes) -> dict[str, Any]:
    try:
        kept = msgspec.msgpack.decode(state, type=ReplicaState)
    except msgspec.MsgspecError:
        return {"state_bytes": len(state)}
    return {
        "actor": f"{kept.actor:016x}",
        "last_time": hlc_text(kept.last_hlc),
        "writes": sum(kept.counters),
        "past_actors": [f"{actor:016x}" for actor in kept.past],
        "is_copy": kept.is_copy,
    }


def _bytes_json(name: str, data: bytes) -> dict[str, str]:
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": b64encode(data).decode()}


def _json(value: dict[str, Any]) -> str:
    return msgspec.json.encode(value).decode()


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if 0xDC80 <= ord(char) <= 0xDCFF:  # A byte that is no UTF-8.
        return f"\\x{ord(char) - 0xDC00:02x}"
    if char.isprintable():
        return char
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(char) or (
        f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"
    )
