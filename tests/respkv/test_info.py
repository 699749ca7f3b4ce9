"""INFO: sections, and fields that clients and monitoring agents read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from respkv.info import COUNTING_NS_MAX, count_keys, human
from respkv.reply import ReplyError
from tests.respkv.commands.alone import Alone

DEFAULT = [
    "Server", "Clients", "Memory", "Persistence", "Stats", "Replication", "CPU", "Modules", "Errorstats", "Cluster",
    "Keyspace", "Respkv",
]  # fmt: skip
ALL = [*DEFAULT[:8], "Commandstats", "Errorstats", "Latencystats", *DEFAULT[9:]]

# What redis_exporter, redis-cli --stat and client libraries read by name.
READ_BY_OTHERS = """
    redis_version redis_mode os arch_bits process_id run_id tcp_port uptime_in_seconds io_threads_active redis_build_id
    connected_clients blocked_clients maxclients tracking_clients clients_in_timeout_table
    client_recent_max_output_buffer client_recent_max_input_buffer
    used_memory used_memory_human used_memory_rss used_memory_peak used_memory_lua used_memory_overhead
    used_memory_startup used_memory_dataset maxmemory maxmemory_policy mem_fragmentation_ratio mem_fragmentation_bytes
    mem_clients_slaves mem_clients_normal mem_cluster_links mem_aof_buffer mem_replication_backlog
    mem_not_counted_for_evict mem_total_replication_buffers lazyfree_pending_objects active_defrag_running
    migrate_cached_sockets active_defrag_hits loading async_loading rdb_changes_since_last_save rdb_bgsave_in_progress
    rdb_last_save_time rdb_last_bgsave_status rdb_last_bgsave_time_sec rdb_current_bgsave_time_sec rdb_saves
    rdb_last_cow_size aof_enabled aof_rewrite_in_progress aof_rewrite_scheduled aof_last_rewrite_time_sec
    aof_current_rewrite_time_sec aof_last_cow_size aof_current_size aof_base_size aof_pending_rewrite aof_buffer_length
    aof_pending_bio_fsync aof_delayed_fsync aof_last_bgrewrite_status aof_last_write_status module_fork_in_progress
    pubsub_channels pubsub_patterns pubsubshard_channels latest_fork_usec tracking_total_keys connected_slaves
    repl_backlog_size repl_backlog_active master_repl_offset second_repl_offset slave_expires_tracked_keys sync_full
    total_connections_received total_commands_processed rejected_connections total_net_input_bytes
    total_net_output_bytes total_net_repl_input_bytes expired_keys evicted_keys keyspace_hits keyspace_misses
    instantaneous_ops_per_sec used_cpu_sys used_cpu_user used_cpu_sys_children used_cpu_user_children
    used_cpu_sys_main_thread used_cpu_user_main_thread unexpected_error_replies total_error_replies
    dump_payload_sanitizations role master_replid cluster_enabled
"""


@pytest.fixture
def alone() -> Iterator[Alone]:
    node = Alone()
    yield node
    node.close()


def titles(alone: Alone, sections: str) -> list[str]:
    lines = alone.text(f"INFO {sections}").decode().split("\r\n")
    return [line[2:] for line in lines if line.startswith("# ")]


@pytest.mark.parametrize(
    ("sections", "shown"),
    [
        ("", DEFAULT),
        ("default", DEFAULT),
        ("all", ALL),
        ("everything", ALL),
        ("EveryThing", ALL),
        ("default commandstats", ALL[:10] + ALL[11:]),
        ("cpu server", ["Server", "CPU"]),
        ("cpu CPU cpu", ["CPU"]),
        ("respkv", ["Respkv"]),
        ("nosuch", []),
        ("nosuch cluster", ["Cluster"]),
        ("modules", ["Modules"]),
    ],
)
def test_sections_are_chosen_by_name_and_keep_their_order(
    alone: Alone, sections: str, shown: list[str]
) -> None:
    assert titles(alone, sections) == shown


def test_the_form_is_that_of_redis(alone: Alone) -> None:
    assert alone.text("INFO cluster") == b"# Cluster\r\ncluster_enabled:0\r\n"
    assert (
        alone.text("INFO cluster modules") == b"# Modules\r\n\r\n# Cluster\r\ncluster_enabled:0\r\n"
    )
    assert alone.text("INFO nosuch") == b""
    alone.ask("HELLO 3")
    reply = alone.ask("INFO cluster")
    assert reply is not None
    assert reply.raw.startswith(b"=34\r\ntxt:# Cluster\r\n")


def test_fields_that_others_read_are_there(alone: Alone) -> None:
    fields = alone.info("everything")
    assert [name for name in READ_BY_OTHERS.split() if name not in fields] == []


def test_server_and_clients(alone: Alone) -> None:
    alone.ns = 90_000 * 10**9
    other = alone.connect()
    alone.ask("WAIT 1 0", session=other)
    fields = alone.info("server clients")
    assert fields["redis_version"] == "7.0.15"
    assert fields["process_id"] == "4711"
    assert fields["uptime_in_seconds"] == "90000"
    assert fields["uptime_in_days"] == "1"
    assert len(fields["run_id"]) == 40
    assert (fields["connected_clients"], fields["blocked_clients"]) == ("2", "1")
    assert fields["clients_in_timeout_table"] == "0"


def test_memory_is_the_process_at_its_start_and_the_data(alone: Alone) -> None:
    before = alone.info("memory")
    assert before["used_memory"] == before["used_memory_startup"] == str(50 << 20)
    alone.ask("SET k", bytes(1_000_000))
    alone.process.rss = 100 << 20
    after = alone.info("memory")
    assert 1_000_000 < int(after["used_memory_dataset"]) < 1_001_000
    assert int(after["used_memory"]) == (50 << 20) + int(after["used_memory_dataset"])
    assert after["used_memory_rss"] == str(100 << 20)
    assert after["mem_fragmentation_ratio"] == "1.96"
    alone.ask("FLUSHALL")
    flushed = alone.info("memory")
    assert flushed["used_memory"] == before["used_memory"]
    assert flushed["used_memory_peak"] == after["used_memory"]


def test_persistence_follows_the_log(alone: Alone) -> None:
    before = alone.info("persistence")
    alone.ask("SET a 1")
    alone.ask("SET b 1")
    written = alone.info("persistence")
    assert (before["rdb_changes_since_last_save"], written["rdb_changes_since_last_save"]) == (
        "0",
        "2",
    )
    assert int(written["log_position"]) > int(before["log_position"])
    assert written["log_synced_position"] == before["log_position"]
    assert written["aof_pending_bio_fsync"] == "1"
    alone.work()
    synced = alone.info("persistence")
    assert synced["log_synced_position"] == written["log_position"]
    assert synced["aof_pending_bio_fsync"] == "0"
    alone.node.refusal = ReplyError("MISCONF full")
    assert alone.info("persistence")["aof_last_write_status"] == "err"


def test_stats_count_and_are_reset(alone: Alone) -> None:
    alone.ask("SET k v")
    for key in ("k", "k", "nosuch"):
        alone.ask(f"GET {key}")
    alone.ask("INCR k")
    fields = alone.info("stats errorstats commandstats")
    assert (fields["keyspace_hits"], fields["keyspace_misses"]) == ("2", "1")
    assert fields["total_commands_processed"] == "5"
    assert (fields["total_error_replies"], fields["errorstat_ERR"]) == ("1", "count=1")
    assert fields["cmdstat_get"].startswith("calls=3,")
    assert fields["cmdstat_incr"].endswith("rejected_calls=0,failed_calls=1")
    alone.ask("GET")
    assert "rejected_calls=1" in alone.info("commandstats")["cmdstat_get"]
    alone.ask("CONFIG RESETSTAT")
    fields = alone.info("stats errorstats commandstats")
    assert (fields["keyspace_hits"], fields["keyspace_misses"]) == ("0", "0")
    assert fields["total_commands_processed"] == "1"
    assert "errorstat_ERR" not in fields
    assert "cmdstat_get" not in fields
    assert fields["cmdstat_config|resetstat"].startswith("calls=1,")


def test_rates_are_of_the_last_moments(alone: Alone) -> None:
    for _ in range(20):
        alone.ns += 100_000_000
        alone.node.begin_tick()
        for _ in range(7):
            alone.ask("PING")
        alone.node.front.bytes_in += 1024
        alone.node.ticker.sample()
    fields = alone.info("stats")
    assert fields["instantaneous_ops_per_sec"] == "70"
    assert fields["instantaneous_input_kbps"] == "10.00"


def test_latencystats_tell_percentiles_of_what_was_measured(alone: Alone) -> None:
    from respkv.command import TABLE

    assert alone.text("INFO latencystats") == b"# Latencystats\r\n" or alone.info("latencystats")
    histogram = TABLE.commands["SETRANGE"].histogram
    for elapsed_ns in [1000] * 98 + [50_000, 10_000_000]:
        histogram.add(elapsed_ns)
    line = alone.info("latencystats")["latency_percentiles_usec_setrange"]
    assert line == "p50=1.024,p99=50.176,p99.9=10485.760"


def test_the_keyspace_counts_each_database(alone: Alone) -> None:
    alone.ask("MSET a 1 b 2")
    alone.ask("SET c 3 PX 5000")
    alone.ask("SELECT 3")
    alone.ask("SET d 4")
    assert alone.text("INFO keyspace").decode().split("\r\n")[1:] == [
        "db0:keys=3,expires=1,avg_ttl=5000", "db3:keys=1,expires=0,avg_ttl=0", "",
    ]  # fmt: skip
    alone.ask("SWAPDB 0 3")
    alone.ns += 6_000_000_000
    assert alone.text("INFO keyspace").decode().split("\r\n")[1:] == [
        "db0:keys=1,expires=0,avg_ttl=0", "db3:keys=2,expires=0,avg_ttl=0", "",
    ]  # fmt: skip
    alone.ask("FLUSHALL")
    assert alone.text("INFO keyspace") == b"# Keyspace\r\n"


def test_counting_stops_when_its_time_is_up(alone: Alone) -> None:
    for number in range(300):  # In as many slots; a slot without keys costs nothing.
        alone.ask(f"SET key:{number} v")
    ticks = iter(range(0, 10**12, COUNTING_NS_MAX // 4))
    steps = sum(1 for _ in count_keys(alone.node.context.counts, 0, lambda: next(ticks)))
    assert steps == 3


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1.00K"),
        (1_761_608, "1.68M"),
        (1 << 30, "1.00G"),
        (1 << 60, "1024.00P"),
    ],
)
def test_sizes_for_people(size_bytes: int, shown: str) -> None:
    assert human(size_bytes) == shown


def test_a_strange_name_does_not_break_a_line(alone: Alone) -> None:
    alone.node.errors[b"A:B\r\nC"] = 1
    assert alone.text("INFO errorstats") == b"# Errorstats\r\nerrorstat_A_B__C:count=1\r\n"
