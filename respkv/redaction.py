"""Command lines as people may see them: passwords become `(redacted)`, as in Redis.

MONITOR and SLOWLOG show what clients sent, and neither is a place for secrets. Settings that are
secret are known to the slow log alone: MONITOR shows no CONFIG.

Core: no I/O.
"""

from __future__ import annotations

from typing import Final

REDACTED: Final = b"(redacted)"


def redacted(args: list[bytes]) -> list[bytes]:
    """A command line (name first) without its secrets; the same list if it has none."""
    match args[0].upper():
        case b"AUTH":
            return _hide(args, range(1, len(args)))
        case b"HELLO":
            return _hide(args, _behind(args, b"AUTH", 2))
        case b"ACL" if len(args) > 3 and args[1].upper() == b"SETUSER":
            return _hide(args, range(2, len(args)))
    return args


def _behind(args: list[bytes], option: bytes, count: int) -> list[int]:
    """Where the `count` arguments behind an option stand, wherever it occurs."""
    return [
        at + 1 + offset
        for at, arg in enumerate(args)
        if arg.upper() == option
        for offset in range(count)
        if at + 1 + offset < len(args)
    ]


def _hide(args: list[bytes], positions: range | list[int]) -> list[bytes]:
    shown = list(args)
    for at in positions:
        shown[at] = REDACTED
    return shown
