"""Statements and profiles for the tests of gossip."""

from __future__ import annotations

from cluster.gossip_message import (
    Addresses,
    Profile,
    Statement,
    Status,
    VersionRange,
    check_of,
    encode_profile,
)


def profile(
    name: str = "b",
    status: Status = Status.UP,
    *,
    zone: str = "z1",
    lowest: int = 1,
    highest: int = 2,
    capabilities: tuple[str, ...] = ("hints",),
) -> Profile:
    addresses = Addresses(f"{name}.example", 6379, 6479, 16379)
    return Profile(status, addresses, zone, "dc1", 1.0, VersionRange(lowest, highest), capabilities)


def statement(
    name: str = "b",
    incarnation: int = 1,
    version: int = 1,
    heartbeat: int = 0,
    *,
    said: Profile | None = None,
    age_s: int = 0,
) -> Statement:
    body = encode_profile(profile(name) if said is None else said)
    return Statement(name, incarnation, version, check_of(body), heartbeat, age_s, body)
