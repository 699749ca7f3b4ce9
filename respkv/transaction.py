"""MULTI and EXEC: a transaction is begun, executed as a whole, and forgotten.

What stands between the two is queued by the gate (`gate.py`), in `Session.transaction`. EXEC is a
handler like others: atomic, and run again from its start when a row is not in memory. The commands
inside are run by who runs all others.

Core: synchronous, no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from engine.store import PageFault
from respkv.command import Command
from respkv.context import NO_EFFECTS, Context
from respkv.reply import NULL_ARRAY, OK, Reply, ReplyError
from respkv.session import IN_MULTI, TRACKING, Block, Session, Transaction

EXECABORT: Final = ReplyError("EXECABORT Transaction discarded because of previous errors.")
EXECABORT_BECAUSE: Final = b"EXECABORT Transaction discarded because of: "

Queued = tuple[Command, list[bytes]]
Call = Callable[[Command, list[bytes]], Reply]  # Runs a handler on the bound context.
Show = Callable[[Session, Command, list[bytes]], None]  # Shows a command to the monitors.


def begin_transaction(session: Session) -> Reply:
    """MULTI."""
    if session.transaction is not None:
        raise ReplyError("ERR MULTI calls can not be nested")
    session.transaction = Transaction()
    session.mode |= IN_MULTI
    return OK


def execute_transaction(context: Context, call: Call, show: Show) -> Reply:
    """EXEC's middle: check the watched keys, then `call` each command in a layer of its own. Raises PageFault.

    Nothing of the session changes before the last command has run, so that a fault can run it
    all again.
    """
    session = context.session
    node = context.node
    transaction = session.transaction
    assert transaction is not None
    if transaction.is_broken:
        end_transaction(session)
        raise EXECABORT
    for (db, key), dots in session.watches.items():
        if context.dots(key, db=node.databases[db]) != dots:
            end_transaction(session)
            return NULL_ARRAY
    db, mode, is_resp3 = session.db, session.mode, session.is_resp3
    own = session.subscriptions
    names = {} if own is None else {kind: list(each) for kind, each in own.names.items()}
    try:
        replies = execute_all(context, transaction.commands, call)
    except PageFault:
        session.db, session.mode, session.is_resp3 = db, mode, is_resp3
        node.pubsub.restore(session, names)
        raise
    for command, args in transaction.commands:
        command.calls += 1
        show(session, command, args)
        if session.mode & TRACKING:
            node.tracking.remember(session, command, args)
    end_transaction(session)
    return replies


def execute_all(context: Context, commands: Sequence[Queued], call: Call) -> list[Reply]:
    """Run commands one after the other, each in a layer over those before it; errors are replies. Raises PageFault.

    Their effects are the context's then, for the caller to commit or to drop. They are not counted, but for errors.
    """
    session = context.session
    replies: list[Reply] = []
    errors: list[tuple[Command, ReplyError]] = []
    context.is_atomic = True
    context.below = {}
    try:
        for command, args in commands:
            try:
                context.db = context.databases[session.db]  # One before it may have swapped them.
                context.args = args
                replies.append(call(command, args))
                context.below.update(context.effects)
            except ReplyError as error:
                error.__traceback__ = None
                replies.append(error)
                errors.append((command, error))
            except Block as block:
                replies.append(block.reply)
            context.effects = {}
    finally:
        context.effects = context.below
        context.below = NO_EFFECTS
        context.is_atomic = False
    for command, failure in errors:
        command.failed_calls += 1
        context.node.count_error(failure)
    return replies


def end_transaction(session: Session) -> None:
    """Forget the queue and the watches."""
    session.transaction = None
    session.watches.clear()
    session.mode &= ~IN_MULTI
