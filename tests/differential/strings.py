"""The string and bitmap commands, as templates (see `command`). All replies are compared byte for byte."""

# ruff: noqa: E501  A template is one line.

from __future__ import annotations

from dataclasses import replace

from .command import Command, Draw, Scene


def _expires_soon(draw: Draw) -> Scene:
    """A value that is gone two milliseconds later. The waiting is the runner's, so both servers are past it."""
    write, read = draw.scene("SET @key value PX 1 ; GET @key")
    return replace(write, pause_s=0.004), read


COMMANDS = (
    Command(
        "GET", good=("GET key", "SET @key value ; GET @key", "GET key"), bad=("GET missing-key",)
    ),
    Command(
        "SET",
        options=("EX", "PX", "EXAT", "PXAT", "KEEPTTL", "NX", "XX", "GET"),
        good=(
            "SET key value",
            "SET key value EX ttl-s",
            "SET key value PX ttl-ms",
            "SET @key value EXAT at-s ; EXPIRETIME @key",
            "SET @key value PXAT at-ms ; PEXPIRETIME @key",
            "SET @key value PXAT at-ms ; SET @key value KEEPTTL ; PEXPIRETIME @key ; OBJECT ENCODING @key",
            "SET key value KEEPTTL",
            "SET key value NX",
            "DEL @key ; SET @key value NX EX ttl-s",
            "DEL @key ; SET @key value PXAT at-ms NX",
            "SET @key value ; SET @key value XX",
            "SET key value XX KEEPTTL",
            "SET key value GET",
            "SET @key value ; SET @key value GET XX",
            "SET @key value ; SET @key value NX GET ; GET @key",
            "SET @key value ; SET @key value GET EX ttl-s",
            "SET @key value EXAT past-s ; GET @key",
            "SET @key value PXAT past-ms ; GET @key",
        ),
        bad=(
            "SET key value EX not-positive",
            "SET key value PX not-positive",
            "SET key value EXAT not-positive",
            "SET key value PXAT not-positive",
            "SET key value EX too-far",
            "SET key value PX too-far",
            "SET key value EXAT too-far",
            "SET key value EX non-integer",
            "SET key value PX non-integer",
            "SET key value EXAT non-integer",
            "SET key value PXAT non-integer",
            "SET key value NX XX",
            "SET key value EX ttl-s PX ttl-ms",
            "SET key value KEEPTTL EX ttl-s",
            "SET key value EX ttl-s KEEPTTL",
            "SET key value EX 10 EX 20",
            "SET key value PERSIST",
            "SET key value EX",
            "SET key value junk",
            "SET key value NX junk",
            "SET key value XX XX NX",
            "SET missing-key value XX",
            "SET missing-key value XX GET",
        ),
        scenes=(_expires_soon,),
    ),
    Command("SETNX", good=("SETNX key value", "DEL @key ; SETNX @key value"), bad=("SETNX key",)),
    Command(
        "SETEX",
        good=("SETEX key ttl-s value", "SETEX @key ttl-s value ; TTL @key ; GET @key"),
        bad=(
            "SETEX key not-positive value",
            "SETEX key too-far value",
            "SETEX key non-integer value",
        ),
    ),
    Command(
        "PSETEX",
        good=("PSETEX key ttl-ms value", "PSETEX @key ttl-ms value ; PTTL @key ; GET @key"),
        bad=(
            "PSETEX key not-positive value",
            "PSETEX key too-far value",
            "PSETEX key non-integer value",
        ),
    ),
    Command(
        "GETSET",
        good=("GETSET key value", "SET @key value EX ttl-s ; GETSET @key value ; TTL @key"),
        bad=("DEL @key ; GETSET @key value",),
    ),
    Command(
        "GETDEL",
        good=(
            "SET @key value ; GETDEL @key",
            "SET @key value EX ttl-s ; GETDEL @key ; EXISTS @key",
        ),
        bad=("GETDEL missing-key",),
    ),
    Command(
        "GETEX",
        options=("EX", "PX", "EXAT", "PXAT", "PERSIST"),
        good=(
            "GETEX key",
            "SET @key value ; GETEX @key EX ttl-s ; TTL @key",
            "SET @key value ; GETEX @key PX ttl-ms ; PTTL @key",
            "SET @key value ; GETEX @key EXAT at-s ; EXPIRETIME @key",
            "SET @key value ; GETEX @key PXAT at-ms ; PEXPIRETIME @key",
            "SET @key value EX ttl-s ; GETEX @key PERSIST ; TTL @key",
            "SET @key value ; GETEX @key EXAT past-s ; EXISTS @key",
            "SET @key value ; GETEX @key PXAT past-ms ; EXISTS @key",
        ),
        bad=(
            "GETEX missing-key EX ttl-s",
            "GETEX key EX not-positive",
            "GETEX key PXAT not-positive",
            "GETEX key EX too-far",
            "GETEX key PX too-far",
            "GETEX key PX non-integer",
            "GETEX key EX 10 PERSIST",
            "GETEX key PERSIST EX 10",
            "GETEX key EX 10 PX 10",
            "GETEX key NX",
            "GETEX key KEEPTTL",
            "GETEX key junk",
        ),
    ),
    Command(
        "MGET", good=("MGET keys", "MGET keys missing-key keys", "MGET @key @key"), bad=("MGET",)
    ),
    Command(
        "MSET",
        good=("MSET pairs", "MSET @key value @key value ; GET @key"),
        bad=("MSET pairs key",),
    ),
    Command(
        "MSETNX",
        good=("MSETNX pairs", "DEL @key @key2 ; MSETNX @key value @key2 value ; MGET @key @key2"),
        bad=("MSETNX pairs key", "MSETNX pairs missing-key"),
    ),
    Command(
        "APPEND",
        good=(
            "APPEND key text",
            "DEL @key ; APPEND @key integer ; OBJECT ENCODING @key",
            "SET @key integer ; APPEND @key small ; OBJECT ENCODING @key ; GET @key",
            "SET @key value EX ttl-s ; APPEND @key value ; OBJECT ENCODING @key",
            "APPEND key =",
        ),
        bad=("APPEND key",),
    ),
    Command(
        "STRLEN",
        good=("STRLEN key", "STRLEN integer-key", "STRLEN long-key"),
        bad=("STRLEN missing-key",),
    ),
    Command(
        "GETRANGE",
        good=(
            "GETRANGE key index index",
            "GETRANGE long-key offset index",
            "GETRANGE integer-key index index",
        ),
        bad=(
            "GETRANGE key non-integer index",
            "GETRANGE key index non-integer",
            "GETRANGE missing-key 0 -1",
        ),
    ),
    Command(
        "SUBSTR",
        good=("SUBSTR key index index", "SUBSTR text-key offset index"),
        bad=("SUBSTR key non-integer index", "SUBSTR key index non-integer"),
    ),
    Command(
        "SETRANGE",
        good=(
            "SETRANGE key offset text",
            "SET @integer-key integer ; SETRANGE @integer-key 1 small ; OBJECT ENCODING @integer-key",
            "DEL @key ; SETRANGE @key offset value ; GET @key ; OBJECT ENCODING @key",
            "DEL @key ; SETRANGE @key offset = ; EXISTS @key",
            "SET @key text EX ttl-s ; SETRANGE @key offset text ; TTL @key",
        ),
        bad=(
            "SETRANGE key -1 text",
            "SETRANGE key non-integer text",
            "SETRANGE key far-offset word",
            "SETRANGE key far-offset =",
        ),
    ),
    Command(
        "INCR",
        good=(
            "INCR integer-key",
            "SET @integer-key small EX ttl-s ; INCR @integer-key ; TTL @integer-key",
            "DEL @key ; INCR @key",
        ),
        bad=(
            "SET @key near-overflow ; INCR @key",
            "SET @key non-integer ; INCR @key",
            "INCR text-key",
        ),
    ),
    Command(
        "DECR",
        good=(
            "DECR integer-key",
            "SET @integer-key small ; DECR @integer-key ; OBJECT ENCODING @integer-key",
            "DEL @key ; DECR @key",
        ),
        bad=(
            "SET @key near-overflow ; DECR @key",
            "SET @key non-integer ; DECR @key",
            "DECR long-key",
        ),
    ),
    Command(
        "INCRBY",
        good=(
            "INCRBY integer-key small",
            "SET @integer-key small ; INCRBY @integer-key integer",
            "DEL @key ; INCRBY @key integer",
        ),
        bad=(
            "INCRBY integer-key non-integer",
            "INCRBY integer-key near-overflow",
            "SET @key near-overflow ; INCRBY @key near-overflow",
            "SET @key non-integer ; INCRBY @key small",
            "INCRBY text-key 1",
        ),
    ),
    Command(
        "DECRBY",
        good=(
            "DECRBY integer-key small",
            "SET @integer-key small ; DECRBY @integer-key integer",
            "DEL @key ; DECRBY @key small",
        ),
        bad=(
            "DECRBY integer-key non-integer",
            "DECRBY integer-key near-overflow",
            "SET @key near-overflow ; DECRBY @key near-overflow",
            "SET @key non-integer ; DECRBY @key small",
        ),
    ),
    Command(
        "INCRBYFLOAT",
        good=(
            "INCRBYFLOAT number-key float",
            "INCRBYFLOAT float-key small",
            "SET @float-key float EX ttl-s ; INCRBYFLOAT @float-key float ; OBJECT ENCODING @float-key ; TTL @float-key",
            "SET @float-key 0.1 ; INCRBYFLOAT @float-key 0.2",
            "SET @float-key float ; INCRBYFLOAT @float-key huge-float ; GET @float-key",
            "SET @float-key huge-float ; INCRBYFLOAT @float-key huge-float",
            "SET @integer-key integer ; INCRBYFLOAT @integer-key =1e0 ; OBJECT ENCODING @integer-key",
            "DEL @key ; INCRBYFLOAT @key float",
        ),
        bad=(
            "INCRBYFLOAT float-key non-float",
            "INCRBYFLOAT float-key infinity",
            "SET @key non-float ; INCRBYFLOAT @key float",
            "SET @key infinity ; INCRBYFLOAT @key 1",
            "SET @key =1e4932 ; INCRBYFLOAT @key =1e4932 ; INCRBYFLOAT @key =1e4932",
            "INCRBYFLOAT text-key 1.5",
        ),
    ),
    Command(
        "LCS",
        options=("LEN", "IDX", "MINMATCHLEN", "WITHMATCHLEN"),
        good=(
            "LCS text-key text-key",
            "LCS key key LEN",
            "MSET @text-key lcs-a @text-key2 lcs-b ; LCS @text-key @text-key2",
            "MSET @text-key lcs-a @text-key2 lcs-b ; LCS @text-key @text-key2 LEN",
            "MSET @text-key lcs-a @text-key2 lcs-b ; LCS @text-key @text-key2 IDX",
            "MSET @text-key lcs-a @text-key2 lcs-b ; LCS @text-key @text-key2 IDX MINMATCHLEN 2",
            "MSET @text-key lcs-a @text-key2 lcs-b ; LCS @text-key @text-key2 IDX MINMATCHLEN 4 WITHMATCHLEN",
            "MSET @text-key lcs-a @text-key2 lcs-b ; LCS @text-key @text-key2 WITHMATCHLEN IDX",
            "MSET @text-key text @text-key2 text ; LCS @text-key @text-key2 IDX WITHMATCHLEN MINMATCHLEN -1",
        ),
        bad=(
            "LCS text-key text-key IDX LEN",
            "LCS text-key text-key MINMATCHLEN non-integer IDX",
            "LCS text-key text-key MINMATCHLEN",
            "LCS text-key text-key junk",
        ),
    ),
    Command(
        "SETBIT",
        good=(
            "SETBIT bitmap-key bit-offset bit",
            "SETBIT key bit-offset bit",
            "DEL @key ; SETBIT @key bit-offset bit ; OBJECT ENCODING @key",
        ),
        bad=(
            "SETBIT bitmap-key bit-offset bad-bit",
            "SETBIT bitmap-key far-bit-offset bit",
            "SETBIT bitmap-key non-integer bit",
        ),
    ),
    Command(
        "GETBIT",
        good=(
            "GETBIT bitmap-key bit-offset",
            "GETBIT key bit-offset",
            "GETBIT integer-key bit-offset",
        ),
        bad=("GETBIT bitmap-key far-bit-offset", "GETBIT key non-integer"),
    ),
    Command(
        "BITCOUNT",
        options=("BYTE", "BIT"),
        good=(
            "BITCOUNT key",
            "BITCOUNT bitmap-key index index",
            "BITCOUNT bitmap-key index index BYTE",
            "BITCOUNT key index index BIT",
            "BITCOUNT integer-key index index BIT",
        ),
        bad=(
            "BITCOUNT key index",
            "BITCOUNT key non-integer index",
            "BITCOUNT key index non-integer",
            "BITCOUNT key index index junk",
            "BITCOUNT missing-key non-integer 1",
            "BITCOUNT missing-key 0 -1 junk",
            "BITCOUNT missing-key",
        ),
    ),
    Command(
        "BITPOS",
        options=("BYTE", "BIT"),
        good=(
            "BITPOS bitmap-key bit",
            "BITPOS key bit index",
            "BITPOS bitmap-key bit index index",
            "BITPOS bitmap-key bit index index BYTE",
            "BITPOS bitmap-key bit index index BIT",
            "SET @bitmap-key =\xff\xff\xff ; BITPOS @bitmap-key 0 ; BITPOS @bitmap-key 0 0 ; BITPOS @bitmap-key 0 0 -1",
        ),
        bad=(
            "BITPOS key bad-bit",
            "BITPOS key bit non-integer",
            "BITPOS key bit index non-integer",
            "BITPOS key bit index index junk",
            "BITPOS missing-key bit",
            "BITPOS missing-key bit index index BIT",
        ),
    ),
    Command(
        "BITOP",
        options=("AND", "OR", "XOR", "NOT"),
        good=(
            "BITOP AND bitmap-key bitmap-key key",
            "BITOP OR @bitmap-key bitmap-key key key ; GET @bitmap-key",
            "BITOP XOR bitmap-key keys",
            "BITOP NOT @bitmap-key bitmap-key ; GET @bitmap-key ; TTL @bitmap-key",
            "BITOP OR @key missing-key missing-key ; EXISTS @key",
        ),
        bad=(
            "BITOP NOT bitmap-key key key",
            "BITOP NAND bitmap-key key",
            "BITOP junk bitmap-key key",
            "BITOP AND bitmap-key",
        ),
    ),
    Command(
        "BITFIELD",
        options=("GET", "SET", "INCRBY", "OVERFLOW", "WRAP", "SAT", "FAIL", "hash-offset"),
        good=(
            "BITFIELD key",
            "BITFIELD bitmap-key GET bit-type bit-offset",
            "BITFIELD bitmap-key GET bit-type hash-offset GET bit-type bit-offset",
            "BITFIELD bitmap-key SET bit-type bit-offset integer",
            "BITFIELD @bitmap-key SET bit-type hash-offset small GET bit-type hash-offset ; GET @bitmap-key",
            "BITFIELD bitmap-key INCRBY bit-type bit-offset small",
            "BITFIELD bitmap-key OVERFLOW WRAP INCRBY bit-type hash-offset integer",
            "BITFIELD @bitmap-key OVERFLOW SAT INCRBY bit-type hash-offset integer SET bit-type bit-offset small ; GET @bitmap-key",
            "BITFIELD @bitmap-key OVERFLOW FAIL INCRBY bit-type bit-offset integer OVERFLOW SAT SET bit-type hash-offset integer",
            "BITFIELD @bitmap-key OVERFLOW FAIL SET bit-type hash-offset integer INCRBY bit-type hash-offset near-overflow ; GET @bitmap-key",
            "DEL @key ; BITFIELD @key GET bit-type bit-offset ; EXISTS @key ; BITFIELD @key SET =u8 0 0 ; EXISTS @key",
            "SET @key integer ; BITFIELD @key INCRBY bit-type bit-offset 1 ; OBJECT ENCODING @key",
        ),
        bad=(
            "BITFIELD key GET bad-bit-type 0",
            "BITFIELD key GET bit-type bad-bit-offset",
            "BITFIELD key SET bit-type bit-offset non-integer",
            "BITFIELD key INCRBY bit-type bit-offset non-integer",
            "BITFIELD key OVERFLOW junk INCRBY =u8 0 1",
            "BITFIELD key OVERFLOW",
            "BITFIELD key junk =u8 0",
            "BITFIELD key SET =u8 0",
            "BITFIELD key GET =u8",
        ),
    ),
    Command(
        "BITFIELD_RO",
        options=("GET", "hash-offset"),
        good=(
            "BITFIELD_RO key GET bit-type bit-offset",
            "BITFIELD_RO bitmap-key GET bit-type hash-offset GET bit-type bit-offset",
            "BITFIELD_RO key",
        ),
        bad=(
            "BITFIELD_RO key SET =u8 0 1",
            "BITFIELD_RO key GET =u8 0 INCRBY =u8 0 1",
            "BITFIELD_RO key OVERFLOW SAT GET =u8 0",
            "BITFIELD_RO key GET bad-bit-type 0",
            "BITFIELD_RO key GET bit-type bad-bit-offset",
        ),
    ),
)
