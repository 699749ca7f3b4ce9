"""`kill -9` of a real server under load, again and again on the same folder: nothing acknowledged may be missing.

Not a test of the disk: what the kernel has survives this, so it tests logic. The loss of power is for
`power.py` and `simulated.py`.

    python -m tests.crash.kill --rounds 50 [--seed N] [--fsync always|everysec|no]

A round: writers go on until at least `ACKNOWLEDGED_MIN` more writes were acknowledged, then the server
is killed, at a random time, or in the middle of a flush, or of a compaction; its worker has to die by
itself. Then it is started again, must not refuse to, and every key is compared by value. Exit status 1
if anything was lost.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.crash.server import RefusedStart, Server, is_gone
from tests.crash.workload import Connection, Loss, Writer, info

ACKNOWLEDGED_MIN = 1000
WRITERS = 4
AIM_TIMEOUT_S = 6.0
MOMENTS = ("any", "flush", "compaction")
SETTINGS = ("memory.bytes_max=16MiB",)


@dataclass(slots=True)
class Counts:
    """What happened in all rounds."""

    rounds: int = 0
    acknowledged: int = 0
    in_flight: int = 0
    recovered_in_flight: int = 0
    flushes: int = 0
    compactions: int = 0
    stalls: int = 0
    killed_in_flush: int = 0
    killed_in_compaction: int = 0
    losses: int = 0

    def __str__(self) -> str:
        names = self.__dataclass_fields__
        return ", ".join(f"{name.replace('_', ' ')} {getattr(self, name)}" for name in names)


class Rounds:
    """A server, its writers, and the rounds."""

    def __init__(
        self, folder: Path, seed: int, fsync: str, counts: Counts, module: str = "respkv"
    ) -> None:
        self.rng = random.Random(f"kill-{seed}")
        self.server = Server(folder, [f"log.fsync={fsync}", *SETTINGS], module=module)
        self.counts = counts
        self.writers = [
            Writer(b"w%d" % n, random.Random(f"writer-{seed}-{n}")) for n in range(WRITERS)
        ]

    def run(self, count: int, *, is_told: bool) -> None:
        """Raises Loss, RefusedStart."""
        self.server.start()
        try:
            for number in range(count):
                line = self._run_one(MOMENTS[number % len(MOMENTS)])
                self.counts.rounds += 1
                if is_told:
                    print(f"round {number + 1}/{count}: {line}", flush=True)
        finally:
            self.server.kill()

    def _run_one(self, moment: str) -> str:
        before = sum(writer.acknowledged for writer in self.writers)
        for writer in self.writers:
            writer.start(self.server.port)
        self._wait_for_writes(before)
        found = self._await(moment)
        worker = self.server.worker_pid()
        self.server.kill()
        if worker is not None and not is_gone(worker):
            raise Loss(f"the worker {worker} outlived its killed server")
        for writer in self.writers:
            writer.join()
        self.counts.killed_in_flush += found == "flush"
        self.counts.killed_in_compaction += found == "compaction"
        acknowledged = sum(writer.acknowledged for writer in self.writers) - before
        in_flight = sum(len(writer.unanswered) for writer in self.writers)
        started = time.monotonic()
        self.server.start()
        start_s = time.monotonic() - started
        recovered = self._settle()
        self.counts.acknowledged += acknowledged
        self.counts.in_flight += in_flight
        self.counts.recovered_in_flight += recovered
        return (
            f"killed in {found or 'no job'}, {acknowledged} acknowledged, {in_flight} in flight "
            f"({recovered} recovered), start {start_s:.2f} s"
        )

    def _wait_for_writes(self, before: int) -> None:
        deadline = time.monotonic() + 60
        while sum(writer.acknowledged for writer in self.writers) - before < ACKNOWLEDGED_MIN:
            time.sleep(0.005)
            if time.monotonic() > deadline or not self.server.is_running:
                raise Loss(f"the server takes no writes; it said:\n{self.server.said()[-2000:]}")

    def _await(self, moment: str) -> str:
        """Wait for a random time, or until the worker does what is asked for; return what it does at the end."""
        limit_s = self.rng.uniform(0, 0.8) if moment == "any" else AIM_TIMEOUT_S
        deadline = time.monotonic() + limit_s
        connection = Connection(self.server.port)
        fields = info(connection)
        asked = time.monotonic()
        while time.monotonic() < deadline:
            if moment != "any" and self.server.job() == moment:
                time.sleep(self.rng.choice((0, 0, 0.002, 0.01)))
                break
            time.sleep(0.0005)
            if time.monotonic() - asked > 0.1:
                fields = info(connection)
                asked = time.monotonic()
        connection.close()
        self.counts.flushes += int(fields["flushes"])
        self.counts.compactions += int(fields["compactions"])
        self.counts.stalls += int(fields["stalls"])
        return self.server.job()

    def _settle(self) -> int:
        connection = Connection(self.server.port)
        try:
            return sum(writer.settle(connection) for writer in self.writers)
        finally:
            connection.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--fsync", choices=("always", "everysec", "no"), default="always")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, log.fsync={arguments.fsync}")
    counts = Counts()
    with tempfile.TemporaryDirectory(prefix="respkv-kill-") as folder:
        rounds = Rounds(Path(folder), arguments.seed, arguments.fsync, counts)
        try:
            rounds.run(arguments.rounds, is_told=True)
        except (Loss, RefusedStart) as failure:
            counts.losses += 1
            print(failure, file=sys.stderr)
            print(rounds.server.said()[-3000:], file=sys.stderr)
    print(counts)
    return 1 if counts.losses else 0


if __name__ == "__main__":
    sys.exit(main())
