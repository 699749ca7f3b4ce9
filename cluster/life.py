"""What a data folder says of the process that used it last: who it was, and whether it ended well.

A dot must never name two writes. So a node goes on as the actor that it was only if nothing that it
did can have been lost: after a clean stop, or if the machine has not been restarted since (the kernel
keeps what a killed process has written). In all other cases it mints a new actor, and unless every
acknowledgement had waited for the disk it is *incomplete*: others may count on what it no longer has.

The file belongs to one folder's history. No snapshot and no backup holds it, so that a copy of the
data is never taken for its original.

    life    JSON: {"actor": 17, "boot": "...", "is_durable": false, "is_clean": false, "is_complete": true,
                   "earlier": [], "history": 1}

It is replaced before the first write after a start and after the last one before a stop, durably.

Core, over the disk seam. Source: riak_kv#679 (the lost counters of Riak).
"""

from __future__ import annotations

from typing import Final

import msgspec

from cluster.clock import Actor
from engine.disk import Disk, replace_file

NAME: Final = "life"
_TEMPORARY: Final = "life.tmp"
BYTES_MAX: Final = 4096
# So many actors of processes before are remembered, as long as rows are open.
EARLIER_MAX: Final = 16


class Life(msgspec.Struct, frozen=True):
    """`boot` names the run of the machine (empty: not known, or the log has failed in it).

    `is_durable`: nothing was acknowledged before it was on the disk. `earlier`: the actors of processes before, the
    latest first, as far as some of their writes may still be open. `history`: how often what was promised may have
    been lost, which others remember (`cluster/witness.py`).
    """

    actor: Actor
    boot: str
    is_durable: bool
    is_clean: bool
    is_complete: bool
    earlier: tuple[Actor, ...] = ()
    history: int = 0

    def lost_nothing(self, boot: str) -> bool:
        """Whether all that this process did is still there, seen from a start in `boot`."""
        return self.is_clean or (bool(boot) and self.boot == boot)


def read(disk: Disk) -> Life | None:
    """The life of the process before; None if there was none, or if nothing can be said of it."""
    if NAME not in disk.names():
        return None
    file = disk.open(NAME)
    try:
        return msgspec.json.decode(file.read(0, min(file.size, BYTES_MAX)), type=Life)
    except msgspec.MsgspecError:
        return None  # Damaged: nothing is known, and a new actor is always right.
    finally:
        file.close()


def write(disk: Disk, life: Life) -> None:
    """Replace it; durable when it returns. Raises DiskError."""
    replace_file(disk, NAME, _TEMPORARY, msgspec.json.encode(life))
