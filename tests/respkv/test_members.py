"""The [[node]] tables: what is read, what is refused, and what a node's configuration becomes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from cluster.gossip_message import NAME_PATTERN
from respkv.config import Config, ConfigError, load, load_nodes, read_secret, reference
from respkv.members import KEYS, NODE_COUNT_MAX, is_loopback, machine_of, read
from respkv.setting import NAME

THREE = """
[[node]]
name = "a"
host = "10.0.0.1"
port = 7001

[[node]]
name = "b"
host = "10.0.0.2"
port = 7002
cluster_port = 1
bus_port = 2
admin_port = 3
data_dir = "d"
zone = "r 1"
data_centre = "oslo"
weight = 0

[[node]]
name = "c"
host = "10.0.0.1"
port = 7003
data_dir = "c"
"""
SECRET = '[cluster]\nsecret_file = "s"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cluster.toml"


def node(name: str, port: int, more: str = "", host: str = "127.0.0.1") -> str:
    head = f'[[node]]\nname = "{name}"\nhost = "{host}"\nport = {port}\n'
    return f'{head}data_dir = "data/{name}"\n{more}\n'


def local(count: int, before: str = "") -> str:
    """The text of a file with nodes on this machine."""
    return before + "".join(node(chr(97 + i), 7001 + i) for i in range(count))


def loaded(file: Path, text: str, name: str | None = None, *overrides: str) -> Config:
    file.write_text(text)
    return load(str(file), overrides, node=name)


def error_of(file: Path, text: str, name: str | None = None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        loaded(file, text, name, *overrides)
    assert "\n" not in error.value.line
    return error.value.line.replace(f"{file.parent}/", "")


# What is read


def test_a_file_without_nodes_is_for_a_single_node(file: Path) -> None:
    config = loaded(file, "", "whatever")
    assert config.nodes == ()
    assert config.me is None
    assert (config.n, config.r, config.w) == (1, 1, 1)
    assert load_nodes(str(file)) == {}


def test_nodes_are_read_with_the_ports_that_were_left_out(file: Path) -> None:
    a, b, c = loaded(file, THREE).nodes
    assert (a.client_port, a.cluster_port, a.bus_port) == (7001, 7101, 17001)
    assert (a.zone, a.data_centre, a.weight) == ("", "", 1)
    assert (b.name, b.host, b.client_port, b.cluster_port, b.bus_port) == (
        *("b", "10.0.0.2"),
        *(7002, 1, 2),
    )
    assert (b.zone, b.data_centre, b.weight) == ("r 1", "oslo", 0)
    assert c.name == "c"
    assert load(str(file)).admin_ports == {"a": 27001, "b": 3, "c": 27003}


def test_a_node_gets_its_own_table_and_what_holds_for_all(file: Path) -> None:
    config = loaded(file, '[log]\nfsync = "no"\n[storage]\ndata_dir = "x"\n' + SECRET + THREE, "b")
    assert config.node == "b"
    assert config.me == config.nodes[1]
    assert config.client.hosts == ("10.0.0.2",)
    assert config.client.port == 7002
    assert config.storage.data_dir == "d"
    assert config.log.fsync == "no"
    assert load(str(file), node="a").storage.data_dir == "x"


def test_without_a_name_the_configuration_holds_for_all(file: Path) -> None:
    config = loaded(file, THREE)
    assert (config.node, config.me, len(config.nodes)) == ("", None, 3)
    assert config.differing(Config()) == []


def test_client_hosts_say_where_all_nodes_listen(file: Path) -> None:
    text = '[client]\nhosts = ["0.0.0.0"]\n' + SECRET + THREE
    assert loaded(file, text, "a").client.hosts == ("0.0.0.0",)
    assert loaded(file, SECRET + THREE, "a", "client.hosts=::1").client.hosts == ("::1",)


@pytest.mark.parametrize(
    "settings",
    [
        '[node.settings]\n"log.fsync" = "no"\n"client.hosts" = ["::1"]',
        '[node.settings]\nlog.fsync = "no"\nclient.hosts = ["::1"]',
        '[node.settings.log]\nfsync = "no"\n[node.settings.client]\nhosts = ["::1"]',
        'settings = {"log.fsync" = "no", client = {hosts = ["::1"]}}',
    ],
)
def test_settings_of_a_node_are_for_it_alone(file: Path, settings: str) -> None:
    text = '[log]\nfsync = "always"\n' + node("a", 7001, settings) + node("b", 7002)
    a, b = loaded(file, text, "a"), loaded(file, text, "b")
    assert (a.log.fsync, a.client.hosts) == ("no", ("::1",))
    assert (b.log.fsync, b.client.hosts) == ("always", ("127.0.0.1",))
    assert loaded(file, text, "a", "log.fsync=everysec").log.fsync == "everysec"


# How many replicas


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, (1, 1, 1)), (2, (2, 2, 2)), (3, (3, 2, 2)), (4, (3, 2, 2)), (5, (3, 2, 2))],
)
def test_quorums_shrink_with_the_cluster(
    file: Path, count: int, expected: tuple[int, int, int]
) -> None:
    config = loaded(file, local(count))
    assert (config.n, config.r, config.w) == expected


def test_quorums_that_are_given_are_taken(file: Path) -> None:
    config = loaded(file, local(5, "[cluster]\nn = 5\nr = 1\n"), None, "cluster.w=5")
    assert (config.n, config.r, config.w) == (5, 1, 5)
    assert loaded(file, local(5, "[cluster]\nn = 5\n")).w == 3


def test_each_data_centre_has_n_replicas_on_nodes_with_weight(file: Path) -> None:
    centres = "".join(
        node(f"{centre}{i}", 7000 + 10 * i + ord(centre), f'data_centre = "{centre}"')
        for centre, count in (("x", 3), ("y", 2))
        for i in range(count)
    )
    assert loaded(file, centres).n == 2
    assert error_of(file, "[cluster]\nn = 3\n" + centres) == (
        "cluster.toml: cluster.n = 3: must be at most 2, the smallest data centre's nodes"
    )
    watcher = node("w", 7500, 'data_centre = "z"\nweight = 0')
    assert loaded(file, centres + watcher).n == 2


def test_r_and_w_count_the_replicas_of_all_data_centres(file: Path) -> None:
    """A majority of one data centre's would let two writes of a key succeed at the same time."""
    centres = "".join(
        node(f"{centre}{i}", 7000 + 10 * i + ord(centre), f'data_centre = "{centre}"')
        for centre in "xyz"
        for i in range(2)
    )
    config = loaded(file, centres)
    assert (config.n, config.replica_count, config.r, config.w) == (2, 6, 4, 4)
    assert loaded(file, "[cluster]\nr = 1\nw = 6\n" + centres).w == 6
    assert error_of(file, "[cluster]\nw = 7\n" + centres) == (
        "cluster.toml: cluster.w = 7: must be at most 6, cluster.n in each of 3 data centres"
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("n = 4", "cluster.n = 4: must be at most 3, the number of nodes"),
        ("n = 65", "cluster.n = 65: must be an integer from 0 to 64"),
        ("n = 2\nr = 3", "cluster.r = 3: must be at most cluster.n (2)"),
        ("w = 4", "cluster.w = 4: must be at most cluster.n (3)"),
        (
            'consistency = "sloppy"',
            'cluster.consistency = "sloppy": must be "strict": '
            "sloppy needs hinted handoff, which this version does not have",
        ),
        ('consistency = "loose"', 'cluster.consistency = "loose": must be "strict"'),
        (
            'name = "a b"',
            'cluster.name = "a b": must be 1 to 64 letters, digits, dots, dashes and underscores, '
            "the first a letter or digit",
        ),
        (
            'tls_key_file = "k"\ntls_ca_file = "c"',
            "cluster.tls_certificate_file: must be given too, since TLS between nodes needs "
            "tls_certificate_file, tls_key_file and tls_ca_file",
        ),
        (
            'bytes_in_flight_max = "32MiB"',
            'cluster.bus_frame_bytes_max = "64MiB": must be at most cluster.bytes_in_flight_max '
            '("32MiB")',
        ),
        (
            'n = 3\n[[node]]\nname = "far"\nhost = "10.0.0.9"\nport = 9000\ndata_dir = "far"\n[debug]\ndrill = true',
            "debug.drill = true: must be false, since it is for nodes with loopback addresses, and that of "
            'node "far" is 10.0.0.9',
        ),
    ],
)
def test_an_impossible_cluster_is_refused(file: Path, text: str, line: str) -> None:
    assert error_of(file, local(3, f"[cluster]\n{text}\n")) == f"cluster.toml: {line}"


def test_overrides_are_held_against_the_nodes(file: Path) -> None:
    line = "cluster.toml: cluster.w = 3: must be at most cluster.n (2)"
    assert error_of(file, local(2), "a", "cluster.w=3") == line
    assert loaded(file, local(2), "a", "cluster.w=1").w == 1


# What is wrong


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("node = 3", "node: must be tables, each of which begins with [[node]]"),
        ("[node]\nname = 'a'", "node: must be tables, each of which begins with [[node]]"),
        ("node = []", f"0 nodes: must be 1 to {NODE_COUNT_MAX}"),
        ("[[node]]\nport = 1", "node number 1: has no name"),
        ("[[node]]\nname = 'a'\nport = 1", 'node "a": has no host'),
        ("[[node]]\nname = 'a'\nhost = 'h'", 'node "a": has no port'),
        (
            node("a", 1) + "[[node]]\nname = 7\nhost = 'h'\nport = 1",
            "node number 2: name = 7: must be 1 to 64 letters, digits, dots, dashes and "
            "underscores, the first a letter or digit",
        ),
        (node("a", 0), 'node "a": port = 0: must be an integer from 1 to 65535'),
        (node("a", 1, "prot = 1"), 'node "a": unknown key prot; did you mean port?'),
        (node("a", 1, "xyzzy = 1"), 'node "a": unknown key xyzzy'),
        (node("a", 1, "setings = {}"), 'node "a": unknown key setings; did you mean settings?'),
        (
            node("a", 1, host="0.0.0.0"),
            'node "a": host = "0.0.0.0": must be an address or name that the other nodes can '
            'connect to, such as "10.0.0.1"',
        ),
        (node("a", 1, "weight = -1"), 'node "a": weight = -1: must be an integer from 0 to 1000000'),
        (
            node("a", 1, 'zone = "\\n"'),
            'node "a": zone = "\\n": must be at most 64 printable characters, or "" for none',
        ),
        (
            node("a", 50_000),
            'node "a": admin_port = port + 20000 = 70000: must be at most 65535; give admin_port',
        ),
        (node("a", 1) + node("a", 2), 'two nodes have the name "a"'),
        (
            node("a", 7000) + node("b", 7100, host="127.0.0.1"),
            'the port of node "b" is 7100, as is the cluster_port of node "a" on the same host',
        ),
        (
            node("a", 7000) + node("b", 7000, host="localhost"),
            'the port of node "b" is 7000, as is the port of node "a" on the same host',
        ),
        (
            node("a", 7000, "bus_port = 7000"),
            'the bus_port of node "a" is 7000, as is the port of node "a" on the same host',
        ),
        (node("a", 1, "weight = 0"), "every node has weight 0: at least one must hold data"),
        (
            node("a", 1) + node("b", 2) + node("c", 3).replace("data/c", "y/../data/a"),
            'nodes "a" and "c" are on one machine, and have the same '
            'storage.data_dir = "y/../data/a": give each its own, in its data_dir',
        ),
        (
            '[client]\nunix_socket = "/s"\n' + node("a", 1) + node("b", 2, host="::1"),
            'nodes "a" and "b" are on one machine, and have the same client.unix_socket = "/s": '
            "give each its own, in its settings",
        ),
        (
            node("a", 1, 'settings = {"log.fsinc" = 1}'),
            'node "a": settings: unknown setting log.fsinc; did you mean log.fsync?',
        ),
        (node("a", 1, "settings = 3"), 'node "a": settings = 3: must be a table'),
        (
            node("a", 1, 'settings = {"log.fsync" = "no", log = {fsync = "no"}}'),
            'node "a": settings: log.fsync stands there twice',
        ),
        (
            node("a", 1, 'settings = {"log.fsync" = "never"}'),
            'node "a": settings: log.fsync = "never": must be one of "always", "everysec", "no"',
        ),
        (
            node("a", 1, 'settings = {"client.port" = 1}'),
            'node "a": settings: client.port: give port of the node instead',
        ),
        (
            node("a", 1, 'settings = {"cluster.w" = 1}'),
            'node "a": settings: cluster.w: must be the same for all nodes',
        ),
        (
            node("a", 1, 'settings = {"expiry.budget_ms" = 200}'),
            'node "a": expiry.budget_ms = 200: must be at most expiry.interval_ms (100)',
        ),
    ],
)  # fmt: skip
def test_a_wrong_list_is_one_line(file: Path, text: str, line: str) -> None:
    assert error_of(file, text) == f"cluster.toml: {line}"


def test_another_nodes_mistake_is_found_too(file: Path) -> None:
    text = node("a", 1) + node("b", 2, 'settings = {"log.fsync" = 1}')
    assert error_of(file, text, "a").startswith('cluster.toml: node "b": settings: log.fsync = 1:')


def test_the_same_ports_on_distinct_hosts_are_right(file: Path) -> None:
    text = node("a", 7000, host="127.0.0.1") + node("b", 7000, host="127.0.0.2")
    assert len(loaded(file, text).nodes) == 2


def test_a_name_that_is_not_listed_names_those_that_are(file: Path) -> None:
    line = 'cluster.toml: no node has the name "d"; there are a, b, c'
    assert error_of(file, local(3), "d") == line


def test_the_port_of_a_node_stands_in_the_file_only(file: Path) -> None:
    line = "command line: client.port = 9: cannot be given for a node of a cluster: "
    line += "the other nodes read the port in cluster.toml"
    assert error_of(file, local(2), "a", "client.port=9") == line
    assert error_of(file, local(2), None, "client.port=9") == line


def test_one_data_folder_for_all_is_refused_also_from_the_command_line(file: Path) -> None:
    text = local(2)
    assert loaded(file, text, "a", "storage.data_dir=x").storage.data_dir == "x"
    assert "on one machine" in error_of(file, text, None, "storage.data_dir=x")


def test_too_many_nodes_are_refused() -> None:
    table = {"name": "a", "host": "h", "port": 1}
    with pytest.raises(ConfigError, match="1001 nodes: must be 1 to 1000"):
        read("f", [table] * (NODE_COUNT_MAX + 1))


@pytest.mark.parametrize("name", ["a", "A-1.b_c", "9" * 64])
def test_names_are_names_for_gossip_too(name: str) -> None:
    assert NAME.check(name) == name
    assert re.search(NAME_PATTERN, name)


# The secret


def test_nodes_beyond_this_machine_need_a_secret(file: Path) -> None:
    assert error_of(file, THREE, "a") == (
        'cluster.toml: cluster.secret_file = "": must be given, since the host of node "a", '
        "10.0.0.1, is no loopback address"
    )
    assert loaded(file, THREE, "a", "cluster.secret_file=s").node == "a"
    assert loaded(file, local(3), "a").node == "a"


def test_a_secret_is_read_without_its_line_end(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    config = Config()
    assert read_secret(config) is None
    config.cluster.secret_file = str(secret)
    secret.write_bytes(b"0123456789abcdef\r\n")
    assert read_secret(config) == b"0123456789abcdef"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"0123456789abcde\n", "has 15 bytes: must have 16 to 4096 bytes"),
        (b"x" * 5000, "has 4097 bytes: must have 16 to 4096 bytes"),
    ],
)
def test_a_secret_that_is_none_is_refused(tmp_path: Path, data: bytes | None, why: str) -> None:
    config = Config()
    config.cluster.secret_file = str(tmp_path / "secret")
    if data is not None:
        (tmp_path / "secret").write_bytes(data)
    with pytest.raises(ConfigError) as error:
        read_secret(config)
    shown = f'cluster.secret_file = "{tmp_path}/secret"'
    assert error.value.line == f"command line: {shown}: {why}"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("Localhost", True),
        ("10.0.0.1", False), ("::2", False), ("localhost.example", False), ("fe80::1%lo", False),
    ],
)  # fmt: skip
def test_loopback_is_known_by_the_address(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
    assert (machine_of(host) == "localhost") is expected


# The commented example


def test_the_example_is_right_once_it_is_no_comment(file: Path) -> None:
    _, _, example = reference().partition("\n# The nodes of a cluster")
    lines = [line for line in example.splitlines() if re.match(r"# (\[|\S+ = )", line)]
    text = "\n".join(line.removeprefix("# ") for line in lines)
    (table,) = tomllib.loads(text)["node"]
    assert set(table) == {*KEYS, "settings"}
    config = loaded(file, text, "a")
    assert config.client.port == 6379
    assert config.memory.bytes_max == 2 << 30
    words = " ".join(example.replace("\n# #", "").split())
    for each in KEYS.values():
        assert f"{each.doc} Must be {each.kind.allowed()}." in words
