"""The members of a cluster as the configuration lists them: one `[[node]]` table each.

Not who is in the cluster now: that is `cluster/topology.py`. Not how a table's settings are read
and checked: `config.py` does that as for any other setting. This is a core: plain data, no I/O.

    [[node]]
    name = "a"
    host = "10.0.0.1"
    port = 6379
      [node.settings]
      "memory.bytes_max" = "4GiB"

`read` makes `NodeTable`s of what TOML gave, with ports that were left out, and refuses what no
cluster can run with: names twice, one port twice on a host, no node that may hold data. The
keys of a table are declared once, as the fields of `NodeTable`; the check, the error texts and the
commented example of `respkv default-config` come from there.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.topology import NodeInfo
from respkv.setting import (
    NAME,
    ConfigError,
    Host,
    Integer,
    Rejected,
    Setting,
    Text,
    did_you_mean,
    near,
    plain,
    setting,
    settings_of,
    toml_text,
)

NODE_COUNT_MAX = 1000
PORT_MAX = 65535

_LABEL = 'at most 64 printable characters, or "" for none'


@dataclass(frozen=True, slots=True)
class NodeTable:
    """One node, as its table describes it. Only name, host and port must be given."""

    name: str = setting(NAME, "", "Name of the node, for good: it says what the node owns.")
    host: str = setting(
        Host(),
        "",
        "Where the other nodes connect, and clients unless client.hosts is given.",
    )
    port: int = setting(
        Integer(1, PORT_MAX), 0, "Port for clients, which see the whole cluster as one Redis."
    )
    cluster_port: int = setting(
        Integer(0, PORT_MAX), 0, "Port for clients of Redis Cluster. 0 means port + 100."
    )
    bus_port: int = setting(
        Integer(0, PORT_MAX), 0, "Port for the other nodes. 0 means port + 10000."
    )
    admin_port: int = setting(
        Integer(0, PORT_MAX), 0, "Port for metrics and the dashboard. 0 means port + 20000."
    )
    data_dir: str = setting(
        Text('a path of at most 4000 bytes, or "" for storage.data_dir', 4000),
        "",
        "Directory of the node's data. A relative path begins at the working directory, as that of "
        "storage.data_dir does.",
    )
    zone: str = setting(
        Text(_LABEL, 64, r"[^\x00-\x1f\x7f]{0,64}"),
        "",
        "What fails together, such as a rack. Replicas of a key are in distinct zones.",
    )
    data_centre: str = setting(
        Text(_LABEL, 64, r"[^\x00-\x1f\x7f]{0,64}"),
        "",
        "Each data centre has n replicas of each key.",
    )
    weight: int = setting(
        Integer(0, 1_000_000),
        1,
        "Share of the data, compared with the other nodes. With 0 the node holds none.",
    )
    settings: Mapping[str, object] = field(default_factory=dict)
    """Any settings for this node alone, by full name, as TOML has them: not checked yet."""

    @property
    def info(self) -> NodeInfo:
        """The node as the cluster knows it."""
        return NodeInfo(
            name=self.name,
            host=self.host,
            client_port=self.port,
            cluster_port=self.cluster_port,
            bus_port=self.bus_port,
            zone=self.zone,
            data_centre=self.data_centre,
            weight=self.weight,
        )


KEYS: dict[str, Setting] = {each.key: each for each in settings_of("node", NodeTable)}
REQUIRED = ("name", "host", "port")
DERIVED = {"cluster_port": 100, "bus_port": 10_000, "admin_port": 20_000}
"""Ports that may be left out, each with its distance from `port`."""


def read(source: str, value: object) -> tuple[NodeTable, ...]:
    """Return the nodes that TOML's value of `node` lists. `source` begins the error's line.

    Raises `ConfigError` for the first thing that is wrong.
    """
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise ConfigError(f"{source}: node: must be tables, each of which begins with [[node]]")
    if not 1 <= len(value) <= NODE_COUNT_MAX:
        raise ConfigError(f"{source}: {len(value)} nodes: must be 1 to {NODE_COUNT_MAX}")
    tables = tuple(_table(source, index, table) for index, table in enumerate(value))
    _refuse_twins(source, tables)
    if not any(table.weight for table in tables):
        raise ConfigError(f"{source}: every node has weight 0: at least one must hold data")
    return tables


def _table(source: str, index: int, given: Mapping[str, Any]) -> NodeTable:
    name = given.get("name")
    label = toml_text(name) if isinstance(name, str) else f"number {index + 1}"
    where = f"{source}: node {label}"
    for key in given:
        if key not in KEYS and key != "settings":
            hint = did_you_mean(near(key, [*KEYS, "settings"]))
            raise ConfigError(f"{where}: unknown key {plain(key)}{hint}")
    for key in REQUIRED:
        if key not in given:
            raise ConfigError(f"{where}: has no {key}")
    values = {key: _checked(where, key, given[key]) for key in KEYS if key in given}
    for key, distance in DERIVED.items():
        if not values.get(key):
            values[key] = _derived(where, key, values["port"], distance)
    return NodeTable(**values, settings=dict(_flat(where, given.get("settings", {}))))


def _checked(where: str, key: str, value: object) -> Any:
    try:
        return KEYS[key].kind.check(value)
    except Rejected as rejected:
        raise ConfigError(f"{where}: {key} = {toml_text(value)}: {rejected}") from None


def _derived(where: str, key: str, port: int, distance: int) -> int:
    if port + distance > PORT_MAX:
        sum_text = f"{key} = port + {distance} = {port + distance}"
        raise ConfigError(f"{where}: {sum_text}: must be at most {PORT_MAX}; give {key}")
    return port + distance


def _flat(where: str, given: object) -> Iterator[tuple[str, object]]:
    """The settings by full name, whether written `"log.fsync" = ...` or `log.fsync = ...`."""
    if not isinstance(given, dict):
        raise ConfigError(f"{where}: settings = {toml_text(given)}: must be a table")
    seen = set()
    for name, value in given.items():
        nested = isinstance(value, dict) and "." not in name
        pairs = {f"{name}.{key}": each for key, each in value.items()} if nested else {name: value}
        for full, each in pairs.items():
            if full in seen:
                raise ConfigError(f"{where}: settings: {plain(full)} stands there twice")
            seen.add(full)
            yield full, each


def _refuse_twins(source: str, tables: Sequence[NodeTable]) -> None:
    names: set[str] = set()
    ports: dict[tuple[str, int], str] = {}
    for table in tables:
        if table.name in names:
            raise ConfigError(f"{source}: two nodes have the name {toml_text(table.name)}")
        names.add(table.name)
        for key in ("port", *DERIVED):
            port = getattr(table, key)
            mine = f"{key} of node {toml_text(table.name)}"
            other = ports.setdefault((_host(table.host), port), mine)
            if other != mine:
                raise ConfigError(
                    f"{source}: the {mine} is {port}, as is the {other} on the same host"
                )


def _host(host: str) -> str:
    host = host.lower()
    return "127.0.0.1" if host == "localhost" else host


def is_loopback(host: str) -> bool:
    """Whether only processes of the same machine can connect to this address."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def machine_of(host: str) -> str:
    """Names the machine: equal for nodes that are on one as far as their addresses tell."""
    return "localhost" if is_loopback(host) else host.lower()
