"""Ports for servers under test and under measure that nobody takes before the server does.

A port that was only looked at may be taken before the server binds it: by another process that looks for one
as well, or by a connection that dials out, to which the kernel gives a port of its own choice. So every port of
a node (client p, cluster view p + 100, bus p + 10000, admin p + 20000) lies below those that Linux gives to
dialling sockets (32768 and up), and each process has a block of its own, which it holds for its life by
keeping one port of it bound.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Iterator

HOST = "127.0.0.1"
CLUSTER_PORT_OFFSET = 100
PORT_OFFSETS = (0, CLUSTER_PORT_OFFSET, 10_000, 20_000)
CLIENT_PORTS = range(10_000, 12_600)
_BLOCK = 2 * CLUSTER_PORT_OFFSET  # Client ports, then their cluster ports.
_COUNT = CLUSTER_PORT_OFFSET - 1  # Client ports of a block. The last cluster port is the guard.


class NoFreePort(Exception):
    """All blocks are held by other processes, or all ports of this process' block are in use."""


def free_port() -> int:
    """The next client port of this process whose other ports are free as well. Raises NoFreePort."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """So many different ones. Each is given again only after all others of the block. Raises NoFreePort."""
    block = _block(os.getpid())
    found: list[int] = []
    for _ in range(_COUNT):
        port = block.next_port()
        if all(_is_free(port + offset) for offset in PORT_OFFSETS):
            found.append(port)
        if len(found) == count:
            return found
    raise NoFreePort(f"{len(found)} of {count} ports are free in the block of {block.guard}")


class _Block:
    """The client ports of one process. The guard stays bound until the process ends."""

    def __init__(self) -> None:
        for start in range(CLIENT_PORTS.start, CLIENT_PORTS.stop, _BLOCK):
            self._guard = socket.socket()
            try:
                self._guard.bind((HOST, start + _BLOCK - 1))
            except OSError:
                self._guard.close()
                continue
            self.guard = start + _BLOCK - 1
            self._ports = _round(range(start, start + _COUNT))
            return
        raise NoFreePort(f"all blocks of ports within {CLIENT_PORTS} are held")

    def next_port(self) -> int:
        return next(self._ports)


@functools.cache
def _block(pid: int) -> _Block:
    """By process id, so that a forked child does not share its parent's."""
    del pid
    return _Block()


def _round(ports: range) -> Iterator[int]:
    while True:
        yield from ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
