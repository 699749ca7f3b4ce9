"""What a node shares among the sibling commands: the seal of contexts, and counts for INFO.

Core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from respkv.causal_context import ContextSeal

if TYPE_CHECKING:
    from respkv.config import Config


@dataclass(slots=True)
class Siblings:
    """One per node. The counts are of KV.PUTs that this node has executed."""

    seal: ContextSeal
    made_total: int = 0  # Versions that were written beside others.
    warned_total: int = 0  # Of these, such that the key had more than `siblings.soft_max` then.
    refused_total: int = 0  # At `siblings.hard_max`.


def make_siblings(config: Config, secret: bytes | None, origin: int) -> Siblings:
    """`secret` is the cluster's; `origin` the first actor of the data, for a node alone."""
    if not config.nodes:
        return Siblings(ContextSeal(b"alone" + origin.to_bytes(8, "little")))
    if secret is not None:
        return Siblings(ContextSeal(b"secret" + secret))
    return Siblings(ContextSeal(b"named" + config.cluster.name.encode()))
