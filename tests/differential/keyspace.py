"""The commands about keys, expiries and databases, as templates (see `command`).

Whole databases are emptied some 400 times a round; the runner plants keys anew after each.
"""

# ruff: noqa: E501  A template is one line.

from __future__ import annotations

from .command import Command

_EXPIRE_OPTIONS = ("NX", "XX", "GT", "LT")


def _expire(name: str, valid: str, past: str) -> Command:
    """EXPIRE and its three sisters differ in units only."""
    read = "PEXPIRETIME @key" if name.endswith("AT") else "TTL @key"
    good = (
        f"{name} key {valid}",
        f"SET @key value ; {name} @key {valid} ; {read}",
        f"SET @key value ; {name} @key {valid} NX ; {name} @key {valid} NX ; {read}",
        f"SET @key value ; {name} @key {valid} XX ; {name} @key {valid} ; {name} @key {valid} XX ; {read}",
        f"SET @key value PXAT at-ms ; {name} @key {valid} GT ; {read}",
        f"SET @key value PXAT at-ms ; {name} @key {valid} LT ; {read}",
        f"SET @key value ; {name} @key {valid} GT ; {name} @key {valid} LT ; {read}",
        f"SET @key value ; {name} @key {valid} XX GT ; {name} @key {valid} LT XX ; {read}",
        f"SET @key value ; {name} @key {past} ; EXISTS @key",
        f"SET @key value ; {name} @key {past} LT ; EXISTS @key",
        f"SET @key value ; {name} @key {past} GT ; EXISTS @key",
        f"{name} missing-key {valid}",
    )
    bad = (
        f"{name} key non-integer",
        f"{name} key too-far",
        f"{name} key {valid} NX XX",
        f"{name} key {valid} NX GT",
        f"{name} key {valid} GT LT",
        f"{name} key {valid} LT NX",
        f"{name} key {valid} junk",
        f"{name} missing-key non-integer",
        f"{name} missing-key {valid} NX XX",
    )
    return Command(name, options=_EXPIRE_OPTIONS, good=good, bad=bad)


def _reads_expiry(name: str) -> Command:
    return Command(
        name,
        good=(
            f"{name} key",
            f"SET @key value EX ttl-s ; {name} @key",
            f"SET @key value PXAT at-ms ; {name} @key",
            f"SET @key value ; {name} @key",
        ),
        bad=(f"{name} missing-key", f"{name} key key"),
    )


COMMANDS = (
    Command("DEL", good=("DEL key", "DEL keys", "SET @key value ; DEL @key @key"), bad=("DEL",)),
    Command(
        "UNLINK",
        good=("UNLINK key", "UNLINK keys", "SET @key long ; UNLINK @key @key"),
        bad=("UNLINK",),
    ),
    Command(
        "EXISTS",
        good=("EXISTS key", "EXISTS keys", "SET @key value ; EXISTS @key @key missing-key"),
        bad=("EXISTS",),
    ),
    Command("TOUCH", good=("TOUCH key", "TOUCH keys", "TOUCH @key @key"), bad=("TOUCH",)),
    Command(
        "TYPE", good=("TYPE key", "SET @key value ; TYPE @key", "TYPE missing-key"), bad=("TYPE",)
    ),
    _expire("EXPIRE", "ttl-s", "not-positive"),
    _expire("PEXPIRE", "ttl-ms", "not-positive"),
    _expire("EXPIREAT", "at-s", "past-s"),
    _expire("PEXPIREAT", "at-ms", "past-ms"),
    _reads_expiry("TTL"),
    _reads_expiry("PTTL"),
    _reads_expiry("EXPIRETIME"),
    _reads_expiry("PEXPIRETIME"),
    Command(
        "PERSIST",
        good=(
            "PERSIST key",
            "SET @key value EX ttl-s ; PERSIST @key ; TTL @key",
            "SET @key value ; PERSIST @key",
        ),
        bad=("PERSIST missing-key",),
    ),
    Command(
        "RENAME",
        good=(
            "SET @key value ; RENAME @key key",
            "SET @key value EX ttl-s ; SET @key2 value ; RENAME @key @key2 ; TTL @key2 ; GET @key2 ; EXISTS @key",
            "SET @key value PXAT at-ms ; RENAME @key @key ; PEXPIRETIME @key",
            "SET @key value ; SET @key2 value EX ttl-s ; RENAME @key @key2 ; TTL @key2 ; OBJECT ENCODING @key2",
        ),
        bad=("RENAME missing-key key", "RENAME key", "DEL @key ; RENAME @key @key"),
    ),
    Command(
        "RENAMENX",
        good=(
            "SET @key value ; RENAMENX @key key",
            "SET @key value EX ttl-s ; DEL @key2 ; RENAMENX @key @key2 ; TTL @key2",
            "SET @key value ; RENAMENX @key @key",
        ),
        bad=("RENAMENX missing-key key", "RENAMENX key"),
    ),
    Command(
        "COPY",
        options=("DB", "REPLACE"),
        good=(
            "COPY key key",
            "SET @key value EX ttl-s ; COPY @key key REPLACE",
            "SET @key value PXAT at-ms ; COPY @key @key2 REPLACE ; PEXPIRETIME @key2 ; OBJECT ENCODING @key2",
            "COPY key key DB database",
            "SET @key value ; COPY @key @key DB other-database REPLACE ; GET @key",
            "SET @key value ; COPY @key @key DB 0",
            "COPY missing-key key REPLACE",
        ),
        bad=(
            "COPY @key @key",
            "COPY key key DB bad-database",
            "COPY key key DB",
            "COPY key key junk",
            "COPY key key REPLACE junk",
            "COPY @key @key DB 0 REPLACE",
        ),
    ),
    Command(
        "MOVE",
        good=(
            "MOVE key other-database",
            "SET @key value EX ttl-s ; MOVE @key @other-database ; SELECT @other-database ; TTL @key ; GET @key ; SELECT 0",
        ),
        bad=("MOVE key 0", "MOVE key bad-database", "MOVE missing-key 3"),
    ),
    Command(
        "SWAPDB",
        good=(
            "SWAPDB @database @database2 ; DBSIZE ; SWAPDB @database2 @database",
            "SWAPDB database database",
        ),
        bad=("SWAPDB bad-database 1", "SWAPDB 1 bad-database", "SWAPDB 0"),
    ),
    Command("KEYS", good=("KEYS pattern", "KEYS *", "KEYS *"), bad=("KEYS",)),
    Command(
        "SCAN",
        varies_arity=False,  # Without its last argument, a call that is refused may become one batch.
        options=("MATCH", "COUNT", "TYPE"),
        good=(
            "SCAN &cursor",
            "SCAN &cursor MATCH pattern",
            "SCAN &cursor COUNT count",
            "SCAN &cursor TYPE =string",
            "SCAN &cursor TYPE =list",
            "SCAN &cursor COUNT count MATCH pattern TYPE =string",
            "SCAN &cursor TYPE =nosuch",
            "SELECT @database ; SCAN &cursor MATCH * COUNT 1 ; SELECT 0",
        ),
        bad=(
            "SCAN cursor-error",
            "SCAN 0 COUNT non-integer",
            "SCAN 0 COUNT 0",
            "SCAN 0 COUNT -5",
            "SCAN 0 MATCH",
            "SCAN 0 junk 1",
            "SCAN 0 COUNT 5 junk",
            "SCAN cursor-error MATCH",
            "SCAN",
        ),
    ),
    Command("RANDOMKEY", good=("RANDOMKEY", "SET @key value ; RANDOMKEY"), bad=("RANDOMKEY key",)),
    Command("DBSIZE", good=("DBSIZE", "SELECT @database ; DBSIZE ; SELECT 0"), bad=("DBSIZE 1",)),
    Command(
        "FLUSHDB",
        options=("ASYNC", "SYNC"),
        good=(
            "FLUSHDB ; DBSIZE",
            "FLUSHDB ASYNC ; DBSIZE",
            "FLUSHDB SYNC",
            "SELECT @database ; FLUSHDB ; DBSIZE ; SELECT 0",
        ),
        bad=("FLUSHDB junk", "FLUSHDB ASYNC SYNC"),
    ),
    Command(
        "FLUSHALL",
        options=("ASYNC", "SYNC"),
        good=("FLUSHALL ; DBSIZE", "FLUSHALL ASYNC ; KEYS *", "FLUSHALL SYNC"),
        bad=("FLUSHALL junk", "FLUSHALL SYNC ASYNC"),
    ),
    Command(
        "OBJECT ENCODING",
        good=(
            "OBJECT ENCODING key",
            "SET @key value ; OBJECT ENCODING @key",
            "SET @key text ; OBJECT ENCODING @key",
        ),
        bad=("OBJECT ENCODING missing-key", "OBJECT ENCODING"),
    ),
    Command(
        "OBJECT REFCOUNT",
        good=("OBJECT REFCOUNT key", "SET @key value ; OBJECT REFCOUNT @key"),
        bad=("OBJECT REFCOUNT missing-key", "OBJECT REFCOUNT"),
    ),
    Command(
        "OBJECT IDLETIME",
        good=("OBJECT IDLETIME key", "SET @key value ; OBJECT IDLETIME @key"),
        bad=("OBJECT IDLETIME missing-key", "OBJECT IDLETIME key key"),
    ),
    Command(
        "OBJECT FREQ",
        good=("OBJECT FREQ key", "SET @key value ; OBJECT FREQ @key"),
        bad=("OBJECT FREQ missing-key", "OBJECT FREQ"),
        refused_because="Frequencies are counted under an eviction policy that wants them, and a store evicts nothing.",
    ),
    Command("OBJECT HELP", good=("OBJECT HELP",), bad=("OBJECT HELP key",)),
)
