"""What gossip says on the wire: the messages, the profile of a member, and the terms for talking at all.

It joins nothing and remembers nothing: that is `cluster/gossip.py`. It sends nothing:
that is `cluster/membership.py`.

Each message is MessagePack, arrays without names; unknown fields at the end are ignored, and missing
ones with a default have it. So releases can be mixed. The fields are those of the classes below, in their order:

    Digest, Answer   statements about members, without and with their bodies
    Statement        what is said of one member; its *body* is an encoded `Profile`, passed on as its author wrote it
    Beat             between two nodes only: the life of the connection, and the clocks at both ends

Everything has a bound, which is checked while it is decoded.

Core: plain data.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from math import isfinite
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct
from xxhash import xxh3_64_intdigest

from cluster.errors import ClusterError

NodeId = str  # The name of a member, unique in its cluster.
Incarnation = int  # 64 bits. Time based, given by the caller.
HostPort = tuple[str, int]  # Where a member's bus listens.

MEMBER_COUNT_MAX: Final = 4096
BODY_BYTES_MAX: Final = 4096
MESSAGE_BYTES_MAX: Final = 1 << 20  # Holds the digest of a full table; longer ones are refused.
BEAT_BYTES_MAX: Final = 1024  # Those of today have 37 at most.
COUNT_MAX: Final = 2**53  # Of versions, heartbeats, epochs and times.

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}\Z"

_Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
_Label = Annotated[str, Meta(max_length=64)]
_Unsigned = Annotated[int, Meta(ge=0)]  # MessagePack itself ends at 64 bits.
_Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
_Port = Annotated[int, Meta(ge=0, le=65535)]
_Labels = Annotated[tuple[_Name, ...], Meta(max_length=64)]


class GossipError(ClusterError):
    """The root of what gossip raises on purpose. Nothing was changed."""


@dataclass(eq=False)
class MalformedGossip(GossipError):
    """A message is not what a member sends. The caller closes the connection that it came by."""

    reason: str

    def __str__(self) -> str:
        return f"malformed gossip: {self.reason}"


@dataclass(eq=False)
class OtherCluster(GossipError):
    """The message is of another cluster. The caller closes the connection and tells the operator."""

    ours: str
    theirs: str

    def __str__(self) -> str:
        return f"gossip of cluster {self.theirs!r} came to cluster {self.ours!r}. Check the seeds."


@dataclass(eq=False)
class InvalidProfile(GossipError):
    """What this node was to say about itself breaks a limit. The caller refuses the configuration."""

    reason: str

    def __str__(self) -> str:
        return f"this node's profile is not valid: {self.reason}"


class Status(IntEnum):
    """What a member does, by its own word; DOWN and LEFT also by an operator's."""

    JOINING = 0
    UP = 1
    LEAVING = 2
    DOWN = 3  # Declared dead by an operator. Still a member.
    LEFT = 4  # No member any more; a tombstone.


class Addresses(Struct, array_like=True, frozen=True):
    """Where a member listens."""

    host: Annotated[str, Meta(min_length=1, max_length=255)]
    client_port: _Port
    cluster_port: _Port
    bus_port: _Port


class VersionRange(Struct, array_like=True, frozen=True):
    """The versions of the bus protocol that a member speaks, both ends included."""

    lowest: _Count
    highest: _Count

    def __post_init__(self) -> None:
        if self.lowest > self.highest:
            raise ValueError("the lowest version is above the highest")


class Profile(Struct, array_like=True, frozen=True):
    """What a member says of itself. New fields go to the end, with a default."""

    status: Status  # First: among two bodies of one version, the one further along wins.
    addresses: Addresses
    zone: _Label
    data_centre: _Label
    weight: Annotated[float, Meta(ge=0, le=1e6)]
    versions: VersionRange
    capabilities: _Labels = ()  # Sorted, each once.
    required: _Labels = ()  # Capabilities without which this member talks to nobody. Sorted.
    load: Annotated[dict[_Name, float], Meta(max_length=16)] = {}
    actors: Annotated[tuple[_Unsigned, ...], Meta(max_length=16)] = ()
    epoch: _Count = 0
    epoch_digest: Annotated[bytes, Meta(max_length=64)] = b""

    def __post_init__(self) -> None:
        for names in (self.capabilities, self.required):
            if any(a >= b for a, b in pairwise(names)):
                raise ValueError("capabilities must be sorted, and each named once")
        if not isfinite(self.weight) or not all(map(isfinite, self.load.values())):
            raise ValueError("weight and load must be finite")


class Statement(Struct, array_like=True, frozen=True):
    """What is said of one member. Without a body: its heartbeat, and which body there is."""

    name: _Name
    incarnation: _Unsigned
    version: _Count
    check: _Unsigned  # The lower 32 bits of xxh3_64 of the body.
    heartbeat: _Count
    age_s: _Count = 0  # Of a tombstone: since when. Else 0.
    body: Annotated[bytes, Meta(max_length=BODY_BYTES_MAX)] = b""


_Statements = Annotated[tuple[Statement, ...], Meta(max_length=MEMBER_COUNT_MAX)]


class Digest(Struct, array_like=True, frozen=True):
    """Everything known, without the bodies."""

    cluster: _Name
    statements: _Statements


class Answer(Struct, array_like=True, frozen=True):
    """What the other did not know, and whose bodies are wanted of it."""

    cluster: _Name
    statements: _Statements
    wanted: Annotated[tuple[_Name, ...], Meta(max_length=MEMBER_COUNT_MAX)] = ()


Message = Digest | Answer


class Beat(Struct, array_like=True, frozen=True):
    """What one end of a connection tells the other once a round. Clocks are in their sender's time."""

    sent_us: _Count  # When this was sent, on a clock that never goes back.
    wall_ms: _Count  # The same moment by the calendar.
    echo_us: _Count = 0  # `sent_us` of the receiver's last beat that arrived here; 0 for none.
    held_us: _Count = 0  # How long ago that was.


_ENCODER: Final = msgspec.msgpack.Encoder(order="deterministic")
_PROFILES: Final = msgspec.msgpack.Decoder(Profile)
_DIGESTS: Final = msgspec.msgpack.Decoder(Digest)
_ANSWERS: Final = msgspec.msgpack.Decoder(Answer)
_BEATS: Final = msgspec.msgpack.Decoder(Beat)
_REFUSED: Final = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


def encode(message: Message | Beat) -> bytes:
    return _ENCODER.encode(message)


def decode_digest(raw: bytes) -> Digest:
    """Raises MalformedGossip."""
    _check_length(raw)
    try:
        return _DIGESTS.decode(raw)
    except _REFUSED as error:
        raise MalformedGossip(str(error)) from error


def decode_answer(raw: bytes) -> Answer:
    """Raises MalformedGossip."""
    _check_length(raw)
    try:
        return _ANSWERS.decode(raw)
    except _REFUSED as error:
        raise MalformedGossip(str(error)) from error


def decode_beat(raw: bytes) -> Beat:
    """Raises MalformedGossip."""
    if len(raw) > BEAT_BYTES_MAX:
        raise MalformedGossip(f"a beat of {len(raw)} bytes is more than {BEAT_BYTES_MAX}")
    try:
        return _BEATS.decode(raw)
    except _REFUSED as error:
        raise MalformedGossip(str(error)) from error


def _check_length(raw: bytes) -> None:
    if len(raw) > MESSAGE_BYTES_MAX:
        raise MalformedGossip(f"{len(raw)} bytes are more than {MESSAGE_BYTES_MAX}")


def encode_profile(profile: Profile) -> bytes:
    """The body of a statement. Raises InvalidProfile for what others would refuse."""
    body = _ENCODER.encode(profile)
    try:
        decode_profile(body)
    except MalformedGossip as error:
        raise InvalidProfile(error.reason) from error
    return body


def decode_profile(body: bytes) -> Profile:
    """Raises MalformedGossip."""
    if len(body) > BODY_BYTES_MAX:
        raise MalformedGossip(f"a profile of {len(body)} bytes is more than {BODY_BYTES_MAX}")
    try:
        return _PROFILES.decode(body)
    except _REFUSED as error:
        raise MalformedGossip(str(error)) from error


def with_status(body: bytes, status: Status) -> bytes:
    """The same body with another status. It keeps the fields that only newer releases know."""
    fields = msgspec.msgpack.decode(body)
    fields[0] = int(status)
    return _ENCODER.encode(fields)


def check_of(body: bytes) -> int:
    return xxh3_64_intdigest(body) & 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a node talks to another."""

    cluster: str
    versions: VersionRange
    capabilities: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    epoch: int = 0
    epoch_digest: bytes = b""  # Of who owns what in that epoch. Empty: not said.


def compatible(a: Terms, b: Terms) -> int | str:
    """The highest protocol version that both speak, or in words why they cannot talk. Symmetric but for the words."""
    if a.cluster != b.cluster:
        return f"one belongs to cluster {a.cluster!r}, the other to cluster {b.cluster!r}"
    spoken = min(a.versions.highest, b.versions.highest)
    if spoken < max(a.versions.lowest, b.versions.lowest):
        return (
            f"one speaks protocol versions {a.versions.lowest} to {a.versions.highest}, the other "
            f"{b.versions.lowest} to {b.versions.highest}; upgrade the older node step by step"
        )
    for needing, offering in ((a, b), (b, a)):
        lacking = [name for name in needing.required if name not in offering.capabilities]
        if lacking:
            return f"one requires {', '.join(lacking)}, which the other lacks"
    is_said = a.epoch_digest and b.epoch_digest
    if a.epoch == b.epoch and is_said and a.epoch_digest != b.epoch_digest:
        return (
            f"they differ in who owns what in epoch {a.epoch}; "
            "give both the same list of nodes, weights, zones and N in their configuration files"
        )
    return spoken
