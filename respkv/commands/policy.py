"""KV.POLICY, KV.CONSISTENCY and KV.WITH: how many replicas a command asks, and who says so (`respkv/consistency.py`).

    KV.POLICY key                                     what holds for a key, and why
    KV.CONSISTENCY [READ level] [WRITE level]         for this connection; without arguments: what holds
    KV.WITH [R level] [W level] [TIMEOUT ms] command  for one command

A level is a number of replicas or ONE, QUORUM, ALL, LOCAL_QUORUM, EACH_QUORUM. KV.WITH never reaches its
handler: the runner and the dispatch take the command out of it.
"""

from __future__ import annotations

from typing import Final

from cluster.slot import Key
from respkv.command import TABLE, Flag, command
from respkv.consistency import DEFAULT, Consistency, Decision, Scope, decide, level_of
from respkv.context import Context
from respkv.policy_match import Rule, length_of
from respkv.reply import OK, SYNTAX_ERROR, Reply, ReplyError
from respkv.session import CONSISTENT, Session

SINCE: Final = "0.1.0"
ANY_TIME: Final = Flag.LOADING | Flag.STALE | Flag.FAST


@command(
    "KV.POLICY", arity=2, flags=ANY_TIME, since=SINCE, group="kv", usage="key:string",
    complexity="O(N) where N is the number of policies that may match",
)  # fmt: skip
def kv_policy(ctx: Context, key: Key) -> Reply:
    """Tell which policy a key has, how many replicas its reads and writes ask, and who says so."""
    # Declared without `keys`: any node knows.
    rule = ctx.policies.find(key) if ctx.policies is not None else None
    found = _decided(ctx, [key])
    policy = rule.policy if rule is not None else None
    return {
        **_matched(rule),
        b"n": Scope.of(ctx.node.config).replica_count,
        b"read": found.r,
        b"read_source": found.r_source.encode(),
        b"write": found.w,
        b"write_source": found.w_source.encode(),
        b"strict": 1,
        b"siblings": policy.siblings.encode() if policy else b"winner",
        b"last_writer_wins": int(policy.last_writer_wins) if policy else 0,
        b"ttl_ms": rule.ttl_ms if rule else 0,
        b"value_bytes_max": policy.value_bytes_max if policy else 0,
    }


def _matched(rule: Rule | None) -> dict[bytes, bytes | int]:
    if rule is None:
        return {b"policy": b"none", b"matched": b"", b"length": 0}
    policy = rule.policy
    kind = b"prefix" if policy.prefix else b"pattern"
    return {b"policy": kind, b"matched": policy.matched.encode(), b"length": length_of(policy)}


def _decided(ctx: Context, keys: list[Key]) -> Decision:
    config = ctx.node.config
    usual = Consistency(config.r, config.w)
    return decide(usual, ctx.policies, keys, ctx.session.consistency)


@command(
    "KV.CONSISTENCY", arity=-1, flags=ANY_TIME | Flag.NOSCRIPT | Flag.NO_MULTI, since=SINCE, group="kv",
    complexity="O(1)", usage="[READ level:string] [WRITE level:string]",
)  # fmt: skip
def kv_consistency(ctx: Context, *words: bytes) -> Reply:
    """Set how many replicas the reads and writes of this connection ask, or tell what holds."""
    session = ctx.session
    if not words:
        found = _decided(ctx, [])
        return {
            b"read": found.r,
            b"read_source": found.r_source.encode(),
            b"write": found.w,
            b"write_source": found.w_source.encode(),
        }
    session_r, session_w = _own(session)
    scope = Scope.of(ctx.node.config)
    seen: set[bytes] = set()
    if len(words) % 2:
        raise SYNTAX_ERROR
    for option, word in zip(words[::2], words[1::2], strict=True):
        name = option.upper()
        if name not in (b"READ", b"WRITE") or name in seen:
            raise SYNTAX_ERROR
        seen.add(name)
        count = 0 if word.upper() == DEFAULT else level_of(name.decode(), word, scope)
        if name == b"READ":
            session_r = count
        else:
            session_w = count
    _set(ctx, session, Consistency(session_r, session_w))
    return OK


def _own(session: Session) -> tuple[int, int]:
    own = session.consistency or Consistency()
    return own.r, own.w


def _set(ctx: Context, session: Session, consistency: Consistency) -> None:
    session.consistency = consistency if consistency != Consistency() else None
    session.mode &= ~CONSISTENT
    # A node alone has one replica of each key, whatever is said: its short way stays open.
    if session.consistency is not None and ctx.node.peers is not None:
        session.mode |= CONSISTENT


@command(
    "KV.WITH", arity=-2, flags=Flag.NOSCRIPT | Flag.NO_MULTI | Flag.MOVABLEKEYS, since=SINCE, group="kv",
    complexity="That of the command.",
    usage="[R level:string] [W level:string] [TIMEOUT milliseconds] command [arg [arg ...]]",
)  # fmt: skip
def kv_with(ctx: Context, *words: bytes) -> Reply:
    """Run a command with its own number of replicas, and its own time."""
    raise ReplyError("ERR KV.WITH cannot be used here")


TABLE.commands["KV.WITH"].is_plain = False  # It takes the long way, where it is taken apart.
