"""How far each node has got, by its own word, as the others remember it: so a disk that is old is found out.

A disk that is put back as it was earlier (the image of a machine, a copy of the folder) looks like one that was only
switched off. But the others have heard how far its node had got since, and tell it when they meet again.

A *mark* says how far a node has got: the number of its history, and a position in its log. The history goes on
from process to process for as long as nothing that the node promised can be lost, and then has the next number
(`cluster/life.py`). The position is one that a restart finds again: behind what is on the disk where acknowledgements
wait for that, and else behind what the kernel has. So marks only grow; and a node which somebody has heard to be
further than it ever said has lost what it did in between.

Each node tells each other one, in every STATE (`respkv/peers.py`), its mark and the last one of the receiver's that it
has heard. To a peer that it has not heard since its start it tells the mark of its start: else what it has got to since
would hide what it had before.

Nobody remembers beyond his own restart, and what is told is as old as the last STATE: a disk that is older by less
than that, or a cluster of which all nodes were down, is not found out.

Core.
"""

from __future__ import annotations

from struct import Struct, error
from typing import Final

from cluster.errors import ClusterError
from cluster.ring import NodeId
from engine.errors import EngineError

Mark = tuple[int, int]
"""The number of a history, and a position in the log: compared in this order."""

_WORD: Final = Struct("<4Q")  # The sender's mark, and the receiver's as the sender knows it.


class MalformedWord(ClusterError):
    """What a peer sent is no word."""

    def __str__(self) -> str:
        return f"a word of two marks has {_WORD.size} bytes"


class OldDisk(EngineError):
    """The data is older than what was done with it, and its actor goes on, who would give dots out twice."""

    def __init__(self, peer: NodeId, mark: Mark) -> None:
        super().__init__(peer, mark)
        self.peer, self.mark = peer, mark

    def __str__(self) -> str:
        return (
            f"the data folder is older than what was done with it: {self.peer} has heard of this node up to position "
            f"{self.mark[1]} of history {self.mark[0]}. Start it again: it goes on as another actor, and serves "
            "when it has compared its data with other nodes."
        )


class Witnesses:
    """What a node has told others of itself since its start, and what it has heard of them."""

    def __init__(self, start: Mark) -> None:
        """`start`: how far the node had got when it began."""
        self._start = start
        self._told: dict[NodeId, Mark] = {}  # The furthest.
        self._heard: dict[NodeId, Mark] = {}

    def word_for(self, peer: NodeId, mark: Mark) -> bytes:
        """What to tell a peer now that this node has got to `mark`."""
        told = max(mark, self._told.get(peer, mark)) if peer in self._heard else self._start
        self._told[peer] = told
        return _WORD.pack(*told, *self._heard.get(peer, (0, 0)))

    def hear(self, peer: NodeId, word: bytes) -> Mark | None:
        """Take a peer's word. Returns how far it has heard this node to be, if that is further than it was told.

        Raises MalformedWord.
        """
        try:
            history, position, my_history, my_position = _WORD.unpack(word)
        except error:
            raise MalformedWord from None
        mark = (history, position)
        self._heard[peer] = max(mark, self._heard.get(peer, mark))
        mine = (my_history, my_position)
        return mine if mine > self._told.get(peer, self._start) else None
