"""The commands about the server: COMMAND, CONFIG, INFO, MEMORY, SLOWLOG, LATENCY, saving, and the odd ones.

Their replies tell of the process and so differ by nature more often than others; what still has to be equal is in `natural`.
Every setting that a template changes it puts back.
"""

# ruff: noqa: E501  A template is one line.

from __future__ import annotations

from .command import Command


def _setting(name: str, value: str, default: str) -> str:
    return f"CONFIG SET ={name} ={value} ; CONFIG GET ={name} ; CONFIG SET ={name} ={default}"


_GETKEYS = (
    "GET key",
    "SET key value EX 10",
    "MSET pairs",
    "MGET keys",
    "DEL keys",
    "BITOP AND key keys",
    "COPY key key",
    "RENAME key key",
    "LCS key key LEN",
    "INCR key",
    "BITFIELD key GET =u8 0",
    "OBJECT ENCODING key",
    "MEMORY USAGE key",
    "WATCH keys",
    "EXISTS keys",
    "GETEX key PERSIST",
)


def _getkeys(name: str) -> Command:
    return Command(
        name,
        good=tuple(f"{name} {command}" for command in _GETKEYS),
        bad=(
            f"{name} PING",
            f"{name} NOSUCH key",
            f"{name} GET",
            f"{name} SET key",
            f"{name} FLUSHALL",
            name,
        ),
    )


def _help(container: str) -> Command:
    return Command(
        f"{container} HELP", good=(f"{container} HELP",), bad=(f"{container} HELP word",)
    )


COMMANDS = (
    Command("COMMAND", good=("COMMAND",), varies_arity=False),
    Command("COMMAND COUNT", good=("COMMAND COUNT",), bad=("COMMAND COUNT word",)),
    Command(
        "COMMAND DOCS",
        good=(
            "COMMAND DOCS",
            "COMMAND DOCS command-name",
            "COMMAND DOCS =get command-name",
            "COMMAND DOCS =nosuch command-name",
        ),
    ),
    Command(
        "COMMAND INFO",
        good=(
            "COMMAND INFO command-name",
            "COMMAND INFO command-name =nosuch =set",
            "COMMAND INFO GET command-name",
        ),
    ),
    Command(
        "COMMAND LIST",
        options=("FILTERBY", "MODULE", "ACLCAT", "PATTERN"),
        good=(
            "COMMAND LIST",
            "COMMAND LIST FILTERBY MODULE =nosuch",
            "COMMAND LIST FILTERBY ACLCAT =string",
            "COMMAND LIST FILTERBY ACLCAT =bitmap",
            "COMMAND LIST FILTERBY ACLCAT =nosuch",
            "COMMAND LIST FILTERBY PATTERN =*get*",
            "COMMAND LIST FILTERBY PATTERN =set",
        ),
        bad=(
            "COMMAND LIST junk",
            "COMMAND LIST FILTERBY junk word",
            "COMMAND LIST FILTERBY PATTERN",
        ),
    ),
    _getkeys("COMMAND GETKEYS"),
    _getkeys("COMMAND GETKEYSANDFLAGS"),
    _help("COMMAND"),
    Command(
        "CONFIG GET",
        good=(
            "CONFIG GET =maxmemory-policy",
            "CONFIG GET =slowlog-max-len =maxmemory-policy",
            "CONFIG GET =slowlog-*",
            "CONFIG GET *",
            "CONFIG GET =nosuch",
            "CONFIG GET =appendonly",
            "CONFIG GET =databases =SLOWLOG-MAX-LEN",
        ),
        bad=("CONFIG GET",),
    ),
    Command(
        "CONFIG SET",
        varies_arity=False,  # Without its last argument, a call that is refused may change a setting.
        good=(
            _setting("slowlog-max-len", "64", "128"),
            _setting("latency-monitor-threshold", "5", "0"),
            _setting("maxmemory-policy", "noeviction", "noeviction"),
            _setting("timeout", "3600", "0"),
            "CONFIG SET =slowlog-max-len 99 =timeout 1000 ; CONFIG GET =slowlog-max-len =timeout ; CONFIG SET =slowlog-max-len 128 =timeout 0",
        ),
        bad=(
            "CONFIG SET =nosuch 1",
            "CONFIG SET =slowlog-max-len",
            "CONFIG SET =slowlog-max-len non-integer",
            "CONFIG SET =timeout -1",
            "CONFIG SET =databases 4",
            "CONFIG SET =timeout 1 =timeout 2",
            "CONFIG SET =timeout 1 =nosuch 2",
            "CONFIG SET =timeout 1 =timeout",
        ),
    ),
    Command("CONFIG RESETSTAT", good=("CONFIG RESETSTAT",), bad=("CONFIG RESETSTAT word",)),
    Command(
        "CONFIG REWRITE",
        good=("CONFIG REWRITE",),
        refused_because="Both servers run without a configuration file, so there is none to rewrite.",
    ),
    _help("CONFIG"),
    Command(
        "INFO",
        good=(
            "INFO",
            "INFO =server",
            "INFO =clients",
            "INFO =memory",
            "INFO =persistence",
            "INFO =stats",
            "INFO =replication",
            "INFO =cpu",
            "INFO =cluster",
            "INFO =keyspace",
            "INFO =everything",
            "INFO =all",
            "INFO =default",
            "INFO =Server =keyspace",
            "INFO =nosuch",
        ),
    ),
    Command("TIME", good=("TIME",), bad=("TIME 1",)),
    Command("ROLE", good=("ROLE",), bad=("ROLE 1",)),
    Command(
        "MEMORY USAGE",
        options=("SAMPLES",),
        good=(
            "MEMORY USAGE key",
            "SET @key value ; MEMORY USAGE @key",
            "SET @key long ; MEMORY USAGE @key SAMPLES 5",
            "MEMORY USAGE key SAMPLES 0",
        ),
        bad=(
            "MEMORY USAGE missing-key",
            "MEMORY USAGE key SAMPLES -1",
            "MEMORY USAGE key SAMPLES non-integer",
            "MEMORY USAGE key junk",
            "MEMORY USAGE key SAMPLES",
        ),
    ),
    Command("MEMORY DOCTOR", good=("MEMORY DOCTOR",), bad=("MEMORY DOCTOR 1",)),
    Command("MEMORY STATS", good=("MEMORY STATS",), bad=("MEMORY STATS 1",)),
    Command("MEMORY PURGE", good=("MEMORY PURGE",), bad=("MEMORY PURGE 1",)),
    Command("MEMORY MALLOC-STATS", good=("MEMORY MALLOC-STATS",), bad=("MEMORY MALLOC-STATS 1",)),
    _help("MEMORY"),
    Command(
        "SLOWLOG GET",
        good=(
            "SLOWLOG GET",
            "SLOWLOG GET 5",
            "SLOWLOG GET -1",
            "CONFIG SET =slowlog-log-slower-than 0 ; SET key text ; SLOWLOG GET 1 ; CONFIG SET =slowlog-log-slower-than -1 ; SLOWLOG RESET",
            "CONFIG SET =slowlog-log-slower-than 0 ; MGET keys ; GET key ; SLOWLOG GET 2 ; CONFIG SET =slowlog-log-slower-than -1 ; SLOWLOG RESET",
        ),
        bad=("SLOWLOG GET -2", "SLOWLOG GET non-integer", "SLOWLOG GET 1 2"),
    ),
    Command(
        "SLOWLOG LEN", good=("SLOWLOG LEN", "SLOWLOG RESET ; SLOWLOG LEN"), bad=("SLOWLOG LEN 1",)
    ),
    Command("SLOWLOG RESET", good=("SLOWLOG RESET",), bad=("SLOWLOG RESET 1",)),
    _help("SLOWLOG"),
    Command("LATENCY LATEST", good=("LATENCY LATEST",), bad=("LATENCY LATEST 1",)),
    Command(
        "LATENCY HISTORY",
        good=("LATENCY HISTORY =command", "LATENCY HISTORY =nosuch"),
        bad=("LATENCY HISTORY", "LATENCY HISTORY =command 1"),
    ),
    Command("LATENCY RESET", good=("LATENCY RESET", "LATENCY RESET =command =fork")),
    Command(
        "LATENCY GRAPH",
        good=(
            "CONFIG SET =latency-monitor-threshold 1 ; DEBUG SLEEP 0.002 ; LATENCY GRAPH =command ; LATENCY HISTORY =command"
            " ; LATENCY LATEST ; LATENCY RESET ; CONFIG SET =latency-monitor-threshold 0",
        ),
        bad=("LATENCY GRAPH =nosuch", "LATENCY GRAPH"),
    ),
    Command("LATENCY DOCTOR", good=("LATENCY DOCTOR",), bad=("LATENCY DOCTOR 1",)),
    Command(
        "LATENCY HISTOGRAM",
        varies_arity=False,  # Without names it tells of all commands, and so of what only one server has.
        good=("GET key ; SET key value ; LATENCY HISTOGRAM =get =set", "LATENCY HISTOGRAM =nosuch"),
    ),
    _help("LATENCY"),
    Command(
        "DEBUG SLEEP",
        good=("DEBUG SLEEP 0", "DEBUG SLEEP 0.0005"),
        bad=("DEBUG SLEEP",),
        varies_arity=False,
    ),
    Command(
        "WAIT",
        good=("WAIT 0 0", "WAIT 0 10", "SET key value ; WAIT 1 1"),
        bad=("WAIT non-integer 0", "WAIT 0 non-integer", "WAIT 1 -1", "MULTI ; WAIT 1 0 ; EXEC"),
    ),
    Command("LOLWUT", good=("LOLWUT", "LOLWUT VERSION 5", "LOLWUT VERSION 6")),
    Command("SAVE", good=("SAVE",), bad=("SAVE 1",)),
    Command(
        "BGSAVE", options=("SCHEDULE",), good=("BGSAVE", "BGSAVE SCHEDULE"), bad=("BGSAVE junk",)
    ),
    Command("LASTSAVE", good=("LASTSAVE",), bad=("LASTSAVE 1",)),
    Command("BGREWRITEAOF", good=("BGREWRITEAOF",), bad=("BGREWRITEAOF 1",)),
    Command("ACL WHOAMI", good=("ACL WHOAMI",), bad=("ACL WHOAMI 1",)),
)
