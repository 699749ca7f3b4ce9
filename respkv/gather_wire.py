"""What nodes ask each other for commands on the whole keyspace, as bytes.

    GATHER.ASK number kind ms expires_ms db stretches count argument*
    GATHER.TOLD number position count key*
    GATHER.NOT number error                 an error line for the client; nothing or a part was done
    GATHER.CLOCKS number (first end hash)*  who has the same clocks of these windows? `respkv/gather_clock.py`
    GATHER.SEEN number (index clocks)*      all the same but these, counted from 0

A *position* is that of SCAN's cursor: slot << 48 | hash of a key, END after the last slot. A *stretch* is a
range of positions, its end excluded. An answer's position says how far it got: all before it is done.

    kind    does                                        count      answers
    s       lists keys; arguments are SCAN's options    rows       rows looked at, keys
    c       counts live keys                                       keys
    r       picks a key at random                                  1 and the key, or 0
    f       removes keys; db -1 means all databases                keys removed

`ms` is what is left of the asker's patience; `expires_ms` a time since 1970 behind which nothing may be
removed any more, for then the asker may have asked another node.

Core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

from cluster.slot import HASH_BYTES, SLOT_COUNT, Key

ASK: Final = b"GATHER.ASK"
TOLD: Final = b"GATHER.TOLD"
NOT: Final = b"GATHER.NOT"
CLOCKS: Final = b"GATHER.CLOCKS"
SEEN: Final = b"GATHER.SEEN"

SCAN: Final = b"s"
COUNT: Final = b"c"
RANDOM: Final = b"r"
FLUSH: Final = b"f"
KINDS: Final = (SCAN, COUNT, RANDOM, FLUSH)

HASH_BITS: Final = 8 * HASH_BYTES
END: Final = SLOT_COUNT << HASH_BITS
ALL_DATABASES: Final = -1
STRETCHES_MAX: Final = 4096

Position = int
Stretch = tuple[Position, Position]
_STRETCH: Final = Struct("<QQ")


@dataclass(frozen=True, slots=True)
class Question:
    """What one node is asked. `stretches` are in order."""

    kind: bytes
    db: int
    stretches: tuple[Stretch, ...]
    count: int = 0
    arguments: tuple[bytes, ...] = ()

    def encode(self, number: int, ms: int, expires_ms: int) -> list[bytes]:
        packed = b"".join(_STRETCH.pack(*stretch) for stretch in self.stretches)
        numbers = [b"%d" % n for n in (ms, expires_ms, self.db)]
        return [
            *(ASK, b"%d" % number, self.kind),
            *numbers,
            *(packed, b"%d" % self.count),
            *self.arguments,
        ]


@dataclass(frozen=True, slots=True)
class Answer:
    """How far a node got, and what it found on the way."""

    position: Position
    count: int
    keys: Sequence[Key] = ()

    def encode(self, number: bytes) -> list[bytes]:
        return [TOLD, number, b"%d" % self.position, b"%d" % self.count, *self.keys]


def parse_question(message: Sequence[bytes]) -> tuple[Question, int, int]:
    """The question, its `ms` and its `expires_ms`. Raises ValueError, IndexError."""
    kind, packed = message[2], message[6]
    if kind not in KINDS or len(packed) % _STRETCH.size:
        raise ValueError("a question of no known kind")
    stretches = tuple(_STRETCH.iter_unpack(packed))
    last = 0
    for start, end in stretches:
        if not last <= start < end <= END:
            raise ValueError("stretches out of order")
        last = end
    if not stretches or len(stretches) > STRETCHES_MAX:
        raise ValueError("too many stretches, or none")
    question = Question(kind, int(message[5]), stretches, int(message[7]), tuple(message[8:]))
    return question, int(message[3]), int(message[4])


def parse_answer(message: Sequence[bytes]) -> Answer:
    """Raises ValueError, IndexError."""
    return Answer(int(message[2]), int(message[3]), message[4:])


def behind(stretches: Sequence[Stretch], position: Position) -> list[Stretch]:
    """What is left of stretches from a position on."""
    return [(max(start, position), end) for start, end in stretches if end > position]


def whole(first: int, end: int) -> Stretch:
    """All of some slots; `end` is the one after the last."""
    return first << HASH_BITS, end << HASH_BITS
