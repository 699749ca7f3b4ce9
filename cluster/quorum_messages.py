"""What a coordinator and the participants say to each other: each message a list of byte strings.

    WRITE id flags contexts blob       flags: c checked, u unchecked, a checked and all or nothing
                                       contexts: for slots with several writers u16 slot, u16 length, clock
                                       blob: entries as in the commit log (ENVELOPE, row, raw)
    REPAIR id (place state)*           whole rows, to be joined
    ACK id (place state)*              taken, but for these rows, of which the state is given
    READ id blob                       for each row u16 slot, u32 and u16 lengths, row, dots: `dots_of`
    SAME id                            all as the asker has it
    STATES id (number state)*          but for these, counted from 0
    NOT id reason                      cannot be answered here: incomplete, or the data is damaged
    SETTLED id place*                  of the WRITE of that number all rows count, or these (`cluster/held.py`)

Not what they do with it: `cluster/coordinator.py`, `cluster/participant.py`. The questions of an inquest
(`cluster/inquest.py`) and their answers have one argument more.

Core.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from cluster.delta_wire import MalformedDelta, record_of, unpack_place
from cluster.record import MANY, decode, pack_dots
from cluster.round import Place

WRITE: Final = b"WRITE"
REPAIR: Final = b"REPAIR"
ACK: Final = b"ACK"
READ: Final = b"READ"
SAME: Final = b"SAME"
STATES: Final = b"STATES"
NOT: Final = b"NOT"
SETTLED: Final = b"SETTLED"
QUESTION_HEAD: Final = Struct("<HIH")
QUESTION: Final = QUESTION_HEAD.pack
CHECKED: Final = b"c"
UNCHECKED: Final = b"u"
UNIT: Final = b"a"

# Reasons of NOT.
INCOMPLETE: Final = b"incomplete"  # It may have lost what it had.
UNREADABLE: Final = b"unreadable"
OVERFULL: Final = b"overfull"
UNDECIDED: Final = b"undecided"  # It wrote the row, and may have to take that back.


def dots_of(raw: bytes | None) -> bytes:
    """What identifies the state of a row: the dot of its only version, or all of them in order.

    Empty if there is no trace of it. Hot: the usual state is one version in the short form.
    """
    if not raw:
        return b""
    if not raw[0] & MANY:
        return raw[1:17]
    return pack_dots(decode(raw).dots)


def number_of(message: list[bytes]) -> int:
    if len(message) < 2 or not message[1].isdigit():
        raise MalformedDelta("a message without a number")
    return int(message[1])


def refused_of(message: list[bytes]) -> dict[Place, bytes]:
    """The rows of an acknowledgement that were not taken, with their states. Raises MalformedDelta."""
    refused = {}
    for at in range(2, len(message) - 1, 2):
        state = message[at + 1]
        if state:
            record_of(state)
        refused[unpack_place(message[at])] = state
    return refused
