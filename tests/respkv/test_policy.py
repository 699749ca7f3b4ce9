"""[[policy]] tables: what is read, what is refused, and what nodes of a file have then."""

from __future__ import annotations

from pathlib import Path

import pytest

from respkv.config import ConfigError, load, load_nodes, reference
from respkv.policy import KEYS, POLICY_COUNT_MAX, Policy

NODES = "".join(
    f'[[node]]\nname = "{name}"\nhost = "127.0.0.1"\nport = {port}\ndata_dir = "{name}"\n'
    for name, port in (("a", 7001), ("b", 7002), ("c", 7003))
)
OF_TWO_CENTRES = NODES.replace('name = "b"', 'name = "b"\ndata_centre = "oslo"')


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "p.toml"


def policies(file: Path, text: str) -> tuple[Policy, ...]:
    file.write_text(text)
    return load(str(file)).policies


def error_of(file: Path, text: str) -> str:
    with pytest.raises(ConfigError) as error:
        policies(file, text)
    assert "\n" not in error.value.line
    return error.value.line.replace(f"{file.parent}/", "")


def test_what_a_table_leaves_out_is_as_for_all_other_keys(file: Path) -> None:
    assert policies(file, "") == ()
    assert policies(file, '[[policy]]\nprefix = "a:"') == (Policy(prefix="a:"),)
    full = """
[[policy]]
pattern = "s:*:tmp"
read = "ONE"
write = 3
strict = true
last_writer_wins = true
ttl_s = 60
value_bytes_max = "64KiB"
[[policy]]
prefix = "cart:"
siblings = "error"
"""
    assert policies(file, full + NODES) == (
        Policy(
            pattern="s:*:tmp", read="ONE", write=3, last_writer_wins=True, ttl_s=60, value_bytes_max=65536
        ),
        Policy(prefix="cart:", siblings="error"),
    )  # fmt: skip


def test_every_node_of_a_file_has_them(file: Path) -> None:
    file.write_text('[[policy]]\nprefix = "a:"\nwrite = "ALL"\n' + NODES)
    configs = load_nodes(str(file))
    assert {name: config.policies for name, config in configs.items()} == dict.fromkeys(
        "abc", (Policy(prefix="a:", write="ALL"),)
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('policy = "x"', "policy: must be tables, each of which begins with [[policy]]"),
        ('[policy]\nprefix = "x"', "policy: must be tables, each of which begins with [[policy]]"),
        ("[[policy]]", "policy number 1: has no prefix and pattern: must have one of them"),
        (
            '[[policy]]\nprefix = "a"\npattern = "b"',
            'policy "a": has both prefix and pattern: must have one of them',
        ),
        ('[[policy]]\nprefix = ""', 'policy number 1: prefix = "": must be 1 to 512 bytes'),
        ('[[policy]]\nprefix = "a"\nwrites = 1', 'policy "a": unknown key writes; did you mean write?'),
        (
            '[[policy]]\nprefix = "a"\nread = "MOST"',
            'policy "a": read = "MOST": must be a number from 0 to 64 or one of "ONE", "QUORUM", "ALL", '
            '"LOCAL_QUORUM", "EACH_QUORUM"',
        ),
        ('[[policy]]\nprefix = "a"\nwrite = 4', 'policy "a": write = 4: must be at most cluster.n (3)'),
        (
            '[[policy]]\nprefix = "a"\nstrict = false',
            'policy "a": strict = false: must be true: sloppy needs hinted handoff, which this version does not '
            "have",
        ),
        (
            '[[policy]]\nprefix = "a"\nsiblings = "error"\nlast_writer_wins = true',
            'policy "a": siblings = "error": must be "winner", since with last_writer_wins there are none',
        ),
        (
            '[[policy]]\nprefix = "a"\n[[policy]]\nprefix = "a"',
            'two policies have the prefix "a"',
        ),
        (
            '[[policy]]\nprefix = "a"\nttl_s = -1',
            'policy "a": ttl_s = -1: must be an integer from 0 to 2147483647, in seconds',
        ),
        (
            '[[policy]]\nprefix = "x"\n' * (POLICY_COUNT_MAX + 1),
            "1001 policies: must be at most 1000",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(file: Path, text: str, line: str) -> None:
    assert error_of(file, text + "\n" + NODES) == f"p.toml: {line}"


def test_a_node_alone_holds_each_key_once(file: Path) -> None:
    (policy,) = policies(file, '[[policy]]\nprefix = "a"\nread = 1\nwrite = "QUORUM"')
    assert (policy.read, policy.write) == (1, "QUORUM")
    line = error_of(file, '[[policy]]\nprefix = "a"\nwrite = 2')
    assert (
        line == 'p.toml: policy "a": write = 2: must be at most 1: a node alone holds each key once'
    )


def test_replicas_are_not_counted_by_data_centre_yet(file: Path) -> None:
    table = '[[policy]]\nprefix = "a"\nread = "{}"\n'
    for word in ("LOCAL_QUORUM", "EACH_QUORUM"):
        assert policies(file, table.format(word) + NODES)
        line = error_of(file, table.format(word) + OF_TWO_CENTRES)
        assert "replicas are not counted by data centre yet, and the nodes are in 2" in line
    for word in ("ONE", "QUORUM", "ALL"):
        assert policies(file, table.format(word) + OF_TWO_CENTRES)


def test_the_documented_file_has_every_key() -> None:
    lines = reference().partition("[[policy]]")[2].splitlines()
    shown = {line.strip("# ").partition(" = ")[0] for line in lines if " = " in line}
    assert shown == set(KEYS)


def test_the_example_can_be_used() -> None:
    config = load("conf/policies.toml", node="a")
    assert [policy.matched for policy in config.policies] == ["cart:", "session:", "session:*:tmp"]
