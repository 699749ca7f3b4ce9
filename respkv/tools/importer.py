"""`import`: copies the keys of a running Redis into a running respkv, while both serve.

Batch by batch: SCAN names keys; PTTL and GET read them; SET writes them with what is left of their
time. When the target has answered all SETs of a batch, the cursor is saved: an import that was
interrupted goes on there, and repeats one batch at most, which changes nothing.

So far only strings are copied. Keys of other types are counted by type, and the caller says so.

SCAN promises every key that is there from the first call to the last one. Keys that are written
meanwhile may be copied as they were; whoever needs the last state stops the writers first, or lets
them write to the new server and runs the import before. A cursor means nothing to a Redis that was
restarted: an import then begins anew, which `run_id` tells.

In the end `check` scans the source again, and asks the target for each string key.

Shell over two clients; decides nothing about time, and where progress is kept is handed in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import hiredis
import msgspec

from respkv.tools.client import Client, ClientError

KEYS_PER_READ: Final = (
    128  # What is read at once: the source holds their values in memory until we took them.
)
WRITE_BYTES_MAX: Final = 4 << 20  # What is written at once, but for a single larger value.
EXAMPLES_MAX: Final = 10


class ImportState(msgspec.Struct):
    """Where an import stands. `source` and `target` are addresses without passwords."""

    source: str
    target: str
    run_id: str
    cursor: int = 0
    is_scanned: bool = False
    copied_count: int = 0
    gone_count: int = 0  # Expired or deleted between SCAN and GET.
    other_types: dict[str, int] = {}

    @property
    def other_count(self) -> int:
        return sum(self.other_types.values())


class RefusedError(ClientError):
    """The target refused a key, or the source did. Nothing is lost: the batch is repeated next time."""


def run_id_of(source: Client) -> str:
    """What tells one run of a Redis from another; empty if it does not say."""
    for line in source.ask("INFO", "server").splitlines():
        if line.startswith(b"run_id:"):
            return str(line[7:].decode())
    return ""


class Importer:
    """One import on its way. Call `step` until it says that all is scanned."""

    def __init__(
        self,
        source: Client,
        target: Client,
        state: ImportState,
        save: Callable[[ImportState], None],
        batch_count: int,
    ) -> None:
        self._source = source
        self._target = target
        self._save = save
        self._batch_count = batch_count
        self.state = state

    def step(self) -> int:
        """Copy one batch, then save the state; how many keys SCAN named. Raises ClientError."""
        state = self.state
        cursor, keys = self._source.ask("SCAN", state.cursor, "COUNT", self._batch_count)
        for some in _batches(keys):
            self._copy(some)
        state.cursor = int(cursor)
        state.is_scanned = state.cursor == 0
        self._save(state)
        return len(keys)

    def _copy(self, keys: list[bytes]) -> None:
        reads = [words for key in keys for words in ((b"PTTL", key), (b"GET", key))]
        replies = self._source.pipeline(reads)
        writes: list[tuple[bytes | int, ...]] = []
        others: list[bytes] = []
        write_bytes = 0
        for key in keys:
            left_ms, value = next(replies), next(replies)
            if isinstance(value, hiredis.ReplyError):
                if not str(value).startswith("WRONGTYPE"):
                    raise RefusedError(f"{self._source.address} refused to read {key!r}: {value}")
                others.append(key)
            elif value is None or left_ms in (-2, 0):
                self.state.gone_count += 1
            else:
                timed = (b"PX", left_ms) if left_ms > 0 else ()
                writes.append((b"SET", key, value, *timed))
                write_bytes += len(value)
                if write_bytes > WRITE_BYTES_MAX:
                    self._write(writes)
                    writes, write_bytes = [], 0
        self._write(writes)
        self._count_others(others)

    def _write(self, writes: list[tuple[bytes | int, ...]]) -> None:
        replies = list(self._target.pipeline(writes))
        for words, reply in zip(writes, replies, strict=True):
            if isinstance(reply, hiredis.ReplyError):
                raise RefusedError(f"{self._target.address} refused key {words[1]!r}: {reply}")
        self.state.copied_count += len(writes)

    def _count_others(self, keys: list[bytes]) -> None:
        types = Counter(self.state.other_types)
        for reply in self._source.pipeline([(b"TYPE", key) for key in keys]):
            name = _text(reply)
            if name == "none":
                self.state.gone_count += 1
            else:
                types[name] += 1
        self.state.other_types = dict(types)


@dataclass(slots=True)
class Check:
    """What became of a look at the target. `examples` are the first of the missing keys."""

    string_count: int = 0
    missing_count: int = 0
    examples: list[bytes] = field(default_factory=list)


def check(source: Client, target: Client, batch_count: int, step: Callable[[int], None]) -> Check:
    """Ask the target for each string key of the source. `step` hears how many were looked for.

    A key that goes away meanwhile is not missing.
    """
    found = Check()
    for keys in _string_keys(source, batch_count):
        for some in _batches(keys):
            lacking = _lacking(target, some)
            gone = set(_lacking(source, lacking))
            missing = [key for key in lacking if key not in gone]
            found.missing_count += len(missing)
            found.examples += missing[: EXAMPLES_MAX - len(found.examples)]
        found.string_count += len(keys)
        step(len(keys))
    return found


def _string_keys(source: Client, batch_count: int) -> Iterator[list[bytes]]:
    cursor = 0
    while True:
        words = ("SCAN", cursor, "COUNT", batch_count, "TYPE", "string")
        text, keys = source.ask(*words)
        yield keys
        cursor = int(text)
        if cursor == 0:
            return


def _batches(keys: list[bytes]) -> Iterator[list[bytes]]:
    for at in range(0, len(keys), KEYS_PER_READ):
        yield keys[at : at + KEYS_PER_READ]


def _lacking(server: Client, keys: list[bytes]) -> list[bytes]:
    replies = list(server.pipeline([(b"EXISTS", key) for key in keys]))
    return [key for key, reply in zip(keys, replies, strict=True) if not reply]


def _text(reply: Any) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply)
