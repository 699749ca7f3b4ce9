"""What is no proper command: unknown names, unknown subcommands, wrong numbers of arguments, and broken requests.

The three families are counted under names of their own, in lower case. Connection 2 sends what makes a server hang up.
"""

from __future__ import annotations

from dataclasses import replace

from .command import CONTAINERS, Call, Command, Draw, Scene

UNKNOWN_COMMAND = "unknown command"
UNKNOWN_SUBCOMMAND = "unknown subcommand"
WRONG_ARITY = "wrong number of arguments"
RAW_REQUEST = "inline or broken request"

_UNKNOWN = (
    b"NOSUCH",
    b"",
    b"get ",
    b"GE",
    b"\r\n",
    b"caf\xc3\xa9",
    b"x" * 200,
    b"'quoted'",
    b"GET\x00",
    b"MONITORS",
)
_ARGUMENTS = (b"a", b"", b"\r\n\x00", b"it's", b"y" * 60, b"z" * 200, b"\xff", b"1")
# Commands that do something when called alone. They get arguments that they cannot take instead.
_COMPLETE_ALONE = frozenset(
    (
        *(
            "PING",
            "UNWATCH",
            "MULTI",
            "EXEC",
            "DISCARD",
            "DBSIZE",
            "RANDOMKEY",
            "FLUSHDB",
            "FLUSHALL",
        ),
        *(
            "RESET",
            "HELLO",
            "COMMAND",
            "INFO",
            "TIME",
            "ROLE",
            "LOLWUT",
            "SAVE",
            "BGSAVE",
            "LASTSAVE",
        ),
        "BGREWRITEAOF",
    )
)
_CLOSES_ANYHOW = "QUIT"

# Bytes as sent, how many replies they get, whether the server hangs up.
_RAW: tuple[tuple[bytes, int, bool], ...] = (
    (b"PING\r\n", 1, False),
    (b"ping\n", 1, False),
    (b"  GET   int:1  \r\n", 1, False),
    (b'SET text:1 "a b\\x41\\n\\"c\\""\r\nGET text:1\r\n', 2, False),
    (b"SET text:2 'it\\'s \\x41'\r\nGET text:2\r\n", 2, False),
    (b'ECHO ""\r\n', 1, False),
    (b"\r\nPING\r\n", 1, False),
    (b"\r\n\r\n   \r\nPING\r\n", 1, False),
    (b"*0\r\n*1\r\n$4\r\nPING\r\n", 1, False),
    (b"*-1\r\nPING\r\n", 1, False),
    (b"*2\r\n$4\r\nECHO\r\n$0\r\n\r\nPING\r\n*1\r\n$6\r\nDBSIZE\r\n", 3, False),
    (b"NOSUCH 'a b' c\r\n", 1, False),
    (b"GET\r\n", 1, False),
    (b'ECHO "unbalanced\r\n', 1, True),
    (b'ECHO "a"b\r\n', 1, True),
    (b"PING\r\n*x\r\nPING\r\n", 2, True),
    (b"*1x\r\n", 1, True),
    (b"*2147483648\r\n", 1, True),
    (b"*1\r\n+PING\r\n", 1, True),
    (b"*1\r\n$-1\r\n", 1, True),
    (b"*1\r\n$abc\r\n", 1, True),
    (b"*2\r\n$3\r\nGET\r\n$999999999999\r\n", 1, True),
    (b"*1\r\n:1\r\n", 1, True),
    (b"A" * 70_000, 1, True),
)


def _unknown_command(draw: Draw) -> Scene:
    arguments = draw.rng.choices(_ARGUMENTS, k=draw.rng.randint(0, 6))
    return (Call((draw.rng.choice(_UNKNOWN), *arguments), name=UNKNOWN_COMMAND),)


def _unknown_subcommand(draw: Draw) -> Scene:
    container = draw.rng.choice(sorted(CONTAINERS - {"DEBUG"}))  # DEBUG is no container in Redis.
    subcommand = draw.rng.choice((b"NOSUCH", b"", b"GETT", b"\r\n", b"x" * 200, b"caf\xc3\xa9"))
    arguments = draw.rng.choices(_ARGUMENTS, k=draw.rng.randint(0, 3))
    return (Call((container.encode(), subcommand, *arguments), name=UNKNOWN_SUBCOMMAND),)


def _wrong_arity(draw: Draw) -> Scene:
    """A command alone, or with nine arguments where it would do something alone."""
    names = [name for name in draw.commands if name == name.upper() and name != _CLOSES_ANYHOW]
    name = draw.rng.choice(names)
    words = name.encode().split()
    if name in _COMPLETE_ALONE or (len(words) > 1 and draw.rng.random() < 0.5):
        words += [b"x"] * 9
    else:
        words, name = words[:1], name.split()[0]
    return (Call(tuple(words), name=name, counts_as=WRONG_ARITY),)


def _raw_request(draw: Draw) -> Scene:
    data, reply_count, hangs_up = draw.rng.choice(_RAW)
    calls = [Call((b"PING",), 2, name=RAW_REQUEST, bytes_as_sent=data)]
    calls += [Call((b"PING",), 2, name=RAW_REQUEST, only_reads=True)] * (reply_count - 1)
    if hangs_up:
        calls[-1] = replace(calls[-1], drops=frozenset({2}))
    return tuple(calls)


_MEANT = "It is sent to be refused."

COMMANDS = (
    Command(
        UNKNOWN_COMMAND, scenes=(_unknown_command,), varies_arity=False, refused_because=_MEANT
    ),
    Command(
        UNKNOWN_SUBCOMMAND,
        scenes=(_unknown_subcommand,),
        varies_arity=False,
        refused_because=_MEANT,
    ),
    Command(WRONG_ARITY, scenes=(_wrong_arity,), varies_arity=False, refused_because=_MEANT),
    Command(
        RAW_REQUEST,
        scenes=(_raw_request,),
        varies_arity=False,
        refused_because="Half of them end in a protocol error.",
    ),
)
