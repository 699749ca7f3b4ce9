"""What a command answers, and its encoding in RESP2 and RESP3.

It is not a parser, and it knows no command. A handler returns plain Python values; `encode` turns
them into the bytes of the protocol version that the session speaks:

    bytes           bulk string              int     integer
    None            null                     float   double (RESP2: bulk string)
    list            array                    dict    map (RESP2: flat array)
    bool            boolean (RESP2: 0 or 1)  Simple  simple string
    SetReply        set (RESP2: array)       Verbatim  verbatim string (RESP2: bulk string)
    NULL_ARRAY      null array (RESP3: null) ReplyError  error
    Push            push message             NO_REPLY  nothing at all
    Fields          map (RESP2: array of the values alone)
    Encoded         bytes that are encoded already

Errors are `ReplyError`s: raised by a handler or nested in an array (EXEC). The texts that several
commands share stand here, once, since clients compare them letter by letter.

Source: the RESP3 specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

CRLF: Final = b"\r\n"
_BLANKS_FOR_BREAKS: Final = bytes.maketrans(b"\r\n", b"  ")


class ReplyError(Exception):
    """What a client hears instead of an answer.

    `text` is the whole line without `-`, code first: `ERR syntax error`. It may quote what the
    client sent: line breaks become blanks.
    """

    def __init__(self, text: str | bytes) -> None:
        super().__init__(text)
        line = text.encode() if isinstance(text, str) else text
        if b"\n" in line or b"\r" in line:
            line = line.rstrip(b"\r\n").translate(_BLANKS_FOR_BREAKS)
        self.line: bytes = line

    @property
    def code(self) -> bytes:
        return self.line.split(b" ", 1)[0]


class Simple(bytes):
    """A simple string such as OK."""


class Encoded(bytes):
    """A reply that is encoded already, the same in RESP2 and RESP3."""


class Pushed(Encoded):
    """Messages that answer a command, and are sent even where CLIENT REPLY says not to answer."""


class SetReply(list["Reply"]):
    """Members without order: a set in RESP3, an array in RESP2."""


class Fields(dict[bytes, "Reply"]):
    """What has a fixed set of fields in a fixed order: a map in RESP3, the values alone in RESP2."""


class Push(list["Reply"]):
    """An out-of-band message: a push in RESP3, an array in RESP2."""


@dataclass(frozen=True, slots=True)
class Verbatim:
    """Text for people, with a format of three letters."""

    text: bytes
    format: bytes = b"txt"


@dataclass(frozen=True, slots=True)
class Marker:
    name: str


NULL_ARRAY: Final = Marker("null array")
NO_REPLY: Final = Marker("no reply")
OK: Final = Simple(b"OK")
QUEUED: Final = Simple(b"QUEUED")

Reply: TypeAlias = (
    "bytes | int | float | list[Reply] | dict[bytes, Reply] | Verbatim | Marker | ReplyError | None"
)

SYNTAX_ERROR: Final = ReplyError("ERR syntax error")
NOT_AN_INTEGER: Final = ReplyError("ERR value is not an integer or out of range")
NOT_A_FLOAT: Final = ReplyError("ERR value is not a valid float")
WRONG_TYPE: Final = ReplyError("WRONGTYPE Operation against a key holding the wrong kind of value")
NO_SUCH_KEY: Final = ReplyError("ERR no such key")
OUT_OF_RANGE: Final = ReplyError("ERR index out of range")
INCREMENT_OVERFLOW: Final = ReplyError("ERR increment or decrement would overflow")


def c_string(arg: bytes, bytes_max: int = 128) -> bytes:
    """An argument as Redis quotes it in errors: C prints it, so it ends at a NUL."""
    return arg.partition(b"\0")[0][:bytes_max]


def unknown_or_malformed(container_name: str, sub: bytes) -> ReplyError:
    """What commands answer that look at their subcommands themselves. `sub` is as it was typed."""
    text = b"ERR unknown subcommand or wrong number of arguments for '%b'. Try %b HELP."
    return ReplyError(text % (c_string(sub), container_name.encode()))


def wrong_arity(name: str) -> ReplyError:
    return ReplyError(f"ERR wrong number of arguments for '{name.lower()}' command")


def invalid_expire(name: str) -> ReplyError:
    return ReplyError(f"ERR invalid expire time in '{name.lower()}' command")


_INTEGERS: Final = [b":%d\r\n" % n for n in range(1024)]


def encode(reply: Reply, *, resp3: bool) -> bytes:
    """The reply's bytes on the wire. The frequent kinds come first: this is a hot path (bench/serving.py)."""
    # Any: mypy cannot narrow a union by the type that is looked up, and isinstance costs twice as
    # much.
    plain: Any = reply
    kind = type(plain)
    if kind is bytes:
        return b"$%d\r\n%b\r\n" % (len(plain), plain)
    if kind is int:
        return _INTEGERS[plain] if 0 <= plain < 1024 else b":%d\r\n" % plain
    if kind is Simple:
        return b"+%b\r\n" % plain
    if plain is None:
        return b"_\r\n" if resp3 else b"$-1\r\n"
    return _encode_rare(reply, resp3=resp3)


def _encode_rare(reply: Reply, *, resp3: bool) -> bytes:
    match reply:
        case Encoded():
            return bytes(reply)
        case bool():
            if resp3:
                return b"#t\r\n" if reply else b"#f\r\n"
            return b":1\r\n" if reply else b":0\r\n"
        case float():
            text = format_double(reply)
            return b",%b\r\n" % text if resp3 else b"$%d\r\n%b\r\n" % (len(text), text)
        case SetReply():
            return _sequence(b"~" if resp3 else b"*", reply, resp3=resp3)
        case Push():
            return _sequence(b">" if resp3 else b"*", reply, resp3=resp3)
        case list():
            return _sequence(b"*", reply, resp3=resp3)
        case Fields() if not resp3:
            return _sequence(b"*", list(reply.values()), resp3=False)
        case dict():
            head = b"%%%d\r\n" % len(reply) if resp3 else b"*%d\r\n" % (2 * len(reply))
            parts = [head]
            for key, value in reply.items():
                parts.append(encode(key, resp3=resp3))
                parts.append(encode(value, resp3=resp3))
            return b"".join(parts)
        case ReplyError():
            return b"-%b\r\n" % reply.line
        case Verbatim():
            if resp3:
                return b"=%d\r\n%b:%b\r\n" % (len(reply.text) + 4, reply.format, reply.text)
            return b"$%d\r\n%b\r\n" % (len(reply.text), reply.text)
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(reply), reply)
        case int():
            return b":%d\r\n" % reply
    if reply is NULL_ARRAY:
        return b"_\r\n" if resp3 else b"*-1\r\n"
    if reply is NO_REPLY:
        return b""
    raise TypeError(f"a handler returned {type(reply).__name__}, which is no reply")


def _sequence(sign: bytes, items: list[Reply], *, resp3: bool) -> bytes:
    parts = [b"%b%d\r\n" % (sign, len(items))]
    parts += [encode(item, resp3=resp3) for item in items]
    return b"".join(parts)


def format_double(value: float) -> bytes:
    """A double as Redis 7.0 spells it: up to 17 significant digits; `inf`, `-inf`, `nan`."""
    return b"%.17g" % value
