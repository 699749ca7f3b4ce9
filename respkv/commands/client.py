"""The CLIENT family: who is connected, and what each connection has set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from respkv.command import Command, Flag, command, container
from respkv.commands.connection import checked_name
from respkv.context import Context
from respkv.number import integer
from respkv.pubsub import CHANNEL, NAME_KINDS, PATTERN, SHARD
from respkv.reply import (
    NO_REPLY,
    OK,
    SYNTAX_ERROR,
    Encoded,
    Reply,
    ReplyError,
    SetReply,
    Verbatim,
    c_string,
    unknown_or_malformed,
)
from respkv.session import (
    IN_MULTI,
    MONITORING,
    REPLY_OFF,
    REPLY_SKIP,
    TRACKING,
    WAITING,
    Session,
)
from respkv.tracking import TrackingMode

if TYPE_CHECKING:
    from respkv.node import Node

FLAGS: Final = Flag.NOSCRIPT | Flag.LOADING | Flag.STALE
ADMIN: Final = FLAGS | Flag.ADMIN
TYPES: Final = (b"normal", b"master", b"slave", b"replica", b"pubsub")
INVALID_ID: Final = ReplyError("ERR Invalid client ID")

container("CLIENT", since="2.4.0", group="connection", summary="Commands about client connections")


@command("CLIENT|ID", arity=2, flags=FLAGS, since="5.0.0", group="connection", complexity="O(1)")
def client_id(ctx: Context) -> Reply:
    """Answer the number of this connection."""
    return ctx.session.id


@command(
    "CLIENT|INFO", arity=2, flags=FLAGS, since="6.2.0", group="connection", complexity="O(1)",
    tips=("nondeterministic_output",),
)  # fmt: skip
def client_info(ctx: Context) -> Reply:
    """Describe this connection in a line."""
    return Verbatim(describe(ctx.node, ctx.session) + b"\n")


@command(
    "CLIENT|LIST", arity=-2, flags=ADMIN, since="2.4.0", group="connection",
    complexity="O(N) where N is the number of client connections",
    usage="[TYPE <NORMAL | MASTER | REPLICA | PUBSUB>] [ID client-id [client-id ...]]",
    tips=("nondeterministic_output",),
)  # fmt: skip
def client_list(ctx: Context, *words: bytes) -> Reply:
    """Describe the open connections, a line each."""
    sessions = list(ctx.node.front.by_session)
    if words:
        option = words[0].upper()
        if option == b"TYPE" and len(words) == 2:
            wanted = _type(words[1])
            sessions = [s for s in sessions if _type_of(s) == wanted]
        elif option == b"ID" and len(words) > 1:
            numbers = [integer(word, INVALID_ID) for word in words[1:]]
            by_id = {session.id: session for session in sessions}
            sessions = [by_id[number] for number in numbers if number in by_id]
        else:
            raise SYNTAX_ERROR
    return Verbatim(b"".join(describe(ctx.node, session) + b"\n" for session in sessions))


def _type(word: bytes) -> bytes:
    if word.lower() not in TYPES:
        raise ReplyError(b"ERR Unknown client type '%b'" % c_string(word))
    return word.lower()


def _type_of(session: Session) -> bytes:
    return b"normal" if session.subscriptions is None else b"pubsub"


def wrong_words(ctx: Context) -> ReplyError:
    """What Redis says of too many words behind a subcommand that takes options."""
    return unknown_or_malformed("CLIENT", ctx.args[1])


def describe(node: Node, session: Session) -> bytes:
    """A session as CLIENT LIST shows it."""
    now_s = node.monotonic_s()
    transaction = session.transaction
    held = session.parser.buffered_bytes
    own = session.subscriptions
    counts = {kind: 0 if own is None else len(own.names[kind]) for kind in NAME_KINDS}
    fields = {
        "id": session.id,
        "addr": session.peer,
        "laddr": session.local,
        "fd": session.fd,
        "name": session.name.decode("latin-1"),
        "age": int(now_s - session.created_s),
        "idle": int(now_s - session.last_active_s),
        "flags": _flags(session),
        "db": session.db,
        "sub": counts[CHANNEL],
        "psub": counts[PATTERN],
        "ssub": counts[SHARD],
        "multi": -1 if transaction is None else len(transaction.commands),
        "qbuf": held,
        "qbuf-free": 0,
        "argv-mem": 0,
        "multi-mem": 0 if transaction is None else _multi_bytes(transaction.commands),
        "rbs": 0,
        "rbp": 0,
        "obl": session.unsent_bytes,
        "oll": 0,
        "omem": session.unsent_bytes,
        "tot-mem": 2048 + held + session.unsent_bytes,
        "events": "rw" if session.unsent_bytes else "r",
        "cmd": "NULL" if session.last_command is None else session.last_command.name.lower(),
        "user": session.user.decode(),
        "redir": session.tracking.redirect if session.tracking else -1,
        "resp": 3 if session.is_resp3 else 2,
        "lib-name": session.lib_name.decode("latin-1"),
        "lib-ver": session.lib_ver.decode("latin-1"),
    }
    return " ".join(f"{name}={value}" for name, value in fields.items()).encode("latin-1")


def _multi_bytes(commands: list[tuple[Command, list[bytes]]]) -> int:
    return sum(len(arg) for _, args in commands for arg in args)


def _flags(session: Session) -> str:
    flags = ""
    for bit, letter in ((MONITORING, "O"), (IN_MULTI, "x"), (WAITING, "b"), (TRACKING, "t")):
        if session.mode & bit:
            flags += letter
    if session.subscriptions is not None:
        flags += "P"
    if session.is_unix:
        flags += "U"
    if session.is_readonly:
        flags += "r"
    if session.no_evict:
        flags += "e"
    if session.tracking and session.tracking.is_broken:
        flags += "R"
    if session.tracking and session.tracking.is_broadcast:
        flags += "B"
    return flags or "N"


@command(
    "CLIENT|KILL", arity=-3, flags=ADMIN, since="2.4.0", group="connection",
    complexity="O(N) where N is the number of client connections",
    usage="<ip:port | <[ID client-id] | [TYPE <NORMAL | MASTER | SLAVE | REPLICA | PUBSUB>] | [USER username] | "
    "[ADDR ip:port] | [LADDR ip:port] | [SKIPME yes/no]> [<[ID client-id] | "
    "[TYPE <NORMAL | MASTER | SLAVE | REPLICA | PUBSUB>] | [USER username] | [ADDR ip:port] | [LADDR ip:port] | "
    "[SKIPME yes/no]> ...]>",
)  # fmt: skip
def client_kill(ctx: Context, *words: bytes) -> Reply:
    """Close connections."""
    sessions = list(ctx.node.front.by_session)
    if len(words) == 1:
        for session in sessions:
            if session.peer.encode() == words[0]:
                _kill(ctx, session)
                return OK
        raise ReplyError("ERR No such client")
    if len(words) % 2:
        raise SYNTAX_ERROR
    skip_me = True
    for name, value in zip(words[::2], words[1::2], strict=True):
        match name.upper():
            case b"ID":
                number = integer(value, ReplyError("ERR client-id should be greater than 0"))
                if number < 1:
                    raise ReplyError("ERR client-id should be greater than 0")
                sessions = [s for s in sessions if s.id == number]
            case b"TYPE":
                wanted = _type(value)
                sessions = [s for s in sessions if _type_of(s) == wanted]
            case b"ADDR":
                sessions = [s for s in sessions if s.peer.encode() == value]
            case b"LADDR":
                sessions = [s for s in sessions if s.local.encode() == value]
            case b"USER":
                if value != b"default":
                    raise ReplyError(b"ERR No such user '%b'" % value)
            case b"SKIPME":
                if value.lower() not in (b"yes", b"no"):
                    raise SYNTAX_ERROR
                skip_me = value.lower() == b"yes"
            case _:
                raise SYNTAX_ERROR
    if skip_me:
        sessions = [s for s in sessions if s is not ctx.session]
    for session in sessions:
        _kill(ctx, session)
    return len(sessions)


def _kill(ctx: Context, session: Session) -> None:
    if session is ctx.session:
        session.close_after_reply("killed")
    else:
        ctx.node.front.clients.close_session(session)


@command(
    "CLIENT|SETNAME", arity=3, flags=FLAGS, since="2.6.9", group="connection", complexity="O(1)",
    usage="connection-name",
)  # fmt: skip
def client_setname(ctx: Context, name: bytes) -> Reply:
    """Give this connection a name."""
    ctx.session.name = checked_name(name)
    return OK


@command(
    "CLIENT|GETNAME", arity=2, flags=FLAGS, since="2.6.9", group="connection", complexity="O(1)"
)
def client_getname(ctx: Context) -> Reply:
    """Answer the name of this connection."""
    return ctx.session.name or None


@command(
    "CLIENT|SETINFO", arity=4, flags=FLAGS, since="7.2.0", group="connection", complexity="O(1)",
    usage="<LIB-NAME libname | LIB-VER libver>",
)  # fmt: skip
def client_setinfo(ctx: Context, attribute: bytes, value: bytes) -> Reply:
    """Say which library this client is."""
    if any(not 33 <= byte <= 126 for byte in value):
        name = attribute.decode("latin-1")
        raise ReplyError(f"ERR {name} cannot contain spaces, newlines or special characters.")
    match attribute.upper():
        case b"LIB-NAME":
            ctx.session.lib_name = value
        case b"LIB-VER":
            ctx.session.lib_ver = value
        case _:
            raise ReplyError(b"ERR Unrecognized option '%b'" % attribute)
    return OK


def _on_or_off(word: bytes) -> bool:
    if word.lower() not in (b"on", b"off"):
        raise SYNTAX_ERROR
    return word.lower() == b"on"


@command(
    "CLIENT|NO-EVICT", arity=3, flags=ADMIN, since="7.0.0", group="connection", complexity="O(1)",
    usage="<ON | OFF>",
)  # fmt: skip
def client_no_evict(ctx: Context, word: bytes) -> Reply:
    """Mark this connection as exempt from eviction; nothing evicts clients here, so it is only shown."""
    ctx.session.no_evict = _on_or_off(word)
    return OK


@command(
    "CLIENT|NO-TOUCH", arity=3, flags=FLAGS, since="7.2.0", group="connection", complexity="O(1)",
    usage="<ON | OFF>",
)  # fmt: skip
def client_no_touch(ctx: Context, word: bytes) -> Reply:
    """Have this connection's reads not count as uses of a key."""
    ctx.session.no_touch = _on_or_off(word)
    return OK


@command(
    "CLIENT|REPLY", arity=3, flags=FLAGS, since="3.2.0", group="connection", complexity="O(1)",
    usage="<ON | OFF | SKIP>",
)  # fmt: skip
def client_reply(ctx: Context, word: bytes) -> Reply:
    """Choose whether this connection is answered."""
    session = ctx.session
    match word.upper():
        case b"ON":
            session.mode &= ~(REPLY_OFF | REPLY_SKIP)
            return OK
        case b"OFF":
            session.mode |= REPLY_OFF
            return NO_REPLY
        case b"SKIP":
            if not session.mode & REPLY_OFF:
                ctx.node.runner.long_way.skip_next_reply(session)
            return NO_REPLY
    raise SYNTAX_ERROR


@command(
    "CLIENT|PAUSE", arity=-3, flags=ADMIN, since="2.9.50", group="connection", complexity="O(1)",
    usage="timeout [WRITE | ALL]",
)  # fmt: skip
def client_pause(ctx: Context, timeout: bytes, *words: bytes) -> Reply:
    """Hold back clients' commands, or their writes, for some milliseconds."""
    only_writes = False
    if words:
        if len(words) > 1:
            raise wrong_words(ctx)
        if words[0].upper() not in (b"WRITE", b"ALL"):
            raise ReplyError("ERR CLIENT PAUSE mode must be WRITE or ALL")
        only_writes = words[0].upper() == b"WRITE"
    milliseconds = integer(timeout, ReplyError("ERR timeout is not an integer or out of range"))
    if milliseconds < 0:
        raise ReplyError("ERR timeout is negative")
    ctx.node.runner.gate.pause(milliseconds / 1000, only_writes=only_writes)
    ctx.node.observe_changed()
    return OK


@command(
    "CLIENT|UNPAUSE", arity=2, flags=ADMIN, since="6.2.0", group="connection",
    complexity="O(N) Where N is the number of paused clients",
)  # fmt: skip
def client_unpause(ctx: Context) -> Reply:
    """End CLIENT PAUSE."""
    ctx.node.runner.gate.end_pause()
    ctx.node.observe_changed()
    return OK


@command(
    "CLIENT|UNBLOCK", arity=-3, flags=ADMIN, since="5.0.0", group="connection", complexity="O(1)",
    usage="client-id [TIMEOUT | ERROR]",
)  # fmt: skip
def client_unblock(ctx: Context, number: bytes, *words: bytes) -> Reply:
    """End the wait of a client that is blocked by a command."""
    if len(words) > 1:
        raise wrong_words(ctx)
    how = words[0].upper() if words else b"TIMEOUT"
    if how not in (b"TIMEOUT", b"ERROR"):
        raise ReplyError("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR")
    session = ctx.node.session_by_id(integer(number))
    if session is None or session.wait is None or not session.wait.is_blocking:
        return 0
    reply: Reply = session.wait.reply
    if how == b"ERROR":
        reply = ReplyError("UNBLOCKED client unblocked via CLIENT UNBLOCK")
    ctx.node.runner.long_way.unblock_later(session, reply)
    return 1


# Tracking


@command(
    "CLIENT|TRACKING", arity=-3, flags=FLAGS, since="6.0.0", group="connection",
    complexity="O(1). Some options may introduce additional complexity.",
    usage="<ON | OFF> [REDIRECT client-id] [PREFIX prefix [PREFIX prefix ...]] [BCAST] [OPTIN] [OPTOUT] [NOLOOP]",
)  # fmt: skip
def client_tracking(ctx: Context, switch: bytes, *words: bytes) -> Reply:
    """Have the server tell this client which keys it read have changed."""
    mode = _tracking_mode(ctx, words)
    match switch.lower():
        case b"on":
            _check_tracking(ctx.session, mode)
            ctx.node.tracking.start(ctx.session, mode)
        case b"off":
            ctx.node.tracking.stop(ctx.session)
        case _:
            raise SYNTAX_ERROR
    ctx.node.observe_changed()
    return OK


def _tracking_mode(ctx: Context, words: tuple[bytes, ...]) -> TrackingMode:
    mode = TrackingMode()
    prefixes: list[bytes] = []
    at = 0
    while at < len(words):
        word = words[at].upper()
        has_more = at + 1 < len(words)
        if word == b"REDIRECT" and has_more:
            at += 1
            if mode.redirect:
                raise ReplyError("ERR A client can only redirect to a single other client")
            mode.redirect = integer(words[at])
            mode.target = ctx.node.session_by_id(mode.redirect)
            if mode.target is None:
                raise ReplyError("ERR The client ID you want redirect to does not exist")
        elif word == b"PREFIX" and has_more:
            at += 1
            prefixes.append(words[at])
        elif word == b"BCAST":
            mode.is_broadcast = True
        elif word == b"OPTIN":
            mode.is_optin = True
        elif word == b"OPTOUT":
            mode.is_optout = True
        elif word == b"NOLOOP":
            mode.is_noloop = True
        else:
            raise SYNTAX_ERROR
        at += 1
    mode.prefixes = tuple(prefixes)
    return mode


def _check_tracking(session: Session, mode: TrackingMode) -> None:
    old: TrackingMode | None = session.tracking
    if mode.prefixes and not mode.is_broadcast:
        raise ReplyError("ERR PREFIX option requires BCAST mode to be enabled")
    if old is not None and old.is_broadcast != mode.is_broadcast:
        raise ReplyError(
            "ERR You can't switch BCAST mode on/off before disabling tracking for this client, "
            "and then re-enabling it with a different mode."
        )
    if mode.is_broadcast and (mode.is_optin or mode.is_optout):
        raise ReplyError("ERR OPTIN and OPTOUT are not compatible with BCAST")
    if mode.is_optin and mode.is_optout:
        raise ReplyError("ERR You can't specify both OPTIN mode and OPTOUT mode")
    if old is not None and ((mode.is_optin and old.is_optout) or (mode.is_optout and old.is_optin)):
        raise ReplyError(
            "ERR You can't switch OPTIN/OPTOUT mode before disabling tracking for this client, "
            "and then re-enabling it with a different mode."
        )
    if mode.is_broadcast:
        existing = () if old is None else old.prefixes
        _check_prefixes(existing, mode.prefixes)
        mode.prefixes = tuple(sorted({*existing, *(mode.prefixes or (b"",))}))


def _check_prefixes(existing: tuple[bytes, ...], prefixes: tuple[bytes, ...]) -> None:
    for at, prefix in enumerate(prefixes):
        for others, kind in (
            (existing, b"an existing prefix"),
            (prefixes[at + 1 :], b"another provided prefix"),
        ):
            for other in others:
                if prefix.startswith(other) or other.startswith(prefix):
                    raise ReplyError(
                        b"ERR Prefix '%b' overlaps with %b '%b'. "
                        b"Prefixes for a single client must not overlap." % (prefix, kind, other)
                    )


@command(
    "CLIENT|TRACKINGINFO", arity=2, flags=FLAGS, since="6.2.0", group="connection",
    complexity="O(1)",
)  # fmt: skip
def client_trackinginfo(ctx: Context) -> Reply:
    """Describe how this connection tracks."""
    mode: TrackingMode | None = ctx.session.tracking
    if mode is None:
        return {b"flags": SetReply([b"off"]), b"redirect": -1, b"prefixes": []}
    flags: list[Reply] = [b"on"]
    if mode.is_broadcast:
        flags.append(b"bcast")
    if mode.is_optin:
        flags.append(b"optin")
        if mode.caching:
            flags.append(b"caching-yes")
    if mode.is_optout:
        flags.append(b"optout")
        if mode.caching is False:
            flags.append(b"caching-no")
    if mode.is_noloop:
        flags.append(b"noloop")
    if mode.is_broken:
        flags.append(b"broken_redirect")
    return {
        b"flags": SetReply(flags),
        b"redirect": mode.redirect,
        b"prefixes": list(mode.prefixes),
    }


@command(
    "CLIENT|CACHING", arity=3, flags=FLAGS, since="6.0.0", group="connection", complexity="O(1)",
    usage="<YES | NO>",
)  # fmt: skip
def client_caching(ctx: Context, word: bytes) -> Reply:
    """Say whether the keys of the next command are tracked, in OPTIN or OPTOUT mode."""
    mode: TrackingMode | None = ctx.session.tracking
    if mode is None:
        raise ReplyError(
            "ERR CLIENT CACHING can be called only when the client is in tracking mode with "
            "OPTIN or OPTOUT mode enabled"
        )
    match word.lower():
        case b"yes":
            if not mode.is_optin:
                raise ReplyError(
                    "ERR CLIENT CACHING YES is only valid when tracking is enabled in OPTIN mode."
                )
            mode.caching = True
        case b"no":
            if not mode.is_optout:
                raise ReplyError(
                    "ERR CLIENT CACHING NO is only valid when tracking is enabled in OPTOUT mode."
                )
            mode.caching = False
        case _:
            raise SYNTAX_ERROR
    return OK


@command(
    "CLIENT|GETREDIR", arity=2, flags=FLAGS, since="6.0.0", group="connection", complexity="O(1)"
)
def client_getredir(ctx: Context) -> Reply:
    """Answer the number of the client that hears of changed keys instead of this one."""
    return ctx.session.tracking.redirect if ctx.session.tracking else -1


HELP: Final = """\
CLIENT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
CACHING (YES|NO)
    Track, or do not track, the keys of the next command (OPTIN or OPTOUT mode).
GETNAME
    The name of this connection.
GETREDIR
    The client that hears of changed keys instead of this one.
ID
    The number of this connection.
INFO
    A line about this connection.
KILL <ip:port>
    Close the connection from that address.
KILL <option> <value> [<option> <value> [...]]
    Close the connections that meet all of ADDR, LADDR, TYPE, USER, ID; SKIPME (YES|NO).
LIST [TYPE (NORMAL|MASTER|REPLICA|PUBSUB)] [ID <client-id> ...]
    A line about each connection.
NO-EVICT (ON|OFF)
    Exempt this connection from eviction.
NO-TOUCH (ON|OFF)
    Reads of this connection do not count as uses.
PAUSE <timeout> [WRITE|ALL]
    Hold back all commands, or writes, for some milliseconds.
REPLY (ON|OFF|SKIP)
    Whether this connection is answered.
SETINFO (LIB-NAME|LIB-VER) <value>
    Say which library this client is.
SETNAME <name>
    Name this connection.
TRACKING (ON|OFF) [REDIRECT <id>] [BCAST] [PREFIX <prefix> [...]] [OPTIN] [OPTOUT] [NOLOOP]
    Tell this client which keys have changed.
TRACKINGINFO
    How this connection tracks.
UNBLOCK <client-id> [TIMEOUT|ERROR]
    End the wait of a blocked client.
UNPAUSE
    End CLIENT PAUSE.
HELP
    Print this help."""


@command(
    "CLIENT|HELP",
    arity=2,
    flags=Flag.LOADING | Flag.STALE,
    since="5.0.0",
    group="connection",
    complexity="O(1)",
)
def client_help(ctx: Context) -> Reply:
    """Show the subcommands of CLIENT."""
    return help_reply(HELP)


def help_reply(text: str) -> Reply:
    """Help as a list of simple strings, a line each."""
    lines = [b"+%b\r\n" % line.encode() for line in text.split("\n")]
    return Encoded(b"*%d\r\n%b" % (len(lines), b"".join(lines)))
