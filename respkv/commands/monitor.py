"""MONITOR, and the line that it shows of each command."""

from __future__ import annotations

import re
from typing import Final

from respkv.command import Flag, command
from respkv.context import Context
from respkv.redaction import redacted
from respkv.reply import NO_REPLY, OK, Reply, ReplyError
from respkv.session import MONITORING, Session

_ESCAPES: Final = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 13: "\\r", 34: '\\"', 92: "\\\\"}
_UNPRINTABLE: Final = re.compile(rb"[^ !#-\[\]-~]")


@command(
    "MONITOR", arity=1, flags=Flag.ADMIN | Flag.NOSCRIPT | Flag.LOADING | Flag.STALE, since="1.0.0",
    group="server", complexity="",
)  # fmt: skip
def monitor(ctx: Context) -> Reply:
    """Show every command that the server executes, as it happens."""
    session = ctx.session
    if ctx.is_atomic:
        raise ReplyError("ERR MONITOR isn't allowed for DENY BLOCKING client")
    if session.mode & MONITORING:
        return NO_REPLY
    session.mode |= MONITORING
    ctx.node.monitors[session] = None
    ctx.node.observe_changed()
    return OK


def monitor_line(session: Session, args: list[bytes], wall_ns: int) -> bytes:
    """One line of MONITOR: time, database, client, and the arguments quoted, without passwords."""
    quoted = b" ".join(quote(arg) for arg in redacted(args))
    at = b"%d.%06d" % (wall_ns // 1_000_000_000, wall_ns // 1000 % 1_000_000)
    return b"+%b [%d %b] %b\r\n" % (at, session.db, session.peer.encode(), quoted)


def quote(arg: bytes) -> bytes:
    """Bytes in double quotes, with escapes for what cannot be printed."""
    return b'"%b"' % _UNPRINTABLE.sub(_escaped, arg)


def _escaped(match: re.Match[bytes]) -> bytes:
    byte = match[0][0]
    return _ESCAPES.get(byte, f"\\x{byte:02x}").encode()
