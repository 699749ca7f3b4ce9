"""What a policy does to a write: a default expiry, and a limit to its length.

Not which policy it is (`policy_match.py`). It is asked once the handler of a command has returned and before
its effects are committed, so it holds for every command that writes values.

A key gets the default expiry when it comes into being or is replaced by a command that names none. What
changes a value in place (INCR, APPEND, EXPIRE, PERSIST) leaves the key's expiry as it is, and so do SET ...
KEEPTTL, and RESTORE, which always says.

Core.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.record import DELETION, TYPE_MASK, decode
from cluster.slot import SYSTEM_SLOT, TAG_OFFSET, Row, Slot, key_of
from respkv.command import Command
from respkv.reply import ReplyError

if TYPE_CHECKING:
    from respkv.context import Context
    from respkv.policy_match import Policies

# They replace what was there.
REPLACING: Final = frozenset(
    ("SET", "SETNX", "GETSET", "MSET", "MSETNX", "RENAME", "RENAMENX", "COPY", "MOVE", "BITOP", "KV.PUT")
)  # fmt: skip
# They write the value again as it was.
KEEPING: Final = frozenset(("EXPIRE", "PEXPIRE", "EXPIREAT", "PEXPIREAT", "PERSIST", "GETEX"))
SAYING: Final = KEEPING | {"RESTORE"}


def enforce(context: Context, policies: Policies, command: Command, args: list[bytes]) -> None:
    """Have the buffered writes of a command as their policies want them. Raises ReplyError, PageFault."""
    effects = context.effects
    for row, (slot, kind, expire_at_ms, payload) in effects.items():
        if slot == SYSTEM_SLOT or kind & TYPE_MASK == DELETION:
            continue
        rule = policies.find(key_of(row))
        if rule is None:
            continue
        limit = rule.policy.value_bytes_max
        if limit and len(payload) > limit and command.name not in KEEPING:
            raise ReplyError(
                f"ERR the value has {len(payload)} bytes: {rule.policy.label} allows at most {limit} "
                "(value_bytes_max)"
            )
        if rule.ttl_ms and not expire_at_ms and _takes_default(context, command, args, slot, row):
            effects[row] = (slot, kind, context.now_ms + rule.ttl_ms, payload)


def _takes_default(
    context: Context, command: Command, args: list[bytes], slot: Slot, row: Row
) -> bool:
    if command.name in SAYING:
        return False
    is_kept = command.name == "SET" and any(word.upper() == b"KEEPTTL" for word in args[3:])
    if command.name in REPLACING and not is_kept:
        return True
    return not _was_there(context, slot, row)


def _was_there(context: Context, slot: Slot, row: Row) -> bool:
    """Whether a row was live before this command. Earlier ones of the same transaction have been."""
    below = context.below.get(row)
    if below is not None:
        _, kind, expire_at_ms, _ = below
        return kind & TYPE_MASK != DELETION and not 0 < expire_at_ms <= context.now_ms
    if row[TAG_OFFSET] in context.flushed:
        return False
    raw = context.store.get(slot, row)
    return raw is not None and decode(raw).winner(context.now_ms) is not None
