"""Replies as redis-cli shows them in a terminal, and commands as one types them for it.

It sends nothing. Replies are those of `hiredis.Reader` in RESP2: bytes, integers, None, lists, error objects.

Core.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any, Final

import hiredis

_ESCAPES: Final = {
    ord("\\"): "\\\\", ord('"'): '\\"', ord("\n"): "\\n", ord("\r"): "\\r",
    ord("\t"): "\\t", ord("\a"): "\\a", ord("\b"): "\\b",
}  # fmt: skip
_STATUS: Final = re.compile(rb"OK|QUEUED|PONG")
PORT: Final = 6379


def reply_text(reply: Any, indent: int = 0) -> str:
    """A reply, without a line break at its end. What looks like a status is taken for one."""
    if reply is None:
        return "(nil)"
    if isinstance(reply, hiredis.ReplyError):
        return f"(error) {reply}"
    if isinstance(reply, int):
        return f"(integer) {reply}"
    if isinstance(reply, bytes):
        return reply.decode() if not indent and _STATUS.fullmatch(reply) else quoted(reply)
    if not reply:
        return "(empty array)"
    width = len(str(len(reply)))
    head = width + 2
    lines = []
    for number, item in enumerate(reply, 1):
        blanks = " " * indent if number > 1 else ""
        lines.append(f"{blanks}{number:>{width}}) {reply_text(item, indent + head)}")
    return "\n".join(lines)


def quoted(value: bytes) -> str:
    """Bytes between double quotes, escaped."""
    shown = "".join(
        _ESCAPES.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}")
        for byte in value
    )
    return f'"{shown}"'


def command_text(words: Sequence[str], host: str, port: int) -> str:
    """A command line that a shell takes. What redis-cli assumes is left out."""
    place = [] if host in ("127.0.0.1", "localhost") else ["-h", host]
    place += [] if port == PORT else ["-p", str(port)]
    return shlex.join(["redis-cli", *place, *words])


def fields(reply: Any) -> dict[str, Any]:
    """A map that came as a flat array. Names become text; values stay as they are."""
    return {reply[at].decode(): reply[at + 1] for at in range(0, len(reply) - 1, 2)}
