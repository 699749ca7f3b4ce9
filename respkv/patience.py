"""Which clients are closed for what they did not do for too long: read their replies, or ask anything.

It closes nobody. The limits are settings: `output_buffer_soft_bytes` and `output_buffer_soft_s` of
`[client]`, or of `[pubsub]` for a client with subscriptions, and `client.idle_timeout_s`. A plain
client that reads only slowly is never closed: it is not served further, and may take its time. One
with subscriptions is, since what it is sent goes on whatever it reads.

Core: synchronous; time is an argument.
"""

from __future__ import annotations

from respkv.connection import Connection
from respkv.node_config import Config
from respkv.sections import Pubsub
from respkv.session import CLOSING, MONITORING, WAITING, Session


def reads_too_little(connection: Connection, config: Config, now_s: float) -> bool:
    """Whether a client has had too much to read for too long. To be asked once a second."""
    session = connection.session
    if session.subscriptions is not None:
        return _is_slow_subscriber(session, config.pubsub, now_s)
    limits = config.client
    if not connection.unsent or not limits.output_buffer_soft_bytes:
        return False
    is_over = (
        session.unsent_bytes > limits.output_buffer_soft_bytes
        or session.queue
        or connection.unparsed
        or session.mode & CLOSING
    )
    return bool(is_over) and now_s - connection.progress_s > limits.output_buffer_soft_s


def _is_slow_subscriber(session: Session, limits: Pubsub, now_s: float) -> bool:
    """Whether a client with subscriptions has had too much to read for too long, as Redis counts it."""
    own = session.subscriptions
    if not limits.output_buffer_soft_bytes or (
        session.unsent_bytes <= limits.output_buffer_soft_bytes
    ):
        own.over_since_s = 0.0
    elif not own.over_since_s:
        own.over_since_s = now_s
    elif now_s - own.over_since_s >= limits.output_buffer_soft_s:
        return True
    return False


def is_idle(connection: Connection, config: Config, now_s: float) -> bool:
    """Whether a client that waits for nothing has asked nothing, and taken nothing, for too long."""
    session = connection.session
    timeout_s = config.client.idle_timeout_s
    last_s = max(session.last_active_s, connection.progress_s)
    return (
        bool(timeout_s)
        and now_s - last_s > timeout_s
        and not session.mode & (WAITING | MONITORING)
        and session.subscriptions is None
    )
