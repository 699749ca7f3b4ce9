"""MULTI, EXEC, DISCARD, WATCH and UNWATCH: what is queued, what aborts, and who made the watch dirty."""

from __future__ import annotations

from .command import Command, Draw, Scene

_QUEUED = (
    "SET key value",
    "SET key value EX ttl-s",
    "GET key",
    "MGET keys",
    "MSET pairs",
    "INCR integer-key",
    "INCRBY number-key small",
    "INCRBYFLOAT float-key float",
    "APPEND key text",
    "GETRANGE key index index",
    "SETRANGE text-key offset text",
    "STRLEN key",
    "GETDEL key",
    "SETBIT bitmap-key bit-offset bit",
    "BITCOUNT key",
    "BITFIELD bitmap-key INCRBY bit-type bit-offset small GET bit-type hash-offset",
    "LCS text-key text-key IDX",
    "DEL keys",
    "EXISTS keys",
    "TYPE key",
    "EXPIRE key ttl-s",
    "TTL key",
    "PTTL key",
    "PERSIST key",
    "RENAME key key",
    "COPY key key REPLACE",
    "OBJECT ENCODING key",
    "KEYS pattern",
    "DBSIZE",
    "PING",
    "ECHO word",
    "TIME",
    "SELECT 3",
    "MOVE key 3",
    "EXPIREAT key past-s",
)


def _queue(draw: Draw) -> str:
    return " ; ".join(draw.rng.choices(_QUEUED, k=draw.rng.randint(1, 7)))


def _executed(draw: Draw) -> Scene:
    """Commands that may fail when they run; the others still do."""
    return draw.scene(f"MULTI ; {_queue(draw)} ; EXEC ; SELECT 0")


def _discarded(draw: Draw) -> Scene:
    return draw.scene(f"MULTI ; {_queue(draw)} ; DISCARD ; MGET keys ; SELECT 0")


def _aborted(draw: Draw) -> Scene:
    """A command that is refused when it is queued aborts the whole."""
    refused = draw.rng.choice(
        ("NOSUCHCOMMAND word", "GET", "SET key", "OBJECT NOSUCH key", "CLIENT NOSUCH", "WAIT")
    )
    return draw.scene(
        f"MULTI ; {_queue(draw)} ; {refused} ; {_queue(draw)} ; EXEC ; MGET keys ; SELECT 0"
    )


COMMANDS = (
    Command(
        "MULTI",
        varies_arity=False,  # Without its argument, a MULTI that is refused would begin a transaction.
        good=("MULTI ; PING ; EXEC", "MULTI ; EXEC"),
        bad=("MULTI ; MULTI ; EXEC", "MULTI 1"),
        scenes=(_executed,),
    ),
    Command(
        "EXEC",
        scenes=(_executed, _executed, _executed, _aborted),
        good=(
            "WATCH @key ; MULTI ; SET @key value ; EXEC",
            "WATCH @key ; GET @key ; MULTI ; INCR @key ; SET @key value ; EXEC ; GET @key",
        ),
        bad=("EXEC", "EXEC word", "MULTI ; GET ; EXEC"),
    ),
    Command(
        "DISCARD",
        scenes=(_discarded,),
        good=(
            "WATCH key ; MULTI ; DEL keys ; DISCARD",
            "WATCH @key ; MULTI ; DISCARD ; 1> SET @key value ; MULTI ; GET @key ; EXEC",
        ),
        bad=("DISCARD", "DISCARD word"),
    ),
    Command(
        "WATCH",
        good=(
            "WATCH keys ; MULTI ; GET key ; EXEC",
            "WATCH @key ; 1> SET @key value ; MULTI ; SET @key value ; EXEC ; GET @key",
            "WATCH @key ; 1> DEL @key ; MULTI ; SET @key value ; EXEC ; GET @key",
            "SET @key value ; WATCH @key ; 1> EXPIRE @key ttl-s ; MULTI ; GET @key ; EXEC",
            "SET @key value ; WATCH @key ; 1> GET @key ; MULTI ; GET @key ; EXEC",
            "WATCH @key ; SET @key value ; MULTI ; GET @key ; EXEC",
            "WATCH missing-key ; 1> SET key value ; MULTI ; PING ; EXEC",
            "WATCH @key ; 1> SELECT 5 ; 1> SET @key value ; 1> SELECT 0 ; MULTI ; GET @key ; EXEC",
            "SET @key value ; WATCH @key ; 1> RENAME @key @key2 ; MULTI ; GET @key2 ; EXEC",
            "SET @key small ; WATCH @key2 @key ; 1> INCR @key ; MULTI ; GET @key ; EXEC",
            "SET @key value ; WATCH @key ; 1> MOVE @key 7 ; MULTI ; GET @key ; EXEC",
            "SET @key value ; WATCH @key ; 1> PERSIST @key ; MULTI ; GET @key ; EXEC",
            "SET @key value ; WATCH @key ; 1> SETRANGE @key 0 = ; MULTI ; GET @key ; EXEC",
            "SET @key value ; WATCH @key ; 1> MULTI ; 1> APPEND @key text ; 1> EXEC ; MULTI ; GET @key ; EXEC",
            "WATCH @key ; 1> SWAPDB 0 6 ; 1> SWAPDB 0 6 ; MULTI ; GET @key ; EXEC",
            "SET @key value ; WATCH @key ; 1> FLUSHDB ; MULTI ; GET @key ; EXEC ; SET key value",
        ),
        bad=("MULTI ; WATCH key ; EXEC", "WATCH"),
    ),
    Command(
        "UNWATCH",
        good=(
            "UNWATCH",
            "WATCH keys ; UNWATCH ; 1> SET key value ; EXISTS key",
            "2> WATCH @key ; WATCH @key ; UNWATCH ; 2> UNWATCH",
            "WATCH @key ; 1> SET @key value ; UNWATCH ; MULTI ; GET @key ; EXEC",
            "WATCH @key ; 1> SET @key value ; MULTI ; UNWATCH ; EXEC",
        ),
        bad=("UNWATCH key",),
    ),
)
