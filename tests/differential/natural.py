"""The differences by nature: the one table of replies that need not be the same bytes, each with its reason.

Whatever is not named here is compared byte for byte, and so is every error and every nil, whatever is named here. `scope`
says what may differ. Scopes `value`, `type` and `error` are for commands about the server only: a test sees to it that no
line gives them to a command on data.
"""

# ruff: noqa: E501  A difference is one line.

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from . import shape
from .catalog import SERVER_NAMES
from .command import Call
from .wire import Answer, Reply

Scope = Literal[
    "clock",  # Two servers answer at two moments.
    "order",  # The elements come in an order that means nothing.
    "choice",  # The server may choose.
    "measure",  # Counts of memory, use and time taken.
    "identity",  # Ids, addresses and names that each server gives by itself.
    "inventory",  # One server has things that the other has not.
    "words",  # Text for people.
    "value",
    "type",
    "error",
]


@dataclass(frozen=True, slots=True)
class Difference:
    """`command` may differ in `scope` as far as `rule` lets it, for this `reason`."""

    command: str
    scope: Scope
    rule: shape.Rule
    reason: str


# What clients and tools read of INFO (redis-cli --stat, monitoring agents, queue libraries).
_INFO_FIELDS: Final = {
    "Server": (
        "redis_version",
        "redis_mode",
        "os",
        "arch_bits",
        "process_id",
        "run_id",
        "tcp_port",
        "uptime_in_seconds",
        "uptime_in_days",
    ),
    "Clients": ("connected_clients", "blocked_clients"),
    "Memory": (
        "used_memory",
        "used_memory_human",
        "used_memory_rss",
        "used_memory_peak",
        "maxmemory",
        "maxmemory_policy",
        "mem_fragmentation_ratio",
    ),
    "Persistence": (
        "loading",
        "rdb_changes_since_last_save",
        "rdb_bgsave_in_progress",
        "rdb_last_save_time",
        "rdb_last_bgsave_status",
        "aof_enabled",
        "aof_rewrite_in_progress",
    ),
    "Stats": (
        *(
            "total_connections_received",
            "total_commands_processed",
            "instantaneous_ops_per_sec",
            "total_net_input_bytes",
        ),
        *(
            "total_net_output_bytes",
            "rejected_connections",
            "expired_keys",
            "evicted_keys",
            "keyspace_hits",
            "keyspace_misses",
        ),
    ),
    "Replication": ("role", "connected_slaves", "master_repl_offset"),
    "CPU": ("used_cpu_sys", "used_cpu_user"),
    "Cluster": ("cluster_enabled",),
    "Keyspace": (),
}
_INFO_SAME: Final = frozenset(
    {
        "redis_mode",
        "loading",
        "role",
        "cluster_enabled",
        "rdb_last_bgsave_status",
        "maxmemory_policy",
        "arch_bits",
    }
)

# Settings that a client may rely on; the second lot has the same value in both, as nobody set them or the tester did.
_SETTINGS: Final = frozenset(
    b"save appendonly appendfsync databases maxmemory maxmemory-policy maxclients timeout tcp-keepalive slowlog-max-len"
    b" slowlog-log-slower-than latency-monitor-threshold requirepass port bind".split()
)
_SETTINGS_SAME: Final = frozenset(
    b"databases maxmemory-policy timeout slowlog-max-len slowlog-log-slower-than latency-monitor-threshold requirepass".split()
)

_CLOCKS = "The key's expiry was counted from two clocks, or read at two moments."
_OWN_WORDS = "The text is each server's own; Redis' may not be copied."
_PROCESS = "It describes the process, and there are two processes."

NATURAL: Final = (
    Difference("TTL", "clock", shape.seconds_near, _CLOCKS),
    Difference("EXPIRETIME", "clock", shape.seconds_near, _CLOCKS),
    Difference("PTTL", "clock", shape.milliseconds_near, _CLOCKS),
    Difference("PEXPIRETIME", "clock", shape.milliseconds_near, _CLOCKS),
    Difference("KEYS", "order", shape.same_elements, "Keys come in the order of a hash table, or of storage."),
    Difference("SCAN", "order", shape.same_elements, "Cursors and batches are each server's own; whole iterations are compared."),
    Difference("RANDOMKEY", "choice", shape.a_known_key, "It is random."),
    Difference("OBJECT REFCOUNT", "measure", shape.integers, "Which objects are shared is a matter of memory management."),
    Difference("OBJECT IDLETIME", "measure", shape.integers, "Seconds of two clocks."),
    Difference("OBJECT HELP", "words", shape.help_lines, _OWN_WORDS),
    Difference("TIME", "clock", shape.clock_time, "Two clocks."),
    Difference("LASTSAVE", "clock", shape.integers, "Two servers were started and saved at two moments."),
    Difference("HELLO", "identity", shape.greeting, "Product, version and connection id are each server's own."),
    Difference("CLIENT ID", "identity", shape.identities, "Each server numbers its connections."),
    Difference("CLIENT GETREDIR", "identity", shape.identities, "Each server numbers its connections."),
    Difference("CLIENT TRACKINGINFO", "identity", shape.tracking_info, "The id of the redirection is each server's own."),
    Difference("CLIENT LIST", "identity", shape.client_rows, "Ids, addresses, ages, descriptors and buffers are each server's own."),
    Difference("CLIENT INFO", "identity", shape.client_rows, "Ids, addresses, ages, descriptors and buffers are each server's own."),
    Difference("CLIENT HELP", "words", shape.help_lines, _OWN_WORDS),
    Difference("COMMAND", "inventory", shape.command_infos(SERVER_NAMES), "Each server has commands that the other has not; tips and key specifications are advice."),
    Difference("COMMAND INFO", "inventory", shape.command_infos(SERVER_NAMES), "Tips, key specifications and lists of subcommands are advice, or grow with what is there."),
    Difference("COMMAND COUNT", "inventory", shape.integers, "Each server has commands that the other has not."),
    Difference("COMMAND LIST", "inventory", shape.listed_names(SERVER_NAMES), "Each server has commands that the other has not."),
    Difference("COMMAND DOCS", "words", shape.command_docs(SERVER_NAMES), _OWN_WORDS),
    Difference("COMMAND HELP", "words", shape.help_lines, _OWN_WORDS),
    Difference("CONFIG GET", "inventory", shape.settings(_SETTINGS, _SETTINGS_SAME), "Each server has settings that the other has not, and its own ports and paths."),
    Difference("CONFIG HELP", "words", shape.help_lines, _OWN_WORDS),
    Difference("INFO", "measure", shape.info_fields(_INFO_FIELDS, _INFO_SAME), _PROCESS),
    Difference("ROLE", "measure", shape.same_form, "The replication offset counts bytes of each server's own stream."),
    Difference("MEMORY USAGE", "measure", shape.integers, "Two implementations need different memory for a value."),
    Difference("MEMORY DOCTOR", "words", shape.prose, _OWN_WORDS),
    Difference("MEMORY STATS", "measure", shape.map_with("peak.allocated", "total.allocated", "startup.allocated", "keys.count", "dataset.bytes"), _PROCESS),
    Difference("MEMORY MALLOC-STATS", "words", shape.prose, _PROCESS),
    Difference("MEMORY HELP", "words", shape.help_lines, _OWN_WORDS),
    Difference("SLOWLOG GET", "measure", shape.slow_entries, "Ids, times and durations are each server's own."),
    Difference("SLOWLOG HELP", "words", shape.help_lines, _OWN_WORDS),
    Difference("LATENCY LATEST", "measure", shape.latency_events, "Moments and durations are each server's own, and so are the events inside it."),
    Difference("LATENCY HISTORY", "measure", shape.latency_samples, "Moments and durations are each server's own."),
    Difference("LATENCY RESET", "measure", shape.integers, "It counts the events, of which each server has its own."),
    Difference("LATENCY GRAPH", "words", shape.prose, "A drawing of durations, which are each server's own."),
    Difference("LATENCY DOCTOR", "words", shape.prose, _OWN_WORDS),
    Difference("LATENCY HISTOGRAM", "measure", shape.every_value(shape.map_with("calls", "histogram_usec")), "Durations are each server's own."),
    Difference("LATENCY HELP", "words", shape.help_lines, _OWN_WORDS),
    Difference("LOLWUT", "words", shape.prose, "Each server draws its own picture."),
)  # fmt: skip

RULES: Final = {difference.command: difference.rule for difference in NATURAL}


def compare(call: Call, left: Answer, right: Answer, lag_s: float) -> str | None:
    """What is wrong with respkv's answer, or None. Push messages are compared byte for byte, in their order."""
    problem = compare_replies(call, left.reply, right.reply, lag_s)
    if problem is None and left.pushes != right.pushes:
        return "other push messages before the reply"
    return problem


def compare_replies(call: Call, left: Reply, right: Reply, lag_s: float) -> str | None:
    """As `compare`, of one reply; of EXEC's, each element by the rule of the command that it answers."""
    if left.raw == right.raw:
        return None
    if left.is_error or right.is_error or left.is_nil or right.is_nil:
        return "not the same bytes"
    if (
        call.queued
        and left.kind == right.kind
        and len(left.items) == len(right.items) == len(call.queued)
    ):
        results = zip(call.queued, left.items, right.items, strict=True)
        problems = [compare_replies(queued, a, b, lag_s) for queued, a, b in results]
        return next((problem for problem in problems if problem), None)
    rule = RULES.get(call.name)
    # QUEUED, and other lines where the rule expects more, do not differ by nature.
    return "not the same bytes" if rule is None else rule(left, right, lag_s)
