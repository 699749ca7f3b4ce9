"""Rules for replies that differ by nature: what must be alike all the same.

Not the list of such replies: that is `natural`. A rule gets Redis' reply and respkv's. They differ in some byte, and
neither is an error or nil (those are always compared by their bytes). `lag_s` is how far apart the two may have been
answered, beyond the usual. A rule returns None, or what is wrong in a few words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

from .argument import KEYS
from .wire import Reply

Rule = Callable[[Reply, Reply, float], str | None]
SECONDS_APART_MAX = 1.0
MILLISECONDS_APART_MAX = 300.0

_DECIMAL = re.compile(rb"^-?\d+(\.\d+)?%?$")
_COMMAND_FIELDS = ("name", "arity", "flags", "first key", "last key", "step", "ACL categories")
_DOC_VALUES = (b"since", b"group")
# Of CLIENT LIST's fields, those that do not tell of memory, ages or file descriptors.
_CLIENT_VALUES = ("name", "db", "sub", "psub", "multi", "watch", "flags", "cmd", "user", "resp")


def _other_kind(left: Reply, right: Reply) -> str | None:
    return None if left.kind == right.kind else f"type {right.kind!r} instead of {left.kind!r}"


def _apart(left: Reply, right: Reply, most: float) -> str | None:
    if problem := integers(left, right, 0):
        return problem
    a, b = int(left.text), int(right.text)
    if a < 0 or b < 0:  # -1 and -2 say that there is no expiry, or no key.
        return None if a == b else f"{b} instead of {a}"
    return None if abs(a - b) <= most else f"{abs(a - b)} apart, {most:.0f} allowed"


def seconds_near(left: Reply, right: Reply, lag_s: float) -> str | None:
    """Times to live and moments in seconds."""
    return _apart(left, right, SECONDS_APART_MAX + lag_s)


def milliseconds_near(left: Reply, right: Reply, lag_s: float) -> str | None:
    """Times to live and moments in milliseconds."""
    return _apart(left, right, MILLISECONDS_APART_MAX + lag_s * 1000)


def integers(left: Reply, right: Reply, _lag_s: float) -> str | None:
    """Two integers of any value."""
    if left.kind != ":" or right.kind != ":":
        return "not an integer"
    return None


def identities(left: Reply, right: Reply, _lag_s: float) -> str | None:
    """Connection ids: each server counts its own, but 0 and -1 mean none and off in both."""
    if problem := integers(left, right, 0):
        return problem
    a, b = int(left.text), int(right.text)
    return None if a == b or (a > 0 and b > 0) else f"{b} instead of {a}"


def same_elements(left: Reply, right: Reply, _lag_s: float) -> str | None:
    """The same elements in any order."""
    if problem := _other_kind(left, right):
        return problem
    return _multiset_problem([i.raw for i in left.items], [i.raw for i in right.items])


def a_known_key(left: Reply, right: Reply, _lag_s: float) -> str | None:
    """One of the keys, or a number that stood where a key belongs. The runner asks in addition whether it exists."""
    is_known = right.text in KEYS or right.text.isdigit()
    return _other_kind(left, right) or (None if is_known else "not a key that was written")


def clock_time(left: Reply, right: Reply, lag_s: float) -> str | None:
    """TIME: seconds and microseconds as two strings."""
    if left.kind != right.kind or [i.kind for i in right.items] != ["$", "$"]:
        return "not an array of two strings"
    if not all(i.text.isdigit() for i in right.items):
        return "not digits"
    a, b = int(left.items[0].text), int(right.items[0].text)
    return None if abs(a - b) <= SECONDS_APART_MAX + lag_s else f"{abs(a - b)} s apart"


def prose(left: Reply, right: Reply, _lag_s: float) -> str | None:
    """Text for people: some text of the same type."""
    return _other_kind(left, right) or (None if right.text else "no text")


def help_lines(left: Reply, right: Reply, _lag_s: float) -> str | None:
    """HELP: an array of status lines, of which the first and the last two tell the form, not the subcommands."""
    if left.kind != right.kind or not right.items:
        return "not an array of lines"
    return (
        None if all(i.kind == left.items[0].kind for i in right.items) else "a line of another type"
    )


def info_fields(fields: dict[str, tuple[str, ...]], same: frozenset[str]) -> Rule:
    """INFO: where Redis shows one of `fields` by section, respkv must, in the same section, a number for a number.

    Fields in `same`, and those that start with `db`, have equal values (of `db`, the counts).
    """

    def rule(left: Reply, right: Reply, _lag_s: float) -> str | None:
        if problem := _other_kind(left, right):
            return problem
        ours, theirs = _info_sections(left.text), _info_sections(right.text)
        for section, names in fields.items():
            if section not in ours:
                continue
            if section not in theirs:
                return f"no section {section}"
            a, b = ours[section], theirs[section]
            for name in [*names, *(n for n in a if n.startswith("db"))]:
                if name not in a:
                    continue
                if name not in b:
                    return f"no field {name} in section {section}"
                if problem := _info_value_problem(name, a[name], b[name], same):
                    return problem
        return None

    return rule


def _info_value_problem(name: str, a: bytes, b: bytes, same: frozenset[str]) -> str | None:
    if name.startswith("db"):
        a, b = a.split(b",avg_ttl")[0], b.split(b",avg_ttl")[0]
        return None if a == b else f"{name}:{b.decode()} instead of {a.decode()}"
    if name in same:
        return None if a == b else f"{name}:{b!r} instead of {a!r}"
    if _DECIMAL.match(a) and not _DECIMAL.match(b):
        return f"{name}:{b!r} is not a number"
    return None


def _info_sections(text: bytes) -> dict[str, dict[str, bytes]]:
    sections: dict[str, dict[str, bytes]] = {}
    fields: dict[str, bytes] = {}
    for line in text.split(b"\r\n"):
        if line.startswith(b"# "):
            fields = sections.setdefault(line[2:].decode(), {})
        elif b":" in line:
            name, value = line.split(b":", 1)
            fields[name.decode()] = value
    return sections


def client_rows(left: Reply, right: Reply, _lag_s: float) -> str | None:
    """CLIENT LIST and CLIENT INFO: as many rows, in the order of ids, the telling fields equal.

    But for the flag `d`, a watched key has changed: respkv finds that out at EXEC.
    """
    if problem := _other_kind(left, right):
        return problem
    ours, theirs = _client_rows(left.text), _client_rows(right.text)
    if len(ours) != len(theirs):
        return f"{len(theirs)} clients instead of {len(ours)}"
    for a, b in zip(ours, theirs, strict=True):
        if missing := [name for name in a if name not in b]:
            return f"no field {', '.join(missing)}"
        for name in _CLIENT_VALUES:
            if a.get(name) != b.get(name):
                return f"{name}={b.get(name)} instead of {a.get(name)}"
    return None


def _client_rows(text: bytes) -> list[dict[str, str]]:
    lines = text.decode(errors="replace").splitlines()
    rows = [dict(field.partition("=")[::2] for field in line.split(" ")) for line in lines]
    for row in rows:
        if "flags" in row:
            row["flags"] = row["flags"].replace("d", "") or "N"
    return sorted(rows, key=lambda row: int(row.get("id", "0")))


def greeting(left: Reply, right: Reply, _lag_s: float) -> str | None:
    """HELLO: the same fields; the protocol, mode and role equal."""
    return _fields_problem(left, right, left.pairs, same=(b"proto", b"mode", b"role", b"modules"))


def tracking_info(left: Reply, right: Reply, _lag_s: float) -> str | None:
    """CLIENT TRACKINGINFO: all equal but the id of the connection that the messages go to."""
    a, b = left.pairs, right.pairs
    redirect = a.get(b"redirect"), b.get(b"redirect")
    if problem := _fields_problem(left, right, a, same=(b"flags", b"prefixes")):
        return problem
    return identities(redirect[0], redirect[1], 0) if redirect[0] and redirect[1] else "no redirect"


def map_with(*names: str) -> Rule:
    """A map that has these fields, if Redis' has them, of the same types."""
    wanted = [name.encode() for name in names]

    def rule(left: Reply, right: Reply, _lag_s: float) -> str | None:
        return _fields_problem(left, right, [n for n in wanted if n in left.pairs], same=())

    return rule


def settings(names: frozenset[bytes], same: frozenset[bytes]) -> Rule:
    """CONFIG GET: of the settings `names`, the same ones; those in `same` with equal values."""

    def rule(left: Reply, right: Reply, _lag_s: float) -> str | None:
        shown = [name for name in left.pairs if name in names]
        if extra := [n for n in right.pairs if n in names and n not in left.pairs]:
            return f"also has {b', '.join(extra).decode()}"
        return _fields_problem(left, right, shown, same=tuple(n for n in shown if n in same))

    return rule


def _fields_problem(
    left: Reply, right: Reply, wanted: Iterable[bytes], same: tuple[bytes, ...]
) -> str | None:
    """What is wrong with `right` as a map: a field that is missing, of another type, or of another value in `same`."""
    if problem := _other_kind(left, right):
        return problem
    a, b = left.pairs, right.pairs
    for name in wanted:
        if name not in b:
            return f"no field {name.decode()}"
        if a[name].kind != b[name].kind:
            return f"{name.decode()}: type {b[name].kind!r} instead of {a[name].kind!r}"
        if name in same and a[name].raw != b[name].raw:
            return f"{name.decode()}: {b[name]} instead of {a[name]}"
    return None


def every_value(inner: Rule) -> Rule:
    """A map with the same keys; each value follows `inner`."""

    def rule(left: Reply, right: Reply, lag_s: float) -> str | None:
        if problem := _fields_problem(left, right, left.pairs, same=()):
            return problem
        if extra := set(right.pairs) - set(left.pairs):
            return f"also has {b', '.join(sorted(extra)).decode()}"
        for name, value in left.pairs.items():
            other = right.pairs[name]
            if value.raw != other.raw and (problem := inner(value, other, lag_s)):
                return f"{name.decode()}: {problem}"
        return None

    return rule


def _doc_problem(left: Reply, right: Reply) -> str | None:
    """One command of COMMAND DOCS: the same fields; since when and in which group equal; the words its own.

    `history` is words altogether, and may be absent.
    """
    same = tuple(name for name in _DOC_VALUES if name in left.pairs)
    return _fields_problem(left, right, [name for name in left.pairs if name != b"history"], same)


def command_docs(listed: frozenset[bytes]) -> Rule:
    """COMMAND DOCS: a map with the same of the commands in `listed`, each as `_doc_problem` wants it."""

    def rule(left: Reply, right: Reply, _lag_s: float) -> str | None:
        if problem := _other_kind(left, right):
            return problem
        ours, theirs = (
            {name: doc for name, doc in side.pairs.items() if name.split(b"|")[0] in listed}
            for side in (left, right)
        )
        if problem := _multiset_problem(list(ours), list(theirs)):
            return problem
        problems = (_doc_problem(doc, theirs[name]) for name, doc in ours.items())
        named = zip(ours, problems, strict=True)
        return next((f"{name.decode()}: {problem}" for name, problem in named if problem), None)

    return rule


def command_infos(listed: frozenset[bytes]) -> Rule:
    """COMMAND and COMMAND INFO: by name, of the commands in `listed` (as well as nil in the same places)."""

    def rule(left: Reply, right: Reply, _lag_s: float) -> str | None:
        if problem := _other_kind(left, right):
            return problem
        if len(left.items) <= 20 and [i.is_nil for i in left.items] != [
            i.is_nil for i in right.items
        ]:
            return "known and unknown commands in other places"
        theirs = {_name_of(entry): entry for entry in right.items}
        for entry in left.items:
            name = _name_of(entry)
            if name.split(b"|")[0] not in listed:
                continue
            if name not in theirs:
                return f"no {name.decode()}"
            if problem := _command_problem(entry, theirs[name]):
                return f"{name.decode()}: {problem}"
        return None

    return rule


def _name_of(entry: Reply) -> bytes:
    return entry.items[0].text if entry.items else b""


def _command_problem(left: Reply, right: Reply) -> str | None:
    if len(left.items) != len(right.items):
        return f"{len(right.items)} fields instead of {len(left.items)}"
    for what, a, b in zip(_COMMAND_FIELDS, left.items, right.items, strict=False):
        if a.kind != b.kind:
            return f"{what}: type {b.kind!r} instead of {a.kind!r}"
        alike = (
            {i.raw for i in a.items} == {i.raw for i in b.items}
            if a.items or b.items
            else a.raw == b.raw
        )
        if not alike:
            return f"{what}: {b} instead of {a}"
    return None


def listed_names(listed: frozenset[bytes]) -> Rule:
    """COMMAND LIST: the same of the commands in `listed`."""

    def rule(left: Reply, right: Reply, _lag_s: float) -> str | None:
        if problem := _other_kind(left, right):
            return problem
        ours = [i.raw for i in left.items if i.text in listed]
        return _multiset_problem(ours, [i.raw for i in right.items if i.text in listed])

    return rule


def slow_entries(left: Reply, right: Reply, _lag_s: float) -> str | None:
    """SLOWLOG GET: as many entries, each of the same commands; ids, times and addresses are integers and strings."""
    if left.kind != right.kind or len(left.items) != len(right.items):
        return f"{len(right.items)} entries instead of {len(left.items)}"
    for a, b in zip(left.items, right.items, strict=True):
        if [i.kind for i in a.items] != [i.kind for i in b.items]:
            return "an entry of another form"
        if a.items[3].raw != b.items[3].raw:
            return f"{b.items[3]} instead of {a.items[3]}"
    return None


def latency_events(left: Reply, right: Reply, _lag_s: float) -> str | None:
    """LATENCY LATEST: name, moment, latest, most of each; `command` where Redis has it, as that was provoked."""
    if problem := _other_kind(left, right):
        return problem
    if any([i.kind for i in entry.items] != ["$", ":", ":", ":"] for entry in right.items):
        return "an entry of another form"
    provoked = b"command"
    is_seen = provoked in map(_name_of, right.items)
    return None if is_seen or provoked not in map(_name_of, left.items) else "no event command"


def latency_samples(left: Reply, right: Reply, _lag_s: float) -> str | None:
    """LATENCY HISTORY: moment and duration of each; some where Redis has some."""
    if problem := _other_kind(left, right):
        return problem
    if any([i.kind for i in entry.items] != [":", ":"] for entry in right.items):
        return "an entry of another form"
    return (
        None
        if bool(left.items) == bool(right.items)
        else f"{len(right.items)} samples instead of {len(left.items)}"
    )


def same_form(left: Reply, right: Reply, _lag_s: float) -> str | None:
    """The same types all the way down, numbers and text of any value."""
    if problem := _other_kind(left, right):
        return problem
    if len(left.items) != len(right.items):
        return f"{len(right.items)} elements instead of {len(left.items)}"
    problems = (same_form(a, b, 0) for a, b in zip(left.items, right.items, strict=True))
    return next((problem for problem in problems if problem), None)


def _multiset_problem(left: list[bytes], right: list[bytes]) -> str | None:
    missing, extra = Counter(left) - Counter(right), Counter(right) - Counter(left)
    if not missing and not extra:
        return None
    parts = [f"without {sorted(missing.elements())[:5]}"] if missing else []
    parts += [f"with {sorted(extra.elements())[:5]}"] if extra else []
    return ", ".join(parts)
