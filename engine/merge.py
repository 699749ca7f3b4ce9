"""Merging runs of entries: what compaction does between reading tables and writing them.

Not a scheduler: which tables are merged, and when, is decided elsewhere.

**What comes out.** For every key one entry: its newest version, joined with older ones down to the
first complete version, inclusive. Versions from sources that `drops` names vanish before that. A
record that is dead becomes a stub, because older entries may lie in tables that take no part. At
the bottom no such tables exist, so that all that remains is complete, and a dead record is left out
altogether where the caller lets it be forgotten; other replicas may still have to hear of it.

**How.** Sources are consumed in groups of about `GROUP_BYTES`. Each round takes the smallest of the
groups' last keys as its boundary, takes from every group what is not above it, and sorts all of
that at once, newest source first. The sort is stable, so the versions of a key end up side by side,
newest first; and Python's sort finds the runs that the sources are and merges them in C. That is
two to three times faster than `heapq.merge`. Memory is bounded by one group per source and the
output of one round; a group is larger than `GROUP_BYTES` only where it is a single huge entry.

Core: pure and synchronous; it does the reading that its sources do.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, compress, islice, repeat
from operator import eq, itemgetter
from typing import Final

from engine.codec import COMPLETE, SLOT_BYTES, Entry, Fate, Key, RecordCodec

Drops = Callable[[int, Key], bool]
"""Told the number of a source (0 is the newest) and a key: is that entry dropped?"""

GROUP_BYTES: Final = 64 * 1024
GROUP_ENTRIES: Final = 1024

_key = itemgetter(0)
_flags = itemgetter(1)
_raw = itemgetter(2)
_row = itemgetter(slice(SLOT_BYTES, None))


def merge(
    sources: Sequence[Iterator[Entry]],
    codec: RecordCodec,
    *,
    now_ms: int,
    is_bottom: bool,
    may_forget: bool = True,
    drops: Drops | None = None,
) -> Iterator[Entry]:
    """Yield the merged entries of `sources`, newest source first, each increasing by key.

    `is_bottom` claims that no table outside of the merge holds older entries of its keys.
    `may_forget`: then the dead are left out; else their stubs stay.
    """
    grouped = [groups_of(source) for source in sources]
    return chain.from_iterable(
        merge_groups(
            grouped, codec, now_ms=now_ms, is_bottom=is_bottom, may_forget=may_forget, drops=drops
        )
    )


def merge_groups(
    sources: Sequence[Iterator[list[Entry]]],
    codec: RecordCodec,
    *,
    now_ms: int,
    is_bottom: bool,
    may_forget: bool = True,
    drops: Drops | None = None,
) -> Iterator[list[Entry]]:
    """Like `merge`, but in groups on both sides, as `Table.groups` yields them: faster."""
    for entries in _rounds(sources, drops):
        joined = join_versions(entries, codec)
        survivors = _settle(joined, codec, now_ms, is_bottom, is_bottom and may_forget)
        if survivors:
            yield survivors


def groups_of(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Cut a run of entries into groups, bounded in bytes and number."""
    group: list[Entry] = []
    group_bytes = 0
    for entry in entries:
        entry_bytes = len(entry[0]) + len(entry[2])
        if group and (group_bytes + entry_bytes > GROUP_BYTES or len(group) == GROUP_ENTRIES):
            yield group
            group, group_bytes = [], 0
        group.append(entry)
        group_bytes += entry_bytes
    if group:
        yield group


def _rounds(sources: Sequence[Iterator[list[Entry]]], drops: Drops | None) -> Iterator[list[Entry]]:
    """Yield all versions of one key range after another, by key, the newest version first.

    All versions of a key are in one round: whatever a source still has to give lies above the last
    key of its group, and so above the boundary.
    """
    waiting = {number: group for number in range(len(sources)) if (group := _next(sources[number]))}
    while waiting:
        boundary = min(group[-1][0] for group in waiting.values())
        taken: list[Entry] = []
        part_count = 0
        for number in list(waiting):
            group = waiting[number]
            cut = bisect_right(group, boundary, key=_key)
            part, rest = (group[:cut], group[cut:]) if cut < len(group) else (group, [])
            if part:
                taken += part if drops is None else _kept(part, number, drops)
                part_count += 1
            if not rest:
                rest = _next(sources[number])
            if rest:
                waiting[number] = rest
            else:
                del waiting[number]
        if part_count > 1:
            taken.sort(key=_key)
        yield taken


def _next(source: Iterator[list[Entry]]) -> list[Entry]:
    """Return the next group that is not empty, or an empty one at the end."""
    return next(filter(None, source), [])


def _kept(part: list[Entry], number: int, drops: Drops) -> list[Entry]:
    return [entry for entry in part if not drops(number, entry[0])]


def join_versions(entries: list[Entry], codec: RecordCodec) -> list[Entry]:
    """Reduce neighbours with the same key, newest first, to one entry.

    Only those that have such a neighbour are looked at in Python; the others move in slices.
    """
    keys = list(map(_key, entries))
    repeats = compress(range(1, len(keys)), map(eq, keys, islice(keys, 1, None)))
    joined: list[Entry] = []
    begin = 0
    for index in repeats:
        joined += entries[begin:index]
        begin = index + 1
        key, flags, newer = joined[-1]
        if not flags & COMPLETE:
            _, older_flags, older = entries[index]
            joined[-1] = (key, flags | older_flags & COMPLETE, codec.join(newer, older))
    if begin == 0:
        return entries
    joined += entries[begin:]
    return joined


def _settle(
    entries: list[Entry], codec: RecordCodec, now_ms: int, is_bottom: bool, is_forgetting: bool
) -> list[Entry]:
    """Remove what is dead or make stubs of it; at the bottom, mark the rest complete.

    In bulk, because nearly always nothing is dead and everything is complete. `count` finds that
    out by identity; `in` would call `__eq__` for every element that is not the one looked for.
    """
    rows = map(_row, map(_key, entries))
    fates = list(map(codec.fate, rows, map(_raw, entries), repeat(now_ms)))
    if fates.count(Fate.LIVE) < len(fates):
        pairs = zip(entries, fates, strict=True)
        if is_forgetting:
            entries = [entry for entry, fate in pairs if fate is Fate.LIVE]
        else:
            entries = [
                entry if fate is Fate.LIVE else (entry[0], entry[1], codec.stub(entry[2]))
                for entry, fate in pairs
            ]
    if is_bottom and bytes(map(_flags, entries)).count(COMPLETE) < len(entries):
        entries = [(key, flags | COMPLETE, raw) for key, flags, raw in entries]
    return entries
