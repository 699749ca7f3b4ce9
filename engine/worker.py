"""The worker process: does background jobs beside the serving process, at low priority.

It decides nothing and keeps nothing: one job a line comes on standard input, its result goes out as
a line, and an end of input ends it at once, in the middle of a job too: a thread waits for that,
because a parent that was killed says nothing else. It is started by exec, not fork, and holds no
lock: its inputs never change, and its output becomes live only when the parent has put it into the
manifest.

    python -m engine.worker DATA_DIR CODEC
    in   MessagePack of Job, as a line of hexadecimal
    out  "ok " or "error " and MessagePack of JobResult, or a text, as a line of hexadecimal

`Worker` is the parent's side: it restarts a worker that was lost, and raises `WorkerLost` so that
the job is given again.

Shell.
"""

from __future__ import annotations

import gc
import os
import queue
import subprocess
import sys
import threading
from typing import IO, NoReturn

import msgspec
import trio

from engine.disk import RealDisk
from engine.errors import EngineError
from engine.job import Job, JobResult, load_codec, run_job

NICENESS = 10
LINE_BYTES_MAX = 1 << 24


class WorkerLost(EngineError):
    """The worker ended in the middle of a job, which has to be done again."""


class JobFailed(EngineError):
    """The worker could not do a job, and says why. The same job may succeed later (a full disk)."""


class Worker:
    """The parent's side: `run` does one job at a time. `codec` is an import path such as `cluster.record:CODEC`."""

    def __init__(self, data_dir: str, codec: str) -> None:
        self._arguments = [sys.executable, "-m", "engine.worker", data_dir, codec]
        self._process: trio.Process | None = None
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def run(self, job: Job) -> JobResult:
        """Have a job done. Raises WorkerLost, JobFailed. Who is cancelled here loses the worker."""
        process = self._process
        if process is None or process.poll() is not None:
            process = self._process = await self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            await process.stdin.send_all(msgspec.msgpack.encode(job).hex().encode() + b"\n")
            line = bytearray()
            while not line.endswith(b"\n"):
                chunk = await process.stdout.receive_some(65536)
                if not chunk or len(line) > LINE_BYTES_MAX:
                    raise WorkerLost("the worker ended during a job")
                line += chunk
        except (trio.BrokenResourceError, trio.ClosedResourceError, WorkerLost) as error:
            self.restarts += 1
            await self.stop()
            raise WorkerLost("the worker ended during a job") from error
        except trio.Cancelled:
            await self.stop()  # Its answer would be taken for the next job's.
            raise
        kind, _, body = bytes(line).partition(b" ")
        data = bytes.fromhex(body.decode())
        if kind != b"ok":
            raise JobFailed(data.decode())
        return msgspec.msgpack.decode(data, type=JobResult)

    async def _start(self) -> trio.Process:
        return await trio.lowlevel.open_process(
            self._arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )

    async def stop(self) -> None:
        """End the worker; a job that it was doing is lost."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


def main(arguments: list[str]) -> NoReturn:
    """The child's side."""
    data_dir, codec_path = arguments
    os.nice(NICENESS)
    gc.disable()  # A job makes millions of small objects and no cycles.
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, jobs), daemon=True).start()
    disk = RealDisk(data_dir)
    codec = load_codec(codec_path)
    output = sys.stdout.buffer
    while True:
        job = msgspec.msgpack.decode(bytes.fromhex(jobs.get().decode()), type=Job)
        try:
            result = run_job(disk, job, codec)
        except EngineError as error:
            answer = b"error " + str(error).encode().hex().encode()
        else:
            answer = b"ok " + msgspec.msgpack.encode(result).hex().encode()
        output.write(answer + b"\n")
        output.flush()


def _receive(source: IO[bytes], jobs: queue.SimpleQueue[bytes]) -> None:
    for line in source:
        jobs.put(line)
    os._exit(0)  # The parent is gone.


if __name__ == "__main__":
    main(sys.argv[1:])
