"""Connection commands: PING ECHO SELECT QUIT RESET AUTH HELLO. CLIENT stands in `client.py`."""

from __future__ import annotations

from hmac import compare_digest
from typing import Final

from respkv.cluster_view import SELECT_REFUSED
from respkv.command import Flag, command
from respkv.context import Context
from respkv.number import integer
from respkv.parser import Limits
from respkv.pubsub import restrict
from respkv.reply import (
    OK,
    SYNTAX_ERROR,
    Reply,
    ReplyError,
    Simple,
    c_string,
    wrong_arity,
)
from respkv.session import (
    CONSISTENT,
    IN_MULTI,
    MONITORING,
    REPLY_OFF,
    REPLY_SKIP,
    SUBSCRIBED,
    TRACKING,
    UNAUTHENTICATED,
    Session,
)
from respkv.transaction import end_transaction
from respkv.version import REDIS_VERSION

PONG: Final = Simple(b"PONG")
ALWAYS: Final = Flag.NOSCRIPT | Flag.LOADING | Flag.STALE | Flag.FAST
WRONG_PASSWORD: Final = ReplyError("WRONGPASS invalid username-password pair or user is disabled.")
NO_PASSWORD: Final = ReplyError(
    "ERR AUTH <password> called without any password configured for the default user. "
    "Are you sure your configuration is correct?"
)
HELLO_NOAUTH: Final = ReplyError(
    "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> "
    "<pass> option can be used to authenticate the client and select the RESP protocol version at the same time"
)


@command(
    "PING", arity=-1, flags=Flag.FAST, since="1.0.0", group="connection", complexity="O(1)",
    usage="[message]", tips=("request_policy:all_shards", "response_policy:all_succeeded"),
)  # fmt: skip
def ping(ctx: Context, *message: bytes) -> Reply:
    """Answer PONG, or the message given, to show that the server is alive."""
    if len(message) > 1:
        raise wrong_arity("ping")
    if ctx.session.mode & SUBSCRIBED:
        return [b"pong", message[0] if message else b""]
    if not message:
        return PONG
    return message[0]


@command(
    "ECHO", arity=2, flags=Flag.LOADING | Flag.STALE | Flag.FAST, since="1.0.0", group="connection",
    complexity="O(1)", usage="message",
)  # fmt: skip
def echo(ctx: Context, message: bytes) -> Reply:
    """Answer the message given."""
    return message


@command(
    "SELECT", arity=2, flags=Flag.LOADING | Flag.STALE | Flag.FAST, since="1.0.0", group="connection",
    complexity="O(1)", usage="index",
)  # fmt: skip
def select(ctx: Context, index: bytes) -> Reply:
    """Use another database on this connection."""
    number = integer(index)
    if not -(2**31) <= number < 2**31:
        raise ReplyError("ERR value is out of range, value must between -2147483648 and 2147483647")
    if number and ctx.session.is_cluster:
        raise SELECT_REFUSED
    if not 0 <= number < len(ctx.node.databases):
        raise ReplyError("ERR DB index is out of range")
    ctx.session.db = number
    ctx.db = ctx.databases[number]
    return OK


@command(
    "QUIT", arity=-1, flags=ALWAYS | Flag.NO_AUTH | Flag.CONTROL | Flag.ALLOW_BUSY, since="1.0.0",
    group="connection", complexity="O(1)",
)  # fmt: skip
def quit_(ctx: Context, *ignored: bytes) -> Reply:
    """Answer OK and close the connection."""
    ctx.session.close_after_reply("quit")
    return OK


@command(
    "RESET", arity=1, flags=ALWAYS | Flag.NO_AUTH | Flag.CONTROL | Flag.ALLOW_BUSY, since="6.2.0",
    group="connection", complexity="O(1)",
)  # fmt: skip
def reset(ctx: Context) -> Reply:
    """Bring the connection back to the state of a new one."""
    session, node = ctx.session, ctx.node
    end_transaction(session)
    node.tracking.stop(session)
    node.monitors.pop(session, None)
    node.pubsub.forget(session)
    session.mode &= ~(IN_MULTI | MONITORING | TRACKING | REPLY_OFF | REPLY_SKIP | CONSISTENT)
    session.consistency = None
    session.db = 0
    ctx.db = ctx.databases[0]
    session.name = b""
    session.is_resp3 = False
    session.no_touch = False
    session.is_readonly = session.is_asking = False
    session.sent_away.clear()
    if node.config.client.requirepass:
        session.mode |= UNAUTHENTICATED
        session.parser.limits = Limits.unauthenticated()
        session.parser.one_at_a_time = True
    node.observe_changed()
    return Simple(b"RESET")


@command(
    "AUTH", arity=-2, flags=ALWAYS | Flag.NO_AUTH | Flag.ALLOW_BUSY,
    since="1.0.0", group="connection", complexity="O(N) where N is the length of the password",
    usage="[username] password",
)  # fmt: skip
def auth(ctx: Context, *words: bytes) -> Reply:
    """Authenticate the connection."""
    if len(words) > 2:
        raise SYNTAX_ERROR
    if len(words) == 1 and not ctx.node.config.client.requirepass:
        raise NO_PASSWORD
    _authenticate(ctx, words[0] if len(words) == 2 else b"default", words[-1])
    return OK


def _authenticate(ctx: Context, user: bytes, password: bytes) -> None:
    wanted = ctx.node.config.client.requirepass.encode()
    is_right = not wanted or compare_digest(wanted, password)
    if user != b"default" or not is_right:
        ctx.node.log.warning("authentication failed", client=ctx.session.peer)
        raise WRONG_PASSWORD
    admit(ctx.session, ctx)


def admit(session: Session, ctx: Context) -> None:
    """The session has authenticated: the full limits hold from the next command on."""
    session.mode &= ~UNAUTHENTICATED
    session.parser.limits = ctx.node.limits
    session.parser.one_at_a_time = False


@command(
    "HELLO", arity=-1, flags=ALWAYS | Flag.NO_AUTH | Flag.ALLOW_BUSY,
    since="6.0.0", group="connection", complexity="O(1)",
    usage="[protover [AUTH username password] [SETNAME clientname]]",
)  # fmt: skip
def hello(ctx: Context, *words: bytes) -> Reply:
    """Choose the protocol version, and introduce the server and the client to each other."""
    session = ctx.session
    version = None
    if words:
        version = integer(
            words[0], ReplyError("ERR Protocol version is not an integer or out of range")
        )
        if version not in (2, 3):
            raise ReplyError("NOPROTO unsupported protocol version")
    name, credentials = _hello_options(words[1:])
    if credentials is not None:
        _authenticate(ctx, *credentials)
    if session.mode & UNAUTHENTICATED:
        raise HELLO_NOAUTH
    if name is not None:
        session.name = name
    if version is not None:
        session.is_resp3 = version == 3
        if session.subscriptions is not None:
            restrict(session)
            ctx.node.pubsub.forget_routes()
    return {
        b"server": b"redis",
        b"version": REDIS_VERSION.encode(),
        b"proto": 3 if session.is_resp3 else 2,
        b"id": session.id,
        b"mode": b"cluster" if session.is_cluster else b"standalone",
        b"role": b"master",
        b"modules": [],
    }


def _hello_options(words: tuple[bytes, ...]) -> tuple[bytes | None, tuple[bytes, bytes] | None]:
    name = credentials = None
    at = 0
    while at < len(words):
        option = words[at].upper()
        if option == b"AUTH" and at + 2 < len(words):
            credentials = (words[at + 1], words[at + 2])
            at += 3
        elif option == b"SETNAME" and at + 1 < len(words):
            name = checked_name(words[at + 1])
            at += 2
        else:
            raise ReplyError(b"ERR Syntax error in HELLO option '%b'" % c_string(words[at]))
    return name, credentials


def checked_name(name: bytes) -> bytes:
    """A client's name, which CLIENT LIST shows. Raises ReplyError."""
    if any(not 33 <= byte <= 126 for byte in name):
        raise ReplyError("ERR Client names cannot contain spaces, newlines or special characters.")
    return name
