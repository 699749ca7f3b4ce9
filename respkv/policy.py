"""Policies: what the configuration says for some keys only, as `[[policy]]` tables.

Not how the policy of a key is found (`policy_match.py`), nor what is done with it: R and W are decided
in `consistency.py`, the rest is carried out by `policy_effect.py`, by the context (siblings) and by
the replica (last_writer_wins). This is a core: plain data, no I/O.

    [[policy]]
    prefix = "cart:"
    write = "ALL"
    siblings = "error"

    [[policy]]
    pattern = "session:*:tmp"
    read = 1
    write = 1
    ttl_s = 3600

Each table has either a prefix or a pattern; what it leaves out is as for all other keys. The longest
match counts: `policy_match.py` says what that means. The keys of a table are declared once, as the
fields of `Policy`; the check, the error texts and the commented example of `respkv default-config`
come from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from respkv.consistency import Levels, Scope
from respkv.setting import (
    Choice,
    ConfigError,
    Integer,
    Rejected,
    Setting,
    Size,
    Switch,
    Text,
    did_you_mean,
    near,
    plain,
    setting,
    settings_of,
    toml_text,
)

POLICY_COUNT_MAX = 1000
TTL_MAX_S = (1 << 31) - 1
_MATCHED_BYTES_MAX = 512


@dataclass(frozen=True)
class Strict(Switch):
    """Sloppy needs something that is not there yet."""

    def allowed(self) -> str:
        return "true: sloppy needs hinted handoff, which this version does not have"

    def check(self, value: object) -> bool:
        if value is True:
            return True
        raise self._rejected()


@dataclass(frozen=True, slots=True)
class Policy:
    """One table. Exactly one of `prefix` and `pattern` is given."""

    prefix: str = setting(
        Text(f"1 to {_MATCHED_BYTES_MAX} bytes", _MATCHED_BYTES_MAX, ".+"),
        "",
        "The keys that begin with this.",
    )
    pattern: str = setting(
        Text(f"1 to {_MATCHED_BYTES_MAX} bytes", _MATCHED_BYTES_MAX, ".+"),
        "",
        "Instead of prefix: the keys that match this, as KEYS matches them, such as "
        '"session:*:tmp". Of several policies that match, the one with most bytes counts that must '
        'stand there as they are: "session:*:tmp" has 12.',
    )
    read: int | str = setting(
        Levels(),
        0,
        "Replicas that must agree before a read is answered. 0 means cluster.r.",
    )
    write: int | str = setting(
        Levels(),
        0,
        "Replicas that must have a write before it is answered. 0 means cluster.w. What depends on "
        "the old value, such as INCR and SET NX, takes a majority at least.",
    )
    strict: bool = setting(
        Strict(), True, "A write counts on the replicas of its key only: see cluster.consistency."
    )
    siblings: str = setting(
        Choice(("winner", "error")),
        "winner",
        "What GET answers where several versions did not see each other: the winner, which is the "
        "latest, or an error that tells to use KV.GET.",
    )
    last_writer_wins: bool = setting(
        Switch(),
        False,
        "Keep the winner of several versions only. The others are lost, though acknowledged.",
    )
    ttl_s: int = setting(
        Integer(0, TTL_MAX_S, "seconds"),
        0,
        "Expiry of what is written without one of its own. 0 means none.",
    )
    value_bytes_max: int = setting(
        Size(0, 1 << 40), 0, "Length of a value; longer ones are refused. 0 means any."
    )

    @property
    def matched(self) -> str:
        return self.prefix or self.pattern

    @property
    def label(self) -> str:
        """The policy as messages name it."""
        return f"policy {toml_text(self.matched)}"


KEYS: dict[str, Setting] = {each.key: each for each in settings_of("policy", Policy)}


def read(source: str, value: object) -> tuple[Policy, ...]:
    """Return the policies that TOML's value of `policy` lists. `source` begins the error's line.

    Raises `ConfigError` for the first thing that is wrong.
    """
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise ConfigError(f"{source}: policy: must be tables, each of which begins with [[policy]]")
    if len(value) > POLICY_COUNT_MAX:
        raise ConfigError(f"{source}: {len(value)} policies: must be at most {POLICY_COUNT_MAX}")
    policies = tuple(_table(source, index, table) for index, table in enumerate(value))
    seen: set[tuple[str, str]] = set()
    for policy in policies:
        name = (policy.prefix, policy.pattern)
        if name in seen:
            kind = "prefix" if policy.prefix else "pattern"
            raise ConfigError(f"{source}: two policies have the {kind} {toml_text(policy.matched)}")
        seen.add(name)
    return policies


def _table(source: str, index: int, given: Mapping[str, Any]) -> Policy:
    name = given.get("prefix", given.get("pattern"))
    label = toml_text(name) if isinstance(name, str) and name else f"number {index + 1}"
    where = f"{source}: policy {label}"
    for key in given:
        if key not in KEYS:
            raise ConfigError(f"{where}: unknown key {plain(key)}{did_you_mean(near(key, KEYS))}")
    if ("prefix" in given) == ("pattern" in given):
        has = "has both" if "prefix" in given else "has no"
        raise ConfigError(f"{where}: {has} prefix and pattern: must have one of them")
    values = {}
    for key, value in given.items():
        try:
            values[key] = KEYS[key].kind.check(value)
        except Rejected as rejected:
            raise ConfigError(f"{where}: {key} = {toml_text(value)}: {rejected}") from None
    return Policy(**values)


def refuse_impossible(source: str, policies: Sequence[Policy], scope: Scope) -> None:
    """Raise `ConfigError` for the first policy that the cluster cannot carry out."""
    for policy in policies:
        for key in ("read", "write"):
            level = getattr(policy, key)
            try:
                scope.count(level)
            except Rejected as rejected:
                shown = f"{source}: {policy.label}: {key} = {toml_text(level)}"
                raise ConfigError(f"{shown}: {rejected}") from None
        if policy.last_writer_wins and policy.siblings == "error":
            raise ConfigError(
                f'{source}: {policy.label}: siblings = "error": must be "winner", since with '
                "last_writer_wins there are none"
            )


_HEAD = """\
#
# Policies: what holds for some keys only, in as many such tables as there is need for. Each has
# either a prefix or a pattern; what it leaves out is as for all other keys. docs/CONSISTENCY.md
# tells what the numbers promise.
"""
_EXAMPLE = {"prefix": "cart:", "pattern": "session:*:tmp"}


def example(comment: Any) -> str:
    """Return a [[policy]] table as comments, with every key, its meaning and bounds."""
    lines = [_HEAD, "#\n# [[policy]]\n"]
    for key, each in KEYS.items():
        doc = comment(f"{each.doc} Must be {each.kind.allowed()}.", "# # ")
        value = toml_text(each.kind.literal(_EXAMPLE.get(key, each.default)))
        mark = "# # " if key == "pattern" else "# "
        lines.append(f"#\n{doc}{mark}{key} = {value}\n")
    return "".join(lines)
