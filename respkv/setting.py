"""What a setting is: its kind, its bounds, and the one declaration that all else is made from.

Not the settings themselves (`sections.py`), and not where their values come from (`config.py`).
This is a core: plain data, no I/O.

A setting is declared once, as a field of a section's dataclass::

    clients_max: int = setting(Integer(1, 1_000_000), 10_000, "Clients.", redis="maxclients")

From that line come the check of the file, the error text, CONFIG GET and SET, CONFIG REWRITE and
the documented file. The *kind* knows what is allowed, in three spellings:

- `check`: a TOML value, as the file has it. Sizes may be strings with a unit.
- `parse`: one word, as `--set section.key=value` and CONFIG SET section.key have it.
- `from_redis`, `to_redis`: what Redis' own name of the setting takes and shows: yes and no, sizes
  where `1k` is 1000 and `1kb` is 1024, and Redis' words for what is wrong.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,18})")
_SIZE = re.compile(r"([0-9]{1,19}) ?(B|[KMGT]B|[KMGT]iB)?")
_REDIS_SIZE = re.compile(r"([0-9]{1,19})(b|kb?|mb?|gb?)?", re.IGNORECASE)
_HOST = re.compile(r"[0-9A-Za-z_.:%-]{1,255}")

_BINARY_UNITS = {"TiB": 1 << 40, "GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10}
_UNITS = _BINARY_UNITS | {"TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3, "B": 1}
_REDIS_UNITS = {"b": 1, "k": 10**3, "m": 10**6, "g": 10**9} | {
    "kb": 1 << 10,
    "mb": 1 << 20,
    "gb": 1 << 30,
}


class ConfigError(Exception):
    """A configuration that cannot be used. `line` tells a person where, what and what is allowed.

    The command line prints it and ends with status 2; CONFIG SET answers it.
    """

    def __init__(self, line: str) -> None:
        super().__init__(line)
        self.line = line


class Rejected(ValueError):
    """A value that its kind does not allow. Its text says what is; the caller adds the name."""


def size_text(size_bytes: int) -> str:
    """Return a size in the largest binary unit that divides it: `64MiB`, or `1000` if none does."""
    for unit, factor in _BINARY_UNITS.items():
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return str(size_bytes)


def toml_text(value: object) -> str:
    """Return a value as TOML has it, on one line and cut short, for messages and documents."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        text = "[" + ", ".join(toml_text(item) for item in value) + "]"
    elif isinstance(value, str):
        text = json.dumps(value, ensure_ascii=not value.isprintable())
    elif isinstance(value, dict):
        return "a table"
    else:
        text = str(value)
    return text if len(text) <= 100 else text[:97] + "..."


class Kind(ABC, Generic[T]):
    """What values a setting may have, and how they are spelled."""

    @abstractmethod
    def allowed(self) -> str:
        """Return what is allowed, as words that follow "must be"."""

    @abstractmethod
    def check(self, value: object) -> T:
        """Return the setting's value for a TOML value, or raise `Rejected`."""

    def parse(self, text: str) -> T:
        """Return the setting's value for one word, or raise `Rejected`."""
        return self.check(text)

    def literal(self, value: T) -> object:
        """Return the value as it is written into a TOML file."""
        return value

    def show(self, value: T) -> str:
        """Return the value as a word that `parse` takes."""
        return str(value)

    def from_redis(self, text: str) -> T:
        """Return the value for what CONFIG SET got under Redis' name, or raise `Rejected`."""
        return self.parse(text)

    def to_redis(self, value: T) -> str:
        """Return what CONFIG GET answers under Redis' name."""
        return self.show(value)

    def _rejected(self) -> Rejected:
        return Rejected(f"must be {self.allowed()}")


@dataclass(frozen=True)
class Integer(Kind[int]):
    """A whole number from `low` to `high`, both allowed."""

    low: int
    high: int
    unit: str = ""

    def allowed(self) -> str:
        if self.low == self.high:
            return str(self.low)
        unit = f", in {self.unit}" if self.unit else ""
        return f"an integer from {self.low} to {self.high}{unit}"

    def check(self, value: object) -> int:
        if type(value) is int and self.low <= value <= self.high:
            return value
        raise self._rejected()

    def parse(self, text: str) -> int:
        return self.check(int(text) if _INTEGER.fullmatch(text) else text)

    def from_redis(self, text: str) -> int:
        if not _INTEGER.fullmatch(text) or not -(2**63) <= int(text) < 2**63:
            raise Rejected("argument couldn't be parsed into an integer")
        return self._within_redis_bounds(int(text))

    def _within_redis_bounds(self, value: int) -> int:
        if not self.low <= value <= self.high:
            raise Rejected(f"argument must be between {self.low} and {self.high} inclusive")
        return value


@dataclass(frozen=True)
class Size(Integer):
    """A count of bytes. In TOML an integer, or a string with a unit: MB is 10^6, MiB is 2^20.

    Units are spelled exactly so: `64mb` would be 2^26 to a Redis user and 64 * 10^6 to others.
    """

    def allowed(self) -> str:
        bounds = f"{size_text(self.low)} to {size_text(self.high)}"
        return f'a size from {bounds}, in bytes or such as "64MiB" or "64MB"'

    def check(self, value: object) -> int:
        if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
            value = int(match[1]) * _UNITS[match[2] or "B"]
        return super().check(value)

    def parse(self, text: str) -> int:
        return self.check(text)

    def literal(self, value: int) -> object:
        text = size_text(value)
        return value if text.isdigit() else text

    def from_redis(self, text: str) -> int:
        match = _REDIS_SIZE.fullmatch(text)
        if match is None:
            raise Rejected("argument must be a memory value")
        factor = _REDIS_UNITS[(match[2] or "b").lower()]
        return self._within_redis_bounds(int(match[1]) * factor)


@dataclass(frozen=True)
class Number(Kind[float]):
    """A number from `low` to `high`, with or without a fraction."""

    low: float
    high: float
    unit: str = ""

    def allowed(self) -> str:
        unit = f", in {self.unit}" if self.unit else ""
        return f"a number from {self.low:g} to {self.high:g}{unit}"

    def check(self, value: object) -> float:
        if type(value) in (int, float):
            number = cast(float, value)
            if math.isfinite(number) and self.low <= number <= self.high:
                return float(number)
        raise self._rejected()

    def parse(self, text: str) -> float:
        try:
            return self.check(float(text))
        except ValueError:
            raise self._rejected() from None


@dataclass(frozen=True)
class Switch(Kind[bool]):
    """On or off."""

    def allowed(self) -> str:
        return "true or false"

    def check(self, value: object) -> bool:
        if isinstance(value, bool):
            return value
        raise self._rejected()

    def parse(self, text: str) -> bool:
        words = {"true": True, "yes": True, "false": False, "no": False}
        if text.lower() not in words:
            raise self._rejected()
        return words[text.lower()]

    def show(self, value: bool) -> str:
        return str(value).lower()

    def from_redis(self, text: str) -> bool:
        if text.lower() not in ("yes", "no"):
            raise Rejected("argument must be 'yes' or 'no'")
        return text.lower() == "yes"

    def to_redis(self, value: bool) -> str:
        return "yes" if value else "no"


@dataclass(frozen=True)
class Choice(Kind[str]):
    """One word of a few.

    `redis` gives Redis' words in Redis' order, each with ours. Where several mean one of ours,
    the last is shown; what has no word of Redis shows its last one. `later` gives words that a
    user may expect, each with what it waits for.
    """

    words: tuple[str, ...]
    redis: tuple[tuple[str, str], ...] = ()
    later: tuple[tuple[str, str], ...] = ()

    def allowed(self) -> str:
        words = ", ".join(f'"{word}"' for word in self.words)
        return words if len(self.words) == 1 else f"one of {words}"

    def check(self, value: object) -> str:
        if isinstance(value, str) and value in self.words:
            return value
        for word, why in self.later:
            if value == word:
                raise Rejected(f"must be {self.allowed()}: {why}")
        raise self._rejected()

    def from_redis(self, text: str) -> str:
        ours = dict(self.redis).get(text.lower())
        if ours is None:
            words = ", ".join(word for word, _ in self.redis)
            raise Rejected(f"argument(s) must be one of the following: {words}")
        return ours

    def to_redis(self, value: str) -> str:
        shown = {ours: word for word, ours in self.redis}
        return shown.get(value, self.redis[-1][0])


@dataclass(frozen=True)
class Text(Kind[str]):
    """A string of at most `bytes_max` bytes that matches `pattern`, described by `phrase`."""

    phrase: str
    bytes_max: int
    pattern: str = r"[^\0]*"
    redis_empty: str = ""
    """What Redis shows where ours is empty."""

    def allowed(self) -> str:
        return self.phrase

    def check(self, value: object) -> str:
        if isinstance(value, str) and re.fullmatch(self.pattern, value, re.DOTALL):
            try:
                if len(value.encode()) <= self.bytes_max:
                    return value
            except UnicodeEncodeError:  # A word of the command line that was not UTF-8.
                pass
        raise self._rejected()

    def to_redis(self, value: str) -> str:
        return value or self.redis_empty


NAME = Text(
    "1 to 64 letters, digits, dots, dashes and underscores, the first a letter or digit",
    64,
    "[0-9A-Za-z][0-9A-Za-z._-]{0,63}",
)
"""Names of nodes and clusters. They stand in messages, files and addresses of the bus."""


@dataclass(frozen=True)
class Host(Kind[str]):
    """One address or name of a machine that others connect to."""

    def allowed(self) -> str:
        return 'an address or name that the other nodes can connect to, such as "10.0.0.1"'

    def check(self, value: object) -> str:
        if _is_host(value) and value not in ("0.0.0.0", "::"):  # Those only listen.
            return cast(str, value)
        raise self._rejected()


@dataclass(frozen=True)
class Addresses(Kind[tuple[str, ...]]):
    """Addresses or names of interfaces to listen on."""

    count_max: int = 16

    def allowed(self) -> str:
        return f'a list of 1 to {self.count_max} addresses, such as ["127.0.0.1", "::1"]'

    def check(self, value: object) -> tuple[str, ...]:
        if isinstance(value, (list, tuple)) and all(_is_host(host) for host in value):
            hosts = tuple(dict.fromkeys(cast("list[str]", value)))
            if 1 <= len(hosts) <= self.count_max:
                return hosts
        raise self._rejected()

    def parse(self, text: str) -> tuple[str, ...]:
        return self.check(text.replace(",", " ").split())

    def literal(self, value: tuple[str, ...]) -> object:
        return list(value)

    def show(self, value: tuple[str, ...]) -> str:
        return " ".join(value)


def _is_host(value: object) -> bool:
    """Say whether this is an address or may be a host's name. Names are not looked up here."""
    if not isinstance(value, str) or not _HOST.fullmatch(value):
        return False
    if ":" not in value and value.strip("0123456789."):
        return True  # It has a letter: a name.
    import socket

    try:
        if ":" in value:
            socket.inet_pton(socket.AF_INET6, value.partition("%")[0])
        else:
            socket.inet_pton(socket.AF_INET, value)
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Setting:
    """One setting as declared, with its full name. `is_live`: CONFIG SET may change it."""

    section: str
    key: str
    kind: Kind[Any]
    default: Any
    doc: str
    redis: str | None
    is_live: bool
    is_secret: bool

    @property
    def name(self) -> str:
        return f"{self.section}.{self.key}"

    def shown(self, value: object) -> str:
        """Return `name = value` for a message, without the value if it is a secret."""
        return self.name if self.is_secret else f"{self.name} = {toml_text(value)}"


def setting(
    kind: Kind[T],
    default: T,
    doc: str,
    *,
    redis: str | None = None,
    is_live: bool = False,
    is_secret: bool = False,
) -> T:
    """Declare a field of a section's dataclass as a setting. `redis` is Redis' name for it."""
    declared = {"kind": kind, "doc": doc, "redis": redis}
    flags = {"is_live": is_live, "is_secret": is_secret}
    return dataclasses.field(default=default, metadata=declared | flags)


def settings_of(section: str, declared: type) -> list[Setting]:
    """Return the settings that a section's dataclass declares, in their order."""
    return [
        Setting(section=section, key=field.name, default=field.default, **field.metadata)
        for field in dataclasses.fields(declared)
        if field.metadata
    ]


def plain(name: str) -> str:
    """Return a name that a person wrote, quoted if it is strange or long."""
    return name if name.isprintable() and len(name) <= 60 else toml_text(name)


def near(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most like this one, or None if none is."""
    import difflib

    return next(iter(difflib.get_close_matches(word[:80], list(known), n=1, cutoff=0.7)), None)


def did_you_mean(name: str | None) -> str:
    """Return the end of a message about an unknown name; nothing if none is like it."""
    return f"; did you mean {name}?" if name else ""
