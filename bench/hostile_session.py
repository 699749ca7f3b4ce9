"""Sessions that break the protocol, or keep to it and mean harm, and what Redis 7.0 does with each.

This is not a fuzzer: each session is one fixed payload whose outcome in Redis is known. A session
sends its payload, then listens until the server closes it or is silent for a while. The outcome
is the first line that came and how it ended, and it is compared with a pattern (`*` stands for
anything).

Payloads are short or end where the server stops reading. A server that closes a socket with
unread input makes the kernel reset it, and a reset can overtake the error text.
"""

from __future__ import annotations

import contextlib
import random
import socket
import time
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

from bench.connection import Address, encode_command

MIB = 2**20
REPLY_SHOWN_MAX = 100
# Long enough for an answer from a server that is busy with all the others.
PATIENCE_S = 1.5

BIG_KEY = b"big"
ASKED_COUNT = 256
CLOSE_SEEN_S = 0.2
RECEIVE_BUFFER_BYTES = 64 * 1024
INLINE_BYTES_MAX = 64 * 1024
ARGUMENTS_MAX = 2**31 - 1


class Ending(Enum):
    """How the server left a session."""

    CLOSED = "closed"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The first line that a session got (empty: none), and how it ended."""

    reply: str
    ending: Ending

    def __str__(self) -> str:
        return f"{self.reply or 'no reply'}, {self.ending.value}"

    def is_like(self, pattern: Outcome) -> bool:
        return self.ending == pattern.ending and fnmatchcase(self.reply, pattern.reply)


@dataclass(frozen=True, slots=True)
class Hostile:
    """One kind of session: what it sends, and the outcomes that are right, Redis' own first."""

    name: str
    payload: bytes
    expected: tuple[Outcome, ...]

    def is_expected(self, outcome: Outcome) -> bool:
        return any(outcome.is_like(pattern) for pattern in self.expected)


def refused(text: str) -> Outcome:
    """A protocol error, after which the connection is closed."""
    return Outcome(f"-ERR Protocol error: {text}", Ending.CLOSED)


WAITING = Outcome("", Ending.WAITING)


def noise(length_bytes: int) -> bytes:
    """Return the same random bytes each time, without NUL: Redis looks no further than one."""
    return random.Random(1).randbytes(length_bytes).replace(b"\0", b"\1")


def hostile_sessions() -> list[Hostile]:
    """Return every kind of session but the one that does not read (`read_nothing`)."""
    return [
        Hostile(
            "announces a value of 600 MB",
            b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$600000000\r\n",
            (refused("invalid bulk length"),),
        ),
        Hostile(
            "announces a value of 500 MB, sends none",
            b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$500000000\r\n",
            (WAITING,),
        ),
        Hostile(
            "announces too many arguments",
            b"*%d\r\n" % (ARGUMENTS_MAX + 1),
            (refused("invalid multibulk length"),),
        ),
        Hostile(
            # Redis before 7.0 had a limit of 2**20, and a server may keep it.
            "announces 2**31-1 arguments",
            b"*%d\r\n$4\r\nMGET\r\n" % ARGUMENTS_MAX,
            (WAITING, refused("invalid multibulk length")),
        ),
        Hostile("sends empty lines", b"\r\n" * 1000 + b"*0\r\n*-1\r\n", (WAITING,)),
        Hostile(
            "sends empty lines, then PING",
            b"\r\n" * 1000 + b"PING\r\n",
            (Outcome("+PONG", Ending.WAITING),),
        ),
        Hostile("sends half a request", b"*2\r\n$3\r\nGET\r\n$10\r\nkey", (WAITING,)),
        Hostile("sends half a length", b"*2\r\n$3\r\nGET\r\n$1", (WAITING,)),
        Hostile(
            "sends half a value of 2 MiB",
            b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % (2 * MIB) + bytes(MIB),
            (WAITING,),
        ),
        Hostile(
            "sends an endless line",
            b"x" * (INLINE_BYTES_MAX + 1),
            (refused("too big inline request"),),
        ),
        Hostile(
            "sends an endless length",
            b"*" + b"1" * INLINE_BYTES_MAX,
            (refused("too big mbulk count string"),),
        ),
        Hostile(
            "garbage: a count of letters",
            b"*abc\r\n",
            (refused("invalid multibulk length"),),
        ),
        Hostile(
            "garbage: a length of letters",
            b"*1\r\n$abc\r\n",
            (refused("invalid bulk length"),),
        ),
        Hostile("garbage: a negative length", b"*1\r\n$-5\r\n", (refused("invalid bulk length"),)),
        Hostile("garbage: no length", b"*1\r\nPING\r\n", (refused("expected '$', got 'P'"),)),
        Hostile(
            "garbage: an open quote",
            b'GET "key\r\n',
            (refused("unbalanced quotes in request"),),
        ),
        Hostile(
            "garbage: a word",
            b"\x80\xff\xfe\r\n",
            (Outcome("-ERR unknown command*", Ending.WAITING),),
        ),
        Hostile(
            # Which of its lines ends the session, and whether a reset overtakes the text, is open.
            "garbage: a mebibyte of noise",
            noise(MIB),
            (Outcome("*", Ending.CLOSED), Outcome("-ERR*", Ending.WAITING)),
        ),
    ]


def run_session(address: Address, hostile: Hostile, patience_s: float = PATIENCE_S) -> Outcome:
    """Carry out one session; `OSError` when the server does not even accept it."""
    received = bytearray()
    with socket.create_connection(address, timeout=patience_s) as connection:
        with contextlib.suppress(ConnectionError, TimeoutError):
            connection.sendall(hostile.payload)
        ending = _listen(connection, received)
    return Outcome(first_line(received), ending)


def first_line(received: bytes | bytearray) -> str:
    """Return the first line of what came, as far as it can be shown."""
    line = bytes(received).split(b"\r\n", 1)[0]
    return line.decode("utf-8", "backslashreplace")[:REPLY_SHOWN_MAX]


# --------------------------------------------------------------------------------------------------
# The session that does not read


def read_nothing(address: Address, value_bytes: int, hold_s: float) -> Outcome:
    """Ask for `ASKED_COUNT` values at once, read nothing for `hold_s`, then read what is there.

    A server that closed the session at its output limit leaves only what its kernel had taken; one
    that kept everything, or held the session back, sends all of it. The closing itself cannot be
    seen before: its FIN queues up behind bytes for which there is no room.
    """
    expected = ASKED_COUNT * len(b"$%d\r\n" % value_bytes + b"\r\n") + ASKED_COUNT * value_bytes
    count = 0
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        connection.settimeout(hold_s)
        connection.connect(address)
        with contextlib.suppress(ConnectionError, TimeoutError):
            connection.sendall(encode_command(b"GET", BIG_KEY) * ASKED_COUNT)
        time.sleep(hold_s)
        ending = Ending.CLOSED
        try:
            while data := connection.recv(MIB):
                count += len(data)
                if count == expected:
                    connection.settimeout(CLOSE_SEEN_S)  # Nothing but a close can follow.
        except ConnectionError:
            pass
        except TimeoutError:
            ending = Ending.WAITING
    is_all = "all" if count == expected else "a part"
    return Outcome(f"{is_all} of {ASKED_COUNT} values", ending)


def slow_session() -> Hostile:
    """Return what `read_nothing` should come to.

    Redis closes it at its output limit. A server may as well execute nothing more until it reads, and
    then serve the rest. A server that keeps all replies looks the same; its memory tells.
    """
    return Hostile(
        f"asks for {ASKED_COUNT} values of 1 MiB, reads nothing",
        b"",
        (
            Outcome(f"a part of {ASKED_COUNT} values", Ending.CLOSED),
            Outcome(f"all of {ASKED_COUNT} values", Ending.WAITING),
        ),
    )


def _listen(connection: socket.socket, received: bytearray) -> Ending:
    """Read until the server closes or is silent; keep only the beginning of what comes."""
    try:
        while data := connection.recv(MIB):
            if len(received) < MIB:
                received += data
    except TimeoutError:
        return Ending.WAITING
    except ConnectionError:
        pass
    return Ending.CLOSED
