"""The settings of one node: a value for each that `sections.py` declares, and what follows from those left open.

Not where values come from (`config.py`), nor which contradict each other (`config_conflict.py`). A core: plain data.

What a setting leaves open is decided here: ask `config.n`, not `config.cluster.n`, which may be 0.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from respkv.sections import (
    Client,
    Cluster,
    Debug,
    Expiry,
    Latency,
    Log,
    Logging,
    Memory,
    Pubsub,
    Siblings,
    Slowlog,
    Storage,
)
from respkv.setting import Setting, settings_of

if TYPE_CHECKING:
    from cluster.topology import NodeInfo
    from respkv.policy import Policy

N_DEFAULT = 3
"""Replicas where `cluster.n` leaves it open and there are enough nodes."""


@dataclass(slots=True)
class Config:
    """All settings of one node, by section: `config.client.port`.

    Made by `config.load`. The node keeps one, and CONFIG SET changes it in place.
    """

    client: Client = field(default_factory=Client)
    log: Log = field(default_factory=Log)
    memory: Memory = field(default_factory=Memory)
    storage: Storage = field(default_factory=Storage)
    logging: Logging = field(default_factory=Logging)
    slowlog: Slowlog = field(default_factory=Slowlog)
    latency: Latency = field(default_factory=Latency)
    expiry: Expiry = field(default_factory=Expiry)
    siblings: Siblings = field(default_factory=Siblings)
    pubsub: Pubsub = field(default_factory=Pubsub)
    cluster: Cluster = field(default_factory=Cluster)
    debug: Debug = field(default_factory=Debug)

    path: str | None = None
    """The file that this was read from, for CONFIG REWRITE."""
    data_dir: str = ""
    """Where the data is, once that is decided: `storage.data_dir`, or the usual place."""
    overridden: set[str] = field(default_factory=set)
    """Names that the command line gave. CONFIG REWRITE leaves them out of the file."""
    nodes: tuple[NodeInfo, ...] = ()
    """The members of the cluster, from the [[node]] tables. Without any the node is alone."""
    policies: tuple[Policy, ...] = ()
    """What holds for some keys only, from the [[policy]] tables."""
    node: str = ""
    """Which of `nodes` this configuration is for; empty if it holds for all of them."""
    admin_ports: dict[str, int] = field(default_factory=dict)
    """The admin port of each of `nodes`, by name."""

    @property
    def me(self) -> NodeInfo | None:
        """The member that this configuration is for."""
        return next((each for each in self.nodes if each.name == self.node), None)

    @property
    def owner_count(self) -> int:
        """How many nodes can hold replicas in the data centre that has the fewest; 1 if alone.

        Nodes of weight 0 own nothing.
        """
        centres = Counter(each.data_centre for each in self.nodes if each.weight)
        return min(centres.values(), default=1)

    @property
    def n(self) -> int:
        """Replicas of each key in each data centre: `cluster.n`, or what it leaves open."""
        return self.cluster.n or min(N_DEFAULT, self.owner_count)

    @property
    def centre_count(self) -> int:
        """How many data centres hold replicas; 1 if alone."""
        return max(1, len({each.data_centre for each in self.nodes if each.weight}))

    @property
    def replica_count(self) -> int:
        """Replicas of each key in all data centres together: what r and w count."""
        return self.n * self.centre_count

    @property
    def r(self) -> int:
        """Replicas that must agree before a read is answered."""
        return self.cluster.r or self.replica_count // 2 + 1

    @property
    def w(self) -> int:
        """Replicas that must have a write before it is answered."""
        return self.cluster.w or self.replica_count // 2 + 1

    def get(self, name: str) -> Any:
        """Return the value of a setting by its full name."""
        section, _, key = name.partition(".")
        return getattr(getattr(self, section), key)

    def put(self, name: str, value: object) -> None:
        """Set a setting by its full name to a value that its kind has checked."""
        section, _, key = name.partition(".")
        setattr(getattr(self, section), key, value)

    def differing(self, other: Config) -> list[Setting]:
        """Return the settings whose values are not those of `other`."""
        return [each for name, each in SETTINGS.items() if self.get(name) != other.get(name)]


SECTIONS: dict[str, type] = {
    "client": Client,
    "log": Log,
    "memory": Memory,
    "storage": Storage,
    "logging": Logging,
    "slowlog": Slowlog,
    "latency": Latency,
    "expiry": Expiry,
    "siblings": Siblings,
    "pubsub": Pubsub,
    "cluster": Cluster,
    "debug": Debug,
}

SETTINGS: dict[str, Setting] = {
    each.name: each
    for section, declared in SECTIONS.items()
    for each in settings_of(section, declared)
}
