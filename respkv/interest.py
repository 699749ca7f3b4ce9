"""Interest: CLIENT TRACKING across nodes. Who elsewhere has a client that may have cached what was read here.

The table of clients is `respkv/tracking.py`. It is enough for what a node reads from its own replica, since a replica
hears of every change of its rows in the end. What the node has *forwarded* was read by another replica. So a forwarded
read says if it is for a client that tracks. The node that executes it notes the key with the node that asked, before
it answers, and tells that node once when the key has changed. That node notes the key with its client before it
asks: whichever comes first, the answer or the news, the client hears the news last.

In broadcasting mode clients want to hear of keys that nobody read. Their prefixes go to all nodes, and the node that
executes a write tells those that are no replica of it.

Nothing may get lost silently, for a client would use what it cached for ever:

- What was told is repeated until it was heard.
- A node that loses contact to another one cannot know any more what that one changes, or has told it. So it tells its
  clients to forget everything, and the nodes that have an interest here (LOST) to do the same with what they read
  here. What is cached after that was confirmed by R replicas within reach, of which any W others include one.
- The table is bounded: beyond `KEYS_MAX` the oldest key counts as changed. A peer that does not listen and is owed
  more than `UNHEARD_KEYS_MAX` is told LOST instead.

The messages:

    TRACK.CHANGED number key*         what was read here, or matches a prefix, has changed
    TRACK.LOST number                 so may have all that was ever read here
    TRACK.PREFIXES number prefix*     all that this node's clients want to hear of
    TRACK.HEARD number                one of these has arrived

Core: messages go through the transport seam.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from cluster.ring import NodeId
from cluster.slot import Key, slot_of

if TYPE_CHECKING:
    from cluster.topology import Topology
    from cluster.transport import Transport
    from respkv.node import Node

PREFIX: Final = b"TRACK."
CHANGED: Final = b"TRACK.CHANGED"
LOST: Final = b"TRACK.LOST"
PREFIXES: Final = b"TRACK.PREFIXES"
HEARD: Final = b"TRACK.HEARD"

KEYS_MAX: Final = 1_000_000
UNHEARD_KEYS_MAX: Final = 100_000  # That one peer is owed.
MESSAGE_KEYS_MAX: Final = 1000
MESSAGE_BYTES_MAX: Final = 1 << 18
PREFIXES_MAX: Final = 1000  # Of one node's clients: beyond, it hears of every key.
PREFIX_BYTES_MAX: Final = 1 << 16
AGAIN_S: Final = 0.25


class Interest:
    """One per node of a cluster."""

    def __init__(
        self, node: Node, topology: Topology, transport: Transport, *, first_id: int
    ) -> None:
        """`first_id`: beyond those of the process before."""
        self._node = node
        self._topology = topology
        self._transport = transport
        self._next_id = first_id
        # What others have read here, and who; what they want to hear of.
        self._keys: dict[Key, dict[NodeId, None]] = {}
        self._prefixes: dict[NodeId, tuple[bytes, ...]] = {}
        self._prefix_numbers: dict[NodeId, int] = {}
        self._changed: dict[NodeId, dict[Key, None]] = {}  # To be told at the end of the tick.
        self._unheard: dict[NodeId, dict[int, Sequence[bytes]]] = {}
        # What clients of this node have read elsewhere, and where.
        self._via: dict[Key, dict[NodeId, None]] = {}
        self._wanted: tuple[bytes, ...] = ()
        self._told_s = 0.0
        self._told_id = first_id  # What was told by then.
        self._linked: dict[NodeId, None] = {}  # The peers whose loss would be news.
        self._was_active = False

    # Reading elsewhere

    def forwarded(self, keys: Iterable[Key], target: NodeId) -> None:
        """Another node is about to be asked to read keys for a client that tracks.

        Who has cached them from another place is told to forget them: the answer may show a change of which that place
        has not told yet.
        """
        via = self._via
        tracking = self._node.tracking
        for key in keys:
            places = via.get(key)
            if (places is None or target not in places) and tracking.has_readers(key):
                tracking.tell((key,), None)
                places = None
            if places is None:
                via[key] = {target: None}
        while len(via) > KEYS_MAX:
            oldest = next(iter(via))
            del via[oldest]
            tracking.tell((oldest,), None)

    def want(self, prefixes: Iterable[bytes]) -> None:
        """What clients of this node want to hear of has changed."""
        wanted = tuple(sorted(set(prefixes)))
        if len(wanted) > PREFIXES_MAX or sum(map(len, wanted)) > PREFIX_BYTES_MAX:
            wanted = (b"",)
        if wanted != self._wanted:
            self._wanted = wanted
            for peer in self._topology.peers:
                self._tell_wanted(peer)

    def _tell_wanted(self, peer: NodeId) -> None:
        unheard = self._unheard.setdefault(peer, {})
        for number in [number for number, message in unheard.items() if message[0] == PREFIXES]:
            del unheard[number]
        self._tell(peer, PREFIXES, self._wanted)

    def forget_all(self) -> None:
        """This node's clients have been told to forget everything."""
        self._via.clear()

    # Reading here, for others

    @property
    def is_active(self) -> bool:
        """Whether anybody elsewhere wants to know what changes here."""
        return bool(self._keys or self._prefixes)

    @property
    def has_prefixes(self) -> bool:
        return bool(self._prefixes)

    @property
    def key_count(self) -> int:
        return len(self._keys)

    def note(self, peer: NodeId, keys: Iterable[Key]) -> None:
        """Keys were read for a client of another node."""
        for key in keys:
            self._keys.setdefault(key, {})[peer] = None
        while len(self._keys) > KEYS_MAX:
            self.changed((next(iter(self._keys)),), is_own=False)
        self._look()

    def changed(self, keys: Iterable[Key], *, is_own: bool) -> None:
        """Keys have changed here; `is_own`: this node has executed the command that did it, or they have expired."""
        prefixes = self._prefixes if is_own else {}
        for key in keys:
            for peer in self._keys.pop(key, ()):
                self._changed.setdefault(peer, {})[key] = None
            for peer, wanted in prefixes.items():
                if key.startswith(wanted) and peer not in self._topology.preferences[slot_of(key)]:
                    self._changed.setdefault(peer, {})[key] = None

    def flush(self) -> None:
        """The tick ends: tell others what has changed in it. Before anything is answered that shows it."""
        if not self._changed:
            return
        changed, self._changed = self._changed, {}
        for peer, keys in changed.items():
            some: list[Key] = []
            size = 0
            for key in keys:
                if len(some) >= MESSAGE_KEYS_MAX or size > MESSAGE_BYTES_MAX:
                    self._tell(peer, CHANGED, some)
                    some, size = [], 0
                some.append(key)
                size += len(key)
            self._tell(peer, CHANGED, some)
            unheard = self._unheard[peer].values()
            if sum(len(message) - 2 for message in unheard) > UNHEARD_KEYS_MAX:
                self._tell_lost(peer)

    def _tell(self, peer: NodeId, verb: bytes, words: Sequence[bytes]) -> None:
        self._next_id += 1
        message = (verb, b"%d" % self._next_id, *words)
        self._unheard.setdefault(peer, {})[self._next_id] = message
        self._transport.send(peer, message)

    def _tell_lost(self, peer: NodeId) -> None:
        """Instead of all that it has not heard."""
        self._changed.pop(peer, None)
        unheard = self._unheard.setdefault(peer, {})
        for number in [number for number, message in unheard.items() if message[0] != PREFIXES]:
            del unheard[number]
        self._tell(peer, LOST, ())

    # What happens

    def receive(self, peer: NodeId, message: list[bytes]) -> None:
        """A message of another node. Raises ValueError, IndexError if it is malformed."""
        verb, number = message[0], int(message[1])
        if verb == HEARD:
            self._unheard.get(peer, {}).pop(number, None)
            return
        if verb == CHANGED:
            self._take_changed(message[2:])
        elif verb == LOST:
            self._distrust(peer)
            self._node.tracking.tell_broadcasts()
            if self._wanted:
                self._tell_wanted(peer)  # It has forgotten that too.
        elif verb == PREFIXES:
            if number > self._prefix_numbers.get(peer, 0):
                self._prefix_numbers[peer] = number
                self._prefixes.pop(peer, None)
                if message[2:]:
                    self._prefixes[peer] = tuple(message[2:])
                self._look()
        else:
            raise ValueError("no such verb")
        self._transport.send(peer, (HEARD, message[1]))

    def _take_changed(self, keys: Sequence[Key]) -> None:
        node = self._node
        assert node.peers is not None
        for key in keys:
            self._via.pop(key, None)
            node.tracking.tell((key,), node.peers.dispatch.forwarding.writer_of(key))

    def _distrust(self, peer: NodeId) -> None:
        """What was read at a peer may have changed, and nobody would tell."""
        keys = [key for key, places in self._via.items() if peer in places]
        for key in keys:
            del self._via[key]
        self._node.tracking.tell(keys, None)

    def connected(self, peer: NodeId) -> None:
        """What it noted over an earlier connection it may have forgotten."""
        self._linked[peer] = None
        self._distrust(peer)
        if self._wanted:
            self._tell_wanted(peer)

    def lose(self, peer: NodeId) -> None:
        """A peer is out of reach: see the module's docstring."""
        if self._linked.pop(peer, self) is self:
            return  # It was before.
        self._node.tracking.tell_all()
        self._via.clear()
        interested = dict.fromkeys(name for places in self._keys.values() for name in places)
        if peer in self._prefixes:
            interested[peer] = None
        self._keys.clear()
        self._prefixes.pop(peer, None)
        for name in interested:
            self._tell_lost(name)
        self._look()

    def forget(self, peer: NodeId) -> None:
        """The peer is another process now."""
        self._prefixes.pop(peer, None)
        self._prefix_numbers.pop(peer, None)
        self._distrust(peer)
        if self._wanted:
            self._tell_wanted(peer)

    def tick(self, now_s: float) -> None:
        """Some times a second: repeat what was not heard."""
        self._look()
        if now_s - self._told_s < AGAIN_S:
            return
        self._told_s = now_s
        old_id, self._told_id = self._told_id, self._next_id
        for peer, unheard in self._unheard.items():
            if self._topology.is_reachable(peer):
                for number, message in unheard.items():
                    if number <= old_id:
                        self._transport.send(peer, message)

    def _look(self) -> None:
        if self.is_active != self._was_active:
            self._was_active = self.is_active
            self._node.observe_changed()
