"""A data folder that is put back as it was earlier, in a real cluster: its node finds out, and gets what it lacks.

What nodes tell each other for that is in `tests/cluster/test_witness.py`; that no promise breaks meanwhile, in the
simulation (`tests/sim`), where disks come back old as well.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.clusters import Member, RunningCluster, respkv_cluster
from tests.servers import HOST

KEYS = [f"after:{number}" for number in range(100)]
TOLD_S = 2.5  # Every peer has heard by then how far a node is: some rounds of gossip.
FOUND_OUT_S = 20.0
CAUGHT_UP_S = 30.0


@pytest.fixture
def cluster() -> Iterator[RunningCluster]:
    with respkv_cluster() as running:
        yield running


def client(member: Member) -> Any:
    return redis.Redis(host=HOST, port=member.port, socket_timeout=10, decode_responses=True)


def put_back(cluster: RunningCluster, member: Member) -> Path:
    """The node's folder becomes what it was before it took the last writes. The node is down then."""
    folder, image = cluster.folder / member.name, cluster.folder / "image"
    with client(member) as node:
        for number in range(100):
            node.set(f"before:{number}", "x")
    shutil.copytree(folder, image)  # Of a node that runs.
    with client(member) as node:
        for key in KEYS:
            node.set(key, "acknowledged")
    time.sleep(TOLD_S)
    member.kill()
    shutil.rmtree(folder)
    image.rename(folder)
    return folder


def wait_until_it_holds(member: Member) -> None:
    deadline = time.monotonic() + CAUGHT_UP_S
    with client(member) as node:
        for key in KEYS:
            while not held(node, key):
                assert time.monotonic() < deadline, f"{key} is not there"
                time.sleep(0.05)


def held(node: Any, key: str) -> bool:
    try:
        return bool(node.execute_command("KV.LOCAL", key))
    except redis.RedisError:
        return False


def test_after_a_restart_of_the_machine_it_compares_before_it_counts(
    cluster: RunningCluster,
) -> None:
    node = cluster["c"]
    folder = put_back(cluster, node)
    life = json.loads((folder / "life").read_text())
    life["boot"] = "an earlier one"
    life["is_durable"] = True  # Else it is incomplete for want of a clean stop.
    (folder / "life").write_text(json.dumps(life))
    cluster.heal()
    wait_until_it_holds(node)
    assert "the data folder is older than what was done with it" in node.said()
    assert "complete: its data was compared" in node.said()


def test_in_the_same_run_of_the_machine_it_ends_and_goes_on_as_another_actor(
    cluster: RunningCluster,
) -> None:
    node = cluster["c"]
    folder = put_back(cluster, node)
    before = json.loads((folder / "life").read_text())
    node.start()
    assert node.process is not None
    assert node.process.wait(FOUND_OUT_S) == 1
    node.process = None
    assert "the data folder is older than what was done with it" in node.said()
    cluster.heal()
    wait_until_it_holds(node)
    after = json.loads((folder / "life").read_text())
    assert after["actor"] != before["actor"]
    assert after["is_complete"]
    assert after["history"] > before["history"]
