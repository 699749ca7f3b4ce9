"""Power cuts of a real file system under a real server: nothing acknowledged at `always` may be missing.

    python -m tests.crash.power --rounds 20 [--seed N] [--without-fsync]

A round: writers go on until at least `ACKNOWLEDGED_MIN` more writes were acknowledged, then ext4 is
stopped without writing out its journal (what is not on the loop device then never gets there), the
server is killed, the file system is mounted again, the server is started again, and every key is
compared by value. Needs root and loop devices. `--without-fsync` runs a server with that bug planted:
then the exit status has to be 1, for losses.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.crash.mounted import Image, image, missing
from tests.crash.server import RefusedStart, Server, is_gone
from tests.crash.workload import Connection, Loss, Writer

ACKNOWLEDGED_MIN = 300
IMAGE_BYTES = 384 << 20
WRITERS = 3
BROKEN = "tests.crash.launch_without_fsync"


@dataclass(slots=True)
class Counts:
    """What happened in all rounds."""

    rounds: int = 0
    acknowledged: int = 0
    in_flight: int = 0
    recovered_in_flight: int = 0
    cut_in_jobs: int = 0
    losses: int = 0

    def __str__(self) -> str:
        names = self.__dataclass_fields__
        return ", ".join(f"{name.replace('_', ' ')} {getattr(self, name)}" for name in names)


class Rounds:
    """A server on an image, its writers, and the rounds."""

    def __init__(
        self, mounted: Image, folder: Path, seed: int, module: str, counts: Counts
    ) -> None:
        self.rng = random.Random(f"power-{seed}")
        self.mounted = mounted
        settings = ("log.fsync=always", "memory.bytes_max=16MiB")
        self.server = Server(folder, settings, data_dir=mounted.path / "data", module=module)
        self.counts = counts
        self.writers = [
            Writer(b"w%d" % n, random.Random(f"writer-{seed}-{n}")) for n in range(WRITERS)
        ]

    def run(self, count: int, *, is_told: bool) -> None:
        """Raises Loss, RefusedStart."""
        self.server.start()
        try:
            for number in range(count):
                line = self._run_one()
                self.counts.rounds += 1
                if is_told:
                    print(f"round {number + 1}/{count}: {line}", flush=True)
        finally:
            self._kill()

    def _run_one(self) -> str:
        before = sum(writer.acknowledged for writer in self.writers)
        for writer in self.writers:
            writer.start(self.server.port)
        deadline = time.monotonic() + 60
        while sum(writer.acknowledged for writer in self.writers) - before < ACKNOWLEDGED_MIN:
            time.sleep(0.002)
            if time.monotonic() > deadline:
                raise Loss(f"the server takes no writes; it said:\n{self.server.said()[-2000:]}")
        time.sleep(self.rng.choice((0, 0.05, 0.3, 1.0)))
        job = self.server.job()
        # First the machine stands still, then the disk. The other way round a sync that is under way
        # may report success though the file system is gone, and the server would acknowledge it.
        self.server.stand_still()
        self.mounted.cut_power()
        self._kill()
        for writer in self.writers:
            writer.join()
        acknowledged = sum(writer.acknowledged for writer in self.writers) - before
        in_flight = sum(len(writer.unanswered) for writer in self.writers)
        self.mounted.remount()
        self.counts.acknowledged += acknowledged
        self.counts.in_flight += in_flight
        self.counts.cut_in_jobs += bool(job)
        self.server.start()
        connection = Connection(self.server.port)
        recovered = sum(writer.settle(connection) for writer in self.writers)
        connection.close()
        self.counts.recovered_in_flight += recovered
        return (
            f"cut in {job or 'no job'}, {acknowledged} acknowledged, {in_flight} in flight "
            f"({recovered} recovered)"
        )

    def _kill(self) -> None:
        worker = self.server.worker_pid()
        self.server.kill()
        if worker is not None and not is_gone(worker):
            raise Loss(f"the worker {worker} outlived its killed server")


def run(count: int, seed: int, module: str, counts: Counts, *, is_told: bool) -> None:
    """Rounds on an image of their own. Raises Loss, RefusedStart, MountFailed."""
    with tempfile.TemporaryDirectory(prefix="respkv-power-") as name:
        folder = Path(name)
        with image(folder, IMAGE_BYTES) as mounted:
            Rounds(mounted, folder, seed, module, counts).run(count, is_told=is_told)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--without-fsync", action="store_true", help="plant that bug")
    arguments = parser.parse_args()
    reason = missing()
    if reason is not None:
        print(f"cannot run here: {reason}", file=sys.stderr)
        return 2
    print(f"seed {arguments.seed}")
    counts = Counts()
    module = BROKEN if arguments.without_fsync else "respkv"
    try:
        run(arguments.rounds, arguments.seed, module, counts, is_told=True)
    except (Loss, RefusedStart) as failure:
        counts.losses += 1
        print(failure, file=sys.stderr)
    print(counts)
    return 1 if counts.losses else 0


if __name__ == "__main__":
    sys.exit(main())
