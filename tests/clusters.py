"""A real cluster for tests: three respkv processes of one configuration file, each of which a test may kill.

Not a simulation (`tests/sim`) and not the supervisor (`respkv cluster`): each node is `respkv serve
--config FILE --node NAME`, on 127.0.0.1 and ports of its own.

    with respkv_cluster() as cluster:
        cluster["a"].port            # of clients; cluster_port is the one of Redis Cluster clients
        cluster["c"].kill()          # signal 9
        cluster["c"].start()         # again, on the same ports and data

A cluster that does not come up raises `ServerDidNotStart` with what its nodes said.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.ports import CLUSTER_PORT_OFFSET, free_ports
from tests.differential.wire import Connection, WireError
from tests.servers import HOST, ServerDidNotStart

NAMES = ("a", "b", "c")
FORM_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
PROBE_COUNT = 16
_POLL_S = 0.05
_REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(slots=True)
class Member:
    """One node, running or not. Its log is `log`."""

    name: str
    port: int
    config: Path
    log: Path
    host: str = HOST
    process: subprocess.Popen[bytes] | None = None

    @property
    def cluster_port(self) -> int:
        return self.port + CLUSTER_PORT_OFFSET

    @property
    def bus_port(self) -> int:
        return self.port + 10_000

    def start(self) -> None:
        """It is not ready yet."""
        assert self.process is None
        serve = [sys.executable, "-m", "respkv", "serve"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*serve, "--config", str(self.config), "--node", self.name],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=_REPOSITORY,
            )  # fmt: skip

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def stop(self) -> int:
        """End it with SIGTERM, or with SIGKILL if that takes too long; returns its exit status."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self.process = None
        return status

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def is_serving(self) -> bool:
        """Whether it answers, reaches all others, and takes writes of some slots."""
        try:
            with contextlib.closing(Connection(self.host, self.port, timeout_s=5)) as connection:
                seen = connection.ask(b"INFO", b"cluster").text
                if seen.count(b"reachable=1,complete=1") != len(NAMES):
                    return False
                return all(
                    connection.ask(b"SET", b"probe:%d" % number, b"x").raw == b"+OK\r\n"
                    for number in range(PROBE_COUNT)
                )
        except (OSError, WireError):
            return False


@dataclass(slots=True)
class RunningCluster:
    """Three nodes by name."""

    folder: Path
    config: Path
    members: dict[str, Member] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members.values())

    def heal(self) -> None:
        """Start what does not run, and wait until all nodes serve."""
        for member in self:
            if member.process is None:
                member.start()
        self.wait()

    def wait(self) -> None:
        """Wait until all nodes serve. Raises ServerDidNotStart."""
        deadline = time.monotonic() + FORM_TIMEOUT_S
        for member in self:
            while not member.is_serving():
                is_dead = member.process is None or member.process.poll() is not None
                if is_dead or time.monotonic() > deadline:
                    raise ServerDidNotStart([str(self.config)], self.said())
                time.sleep(_POLL_S)

    def said(self) -> str:
        return "\n".join(f"{member.name}: {member.said()[-3000:]}" for member in self)


@contextlib.contextmanager
def respkv_cluster(settings: str = "") -> Iterator[RunningCluster]:
    """Three nodes that keep every key. `settings` are further lines of the configuration's section [cluster]."""
    with tempfile.TemporaryDirectory(prefix="respkv-test-", ignore_cleanup_errors=True) as name:
        cluster = new_cluster(Path(name), settings)
        try:
            cluster.heal()
            yield cluster
        finally:
            for member in cluster:
                if member.process is not None:
                    member.process.terminate()
            for member in cluster:
                member.stop()


def new_cluster(folder: Path, settings: str = "") -> RunningCluster:
    """Its configuration, with ports that are free now. Nothing runs."""
    config = folder / "cluster.toml"
    cluster = RunningCluster(folder, config)
    for name, port in zip(NAMES, free_ports(len(NAMES)), strict=True):
        cluster.members[name] = Member(name, port, config, folder / f"{name}.log")
    config.write_text(cluster_toml(cluster, settings))
    return cluster


def cluster_toml(cluster: RunningCluster, settings: str = "", name: str = "test") -> str:
    nodes = "".join(
        f'[[node]]\nname = "{member.name}"\nhost = "{HOST}"\nport = {member.port}\n'
        f'data_dir = "{cluster.folder / member.name}"\n'
        for member in cluster
    )
    return f'[cluster]\nname = "{name}"\nn = 3\nr = 2\nw = 2\n{settings}\n{nodes}'
