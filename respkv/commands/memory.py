"""MEMORY: what data takes in memory, as the engine estimates it, and the process, as the system sees it."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from cluster.slot import DATABASE_COUNT
from engine.memtable import ENTRY_OVERHEAD_BYTES
from respkv.command import Flag, Keys, command, container
from respkv.commands.client import help_reply
from respkv.context import Context
from respkv.errand import Errand, run
from respkv.info import count_keys, human
from respkv.number import integer
from respkv.reply import OK, SYNTAX_ERROR, Reply, Verbatim

NO_FLAGS: Final = Flag.NONE
ALL_SHARDS: Final = ("request_policy:all_shards", "response_policy:special")
TIPS: Final = ("nondeterministic_output", *ALL_SHARDS)

container("MEMORY", since="4.0.0", group="server", summary="Commands about memory")


@command(
    "MEMORY|USAGE", arity=-3, flags=Flag.READONLY, keys=Keys(2, 2, 1, "RO"), since="4.0.0", group="server",
    complexity="O(1)", usage="key [SAMPLES count]",
)  # fmt: skip
def memory_usage(ctx: Context, key: bytes, *options: bytes) -> Reply:
    """Estimate how many bytes of memory a key takes while it is in the memtable. SAMPLES makes no difference."""
    words = iter(options)
    for name in words:
        count = next(words, None)
        if name.upper() != b"SAMPLES" or count is None or integer(count) < 0:
            raise SYNTAX_ERROR
    _, row, raw = ctx.locate(key)
    return None if raw is None else len(row) + len(raw) + ENTRY_OVERHEAD_BYTES


@command(
    "MEMORY|STATS",
    arity=2,
    flags=NO_FLAGS,
    since="4.0.0",
    group="server",
    complexity="O(1)",
    tips=TIPS,
)
def memory_stats(ctx: Context) -> Generator[None, None, Reply]:
    """Show where memory goes, in bytes."""
    node = ctx.node
    yield from count_keys(ctx.counts, ctx.now_ms, node.clock_ns)
    store, stats = node.store, node.stats
    used, rss, dataset = node.used_bytes, node.process.rss_bytes(), store.memory_bytes
    peak = stats.see_memory(used)
    keys = sum(ctx.counts.estimate(db).keys for db in range(DATABASE_COUNT))
    clients = sum(s.parser.buffered_bytes + s.unsent_bytes for s in node.front.by_session)
    return {
        b"peak.allocated": peak,
        b"total.allocated": used,
        b"startup.allocated": stats.startup_bytes,
        b"replication.backlog": 0,
        b"clients.slaves": 0,
        b"clients.normal": clients,
        b"cluster.links": 0,
        b"aof.buffer": sum(map(len, store.log.pieces)),
        b"lua.caches": 0,
        b"functions.caches": 0,
        b"memtables": store.memtable_bytes,
        b"row.cache": store.rows.bytes_used,
        b"block.cache": store.blocks.bytes_used,
        b"overhead.total": stats.startup_bytes,
        b"keys.count": keys,
        b"keys.bytes-per-key": dataset // keys if keys else 0,
        b"dataset.bytes": dataset,
        b"dataset.percentage": 100.0 * dataset / max(1, used),
        b"peak.percentage": 100.0 * used / max(1, peak),
        b"process.resident": rss,
        b"fragmentation": rss / max(1, used),
        b"fragmentation.bytes": rss - used,
    }


@command(
    "MEMORY|DOCTOR",
    arity=2,
    flags=NO_FLAGS,
    since="4.0.0",
    group="server",
    complexity="O(1)",
    tips=TIPS,
)
def memory_doctor(ctx: Context) -> Reply:
    """Tell what is wrong with memory, and what may help."""
    return Verbatim(_diagnosis(ctx).encode())


SMALL_BYTES: Final = 5 << 20
FRAGMENTED: Final = 1.5
FRAGMENTED_BYTES: Final = 64 << 20


def _diagnosis(ctx: Context) -> str:
    node = ctx.node
    store, limit = node.store, node.config.memory.bytes_max
    used, rss, total = node.used_bytes, node.process.rss_bytes(), node.process.memory_total_bytes
    findings = []
    if limit > total * 0.8:
        findings.append(
            f"memory.bytes_max is {human(limit)} of the machine's {human(total)}: leave room for the system, "
            "whose page cache serves reads of tables."
        )
    if rss > used * FRAGMENTED and rss - used > FRAGMENTED_BYTES:
        findings.append(
            f"The process holds {human(rss)} where {human(used)} are accounted for: memory is fragmented, or a peak "
            "has passed. MEMORY PURGE gives back what is free."
        )
    reads = store.rows.hit_count + store.rows.miss_count
    if reads > 10_000 and store.rows.hit_count < reads / 2:
        findings.append(
            "More than half of the reads that go to tables miss the row cache: more memory.bytes_max may help."
        )
    if store.stats.stalls:
        findings.append(
            f"Clients were held back {store.stats.stalls} times until a memtable was flushed: writes come faster "
            "than the disk takes them, or the memtable is too small."
        )
    if findings:
        return "".join(f"{finding}\n" for finding in findings)
    if store.memory_bytes < SMALL_BYTES:
        return "There is too little data to say anything.\n"
    return "All is well with memory.\n"


@command(
    "MEMORY|PURGE", arity=2, flags=NO_FLAGS, since="4.0.0", group="server",
    complexity="O(N) where N is the memory that is free in the process",
    tips=("request_policy:all_shards", "response_policy:all_succeeded"),
)  # fmt: skip
def memory_purge(ctx: Context) -> Generator[Errand, None, Reply]:
    """Give memory that is free in the process back to the system. A thread does it."""
    yield from run(ctx, ctx.node.process.trim)
    return OK


@command(
    "MEMORY|MALLOC-STATS",
    arity=2,
    flags=NO_FLAGS,
    since="4.0.0",
    group="server",
    complexity="O(1)",
    tips=TIPS,
)
def memory_malloc_stats(ctx: Context) -> Reply:
    """Show what the parts of the engine hold in memory."""
    node, store = ctx.node, ctx.store
    lines = {
        "resident in RAM": node.process.rss_bytes(),
        "before there was data": node.stats.startup_bytes,
        "active memtable": store.memtable.weight_bytes,
        "frozen memtables": store.memtable_bytes - store.memtable.weight_bytes,
        "row cache": store.rows.bytes_used,
        "block cache": store.blocks.bytes_used,
    }
    return Verbatim("".join(f"{name:<24}{size:>16}\n" for name, size in lines.items()).encode())


HELP: Final = """\
MEMORY <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
DOCTOR
    What is wrong with memory, and what may help.
MALLOC-STATS
    What the parts of the engine hold.
PURGE
    Give free memory back to the system.
STATS
    Where memory goes.
USAGE <key> [SAMPLES <count>]
    About how many bytes of memory a key takes.
HELP
    Print this help."""


@command(
    "MEMORY|HELP",
    arity=2,
    flags=Flag.LOADING | Flag.STALE,
    since="4.0.0",
    group="server",
    complexity="O(1)",
)
def memory_help(ctx: Context) -> Reply:
    """Show the subcommands of MEMORY."""
    return help_reply(HELP)
