"""Mutual authentication of a bus connection: both ends prove that they know the cluster's secret.

It is not encryption: what follows on the connection is as safe as the connection is. Against somebody who
can change packets under way, the bus needs TLS beneath it.

    initiator                                    acceptor
    BUS.HELLO      its offer              -->
                                          <--    BUS.CHALLENGE  its offer
    BUS.PROOF      MAC as initiator       -->
                                          <--    BUS.WELCOME    MAC as acceptor

An *offer* is the mode (`blake3` with a secret, `none` without), cluster, name, protocol versions, capabilities,
required capabilities, and a nonce. The *MAC* is keyed blake3, with a key derived from the secret, over a
*transcript*: the role of the prover, the protocol version that both will speak, and each field of both
offers as it was sent or received, each after its length. So a proof is good for one role (an echoed proof is
refused), for one pair of nonces (a recorded one is), for these two names in these places (one made for a
third node is), and nobody can lower versions or strip capabilities under way. Fields that a newer release
adds to the end of an offer are in the transcript, too, and otherwise ignored.

The initiator proves first: whoever can connect gets no MAC to try passwords on. The secret is never sent.

Without a secret the same messages are exchanged, with a key that everybody knows: that finds accidents and
stops nobody. It is allowed only on loopback, and both ends must agree to it.

Messages are lists of bytes, which travel as RESP arrays: a verb and its fields.

    BUS.HELLO      mode cluster name lowest highest capabilities required nonce
    BUS.CHALLENGE  the same
    BUS.PROOF      MAC, 32 bytes
    BUS.WELCOME    MAC, 32 bytes
    BUS.REFUSED    reason, as text: what an end that raised may send before it closes

Versions are decimal numbers, capabilities are separated by commas, nonces are 32 random bytes. The shell
closes the connection after any error, and sets a time limit for the whole.

Core: a state machine without I/O; nonces are arguments. Sources: ISO/IEC 9798-4 (three-pass mutual
authentication by keyed check functions); Bird et al., Systematic design of two-party authentication protocols
(reflection and interleaving); Krawczyk, SIGMA (what to bind).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from hmac import compare_digest
from itertools import pairwise
from typing import Final

from blake3 import blake3

from cluster.errors import ClusterError
from cluster.gossip_message import COUNT_MAX, NAME_PATTERN, NodeId, Terms, VersionRange, compatible

Wire = list[bytes]  # A message: the verb and its fields.

HELLO: Final = b"BUS.HELLO"
CHALLENGE: Final = b"BUS.CHALLENGE"
PROOF: Final = b"BUS.PROOF"
WELCOME: Final = b"BUS.WELCOME"
REFUSED: Final = b"BUS.REFUSED"

# For the shell's parser, too: nobody has proved anything yet.
FIELD_COUNT_MAX: Final = 24
FIELD_BYTES_MAX: Final = 4096
MESSAGE_BYTES_MAX: Final = 12288

NONCE_BYTES: Final = 32
MAC_BYTES: Final = 32
SECRET_BYTES_MIN: Final = 16
REASON_CHARS_MAX: Final = 200

_KEY_CONTEXT: Final = "respkv bus handshake 1: key of the cluster's secret"
_OPEN_KEY_CONTEXT: Final = "respkv bus handshake 1: no secret"
_OFFER_FIELDS: Final = 8  # Of HELLO and CHALLENGE, after the verb.
_CAPABILITY_COUNT_MAX: Final = 64
_NAME: Final = re.compile(NAME_PATTERN)
_NUMBER: Final = re.compile(rb"(?:0|[1-9][0-9]{0,15})\Z")


class HandshakeError(ClusterError):
    """The root of what this module raises. The connection is good for nothing; the caller closes it."""


@dataclass(eq=False)
class MalformedHandshake(HandshakeError):
    """The peer does not speak this protocol, or speaks out of turn."""

    reason: str

    def __str__(self) -> str:
        return f"malformed handshake: {self.reason}"


@dataclass(eq=False)
class TooLong(MalformedHandshake):
    """A message, a field or their number is over its limit."""


@dataclass(eq=False)
class ClusterMismatch(HandshakeError):
    """The peer belongs to another cluster. A seed or an address is wrong."""

    ours: str
    theirs: str

    def __str__(self) -> str:
        return f"the peer belongs to cluster {self.theirs!r}, this node to {self.ours!r}. Check the seeds."


@dataclass(eq=False)
class IncompatibleVersions(HandshakeError):
    """There is no protocol version, or not the capabilities, to talk. Dial again after an upgrade."""

    peer: NodeId
    reason: str

    def __str__(self) -> str:
        return f"cannot talk to {self.peer}: {self.reason}"


@dataclass(eq=False)
class WrongProof(HandshakeError):
    """The peer did not prove that it knows the secret: another secret, or a recorded or altered message."""

    peer: NodeId

    def __str__(self) -> str:
        return f"{self.peer} did not prove that it knows this cluster's secret. Compare the secrets of both nodes."


@dataclass(eq=False)
class Reflected(HandshakeError):
    """The peer sent back what this node had said: an attack, or a proxy that echoes."""

    what: str

    def __str__(self) -> str:
        return f"the peer sent this node's own {self.what} back"


@dataclass(eq=False)
class NameMismatch(HandshakeError):
    """The peer is not who was dialled. The address is stale, or a proxy leads elsewhere."""

    expected: NodeId
    actual: NodeId

    def __str__(self) -> str:
        return f"dialled {self.expected}, and {self.actual} answered. Check the addresses."


@dataclass(eq=False)
class SameName(HandshakeError):
    """The peer has this node's name: this node itself, through its seeds, or a wrong configuration."""

    name: NodeId

    def __str__(self) -> str:
        return f"the peer is called {self.name}, as this node is"


@dataclass(eq=False)
class SecretRequired(HandshakeError):
    """One end has no secret, and the other asks for one or is not on loopback."""

    reason: str

    def __str__(self) -> str:
        return f"{self.reason}. Give all nodes the same cluster secret."


@dataclass(eq=False)
class RefusedByPeer(HandshakeError):
    """The peer says why it closes. Its words are not authenticated: for a log, and printable."""

    reason: str

    def __str__(self) -> str:
        return f"the peer refused: {self.reason}"


@dataclass(frozen=True, slots=True)
class Done:
    """Both ends have proved themselves; requests may follow."""

    peer_name: NodeId
    version: int  # Of the protocol that both speak from here on.
    capabilities: tuple[str, ...]  # The peer's.


@dataclass(frozen=True, slots=True)
class Step:
    """What follows from a message: something to send, the end, or (at the acceptor's end) both."""

    reply: Wire | None = None
    done: Done | None = None


class Role(Enum):
    """Whose proof it is: the same MAC must not serve both."""

    INITIATOR = b"initiator"
    ACCEPTOR = b"acceptor"


def refusal(error: HandshakeError) -> Wire:
    """What an end may send before it closes, so that the other end's log says why."""
    return [REFUSED, str(error)[:REASON_CHARS_MAX].encode(errors="replace")]


@dataclass(frozen=True, slots=True)
class _Offer:
    """HELLO or CHALLENGE, understood."""

    mode: bytes
    terms: Terms
    name: NodeId
    nonce: bytes


class _End(ABC):
    """What both ends do. An object serves one connection; after an error or the end it takes nothing more."""

    _offer_verb: bytes

    def __init__(
        self,
        terms: Terms,
        name: NodeId,
        nonce: bytes,
        *,
        secret: bytes | None,
        is_loopback: bool,
    ) -> None:
        """`nonce` is 32 random bytes, used once. Raises SecretRequired, before anything is sent."""
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"a nonce has {NONCE_BYTES} bytes")
        if not _NAME.match(name) or not _NAME.match(terms.cluster):
            raise ValueError(f"not a valid name: {name!r} of cluster {terms.cluster!r}")
        if secret is None and not is_loopback:
            raise SecretRequired("this node has no cluster secret, and the peer is not on loopback")
        if secret is not None and len(secret) < SECRET_BYTES_MIN:
            raise SecretRequired(f"the cluster secret has less than {SECRET_BYTES_MIN} bytes")
        self._terms = terms
        self._name = name
        self._nonce = nonce
        self._mode = b"none" if secret is None else b"blake3"
        context = _OPEN_KEY_CONTEXT if secret is None else _KEY_CONTEXT
        self._key = blake3(secret or b"", derive_key_context=context).digest()
        self._mine: Wire = self._encode_offer()
        self._awaited: bytes | None = None  # The verb that may come now.
        self._hello: Wire = []
        self._challenge: Wire = []
        self._done: Done | None = None
        self._own_proof = b""

    def receive(self, message: Wire) -> Step:
        """What follows from the peer's message. Raises HandshakeError."""
        awaited, self._awaited = self._awaited, None
        _check_size(message)
        if message[0] == REFUSED and len(message) > 1:
            raise RefusedByPeer(_printable(message[1]))
        if awaited is None:
            raise MalformedHandshake("a message after the end, or before the beginning")
        if message[0] != awaited:
            raise MalformedHandshake(f"{_printable(message[0])} where {awaited.decode()} was due")
        return self._take(message)

    @abstractmethod
    def _take(self, message: Wire) -> Step:
        """The next step, for a message that is due."""

    def _encode_offer(self) -> Wire:
        terms = self._terms
        offer = [
            self._offer_verb,
            self._mode,
            terms.cluster.encode(),
            self._name.encode(),
            b"%d" % terms.versions.lowest,
            b"%d" % terms.versions.highest,
            ",".join(terms.capabilities).encode(),
            ",".join(terms.required).encode(),
            self._nonce,
        ]
        try:
            _check_size(offer)
            if _decode_offer(offer).terms != terms:
                raise MalformedHandshake("a comma within the name of a capability")
        except MalformedHandshake as error:
            raise ValueError(f"this node's own offer is not valid: {error.reason}") from error
        return offer

    def _agree(self, message: Wire) -> _Offer:
        """Judge the peer's offer, and keep what was agreed."""
        offer = _decode_offer(message)
        if offer.terms.cluster != self._terms.cluster:
            raise ClusterMismatch(self._terms.cluster, offer.terms.cluster)
        if compare_digest(offer.nonce, self._nonce):
            raise Reflected("nonce")
        if offer.name == self._name:
            raise SameName(self._name)
        if offer.mode != self._mode:
            who = "this node" if self._mode == b"none" else offer.name
            raise SecretRequired(f"{who} has no cluster secret, and the other end asks for it")
        version = compatible(self._terms, offer.terms)
        if isinstance(version, str):
            raise IncompatibleVersions(offer.name, version)
        self._done = Done(offer.name, version, offer.terms.capabilities)
        return offer

    def _prove(self, role: Role) -> bytes:
        assert self._done is not None
        version = self._done.version
        return _mac(self._key, _transcript(role, version, self._hello, self._challenge))

    def _verify(self, message: Wire, role: Role) -> Done:
        """The peer's proof, compared in constant time."""
        assert self._done is not None
        if len(message) < 2 or len(message[1]) != MAC_BYTES:
            raise MalformedHandshake("a proof has one field of 32 bytes")
        if self._own_proof and compare_digest(message[1], self._own_proof):
            raise Reflected("proof")
        if not compare_digest(message[1], self._prove(role)):
            raise WrongProof(self._done.peer_name)
        return self._done


class Initiator(_End):
    """The end that dialled."""

    _offer_verb = HELLO

    def __init__(
        self,
        terms: Terms,
        name: NodeId,
        nonce: bytes,
        *,
        secret: bytes | None,
        is_loopback: bool,
        expected: NodeId | None = None,
    ) -> None:
        """`expected` is who was dialled; None for a seed, whose name is not known yet."""
        super().__init__(terms, name, nonce, secret=secret, is_loopback=is_loopback)
        self._expected = expected

    def start(self) -> Wire:
        """The first message of all."""
        self._hello = self._mine
        self._awaited = CHALLENGE
        return self._mine

    def _take(self, message: Wire) -> Step:
        if message[0] == WELCOME:
            return Step(done=self._verify(message, Role.ACCEPTOR))
        offer = self._agree(message)
        if self._expected is not None and offer.name != self._expected:
            raise NameMismatch(self._expected, offer.name)
        self._challenge = list(message)
        self._own_proof = self._prove(Role.INITIATOR)
        self._awaited = WELCOME
        return Step(reply=[PROOF, self._own_proof])


class Acceptor(_End):
    """The end that was dialled."""

    _offer_verb = CHALLENGE

    def start(self) -> None:
        """Nothing to send yet: the initiator speaks first."""
        self._challenge = self._mine
        self._awaited = HELLO

    def _take(self, message: Wire) -> Step:
        if message[0] == HELLO:
            self._agree(message)
            self._hello = list(message)
            self._awaited = PROOF
            return Step(reply=self._mine)
        done = self._verify(message, Role.INITIATOR)
        return Step(reply=[WELCOME, self._prove(Role.ACCEPTOR)], done=done)


def _transcript(role: Role, version: int, hello: Wire, challenge: Wire) -> Wire:
    """All that a proof is bound to. The counts keep a field from moving from one offer to the other."""
    counts = b"%d,%d" % (len(hello), len(challenge))
    return [role.value, b"%d" % version, counts, *hello, *challenge]


def _mac(key: bytes, transcript: Wire) -> bytes:
    hasher = blake3(key=key)
    for part in transcript:
        hasher.update(len(part).to_bytes(8, "big"))
        hasher.update(part)
    return hasher.digest()


def _check_size(message: Wire) -> None:
    if not message:
        raise MalformedHandshake("an empty message")
    if len(message) > FIELD_COUNT_MAX:
        raise TooLong(f"{len(message)} fields are more than {FIELD_COUNT_MAX}")
    longest = max(map(len, message))
    if longest > FIELD_BYTES_MAX:
        raise TooLong(f"a field of {longest} bytes is more than {FIELD_BYTES_MAX}")
    total = sum(map(len, message))
    if total > MESSAGE_BYTES_MAX:
        raise TooLong(f"a message of {total} bytes is more than {MESSAGE_BYTES_MAX}")


def _decode_offer(message: Wire) -> _Offer:
    if len(message) < 1 + _OFFER_FIELDS:
        raise MalformedHandshake(f"an offer has {_OFFER_FIELDS} fields")
    mode, cluster, name, lowest, highest, capabilities, required, nonce = message[
        1 : 1 + _OFFER_FIELDS
    ]
    if mode not in (b"blake3", b"none"):
        raise MalformedHandshake(f"an unknown mode: {_printable(mode)}")
    if len(nonce) != NONCE_BYTES:
        raise MalformedHandshake(f"a nonce has {NONCE_BYTES} bytes")
    try:
        versions = VersionRange(_number_of(lowest), _number_of(highest))
    except ValueError as error:
        raise MalformedHandshake(str(error)) from error
    terms = Terms(_name_of(cluster), versions, _names_of(capabilities), _names_of(required))
    return _Offer(mode, terms, _name_of(name), nonce)


def _number_of(field: bytes) -> int:
    if not _NUMBER.match(field) or int(field) > COUNT_MAX:
        raise MalformedHandshake(f"not a version: {_printable(field)}")
    return int(field)


def _name_of(field: bytes) -> str:
    name = field.decode("ascii", errors="replace")
    if not _NAME.match(name):
        raise MalformedHandshake(f"not a name: {_printable(field)}")
    return name


def _names_of(field: bytes) -> tuple[str, ...]:
    names = tuple(_name_of(part) for part in field.split(b",")) if field else ()
    if len(names) > _CAPABILITY_COUNT_MAX or any(a >= b for a, b in pairwise(names)):
        raise MalformedHandshake("capabilities must be sorted, each named once, and few")
    return names


def _printable(field: bytes) -> str:
    """A peer's bytes for a log line: short, and without control characters."""
    return ascii(field[:REASON_CHARS_MAX].decode("utf-8", errors="replace"))
