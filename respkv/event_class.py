"""The classes of keyspace events, and the letters that name them in `notify-keyspace-events`.

Core. Source: redis-server 7.0's answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from respkv.setting import Kind, Rejected

KEYSPACE: Final = 1  # K
KEYEVENT: Final = 2  # E
GENERIC: Final = 4  # g
STRING: Final = 8  # $
EXPIRED: Final = 16  # x
NEW: Final = 32  # n
MISS: Final = 64  # m
# Of types that do not exist here, and of eviction, which does not either: accepted, and never said.
OTHERS: Final = {"l": 128, "s": 256, "h": 512, "z": 1024, "e": 2048, "t": 4096, "d": 8192}

_LETTERS: Final = {"g": GENERIC, "$": STRING, "x": EXPIRED, **OTHERS}
_ALL_SHOWN: Final = "g$lshzxetd"  # The order in which Redis shows them.
_ALL: Final = sum(_LETTERS.values())
_EXTRA: Final = {"n": NEW, "K": KEYSPACE, "E": KEYEVENT, "m": MISS}
LETTERS: Final = "Ag$lshzxeKEtmdn"


def parse_flags(text: str) -> int | None:
    """The classes that letters name; None if one of them is unknown."""
    flags = 0
    for letter in text:
        flag = _ALL if letter == "A" else (_LETTERS.get(letter) or _EXTRA.get(letter))
        if flag is None:
            return None
        flags |= flag
    return flags


def show_flags(flags: int) -> str:
    """The letters of some classes, as Redis shows them."""
    shown = "A" if flags & _ALL == _ALL else ""
    if not shown:
        shown = "".join(letter for letter in _ALL_SHOWN if flags & _LETTERS[letter])
    return shown + "".join(letter for letter, flag in _EXTRA.items() if flags & flag)


@dataclass(frozen=True)
class EventClasses(Kind[str]):
    """Letters of classes, kept in Redis' order."""

    def allowed(self) -> str:
        return f'letters of "{LETTERS}"'

    def check(self, value: object) -> str:
        flags = parse_flags(value) if isinstance(value, str) else None
        if flags is None:
            raise self._rejected()
        return show_flags(flags)

    def from_redis(self, text: str) -> str:
        if parse_flags(text) is None:
            raise Rejected(f"Invalid event class character. Use '{LETTERS}'.")
        return self.check(text)
