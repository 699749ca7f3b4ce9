"""Redis' glob patterns on bytes: `*`, `?`, `[abc]`, `[a-z]`, `[^a]` and an escaping backslash.

It is not `fnmatch`: the corner cases are those of Redis 7.0 on x86, found by asking it.

- A class ends at the first `]`, even right behind `[`: `[]` matches nothing and `[^]` anything.
  Without `]` it ends with the pattern.
- `[a-]` is a range up to `]`. Ranges may be upside down, and compare bytes as signed numbers.
- In a class an escaped byte keeps its case when case is ignored.
- A pattern with a wildcard never matches nothing, except `*` itself: so `**` does not match the
  empty key.

A pattern becomes a list of tokens: the set of bytes that one byte of the text may be, or STAR.
Between two stars the first match is as good as any later one, so a regular expression with atomic
groups decides in time proportional to text times pattern, whatever the number of stars. Patterns
too long to compile quickly are matched token by token, by the same rule.

Core: no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

Matcher = Callable[[bytes], object]  # True in a boolean sense if the text matches.
Token = frozenset[int] | None

STAR: Final = None
ANY: Final = frozenset(range(256))
COMPILED_BYTES_MAX: Final = (
    512  # Longer patterns would take the regular expression compiler milliseconds.
)
_SINGLES: Final = [frozenset((byte,)) for byte in range(256)]


def matcher(pattern: bytes, *, ignore_case: bool = False) -> Matcher:
    """A function that tells whether a text matches."""
    if len(pattern) > COMPILED_BYTES_MAX:
        tokens = parse(pattern, ignore_case=ignore_case)
        return lambda text: _matches(tokens, text)
    return _compiled(pattern, ignore_case=ignore_case)


def literal(pattern: bytes) -> bytes | None:
    """The only text that a pattern matches, or None if it has wildcards."""
    prefix, is_whole = _literal_start(pattern)
    return prefix if is_whole else None


def literal_prefix(pattern: bytes) -> bytes:
    """What every text that matches begins with."""
    return _literal_start(pattern)[0]


def parse(pattern: bytes, *, ignore_case: bool = False) -> list[Token]:
    """The tokens of a pattern; stars in a row are one."""
    tokens: list[Token] = []
    at, end = 0, len(pattern)
    while at < end:
        byte = pattern[at]
        if byte == 0x2A:  # *
            if not tokens or tokens[-1] is not STAR:
                tokens.append(STAR)
        elif byte == 0x3F:  # ?
            tokens.append(ANY)
        elif byte == 0x5B:  # [
            token, at = _parse_class(pattern, at + 1, ignore_case=ignore_case)
            tokens.append(token)
        else:
            if byte == 0x5C and at + 1 < end:  # \
                at += 1
                byte = pattern[at]
            tokens.append(_both_cases(byte) if ignore_case else _SINGLES[byte])
        at += 1
    return tokens


def _parse_class(pattern: bytes, at: int, *, ignore_case: bool) -> tuple[frozenset[int], int]:
    """The bytes of a class that begins at `at`, and the index of its last byte."""
    end = len(pattern)
    is_negated = pattern[at : at + 1] == b"^"
    at += is_negated
    members: set[int] = set()
    while at < end and pattern[at] != 0x5D:  # ]
        if pattern[at] == 0x5C and at + 1 < end:  # \
            at += 1
            members.add(pattern[at])
        elif at + 2 < end and pattern[at + 1] == 0x2D:  # -
            members |= _parse_range(pattern[at], pattern[at + 2], ignore_case=ignore_case)
            at += 2
        else:
            members |= _both_cases(pattern[at]) if ignore_case else _SINGLES[pattern[at]]
        at += 1
    return (ANY - members if is_negated else frozenset(members)), at


def _parse_range(first: int, last: int, *, ignore_case: bool) -> set[int]:
    low, high = sorted((_signed(first), _signed(last)))
    if not ignore_case:
        return {byte for byte in range(256) if low <= _signed(byte) <= high}
    low, high = _lower(low), _lower(high)
    return {byte for byte in range(256) if low <= _lower(_signed(byte)) <= high}


def _signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def _lower(byte: int) -> int:
    return byte + 32 if 65 <= byte <= 90 else byte


def _both_cases(byte: int) -> frozenset[int]:
    return frozenset(other for other in range(256) if _lower(other) == _lower(byte))


def _literal_start(pattern: bytes) -> tuple[bytes, bool]:
    """The literal bytes that a pattern begins with, and whether that is all of it."""
    text = bytearray()
    at, end = 0, len(pattern)
    while at < end:
        byte = pattern[at]
        if byte in b"*?[":
            return bytes(text), False
        if byte == 0x5C and at + 1 < end:
            at += 1
            byte = pattern[at]
        text.append(byte)
        at += 1
    return bytes(text), True


@lru_cache(maxsize=128)
def _compiled(pattern: bytes, *, ignore_case: bool) -> Matcher:
    if pattern == b"*":
        return lambda text: True
    tokens = parse(pattern, ignore_case=ignore_case)
    if not ignore_case:
        prefix, is_whole = _literal_start(pattern)
        if is_whole:
            return prefix.__eq__
        if prefix and len(tokens) == len(prefix) + 1 and tokens[-1] is STAR:
            return lambda text: text.startswith(prefix)
    return re.compile(_expression(tokens), re.DOTALL).fullmatch


def _expression(tokens: list[Token]) -> bytes:
    """The same as a regular expression. What a star leads to is atomic, but for the last part."""
    segments: list[list[bytes]] = [[]]
    for token in tokens:
        if token is STAR:
            segments.append([])
        else:
            segments[-1].append(_set_expression(token))
    first, *rest = (b"".join(segment) for segment in segments)
    if not rest:
        return first
    last = rest.pop()
    middle = b"".join(b"(?>.*?%b)" % segment for segment in rest)
    some = b"" if first or middle or last else b"(?=.)"  # Stars alone want something to match.
    return first + middle + some + b".*" + last


def _set_expression(token: frozenset[int]) -> bytes:
    if token is ANY or len(token) == 256:
        return b"."
    if not token:
        return b"(?!)"
    if len(token) == 1:
        return re.escape(bytes(token))
    return b"[" + b"".join(b"\\x%02x" % byte for byte in sorted(token)) + b"]"


def _matches(tokens: list[Token], text: bytes) -> bool:
    """Whether a text matches. It goes back to the last star only: earlier ones had their best."""
    if not text:
        return not tokens
    at = index = 0
    star, star_at = -1, 0
    while at < len(text):
        if index < len(tokens):
            token = tokens[index]
            if token is STAR:
                star, star_at = index, at
                index += 1
                continue
            if text[at] in token:
                at += 1
                index += 1
                continue
        if star < 0:
            return False
        star_at += 1
        at, index = star_at, star + 1
    return all(token is STAR for token in tokens[index:])
