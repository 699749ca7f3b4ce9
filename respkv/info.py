"""The text of INFO: sections of `name:value` lines about a node.

It changes nothing and waits for nothing: a section is a function from the node, as it is now, to its fields. Names
and units are those of Redis 7.0, which monitoring agents and client libraries read by name; a field that has no
meaning here is left out, or is a 0 that is true (`evicted_keys`: nothing is evicted). What Redis has no name for
stands in `persistence` and in the section `respkv`.

Some fields need a word:

- `used_memory` is what the process held before it had data, plus memtables and caches as the engine estimates them;
  `used_memory_rss` is what the operating system says.
- The commit log stands for the append-only file, and tables for RDB files: `aof_current_size` counts the bytes of log
  that are not in tables yet, `rdb_changes_since_last_save` the writes since the last flush.
- `master_repl_offset` is the log's position: it grows with every write, as a replication offset would.
- Keys are counted before the text is made (`count_keys`), as far as some milliseconds allow; what is not counted then
  has its last known number or an estimate (`respkv/keyspace.py`).

Core: no I/O but what the node's seams do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from cluster.slot import DATABASE_COUNT
from engine.damage import LostDataError
from respkv.command import TABLE
from respkv.histogram import Histogram
from respkv.keyspace import Counts
from respkv.pubsub import CHANNEL, PATTERN, SHARD
from respkv.version import REDIS_VERSION, VERSION

if TYPE_CHECKING:
    from cluster.topology import Topology
    from respkv.node import Node
    from respkv.peers import Peers

Value = int | float | str
Fields = dict[str, Value]
PERCENTILES: Final = (50.0, 99.0, 99.9)
COUNTING_NS_MAX: Final = (
    25_000_000  # Of time spent on it, in slices: 16384 empty slots take half of it.
)


def info_text(node: Node, names: Iterable[bytes], *, is_cluster: bool = False) -> bytes:
    """The text of the sections that these names mean, in their usual order. `is_cluster`: asked on the cluster port."""
    wanted = sections_of(names)
    chosen = [(name, fields(node)) for name, fields in SECTIONS.items() if name in wanted]
    if is_cluster:
        for name, fields in chosen:
            fields |= _of_cluster_port(node, name)
    return b"\r\n".join(_section(name, fields) for name, fields in chosen)


def sections_of(names: Iterable[bytes]) -> set[str]:
    """The sections that INFO's arguments mean: without any, the default ones; unknown names mean nothing."""
    wanted: set[str] = set()
    for name in [name.decode("latin-1").lower() for name in names] or ["default"]:
        if name in ("all", "everything"):
            wanted |= SECTIONS.keys()
        elif name == "default":
            wanted |= SECTIONS.keys() - NOT_BY_DEFAULT
        else:
            wanted.add(name)
    return wanted & SECTIONS.keys()


def count_keys(known: Counts, now_ms: int, clock_ns: Callable[[], int]) -> Iterator[None]:
    """Count what changed since the last time, in steps. Pages that are not in memory are not waited for."""
    spent_ns, resumed_ns = 0, clock_ns()
    for _ in known.refresh(now_ms, is_patient=False):
        spent_ns += clock_ns() - resumed_ns
        if spent_ns >= COUNTING_NS_MAX:
            return
        yield None
        resumed_ns = clock_ns()


def _section(name: str, fields: Fields) -> bytes:
    title = "CPU" if name == "cpu" else name.capitalize()
    lines = [f"# {title}", *(f"{field}:{value}" for field, value in fields.items()), ""]
    return "\r\n".join(lines).encode("utf-8", "backslashreplace")


def human(size_bytes: int) -> str:
    """A size as Redis shows it to people: `1.68M`."""
    if size_bytes < 1024:
        return f"{size_bytes}B"
    for power, unit in enumerate("KMGTP", 1):
        if size_bytes < 1024 ** (power + 1) or unit == "P":
            break
    return f"{size_bytes / 1024**power:.2f}{unit}"


def _server(node: Node) -> Fields:
    process = node.process
    wall_ns = node.wall_ns()
    uptime_s = int(node.monotonic_s() - node.started_s)
    hz = max(1, 1000 // node.config.expiry.interval_ms)
    return {
        "redis_version": REDIS_VERSION,
        "respkv_version": VERSION,
        "redis_git_sha1": "00000000",
        "redis_git_dirty": 0,
        "redis_build_id": f"respkv-{VERSION}",
        "redis_mode": "standalone",
        "os": process.system,
        "arch_bits": 64,
        "monotonic_clock": "POSIX clock_gettime",
        "multiplexing_api": "epoll",
        "process_id": process.pid,
        "process_supervised": "no",
        "run_id": node.run_id,
        "tcp_port": node.ready_port,
        "server_time_usec": wall_ns // 1000,
        "uptime_in_seconds": uptime_s,
        "uptime_in_days": uptime_s // 86400,
        "hz": hz,
        "configured_hz": hz,
        "lru_clock": wall_ns // 1_000_000_000 & 0xFFFFFF,
        "executable": process.executable,
        "config_file": node.config.path or "",
        "io_threads_active": 0,
        "node_name": node.name,
    }


def _clients(node: Node) -> Fields:
    sessions = node.front.by_session
    waits = node.runner.long_way.waiting.values()
    return {
        "connected_clients": len(sessions),
        "cluster_connections": 0,
        "maxclients": node.config.client.clients_max,
        "client_recent_max_input_buffer": max((s.parser.buffered_bytes for s in sessions), default=0),
        "client_recent_max_output_buffer": max((s.unsent_bytes for s in sessions), default=0),
        "blocked_clients": sum(1 for wait in waits if wait.is_blocking),
        "tracking_clients": node.tracking.client_count,
        "clients_in_timeout_table": sum(1 for wait in waits if wait.deadline_s is not None),
    }  # fmt: skip


def _memory(node: Node) -> Fields:
    store, stats = node.store, node.stats
    used, rss, dataset = node.used_bytes, node.process.rss_bytes(), store.memory_bytes
    peak = stats.see_memory(used)
    total, limit = node.process.memory_total_bytes, node.config.memory.bytes_max
    return {
        "used_memory": used,
        "used_memory_human": human(used),
        "used_memory_rss": rss,
        "used_memory_rss_human": human(rss),
        "used_memory_peak": peak,
        "used_memory_peak_human": human(peak),
        "used_memory_peak_perc": f"{100 * used / max(1, peak):.2f}%",
        "used_memory_overhead": stats.startup_bytes,
        "used_memory_startup": stats.startup_bytes,
        "used_memory_dataset": dataset,
        "used_memory_dataset_perc": f"{100 * dataset / max(1, used):.2f}%",
        "total_system_memory": total,
        "total_system_memory_human": human(total),
        "used_memory_lua": 0,
        "used_memory_lua_human": "0B",
        "used_memory_scripts": 0,
        "used_memory_scripts_human": "0B",
        "number_of_cached_scripts": 0,
        "number_of_functions": 0,
        "number_of_libraries": 0,
        "maxmemory": limit,
        "maxmemory_human": human(limit),
        "maxmemory_policy": "noeviction",
        "mem_fragmentation_ratio": f"{rss / max(1, used):.2f}",
        "mem_fragmentation_bytes": rss - used,
        "mem_not_counted_for_evict": 0,
        "mem_replication_backlog": 0,
        "mem_total_replication_buffers": 0,
        "mem_clients_slaves": 0,
        "mem_clients_normal": _client_bytes(node),
        "mem_cluster_links": 0,
        "mem_aof_buffer": 0,
        "mem_allocator": "libc",
        "active_defrag_running": 0,
        "lazyfree_pending_objects": 0,
        "lazyfreed_objects": 0,
        "memtable_bytes": store.memtable_bytes,
        "row_cache_bytes": store.rows.bytes_used,
        "row_cache_bytes_max": store.rows.bytes_max,
        "block_cache_bytes": store.blocks.bytes_used,
        "block_cache_bytes_max": store.blocks.bytes_max,
    }


def _client_bytes(node: Node) -> int:
    return sum(s.parser.buffered_bytes + s.unsent_bytes for s in node.front.by_session)


def _persistence(node: Node) -> Fields:
    store, saves, log = node.store, node.saves, node.store.log
    now_s = node.wall_ns() // 1_000_000_000
    save, rewrite = saves.courses["save"], saves.courses["rewrite"]
    return {
        "loading": 0,
        "async_loading": 0,
        "current_cow_peak": 0,
        "current_cow_size": 0,
        "current_cow_size_age": 0,
        "current_fork_perc": "0.00",
        "current_save_keys_processed": 0,
        "current_save_keys_total": 0,
        "rdb_changes_since_last_save": node.changes - saves.changes,
        "rdb_bgsave_in_progress": int(saves.is_running("save")),
        "rdb_last_save_time": saves.last_s,
        "rdb_last_bgsave_status": _status(is_ok=save.is_last_ok),
        "rdb_last_bgsave_time_sec": save.last_duration_s,
        "rdb_current_bgsave_time_sec": saves.running_s("save", now_s),
        "rdb_saves": save.count,
        "rdb_last_cow_size": 0,
        "rdb_last_load_keys_expired": 0,
        "rdb_last_load_keys_loaded": store.recovery.entry_count,
        "aof_enabled": 1,
        "aof_rewrite_in_progress": int(saves.is_running("rewrite")),
        "aof_rewrite_scheduled": 0,
        "aof_last_rewrite_time_sec": rewrite.last_duration_s,
        "aof_current_rewrite_time_sec": saves.running_s("rewrite", now_s),
        "aof_last_bgrewrite_status": _status(is_ok=rewrite.is_last_ok),
        "aof_rewrites": rewrite.count,
        "aof_rewrites_consecutive_failures": 0,
        "aof_last_write_status": _status(is_ok=log.failure is None and node.refusal is None),
        "aof_last_cow_size": 0,
        "module_fork_in_progress": 0,
        "module_fork_last_cow_size": 0,
        "aof_current_size": log.position - store.manifest.log_start,
        "aof_base_size": 0,
        "aof_pending_rewrite": 0,
        "aof_buffer_length": sum(map(len, log.pieces)),
        "aof_pending_bio_fsync": int(log.position > log.synced),
        "aof_delayed_fsync": 0,
        "log_fsync": node.config.log.fsync,
        "log_position": log.position,
        "log_synced_position": log.synced,
        "log_flushed_position": store.manifest.log_start,
        "log_torn_bytes_at_start": sum(torn.bytes_count for torn in store.recovery.torn),
        "tables": len(store.tables),
        "table_bytes": store.table_bytes,
        "flushes": store.stats.flushes,
        "compactions": store.stats.compactions,
    }


def _status(*, is_ok: bool) -> str:
    return "ok" if is_ok else "err"


def _stats(node: Node) -> Fields:
    front, context, stats = node.front, node.context, node.stats
    return {
        "total_connections_received": front.clients.connections_total,
        "total_commands_processed": node.runner.commands_total,
        "instantaneous_ops_per_sec": round(stats.commands.per_second),
        "total_net_input_bytes": front.bytes_in,
        "total_net_output_bytes": front.output.bytes_out,
        "total_net_repl_input_bytes": 0,
        "total_net_repl_output_bytes": 0,
        "instantaneous_input_kbps": f"{stats.input.per_second / 1024:.2f}",
        "instantaneous_output_kbps": f"{stats.output.per_second / 1024:.2f}",
        "instantaneous_input_repl_kbps": "0.00",
        "instantaneous_output_repl_kbps": "0.00",
        "rejected_connections": front.listeners.rejected_total,
        "sync_full": 0,
        "sync_partial_ok": 0,
        "sync_partial_err": 0,
        "expired_keys": node.ticker.expired_total,
        "evicted_keys": 0,
        "evicted_clients": 0,
        "total_eviction_exceeded_time": 0,
        "current_eviction_exceeded_time": 0,
        "keyspace_hits": context.hits,
        "keyspace_misses": context.misses,
        "pubsub_channels": len(node.pubsub.names(CHANNEL)),
        "pubsub_patterns": len(node.pubsub.names(PATTERN)),
        "pubsubshard_channels": len(node.pubsub.names(SHARD)),
        "latest_fork_usec": 0,
        "total_forks": 0,
        "migrate_cached_sockets": 0,
        "slave_expires_tracked_keys": 0,
        "active_defrag_hits": 0,
        "active_defrag_misses": 0,
        "active_defrag_key_hits": 0,
        "active_defrag_key_misses": 0,
        "tracking_total_keys": node.tracking.key_count,
        "unexpected_error_replies": 0,
        "total_error_replies": sum(node.errors.values()),
        "dump_payload_sanitizations": 0,
        "io_threaded_reads_processed": 0,
        "io_threaded_writes_processed": 0,
    }


def _replication(node: Node) -> Fields:
    return {
        "role": "master",
        "connected_slaves": 0,
        "master_failover_state": "no-failover",
        "master_replid": node.replication_id,
        "master_replid2": "0" * 40,
        "master_repl_offset": node.store.log.position,
        "second_repl_offset": -1,
        "repl_backlog_active": 0,
        "repl_backlog_size": 0,
        "repl_backlog_first_byte_offset": 0,
        "repl_backlog_histlen": 0,
    }


def _cpu(node: Node) -> Fields:
    times = node.process.cpu_times()
    return {
        "used_cpu_sys": f"{times.system_s:.6f}",
        "used_cpu_user": f"{times.user_s:.6f}",
        "used_cpu_sys_children": f"{times.children_system_s:.6f}",
        "used_cpu_user_children": f"{times.children_user_s:.6f}",
        "used_cpu_sys_main_thread": f"{times.main_system_s:.6f}",
        "used_cpu_user_main_thread": f"{times.main_user_s:.6f}",
    }


def _modules(node: Node) -> Fields:
    return {}


def _commandstats(node: Node) -> Fields:
    fields: Fields = {}
    for command in TABLE.everything():
        if command.calls or command.rejected_calls or command.failed_calls:
            elapsed_us = command.elapsed_ns // 1000
            per_call_us = command.elapsed_ns / 1000 / command.calls if command.calls else 0.0
            fields[f"cmdstat_{command.name.lower()}"] = (
                f"calls={command.calls},usec={elapsed_us},usec_per_call={per_call_us:.2f},"
                f"rejected_calls={command.rejected_calls},failed_calls={command.failed_calls}"
            )
    return fields


def _errorstats(node: Node) -> Fields:
    return {
        f"errorstat_{_code(code)}": f"count={count}" for code, count in sorted(node.errors.items())
    }


def _code(code: bytes) -> str:
    """An error's code; it is a client's word where a command answers with one, so it must not break the line."""
    return code.decode("latin-1").translate({ord(char): "_" for char in ":\r\n"})


def _latencystats(node: Node) -> Fields:
    fields: Fields = {}
    for command in TABLE.everything():
        if command.histogram.count:
            text = _times(command.histogram, PERCENTILES)
            fields[f"latency_percentiles_usec_{command.name.lower()}"] = text
    return fields


def _times(histogram: Histogram, percents: tuple[float, ...]) -> str:
    """Percentiles in microseconds; nothing where nothing was counted."""
    times = zip(percents, histogram.percentiles_us(percents), strict=bool(histogram.count))
    return ",".join(f"p{percent:g}={time_us:.3f}" for percent, time_us in times)


def _cluster(node: Node) -> Fields:
    """What a member of a cluster knows of it; `cluster_enabled` is 0 on the client port."""
    fields: Fields = {"cluster_enabled": 0}
    if node.peers is not None:
        fields |= _rounds(node.peers) | _exchange(node.peers) | _others(node.peers.topology)
    return fields


def _rounds(peers: Peers) -> Fields:
    topology, coordinator, dispatch = peers.topology, peers.coordinator, peers.dispatch
    reachable_count = sum(map(topology.is_reachable, topology.nodes))
    return {
        "cluster_name": peers.node.config.cluster.name,
        "cluster_epoch": topology.epoch,
        "cluster_n": peers.quorums.n,
        "cluster_r": peers.quorums.r,
        "cluster_w": peers.quorums.w,
        "cluster_nodes": len(topology.nodes),
        "cluster_nodes_reachable": reachable_count,
        "is_complete": int(peers.replica.is_complete),
        "is_clock_off": int(peers.is_clock_off),
        "commands_in_flight": dispatch.in_flight,
        "forwards_in_flight": len(dispatch.forwarding.forwards),
        "forwards": dispatch.forwarding.forwarded_total,
        "spread_commands": dispatch.spreads.begun_total,
        "spread_retries": dispatch.spreads.retries_total,
        "spread_bytes_in_flight": dispatch.spreads.held_bytes,
        "write_rounds_in_flight": len(coordinator.writes),
        "read_rounds_in_flight": len(coordinator.reads),
        "rounds_bytes_in_flight": coordinator.in_flight_bytes,
        "conflicts": coordinator.conflicts_total,
        "repairs": coordinator.repairs.sent_total,
        "retries": coordinator.retries_total,
        "inquests": coordinator.inquest.closed_total + len(coordinator.inquest.cases),
        "inquests_open": len(coordinator.inquest.cases),
    }


def _exchange(peers: Peers) -> Fields:
    """How far this node has got in finding out, and getting, what it lacks."""
    progress = peers.exchange.progress()
    names = (
        *("slots_left", "transfers", "rounds", "slots_received", "rows_received", "bytes_received"),
        *("rows_sent", "bytes_sent", "dropped"),
    )
    return {f"exchange_{name}": getattr(progress, name) for name in names}


def _others(topology: Topology) -> Fields:
    return {
        f"node{number}": f"name={name},address={node.host}:{node.client_port},"
        f"reachable={int(topology.is_reachable(name))},complete={int(name not in topology.incomplete)}"
        for number, (name, node) in enumerate(topology.nodes.items())
    }


def _of_cluster_port(node: Node, section: str) -> Fields:
    """What a section tells otherwise to a client of the cluster port."""
    if section == "cluster":
        return {"cluster_enabled": 1}
    if section == "server" and node.topology is not None:
        port = node.topology.nodes[node.topology.me].cluster_port
        return {"redis_mode": "cluster", "tcp_port": port}
    return {}


def _keyspace(node: Node) -> Fields:
    now_ms = node.now_ms()
    fields: Fields = {}
    for number in range(DATABASE_COUNT):
        try:
            tally = node.context.counts.estimate(node.databases[number])
        except LostDataError:  # Nobody knows: `slots_incomplete` tells why.
            return {}
        if tally.keys:
            mean_ms = tally.mean_ttl_ms(now_ms)
            fields[f"db{number}"] = f"keys={tally.keys},expires={tally.expires},avg_ttl={mean_ms}"
    return fields


def _respkv(node: Node) -> Fields:
    store, log = node.store, node.store.log
    rows, blocks = store.rows, store.blocks
    first = log.sealed[0] if log.sealed else log.segment
    levels: Fields = {
        f"level{number}": f"tables={level.table_count},bytes={level.file_bytes},entries={level.entry_count}"
        for number, level in enumerate(store.level_stats())
    }
    return {
        "version": VERSION,
        "actor": f"{node.replica.actor:016x}",
        "data_dir": node.data_dir,
        "writes_refused": int(node.refusal is not None),
        "ticks": node.front.ticks_total,
        "log_files": len(log.sealed) + 1,
        "log_bytes": log.position - first.base,
        "log_unsynced_bytes": log.position - log.synced,
        "log_syncs": node.commit.syncs.count,
        "log_sync_us": _times(node.commit.syncs, (50.0, 99.0, 99.9)),
        "loop_pause_ms_max": round(node.loop_pause_ns_max / 1e6, 3),
        "table_files": len(store.tables),
        "table_bytes": store.table_bytes,
        "table_entries": sum(table.meta.entry_count for table in store.tables),
        "table_memory_bytes": sum(table.memory_bytes for table in store.tables),
        "disk_bytes": node.admission.disk_bytes,
        "disk_free_bytes": node.admission.disk_free_bytes,
        "memtable_bytes": store.memtable_bytes,
        "memtables_frozen": len(store.frozen),
        "is_stalled": int(store.is_stalled),
        "stalls": store.stats.stalls,
        "stall_ms": int(node.admission.throttle.stopped_s * 1e3),
        "write_delay_ms": round(store.write_delay_s * 1e3, 3),
        "write_delays": store.stats.delays,
        "write_delays_ms": int(node.admission.throttle.delayed_s * 1e3),
        "siblings_made": node.siblings.made_total,
        "siblings_warned": node.siblings.warned_total,
        "siblings_refused": node.siblings.refused_total,
        "damages": len(store.manifest.damages),
        "slots_incomplete": len(store.incomplete_slots()),
        "flushes": store.stats.flushes,
        "compactions": store.stats.compactions,
        "tables_moved": store.stats.tables_moved,
        "job": node.jobs.kind,
        "bytes_flushed": store.stats.bytes_flushed,
        "bytes_compacted": store.stats.bytes_compacted,
        "write_amplification": f"{store.stats.write_amplification:.2f}",
        "entries_dropped": store.stats.entries_dropped,
        **levels,
        "table_reads": store.stats.table_reads,
        "page_faults": store.stats.faults,
        "row_cache_rows": len(rows),
        "row_cache_hits": rows.hit_count,
        "row_cache_misses": rows.miss_count,
        "block_cache_blocks": len(blocks),
        "block_cache_hits": blocks.hit_count,
        "block_cache_misses": blocks.miss_count,
        "sliced_commands": sum(
            1 for w in node.runner.long_way.waiting.values() if w.slices is not None
        ),
        "worker_pid": node.jobs.worker.pid or 0,
        "worker_restarts": node.jobs.worker.restarts,
    }


SECTIONS: Final[dict[str, Callable[[Node], Fields]]] = {
    "server": _server,
    "clients": _clients,
    "memory": _memory,
    "persistence": _persistence,
    "stats": _stats,
    "replication": _replication,
    "cpu": _cpu,
    "modules": _modules,
    "commandstats": _commandstats,
    "errorstats": _errorstats,
    "latencystats": _latencystats,
    "cluster": _cluster,
    "keyspace": _keyspace,
    "respkv": _respkv,
}
NOT_BY_DEFAULT: Final = frozenset(("commandstats", "latencystats"))
