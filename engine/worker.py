"""The worker process: does background jobs beside the serving process, at low priority.

It decides nothing and keeps nothing: jobs come on standard input, their results go out, and an end of
input ends it at once, in the middle of a job too: a thread waits for that, because a parent that was
killed says nothing else. It is started by exec, not fork, and holds no lock: its inputs never change,
and its output becomes live only when the parent has put it into the manifest.

A flush that comes in the middle of a compaction is done at once, and the compaction goes on after it. One
process is enough for that, and takes less memory than two: the flush is what is urgent.

    python -m engine.worker DATA_DIR CODEC
    in   MessagePack of Job, as a line of hexadecimal
    out  the name of the job's output, "ok" or "error", and MessagePack of JobResult, or a text, as hexadecimal:
         a line of three words

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
from collections.abc import Callable
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
    """The parent's side: any number of `run` at a time. `codec` is an import path such as `cluster.record:CODEC`."""

    def __init__(self, data_dir: str, codec: str) -> None:
        self._arguments = [sys.executable, "-m", "engine.worker", data_dir, codec]
        self._child: _Child | None = None
        self._starting = trio.Lock()
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        return self._child.process.pid if self._child is not None else None

    async def run(self, job: Job) -> JobResult:
        """Have a job done. Raises WorkerLost, JobFailed. Who is cancelled here loses the worker, and so do others."""
        child = await self._living_child()
        try:
            kind, data = await child.ask(job)
        except (trio.BrokenResourceError, trio.ClosedResourceError, WorkerLost) as error:
            if self._child is child:
                self.restarts += 1
                await self.stop()
            raise WorkerLost("the worker ended during a job") from error
        except trio.Cancelled:
            if self._child is child:
                await self.stop()
            raise
        if kind != b"ok":
            raise JobFailed(data.decode())
        return msgspec.msgpack.decode(data, type=JobResult)

    async def _living_child(self) -> _Child:
        async with self._starting:
            child = self._child
            if child is None or child.process.poll() is not None:
                process = await trio.lowlevel.open_process(
                    self._arguments,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,
                )
                child = self._child = _Child(process)
            return child

    async def stop(self) -> None:
        """End the worker; the jobs that it was doing are lost."""
        child, self._child = self._child, None
        if child is not None:
            child.process.kill()
            with trio.CancelScope(shield=True):
                await child.process.wait()


class _Child:
    """One worker process, with the answers that have come. Whoever waits for one reads for all."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self._input = process.stdin
        self._output = process.stdout
        self._unread = bytearray()
        self._answers: dict[bytes, tuple[bytes, bytes]] = {}
        self._sending = trio.Lock()
        self._reading = trio.Lock()
        self._has_read = trio.Event()  # Another one after each line.

    async def ask(self, job: Job) -> tuple[bytes, bytes]:
        """Have a job done; returns how it went, and the result. Raises WorkerLost and what the pipes raise."""
        async with self._sending:
            await self._input.send_all(msgspec.msgpack.encode(job).hex().encode() + b"\n")
        name = job.output.encode()
        while name not in self._answers:
            try:
                self._reading.acquire_nowait()
            except trio.WouldBlock:
                await self._has_read.wait()
                continue
            try:
                answered, kind, body = (await self._read_line()).split(b" ")
                self._answers[answered] = kind, bytes.fromhex(body.decode())
            finally:
                self._reading.release()
                self._has_read.set()
                self._has_read = trio.Event()
        return self._answers.pop(name)

    async def _read_line(self) -> bytes:
        while (end := self._unread.find(b"\n")) < 0:
            chunk = await self._output.receive_some(65536)
            if not chunk or len(self._unread) > LINE_BYTES_MAX:
                raise WorkerLost("the worker ended during a job")
            self._unread += chunk
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        return line


def main(arguments: list[str]) -> NoReturn:
    """The child's side."""
    data_dir, codec_path = arguments
    os.nice(NICENESS)
    gc.disable()  # A job makes millions of small objects and no cycles.
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, jobs), daemon=True).start()
    disk = RealDisk(data_dir)
    codec = load_codec(codec_path)

    def work(line: bytes, pause: Callable[[], None] | None) -> None:
        job = msgspec.msgpack.decode(bytes.fromhex(line.decode()), type=Job)
        try:
            result = run_job(disk, job, codec, pause)
        except EngineError as error:
            kind, data = b"error", str(error).encode()
        else:
            kind, data = b"ok", msgspec.msgpack.encode(result)
        answer = b"%b %b %b\n" % (job.output.encode(), kind, data.hex().encode())
        sys.stdout.buffer.write(answer)
        sys.stdout.buffer.flush()

    def pause() -> None:
        while not jobs.empty():
            work(jobs.get(), None)

    while True:
        work(jobs.get(), pause)


def _receive(source: IO[bytes], jobs: queue.SimpleQueue[bytes]) -> None:
    for line in source:
        jobs.put(line)
    os._exit(0)  # The parent is gone.


if __name__ == "__main__":
    main(sys.argv[1:])
