"""The rows that a command touches, by its keys and the databases that it names.

Nearly always that is one row for each key, in the session's database. MOVE and COPY with DB name another
one; what is wrong with such an argument the handler says, so here it changes nothing.

Core.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.round import Place
from cluster.slot import DATABASE_COUNT, row_of, slot_of
from respkv.command import Command
from respkv.number import integer_or_none
from respkv.spread_part import PARTS, places_of_part


def places_of(
    command: Command, args: list[bytes], db: int, databases: Sequence[int]
) -> list[Place]:
    """The rows of a command; `db` is the physical database that it runs in."""
    if PARTS.get(args[0]) is command:
        return places_of_part(command, args)
    if not command.is_keyed:
        return []
    places = [(slot_of(args[at]), row_of(db, args[at])) for at in command.key_positions(args)]
    if command.name in ("MOVE", "COPY"):
        other = _named_database(command.name, args, databases)
        if other is not None:
            key = args[1 if command.name == "MOVE" else 2]
            del places[1:]  # COPY's destination is in the other database.
            places.append((slot_of(key), row_of(other, key)))
    return places


def _named_database(name: str, args: list[bytes], databases: Sequence[int]) -> int | None:
    """The physical database that is named, if one is. The last one counts."""
    texts: list[bytes] = []
    if name == "MOVE":
        texts = args[2:3]
    else:
        texts = [args[at + 1] for at in range(3, len(args) - 1) if args[at].upper() == b"DB"]
    number = integer_or_none(texts[-1]) if texts else None
    return databases[number] if number is not None and 0 <= number < DATABASE_COUNT else None
