"""The bus: messages between the nodes of a cluster, over TCP.

It implements `cluster/transport.py`, which says what is promised and what is not. It knows nothing of
what messages mean, but for a set of verbs that go first.

    bus.py         which links there are: dialling, accepting, keepalive, who is told what
    bus_link.py    one link: its socket, its stages, what is queued
    bus_wire.py    messages as bytes
    bus_tls.py     TLS, if the node has it

Between two nodes there are two links, one for `send` and one for `send_bulk`. The node with the smaller
name dials both, the bulk link once the other is open; the other node never dials. A dialler that has no
business to dial is refused. When a second link comes for the same lane, the first is given up: its dialler
has come back without this end having noticed.

No socket has a task. All are watched by the front, and served in its tick like clients; what a node sends
in a tick leaves at its end, when the node calls `flush`, after the log is written. The only task is `run`:
it dials (after a failure with growing pauses, of random length), watches deadlines, and pings who is
silent. It delivers nothing: what it ends is reported by the kernel, and so in a tick. It has children only
while the name of a host is looked up, since that blocks.

An end of a link is told to the receiver at once: when a process dies its kernel closes its sockets, and the
next dial is refused. Only news is told: `disconnected` is not repeated for each dial that fails.

Without a secret the bus serves and dials loopback addresses only. Whoever is refused, or refuses this node,
is told to the log once for each reason, and again after a link was open in between.

Shell. Sources: RFC 5482 (TCP_USER_TIMEOUT); full jitter as in Exponential Backoff and Jitter (AWS).
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Final

import trio

from cluster.gossip_message import Terms
from cluster.handshake import (
    NONCE_BYTES,
    Acceptor,
    Done,
    HandshakeError,
    Initiator,
    SecretRequired,
)
from cluster.ring import NodeId
from cluster.topology import NodeInfo
from cluster.transport import Receiver
from respkv import cluster_view
from respkv.bus_link import PING_WIRE, BusLimits, Descriptors, Lane, Link, Stage, tune
from respkv.bus_tls import Tls, TlsSettings
from respkv.bus_wire import encode
from respkv.poller import READ

Address = tuple[str, int]

# What others wait for, and what says that this node is alive: before the messages that make work.
URGENT: Final = frozenset((b"ACK", b"SAME", b"NOT", b"GOSSIP.BEAT"))

BACKLOG: Final = 128
ACCEPTS_PER_TICK: Final = 16
CHECK_S: Final = 0.1  # How often deadlines are looked at.
LATE_S: Final = 0.5  # When this process was stopped for longer, silence was its own fault.
STABLE_S: Final = 1.0  # A link that was open for so long was no failure.
TOLD_MAX: Final = 128
NO_DESCRIPTORS: Final = ("this node", "descriptors")  # A reason to tell.
NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(eq=False)
class NotMember(HandshakeError):
    """The peer knows the secret, and its name is not in this node's configuration."""

    name: NodeId

    def __str__(self) -> str:
        return f"{self.name} is not in this node's list of nodes. Give all nodes the same list."


@dataclass(eq=False)
class WrongDirection(HandshakeError):
    """The peer has dialled, where this node is the one that dials."""

    name: NodeId

    def __str__(self) -> str:
        return f"{self.name} must not dial: the node with the smaller name does"


@dataclass(eq=False)
class CutOff(HandshakeError):
    """KV.DRILL keeps this node and the peer apart."""

    name: NodeId

    def __str__(self) -> str:
        return f"{self.name} is cut off by KV.DRILL"


@dataclass(slots=True)
class _Dial:
    """A link that this node has to keep up."""

    peer: NodeId
    lane: Lane
    link: Link | None = None
    is_looking_up: bool = False
    failures: int = 0  # In a row.
    next_s: float = 0.0


class Bus:
    """One node's end of all its links. See `cluster.transport.Transport`."""

    def __init__(
        self,
        name: NodeId,
        terms: Terms,
        *,
        secret: bytes | None,
        peers: Mapping[NodeId, Address],
        descriptors: Descriptors,
        receiver: Receiver,
        rng: Random,
        entropy: Callable[[int], bytes],
        clock_ns: Callable[[], int],
        log: Any,
        limits: BusLimits | None = None,
        tls: TlsSettings | None = None,
        urgent: Iterable[bytes] = URGENT,
    ) -> None:
        """`peers`: where the bus of each other node listens. `entropy(n)` gives n bytes that nobody can foretell."""
        self._name = name
        self._terms = terms
        self._secret = secret
        self._descriptors = descriptors
        self._receiver = receiver
        self._rng = rng
        self._entropy = entropy
        self._clock_ns = clock_ns
        self._log = log
        self._limits = BusLimits() if limits is None else limits
        self._frame_bytes_max = self._limits.frame_bytes_max
        self._tls = tls
        self._urgent = frozenset(urgent)
        self.received = receiver.receive  # What links call for each message: no step between.
        self._peers: dict[NodeId, Address] = {}
        self._dials: dict[tuple[NodeId, Lane], _Dial] = {}
        self._listeners: dict[int, socket.socket] = {}
        self._all: dict[Link, None] = {}
        self._accepted: dict[Link, None] = {}  # Of these, who has not proved itself yet.
        self._sends: dict[NodeId, Link] = {}  # Open ones.
        self._bulks: dict[NodeId, Link] = {}
        self.sent: dict[bytes, int] = {}  # Messages by verb, of both lanes.
        self.overflows_total = 0  # Links that were closed because too much waited to be sent.
        self._dirty: list[Link] = []
        self._last: Sequence[bytes] | None = None
        self._last_data = b""
        self._reported: dict[NodeId, str] = {}
        self.cut: dict[NodeId, bool] = {}  # KV.DRILL: who is kept away, True if silently.
        self._told: dict[tuple[str, str], None] = {}
        self._wake = trio.Event()
        self._checked_s = self._now_s()
        self._is_full = False
        self._is_closed = False
        self.set_peers(peers)

    # Transport

    def send(self, peer: NodeId, message: Sequence[bytes]) -> None:
        """Send at the end of this tick. The same tuple for several peers in a row is encoded once."""
        link = self._sends.get(peer)
        if link is None:
            return
        if message is self._last:
            data = self._last_data
        else:
            data = encode(message)
            if type(message) is tuple:  # A list might be changed in between.
                self._last = message
                self._last_data = data
        if len(data) <= self._frame_bytes_max:
            if not link.is_dirty:
                link.is_dirty = True
                self._dirty.append(link)
            verb = message[0]
            self.sent[verb] = self.sent.get(verb, 0) + 1
            link.queue(data, is_urgent=verb in self._urgent)
        else:
            self._tell_too_large(link, message, data)

    def send_bulk(self, peer: NodeId, message: Sequence[bytes]) -> bool:
        link = self._bulks.get(peer)
        if (
            link is None
            or link.doom
            or link.unsent
            or link.queued_bytes >= self._limits.bulk_bytes_max
        ):
            return False
        data = encode(message)
        if len(data) > self._frame_bytes_max:
            self._tell_too_large(link, message, data)
            return False
        if not link.is_dirty:
            link.is_dirty = True
            self._dirty.append(link)
        self.sent[message[0]] = self.sent.get(message[0], 0) + 1
        link.queue(data, is_urgent=False)
        return True

    def is_connected(self, peer: NodeId) -> bool:
        link = self._sends.get(peer)
        return link is not None and not link.doom

    def queued_bytes(self, peer: NodeId) -> int:
        """Of what was sent by `send`. Bulk has its own limit."""
        link = self._sends.get(peer)
        return 0 if link is None else link.queued_bytes + link.unsent_bytes

    def flush(self) -> None:
        """The tick has ended, and the log is written: what was sent in it leaves."""
        dirty = self._dirty
        if dirty:
            self._dirty = []
            self._last = None
            self._last_data = b""
            for link in dirty:
                link.flush()

    def _tell_too_large(self, link: Link, message: Sequence[bytes], data: bytes) -> None:
        """It is dropped: the other end would close the link, with all that is under way on it."""
        self._log.error(
            "a message is too large for the bus",
            peer=link.peer,
            verb=message[0].decode("latin-1"),
            size_bytes=len(data),
        )

    # What is told of it

    def links(self, wall_ms: int) -> list[cluster_view.Link]:
        """The open links. `wall_ms`: now, since 1970."""
        now_s = self._now_s()
        return [
            cluster_view.Link(
                peer=link.peer,
                is_outgoing=link.is_dialled,
                created_ms=wall_ms - int((now_s - link.started_s) * 1000),
                events="rw" if link.is_watched_for_writing else "r",
                allocated_bytes=link.queued_bytes + link.unsent_bytes,
                used_bytes=link.queued_bytes + link.unsent_bytes,
            )
            for links in (self._sends, self._bulks)
            for link in links.values()
        ]

    def heard_ms(self, wall_ms: int) -> dict[NodeId, int]:
        """When each peer that is connected was heard last, since 1970; `wall_ms` is now."""
        now_s = self._now_s()
        return {
            peer: wall_ms - int((now_s - link.heard_s) * 1000) for peer, link in self._sends.items()
        }

    # Who is there

    def set_peers(self, peers: Mapping[NodeId, Address]) -> None:
        """The other nodes from now on. Links to those that are gone, or have moved, are given up."""
        for name, address in peers.items():
            assert name != self._name
            if self._name < name and self._peers.get(name) != address:
                self._give_up_all(name, "its address has changed")
                for lane in Lane:
                    dial = self._dials.setdefault((name, lane), _Dial(name, lane))
                    dial.failures, dial.next_s = 0, self._now_s()
        for name in self._peers.keys() - peers.keys():
            self._give_up_all(name, "it is no longer one of the nodes")
            for lane in Lane:
                self._dials.pop((name, lane), None)
            self._reported.pop(name, None)
        self._peers = dict(peers)
        self._wake.set()

    def _give_up_all(self, peer: NodeId, reason: str) -> None:
        for link in self._all:
            if link.peer == peer:
                link.give_up(reason)

    # The drill

    def cut_off(self, peers: Iterable[NodeId], *, is_silent: bool) -> None:
        """Keep peers away until `heal`. `is_silent`: links go mute, and both ends find out by themselves.

        Otherwise links end at once. Either way no new one is made: who dials is refused.
        """
        for peer in peers:
            self.cut[peer] = is_silent
            for link in self._all:
                if link.peer == peer and is_silent:
                    link.mute()
                elif link.peer == peer:
                    link.give_up("cut off by KV.DRILL")

    def heal(self) -> None:
        """Let everybody in again. Links that went mute have lost messages: they are made anew."""
        for peer in self.cut:
            self._give_up_all(peer, "KV.DRILL has healed the network")
            for lane in Lane:
                if (dial := self._dials.get((peer, lane))) is not None:
                    dial.failures, dial.next_s = 0, 0.0
        self.cut.clear()
        self._wake.set()

    # Listening

    def listen(self, host: str, port: int) -> int:
        """Listen on one address, and return the port (chosen if 0 was asked for). Raises OSError, SecretRequired."""
        family, address = _resolved(host, port, flags=socket.AI_PASSIVE)[0]
        if self._secret is None and not is_loopback(address[0]):
            raise SecretRequired(
                f"without a cluster secret the bus serves loopback only, not {host}"
            )
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
        sock.setblocking(False)
        self._listeners[sock.fileno()] = sock
        self._descriptors.adopt(sock.fileno(), READ, partial(self._accept, sock))
        return int(sock.getsockname()[1])

    def _accept(self, listener: socket.socket, _mask: int) -> None:
        for _ in range(ACCEPTS_PER_TICK):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in NO_ROOM:
                    continue  # It has gone already.
                self._tell_once(*NO_DESCRIPTORS, "cannot accept a node", str(error))
                self._is_full = True
                for fd in self._listeners:  # They would be reported again and again.
                    self._descriptors.change(fd, 0)
                return
            self._told.pop(NO_DESCRIPTORS, None)
            self._take_in(sock, address)

    def _take_in(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        host = str(address[0])
        try:
            tune(sock, self._limits)
            end = Acceptor(
                self._terms,
                self._name,
                self._entropy(NONCE_BYTES),
                secret=self._secret,
                is_loopback=is_loopback(host),
            )
        except HandshakeError as error:
            self._tell_once(host, type(error).__name__, "a connection was refused", str(error))
            sock.close()
            return
        except OSError:  # It has gone already.
            sock.close()
            return
        if len(self._accepted) >= self._limits.accepted_max:
            next(iter(self._accepted)).close("too many connections that prove nothing")
        link = self._link(sock, end, address=host)
        self._accepted[link] = None
        link.start()

    def _link(self, sock: socket.socket, end: Initiator | Acceptor, **options: Any) -> Link:
        is_dialled = isinstance(end, Initiator)
        link = Link(
            sock,
            end,
            self,
            self._descriptors,
            self._limits,
            now_s=self._now_s(),
            tls=None if self._tls is None else Tls(self._tls, is_dialled=is_dialled),
            **options,
        )
        self._all[link] = None
        return link

    # What links tell

    def authenticated(self, link: Link, done: Done) -> None:
        if done.peer_name not in self._peers:
            raise NotMember(done.peer_name)
        if done.peer_name > self._name:
            raise WrongDirection(done.peer_name)
        if done.peer_name in self.cut:
            raise CutOff(done.peer_name)

    def opened(self, link: Link) -> None:
        peer = link.peer
        self._accepted.pop(link, None)
        link.started_s = link.heard_s = self._now_s()
        links = self._sends if link.lane is Lane.SEND else self._bulks
        old = links.get(peer)
        if old is not None:
            old.close("the peer has opened another")
        links[peer] = link
        if link.lane is not Lane.SEND:
            return
        for key in [key for key in self._told if key[0] in (peer, link.address)]:
            del self._told[key]
        self._wake.set()  # To dial the bulk link.
        self._log.info("node connected", peer=peer, address=link.address)
        self._reported[peer] = "connected"
        self._receiver.connected(peer)

    def closed(self, link: Link, was: Stage, reason: str, kind: str) -> None:
        del self._all[link]
        self._accepted.pop(link, None)
        self.overflows_total += link.has_overflowed
        peer = link.peer
        if link.is_dialled:
            self._dial_again(link, was)
        if was is Stage.OPEN:
            links = self._sends if link.lane is Lane.SEND else self._bulks
            if links.get(peer) is link:
                del links[peer]
            if link.lane is Lane.SEND:
                self._log.warning("node disconnected", peer=peer, reason=reason)
                self._report(peer, "lost")
        elif link.is_dialled:
            self._tell_once(peer, reason, "a node cannot be reached", reason)
            if link.lane is Lane.SEND and peer in self._peers:
                is_refused = link.connect_error == errno.ECONNREFUSED
                self._report(peer, "refused" if is_refused else "lost")
        else:
            self._tell_once(link.address, kind, "a connection was refused", reason)

    def _report(self, peer: NodeId, state: str) -> None:
        if self._reported.get(peer) != state:
            self._reported[peer] = state
            self._receiver.disconnected(peer, is_refused=state == "refused")

    def _tell_once(self, who: str, kind: str, event: str, reason: str) -> None:
        key = (who, kind)
        if key in self._told:
            return
        if len(self._told) >= TOLD_MAX:
            del self._told[next(iter(self._told))]
        self._told[key] = None
        self._log.warning(event, who=who, reason=reason)

    # The task

    async def run(self) -> None:
        """Keep the links up until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                now_s = self._now_s()
                self._check(now_s)
                delay_s = self._dial_due(nursery, now_s)
                with trio.move_on_after(delay_s):
                    await self._wake.wait()
                self._wake = trio.Event()

    def close(self) -> None:
        """End everything at once. The receiver hears nothing more. Before the front closes its poller."""
        self._is_closed = True
        for link in list(self._all):
            link.abandon()
        for fd, sock in self._listeners.items():
            self._descriptors.release_fd(fd)
            sock.close()
        for links in (self._all, self._accepted, self._sends, self._bulks):
            links.clear()
        self._listeners.clear()
        self._dials.clear()
        self._dirty.clear()

    def _now_s(self) -> float:
        return self._clock_ns() / 1e9

    def _check(self, now_s: float) -> None:
        """Deadlines and silence."""
        late_s = now_s - self._checked_s - CHECK_S
        self._checked_s = now_s
        limits = self._limits
        for link in list(self._all):
            if (
                late_s > LATE_S
            ):  # This process was stopped. What has come in the meantime is not read yet.
                link.heard_s += late_s
                link.started_s += late_s
            if link.stage is Stage.OPEN:
                self._check_silence(link, now_s)
            elif link.stage is Stage.CONNECTING:
                if now_s - link.started_s >= limits.connect_s:
                    link.give_up("no answer")
            elif now_s - link.started_s >= limits.handshake_s:
                link.give_up("the handshake took too long")
        if self._is_full:
            self._is_full = False
            for fd in self._listeners:
                self._descriptors.change(fd, READ)

    def _check_silence(self, link: Link, now_s: float) -> None:
        if link.is_heard:
            link.is_heard = link.is_pinged = False
            link.heard_s = now_s
            return
        silent_s = now_s - link.heard_s
        if silent_s >= self._limits.silence_s:
            link.give_up(f"silent for {silent_s:.1f} s")
        elif silent_s >= self._limits.ping_s and not link.is_pinged:
            link.is_pinged = True
            link.write(PING_WIRE)

    # Dialling

    def _dial_due(self, nursery: trio.Nursery, now_s: float) -> float:
        """Dial whose time has come; returns how long nothing more is due."""
        delay_s = CHECK_S
        for dial in list(self._dials.values()):
            if dial.link is not None or dial.is_looking_up or dial.peer in self.cut:
                continue
            if dial.lane is Lane.BULK and dial.peer not in self._sends:
                continue
            if now_s < dial.next_s:
                delay_s = min(delay_s, dial.next_s - now_s)
                continue
            host, port = self._peers[dial.peer]
            if _is_literal(host):
                self._dial(dial, _resolved(host, port))
            else:
                dial.is_looking_up = True
                nursery.start_soon(self._look_up, dial, host, port)
        return delay_s

    async def _look_up(self, dial: _Dial, host: str, port: int) -> None:
        found: list[tuple[int, Any]] = []
        reason = "looking up its address takes too long"
        try:
            with trio.move_on_after(self._limits.connect_s):
                found = await trio.to_thread.run_sync(_resolved, host, port, abandon_on_cancel=True)
        except OSError as error:
            reason = f"{host}: {error.strerror or error}"
        dial.is_looking_up = False
        if self._is_closed or self._dials.get((dial.peer, dial.lane)) is not dial:
            return  # It is no longer one of the nodes.
        if found:
            self._dial(dial, found)
        else:
            self._cannot_dial(dial, reason)

    def _dial(self, dial: _Dial, found: list[tuple[int, Any]]) -> None:
        """`found` are its addresses, which are tried in turn."""
        family, address = found[dial.failures % len(found)]
        try:
            end = Initiator(
                self._terms,
                self._name,
                self._entropy(NONCE_BYTES),
                secret=self._secret,
                is_loopback=is_loopback(address[0]),
                expected=dial.peer,
            )
            sock = socket.socket(family, socket.SOCK_STREAM)
        except (HandshakeError, OSError) as error:
            self._cannot_dial(dial, str(error))
            return
        tune(sock, self._limits)
        number = sock.connect_ex(address)
        dial.link = self._link(
            sock,
            end,
            address=address[0],
            lane=dial.lane,
            peer=dial.peer,
            is_connecting=True,
            connect_error=0 if number == errno.EINPROGRESS else number,
        )

    def _cannot_dial(self, dial: _Dial, reason: str) -> None:
        self._tell_once(dial.peer, reason, "a node cannot be reached", reason)
        self._back_off(dial)

    def _dial_again(self, link: Link, was: Stage) -> None:
        dial = self._dials.get((link.peer, link.lane))
        if dial is None or dial.link is not link:
            return
        dial.link = None
        if was is Stage.OPEN and self._now_s() - link.started_s >= STABLE_S:
            dial.failures = 0
            dial.next_s = 0.0  # At once: if nobody listens any more, that is news.
        else:
            self._back_off(dial)
        self._wake.set()

    def _back_off(self, dial: _Dial) -> None:
        limits = self._limits
        longest_s = min(limits.backoff_max_s, limits.backoff_min_s * 2.0 ** min(dial.failures, 32))
        dial.failures += 1
        dial.next_s = self._now_s() + longest_s * (0.5 + self._rng.random() / 2)


def make_bus(
    me: NodeId,
    nodes: Iterable[NodeInfo],
    terms: Terms,
    *,
    tls_files: tuple[str, str, str] | None = None,
    **parts: Any,
) -> Bus:
    """The bus of one of `nodes`, not listening yet. `tls_files`: certificate, key, CA. Raises TlsError.

    `parts` is what `Bus` takes beside that.
    """
    peers = {node.name: (node.host, node.bus_port) for node in nodes if node.name != me}
    tls = None if tls_files is None else TlsSettings.load(*tls_files)
    return Bus(me, terms, peers=peers, tls=tls, **parts)


def is_loopback(host: str) -> bool:
    """Whether an address, as a number, is this machine's own."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _resolved(host: str, port: int, *, flags: int = 0) -> list[tuple[int, Any]]:
    """(family, address) of each address of a host. Raises OSError. Blocks, unless it is a number."""
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [(info[0], info[4]) for info in infos]
