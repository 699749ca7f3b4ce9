"""The partition drill on a real cluster, and the README's second story, typed as it stands into a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from respkv.command import TABLE
from respkv.commands import load
from tests.clusters import RunningCluster, respkv_cluster
from tests.e2e.test_cluster import ask, until, wire

load()
ROOT = Path(__file__).parents[2]
PORTS = {"a": 6379, "b": 6380, "c": 6381}  # Of conf/cluster.toml.
DRILL_S = 120

pytestmark = pytest.mark.skipif(
    not {"KV.WITH", "KV.PUT", "KV.GET"} <= TABLE.commands.keys(),
    reason="the drill makes siblings with KV.PUT and KV.WITH, which this version does not have",
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RunningCluster]:
    with respkv_cluster("[debug]\ndrill = true\n") as running:
        yield running


def drill(cluster: RunningCluster, *options: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "respkv", "drill", "partition", str(cluster.config), *options],
        capture_output=True, text=True, timeout=DRILL_S, check=False, cwd=ROOT,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def values(cluster: RunningCluster, key: str) -> list[set[bytes]]:
    """The versions that each node shows."""
    found = []
    for member in cluster:
        with wire(member) as connection:
            versions = ask(connection, f"KV.GET {key}").items[0]
            found.append({version.items[0].text for version in versions.items})
    return found


def typed(lines: list[str], folder: Path) -> str:
    """What a shell shows in a terminal when it is given these lines."""
    script = folder / "story.sh"
    script.write_text("set -e\n" + "\n".join(lines) + "\n")
    shown: list[bytes] = []

    def read(fd: int) -> bytes:
        data = os.read(fd, 4096)
        shown.append(data)
        return data

    status = pty.spawn(["bash", str(script)], read)
    text = b"".join(shown).decode().replace("\r\n", "\n")
    assert status == 0, text
    return text


def test_the_drill_makes_siblings_and_resolves_them(cluster: RunningCluster) -> None:
    for _ in range(2):  # It begins anew, whatever an earlier one has left.
        shown = drill(cluster)
        assert (
            "(error) NOREPLICAS writes need 2 replicas of this key, and 1 can be reached" in shown
        )
        assert shown.rstrip().endswith('"milk, bread"')
        until(lambda: values(cluster, "cart") == [{b"milk, bread"}] * 3, "they do not agree")


def test_siblings_are_left_if_asked_for(cluster: RunningCluster) -> None:
    drill(cluster, "--leave-siblings")
    assert values(cluster, "cart") == [{b"milk", b"bread"}] * 3


def test_the_second_story_of_the_readme(cluster: RunningCluster, tmp_path: Path) -> None:
    _, _, rest = (ROOT / "README.md").read_text().partition("\n## A second story\n")
    story, _, _ = rest.partition("\n## ")
    lines = [line[4:] for line in story.splitlines() if line.startswith("    ")]
    commands = [line[2:] for line in lines if line.startswith("$ ")]
    assert len(commands) == 6
    for name, port in PORTS.items():
        commands = [line.replace(f"-p {port}", f"-p {cluster[name].port}") for line in commands]
    respkv = f"{sys.executable} -m respkv"
    commands = [
        line.replace(".venv/bin/respkv", respkv).replace("conf/cluster.toml", str(cluster.config))
        for line in commands
    ]
    shown = typed([f"cd {ROOT}", *commands], tmp_path)
    _, _, after = shown.partition("KV.GET cart\n")
    answers = after.splitlines()
    assert {line for line in answers if re.search(r'^.*1\) "(milk|bread)"$', line)}
    said = [line for line in lines if not line.startswith("$ ")]
    assert said == ['"milk, bread"'] * 2
    assert answers[-2:] == said
    assert values(cluster, "cart") == [{b"milk, bread"}] * 3
