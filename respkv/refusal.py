"""What a client of a cluster hears when its command is not answered: the texts, and when each is given.

docs/ERRORS.md explains them to users.

Core.
"""

from __future__ import annotations

from typing import Final

from cluster.errors import ClusterError
from cluster.round import ConflictLost, QuorumNotMet
from respkv.reply import ReplyError

UNKNOWN: Final = ReplyError(
    "UNKNOWN the node that executed this command was lost: it may or may not have taken effect"
)
TRIED: Final = ReplyError(
    "UNKNOWN the command was tried before, and cannot be tried again: it may or may not have taken effect"
)
NO_REPLICA: Final = ReplyError("NOREPLICAS no replica of this key can be reached now")
TIMED_OUT: Final = ReplyError(
    "TIMEOUT no answer in time: the command may or may not have taken effect"
)
TOO_BUSY: Final = ReplyError("BUSY too much is on its way to other nodes: try again")
TOO_LARGE: Final = ReplyError(
    "ERR the value is too large for one message between nodes (cluster.bus_frame_bytes_max)"
)
OVERTAKEN: Final = ReplyError("another client wrote one of its keys at the same time")
IN_TRANSACTION: Final = ReplyError("ERR this command cannot be used inside MULTI in a cluster")


def doubted(error: ReplyError) -> ReplyError:
    """The same error for a command of which an earlier attempt may have taken effect."""
    return error if error.line.startswith((b"TIMEOUT", b"UNKNOWN")) else TRIED


def parted(error: ReplyError) -> ReplyError:
    """What stopped a command of which a part was written."""
    return ReplyError(b"UNKNOWN a part of this command was applied, and then: %b" % error.line)


def text_of(error: ClusterError, *, is_early: bool) -> ReplyError:
    """What a client hears; docs/ERRORS.md explains each. `is_early`: nothing was done."""
    if isinstance(error, QuorumNotMet):
        if is_early:
            what = "writes need" if error.is_write else "reads need"
            return ReplyError(
                f"NOREPLICAS {what} {error.needed} replicas of this key, and {error.answered} can be reached"
            )
        if error.is_write:
            return ReplyError(
                f"TIMEOUT written to {error.answered} of the {error.needed} replicas that are needed: "
                "the write may last or not"
            )
        return ReplyError(f"TIMEOUT {error}")
    if isinstance(error, ConflictLost) and error.is_partial:
        return ReplyError(f"UNKNOWN {error}")
    if isinstance(error, ConflictLost):
        return ReplyError(f"TRYAGAIN {error}: nothing was changed")
    return ReplyError(f"ERR {error}")
