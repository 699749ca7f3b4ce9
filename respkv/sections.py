"""Every setting of respkv, declared once: name, kind, bounds, default, meaning, Redis' name.

Not how values are read, checked or written: that is `config.py` for files and the command line and
`config_redis.py` for CONFIG. This is a core: plain data.

To add a setting, add a field here, read it where it takes effect, and run `respkv default-config
> conf/respkv.toml`; a test holds that file equal to this module. Durations say their unit in the
name (`_s`, `_ms`, `_us`), sizes end in `_bytes` or `_bytes_max`.

A field with `is_live=True` may change at any time between two commands, so its reader must not
keep a copy of it unless `redis_set`'s answer tells it to look again.

A node's values, and what follows from those that are left open, are in `node_config.py`. The keys of
[[node]] tables are in `members.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from respkv.event_class import EventClasses
from respkv.setting import (
    NAME,
    Addresses,
    Choice,
    Integer,
    Number,
    Size,
    Switch,
    Text,
    setting,
)

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40
INT32_MAX = (1 << 31) - 1
INT64_MAX = (1 << 63) - 1


@dataclass(slots=True)
class Client:
    """Where clients are served, and what one client may cost."""

    hosts: tuple[str, ...] = setting(
        Addresses(),
        ("127.0.0.1",),
        'Addresses to listen on. "0.0.0.0" and "::" mean all: set requirepass first.',
        redis="bind",
    )
    port: int = setting(
        Integer(0, 65535),
        6379,
        "TCP port. 0 means no TCP, or a free port if there is no Unix socket either.",
        redis="port",
    )
    unix_socket: str = setting(
        Text('a path of at most 107 bytes, or "" for none', 107),
        "",
        "Unix socket to listen on as well.",
        redis="unixsocket",
    )
    unix_socket_mode: str = setting(
        Text('an octal mode such as "770", or "" for the usual one', 4, "0?[0-7]{3}|", "0"),
        "",
        "File mode of the Unix socket.",
        redis="unixsocketperm",
    )
    backlog: int = setting(
        Integer(1, 65535),
        511,
        "Connections that the kernel may hold before they are accepted.",
        redis="tcp-backlog",
    )
    requirepass: str = setting(
        Text('a password of at most 512 bytes, or "" for none', 512, ".*"),
        "",
        "Password that a client must give with AUTH.",
        redis="requirepass",
        is_live=True,
        is_secret=True,
    )
    protected_mode: bool = setting(
        Switch(),
        True,
        "Without a password, serve only clients of this machine.",
        redis="protected-mode",
        is_live=True,
    )
    clients_max: int = setting(
        Integer(1, 1_000_000),
        10_000,
        "Clients at a time; one more is answered an error and closed.",
        redis="maxclients",
        is_live=True,
    )
    idle_timeout_s: int = setting(
        Integer(0, INT32_MAX, "seconds"),
        0,
        "Close a client that has been silent this long; 0 means never.",
        redis="timeout",
        is_live=True,
    )
    tcp_keepalive_s: int = setting(
        Integer(0, 32767, "seconds"),
        300,
        "Ask a silent peer's kernel this often whether it is still there; 0 means never.",
        redis="tcp-keepalive",
        is_live=True,
    )
    arguments_max: int = setting(
        Integer(16, INT32_MAX),
        MIB,
        "Arguments of one command.",
        is_live=True,
    )
    bulk_bytes_max: int = setting(
        Size(MIB, TIB),
        512 * MIB,
        "Length of one argument, so of one key or value.",
        redis="proto-max-bulk-len",
        is_live=True,
    )
    inline_bytes_max: int = setting(
        Size(KIB, 64 * MIB),
        64 * KIB,
        "Length of one inline command, as typed in telnet.",
        is_live=True,
    )
    query_buffer_bytes_max: int = setting(
        Size(MIB, TIB),
        GIB,
        "Received and not carried out bytes of one client; a client that sends more is closed.",
        redis="client-query-buffer-limit",
        is_live=True,
    )
    output_buffer_bytes_max: int = setting(
        Size(16 * KIB, TIB),
        64 * MIB,
        "Replies that one client has not read yet; a client that lets more pile up is closed.",
        redis="client-output-buffer-limit",
        is_live=True,
    )
    output_buffer_soft_bytes: int = setting(
        Size(0, TIB),
        MIB,
        "Replies that one client has not read yet: beyond it, nothing more is carried out for the "
        "client until it has read some. 0 means no such limit.",
        redis="client-output-buffer-limit",
        is_live=True,
    )
    output_buffer_soft_s: int = setting(
        Integer(0, INT32_MAX, "seconds"),
        10,
        "Close a client that is beyond output_buffer_soft_bytes, or has commands waiting, and has "
        "read nothing for this long.",
        redis="client-output-buffer-limit",
        is_live=True,
    )
    commands_per_tick_max: int = setting(
        Integer(1, 1_000_000),
        1024,
        "Commands of one client that are carried out before the others have their turn.",
        is_live=True,
    )
    shutdown_grace_s: float = setting(
        Number(0, 3600, "seconds"),
        5.0,
        "At a stop, time to finish and send what is under way.",
        is_live=True,
    )


@dataclass(slots=True)
class Log:
    """The commit log: every write is in it before its reply leaves."""

    fsync: str = setting(
        Choice(
            ("always", "everysec", "no"),
            redis=(("everysec", "everysec"), ("always", "always"), ("no", "no")),
        ),
        "everysec",
        "When the log is forced to the disk. A crash of the process alone loses nothing in any "
        "case. always: before the reply, so a power cut loses nothing. everysec: once a second, so "
        "a power cut can lose the last second. no: when the kernel likes.",
        redis="appendfsync",
        is_live=True,
    )


@dataclass(slots=True)
class Memory:
    """Memory for data. Data may be many times larger: it is on disk, and nothing is evicted."""

    bytes_max: int = setting(
        Size(16 * MIB, 1024 * TIB),
        GIB,
        "Memory for data, which the shares below divide. They need not add up to 1.",
        redis="maxmemory",
        is_live=True,
    )
    memtable_share: float = setting(
        Number(0.01, 0.9), 0.25, "Share for recent writes that are not in tables yet."
    )
    row_cache_share: float = setting(
        Number(0.01, 0.9), 0.25, "Share for records that were read lately, ready for use."
    )
    block_cache_share: float = setting(
        Number(0.01, 0.9), 0.25, "Share for blocks of tables that were read lately."
    )


@dataclass(slots=True)
class Storage:
    """Where and how data is kept on disk."""

    data_dir: str = setting(
        Text('a path of at most 4000 bytes, or "" for the usual place', 4000),
        "",
        "Directory of the data. The usual place is /var/lib/respkv for root or where it can be "
        "written, else $XDG_STATE_HOME/respkv, else ~/.local/state/respkv.",
        redis="dir",
    )
    block_bytes: int = setting(
        Size(KIB, MIB),
        4 * KIB,
        "Block of a table before compression, the least that is read. Holds for new tables.",
    )
    compression: str = setting(
        Choice(("lz4", "zstd", "none")),
        "lz4",
        "Compression of blocks; zstd is smaller and slower. Holds for new tables.",
    )
    disk_used_max: float = setting(
        Number(0.1, 1.0),
        0.95,
        "Writes are refused while more of the disk is in use than this share, by whatever it is. Reads and "
        "compaction go on, and writes are taken again when there is room.",
        is_live=True,
    )
    compaction_bytes_per_s: int = setting(
        Size(0, TIB),
        128 * MIB,
        "The most that compaction reads of tables in a second, before compression, as long as it is not "
        "behind; 0 means no limit.",
        is_live=True,
    )


@dataclass(slots=True)
class Logging:
    """What the server says of itself, on standard error."""

    level: str = setting(
        Choice(
            ("debug", "info", "warning", "error"),
            redis=(
                ("debug", "debug"),
                ("verbose", "info"),
                ("notice", "info"),
                ("warning", "warning"),
            ),
        ),
        "info",
        "Least severe lines that are written.",
        redis="loglevel",
        is_live=True,
    )
    format: str = setting(
        Choice(("text", "json")), "text", "Lines for people, or JSON objects, one a line."
    )


@dataclass(slots=True)
class Slowlog:
    """The list of slow commands that SLOWLOG GET shows."""

    threshold_us: int = setting(
        Integer(-1, INT64_MAX, "microseconds"),
        10_000,
        "List commands that took longer; 0 lists every command, -1 none.",
        redis="slowlog-log-slower-than",
        is_live=True,
    )
    entries_max: int = setting(
        Integer(0, 1_000_000),
        128,
        "Entries that are kept, the latest ones.",
        redis="slowlog-max-len",
        is_live=True,
    )


@dataclass(slots=True)
class Latency:
    """The latency monitor that LATENCY shows."""

    threshold_ms: int = setting(
        Integer(0, INT32_MAX, "milliseconds"),
        0,
        "Record events that took at least this long; 0 means none.",
        redis="latency-monitor-threshold",
        is_live=True,
    )


@dataclass(slots=True)
class Expiry:
    """Removal of expired keys in the background. No client sees an expired key in any case."""

    interval_ms: int = setting(
        Integer(10, 60_000, "milliseconds"),
        100,
        "Time between two rounds.",
        is_live=True,
    )
    budget_ms: int = setting(
        Integer(1, 1000, "milliseconds"),
        5,
        "Time that one round may take; at most interval_ms.",
        is_live=True,
    )


@dataclass(slots=True)
class Siblings:
    """Versions of one key that did not see each other. Repair between nodes knows no limit, so that
    it always comes to an end."""

    soft_max: int = setting(
        Integer(1, 1000),
        10,
        "Siblings of a key; a KV.PUT that makes more is counted in INFO as a warning.",
        is_live=True,
    )
    hard_max: int = setting(
        Integer(1, 1000),
        100,
        "Siblings of a key; a KV.PUT that would make more is refused. At least soft_max.",
        is_live=True,
    )


@dataclass(slots=True)
class Pubsub:
    """Publish/subscribe and keyspace events. Clients with subscriptions have output limits of their own."""

    keyspace_events: str = setting(
        EventClasses(),
        "",
        "Events on keys that are published, by letters: K to channels of keys, E to channels of events; g "
        "generic, $ strings, x expired, n new, m missed, A all but n and m. Letters of other types do nothing "
        "here. In a cluster each node tells of what it executes, so give all of them the same.",
        redis="notify-keyspace-events",
        is_live=True,
    )
    subscription_bytes_max: int = setting(
        Size(64 * KIB, TIB),
        16 * MIB,
        "Memory for the channels and patterns of one client, some 400 bytes and the name for each.",
        is_live=True,
    )
    output_buffer_bytes_max: int = setting(
        Size(16 * KIB, TIB),
        32 * MIB,
        "Messages and replies that a client with subscriptions has not read; with more it is closed.",
        redis="client-output-buffer-limit",
        is_live=True,
    )
    output_buffer_soft_bytes: int = setting(
        Size(0, TIB),
        8 * MIB,
        "A client that is beyond this for output_buffer_soft_s is closed. 0 means no such limit.",
        redis="client-output-buffer-limit",
        is_live=True,
    )
    output_buffer_soft_s: int = setting(
        Integer(0, INT32_MAX, "seconds"),
        60,
        "How long a client with subscriptions may be beyond output_buffer_soft_bytes.",
        redis="client-output-buffer-limit",
        is_live=True,
    )


@dataclass(slots=True)
class Cluster:
    """Replication among the nodes of the [[node]] tables at the end of this file. Without such
    tables a node is alone: each of n, r and w is 1, and the others here are not used."""

    name: str = setting(NAME, "respkv", "Name of the cluster. Nodes of another one are refused.")
    n: int = setting(
        Integer(0, 64),
        0,
        "Replicas of each key in each data centre, at most the nodes that it has. 0 means 3, or all "
        "nodes where there are fewer.",
    )
    r: int = setting(
        Integer(0, 64),
        0,
        "Replicas that must agree before a read is answered, of those in all data centres. 0 means a "
        "majority.",
    )
    w: int = setting(
        Integer(0, 64),
        0,
        "Replicas that must have a write before it is answered, of those in all data centres. 0 means "
        "a majority.",
    )
    consistency: str = setting(
        Choice(
            ("strict",),
            later=(("sloppy", "sloppy needs hinted handoff, which this version does not have"),),
        ),
        "strict",
        "strict: a write counts on the replicas of its key only, and fails where too few of them "
        "can be reached.",
    )
    secret_file: str = setting(
        Text('a path of at most 4000 bytes, or "" for none', 4000),
        "",
        "File with the secret by which nodes know each other, the same on all of them. Without one "
        "every node must have a loopback address. A relative path begins at the working directory.",
    )
    timeout_ms: int = setting(
        Integer(1, 3_600_000, "milliseconds"),
        2000,
        "Time that a request may wait for other nodes before it is answered with an error.",
    )
    gossip_interval_ms: int = setting(
        Integer(10, 60_000, "milliseconds"),
        1000,
        "Time between two rounds in which nodes tell each other who is there.",
    )
    bytes_in_flight_max: int = setting(
        Size(MIB, TIB),
        256 * MIB,
        "Bytes on their way to all other nodes together; beyond it new requests are refused.",
    )
    conflict_retries: int = setting(
        Integer(0, 1000),
        8,
        "How often a request that lost against one of another node is tried again.",
    )
    clock_skew_max_ms: int = setting(
        Integer(1, 3_600_000, "milliseconds"),
        500,
        "A node whose clock is further from those of the others takes no writes.",
    )
    bus_frame_bytes_max: int = setting(
        Size(MIB, GIB),
        64 * MIB,
        "Length of one message between nodes; at most bytes_in_flight_max.",
    )
    tls_certificate_file: str = setting(
        Text('a path of at most 4000 bytes, or "" for none', 4000),
        "",
        "Certificate of this node, in PEM, for TLS between nodes. All of the three or none.",
    )
    tls_key_file: str = setting(
        Text('a path of at most 4000 bytes, or "" for none', 4000),
        "",
        "Private key of that certificate, in PEM.",
    )
    tls_ca_file: str = setting(
        Text('a path of at most 4000 bytes, or "" for none', 4000),
        "",
        "Certificates, in PEM, of which one must have signed those of the other nodes.",
    )


@dataclass(slots=True)
class Debug:
    """What helps to find out how a cluster behaves, and has no place where data matters."""

    drill: bool = setting(
        Switch(),
        False,
        "Let clients cut nodes off from each other with KV.DRILL, as `respkv drill` does. Only where all "
        "nodes have loopback addresses.",
    )
