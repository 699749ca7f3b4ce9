"""From a command's syntax in Redis' notation to the argument tree of COMMAND DOCS.

redis-cli makes its hints of that tree.

It checks no command line and looks up no command. The notation:

    word                    a value; in capitals, or a sign such as `*`: a token that stands for itself
    word:type               a value whose type does not follow from its name: `increment:double`
    a b                     both, in this order
    [a]                     may be left out
    <a | b>, [a | b]        one of them
    TOKEN word, TOKEN <...> the token belongs to what follows
    a [a ...]               one or more, as in `key [key ...]` and `key value [key value ...]`
    TOKEN a [a ...]         the token once: `ID client-id [client-id ...]`
    TOKEN a [TOKEN a ...]   the token each time: `PREFIX prefix [PREFIX prefix ...]`

Two steps. The text becomes groups of sequences of items, which mirror the brackets. Then each group
becomes arguments: a token takes what follows it, a repetition marks what it repeats, alternatives
become a `oneof` and sequences a `block`. What stands in brackets with `...` must have been written
before it, without them: so a slip in a declaration raises UsageError, and a test reads them all.

Core: no I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeGuard

TYPES: Final = frozenset(("string", "integer", "double", "pattern", "unix-time", "key"))
KEY_NAMES: Final = frozenset(("key", "key1", "key2", "newkey", "source", "destination", "destkey"))
# What a value's name says of its type, in all commands; the others are strings.
INTEGER_NAMES: Final = frozenset(
    (
        "bit", "client-id", "count", "cursor", "db", "decrement", "destination-db", "end", "increment", "index",
        "index1", "index2", "len", "length", "milliseconds", "numkeys", "numreplicas", "offset", "protover", "seconds",
        "start", "stop", "timeout",
    )
)  # fmt: skip
NAMED_TYPES: Final = {
    **dict.fromkeys(INTEGER_NAMES, "integer"),
    "pattern": "pattern",
    "unix-time-seconds": "unix-time",
    "unix-time-milliseconds": "unix-time",
}
_LEXEME: Final = re.compile(r"\.\.\.|[\[\]<>|]|[^\s\[\]<>|]+")
_CLOSING: Final = {"[": "]", "<": ">", "": ""}


class UsageError(ValueError):
    """A usage text that is not in the notation: a mistake in a command's declaration."""


@dataclass(slots=True)
class Argument:
    """One node of the tree, with the fields of COMMAND DOCS. `arguments` are those of a `oneof` or `block`.

    `key_spec` counts the command's key specifications from 0, -1 where it is no key.
    """

    name: str
    type: str
    token: str = ""
    key_spec: int = -1
    is_optional: bool = False
    is_multiple: bool = False
    is_token_repeated: bool = False
    arguments: list[Argument] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Group:
    """What stood between brackets: alternatives, each a sequence. `opening` is empty for the whole text."""

    opening: str
    alternatives: tuple[tuple[_Item, ...], ...]

    @property
    def is_repetition(self) -> bool:
        """`[a ...]`."""
        return self.opening == "[" and self.alternatives[-1][-1:] == ("...",)

    @property
    def repeated(self) -> tuple[tuple[_Item, ...], ...]:
        """What a repetition repeats: its alternatives without the dots."""
        return (*self.alternatives[:-1], self.alternatives[-1][:-1])


_Item: TypeAlias = "str | _Group"
_Sequence: TypeAlias = tuple[_Item, ...]


def parse(usage: str, *, key_spec_count: int = 0) -> list[Argument]:
    """The arguments of a command with that syntax and so many key specifications. Raises UsageError."""
    lexemes = _LEXEME.findall(usage)
    group, end = _read_group(lexemes, 0, "")
    if end != len(lexemes):
        raise UsageError(f"unbalanced {lexemes[end]} in: {usage}")
    builder = _Builder(key_spec_count)
    if len(group.alternatives) > 1:
        return [builder.group(group)]
    return builder.sequence(group.alternatives[0])


def _read_group(lexemes: list[str], at: int, opening: str) -> tuple[_Group, int]:
    """What stands from `at` to the closing bracket, and where that bracket is."""
    alternatives: list[_Sequence] = []
    items: list[_Item] = []
    while at < len(lexemes) and lexemes[at] not in ("]", ">"):
        lexeme = lexemes[at]
        if lexeme == "|":
            alternatives.append(tuple(items))
            items = []
        elif lexeme in ("[", "<"):
            inner, at = _read_group(lexemes, at + 1, lexeme)
            if at == len(lexemes) or lexemes[at] != _CLOSING[lexeme]:
                raise UsageError(f"{lexeme} is not closed in: {' '.join(lexemes)}")
            items.append(inner)
        else:
            items.append(lexeme)
        at += 1
    alternatives.append(tuple(items))
    if opening and not all(alternatives):
        raise UsageError(f"an empty alternative in: {' '.join(lexemes)}")
    return _Group(opening, tuple(alternatives)), at


def _is_token(item: _Item) -> bool:
    return isinstance(item, str) and not any(char.islower() for char in item)


class _Builder:
    """Makes arguments of groups. It counts keys on its way: the first belongs to the first specification, and so on."""

    def __init__(self, key_spec_count: int) -> None:
        self._key_spec_count = key_spec_count
        self._key_count = 0

    def group(self, group: _Group) -> Argument:
        """One argument that stands for all that is in the brackets."""
        alternatives = list(group.alternatives)
        last = alternatives[-1]
        repetition = last[-1] if last else ""
        is_multiple = False
        if _is_repetition(repetition) and len(repetition.repeated) > 1:
            alternatives[-1] = last[:-1]
            if repetition.repeated != tuple(alternatives):
                raise UsageError(f"what is repeated was not written before: {repetition.repeated}")
            is_multiple = True
        members = [_single(self.sequence(sequence)) for sequence in alternatives]
        result = members[0] if len(members) == 1 else _joined("oneof", members)
        result.is_multiple |= is_multiple
        result.is_optional |= group.opening == "["
        return result

    def sequence(self, items: _Sequence) -> list[Argument]:
        """The arguments of what stands side by side."""
        arguments: list[Argument] = []
        starts: list[int] = []  # Where in `items` each argument begins.
        at = 0
        while at < len(items):
            item = items[at]
            if _is_repetition(item):
                self._repeat(item, items[:at], arguments, starts)
                at += 1
                continue
            starts.append(at)
            if _is_token(item):
                argument, at = self._with_token(items, at)
                arguments.append(argument)
            else:
                arguments.append(self._value(item))
                at += 1
        return arguments

    def _with_token(self, items: _Sequence, at: int) -> tuple[Argument, int]:
        """The argument that begins with the token at `at`, and where the next one begins."""
        token = items[at]
        assert isinstance(token, str)
        end = at + 1
        while end < len(items) and _takes_token(items[end]):
            end += 1
        values = items[at + 1 : end]
        is_whole = at == 0 and all(_is_repetition(item) for item in items[end:])
        if len(values) > 1 and is_whole:
            result = _joined("block", [self._value(item) for item in values])
        elif values:
            result, end = self._value(values[0]), at + 2
        else:
            return Argument(token.lower(), "pure-token", token), at + 1
        result.token = token
        return result, end

    def _value(self, item: _Item) -> Argument:
        if isinstance(item, _Group):
            return self.group(item)
        name, _, kind = item.rpartition(":")
        if kind not in TYPES or not name:
            name = item
            is_key = bool(self._key_spec_count) and name in KEY_NAMES
            kind = "key" if is_key else NAMED_TYPES.get(name, "string")
        if kind != "key":
            return Argument(name, kind)
        spec = min(self._key_count, self._key_spec_count - 1)
        self._key_count += 1
        return Argument(name, "key", key_spec=spec)

    @staticmethod
    def _repeat(
        group: _Group, before: _Sequence, arguments: list[Argument], starts: list[int]
    ) -> None:
        """Mark what `group` repeats, which stands at the end of `before`, as multiple."""
        if len(group.repeated) != 1 or before[-len(group.repeated[0]) :] != group.repeated[0]:
            raise UsageError(f"what is repeated was not written before: {group.repeated}")
        first = len(before) - len(group.repeated[0])
        # A token that is not repeated stands just before what is, in the same argument.
        is_behind_token = first > 0 and first - 1 in starts and _is_token(before[first - 1])
        at = starts.index(first - 1 if is_behind_token else first)
        if len(arguments) - at > 1:
            arguments[at:] = [_joined("block", arguments[at:])]
            del starts[at + 1 :]
        arguments[at].is_multiple = True
        arguments[at].is_token_repeated = bool(arguments[at].token) and not is_behind_token


def _takes_token(item: _Item) -> bool:
    """Whether a token before this belongs to it."""
    return not _is_token(item) if isinstance(item, str) else item.opening == "<"


def _is_repetition(item: _Item) -> TypeGuard[_Group]:
    return isinstance(item, _Group) and item.is_repetition


def _single(arguments: list[Argument]) -> Argument:
    return arguments[0] if len(arguments) == 1 else _joined("block", arguments)


def _joined(kind: str, members: list[Argument]) -> Argument:
    return Argument("_".join(member.name for member in members), kind, arguments=members)
