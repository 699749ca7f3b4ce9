"""Two processes never get the same port, and no connection that dials out gets one of theirs."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench import ports
from bench.ports import CLIENT_PORTS, PORT_OFFSETS, NoFreePort, free_port, free_ports

_REPOSITORY = Path(__file__).resolve().parent.parent.parent


def _all_ports_of(client_ports: list[int]) -> set[int]:
    return {port + offset for port in client_ports for offset in PORT_OFFSETS}


def test_no_two_ports_of_a_process_are_the_same() -> None:
    client_ports = free_ports(90)
    assert len(_all_ports_of(client_ports)) == 90 * len(PORT_OFFSETS)


def test_no_connection_that_dials_out_gets_one() -> None:
    assert max(_all_ports_of([CLIENT_PORTS[-1]])) < 32768


def test_two_processes_have_none_in_common() -> None:
    mine = free_ports(90)
    line = [sys.executable, "-c", "from bench.ports import free_ports; print(*free_ports(90))"]
    other = subprocess.run(line, cwd=_REPOSITORY, capture_output=True, text=True, check=True)
    theirs = [int(word) for word in other.stdout.split()]
    assert len(theirs) == 90
    assert not _all_ports_of(mine) & _all_ports_of(theirs)


def test_a_forked_child_has_none_of_its_parent() -> None:
    mine = free_port()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.write(writing, b"%d" % free_port())
        os._exit(0)
    os.close(writing)
    theirs = int(os.read(reading, 100))
    os.close(reading)
    os.waitpid(child, 0)
    assert abs(theirs - mine) >= 100


@pytest.mark.parametrize("offset", PORT_OFFSETS)
def test_a_port_with_a_listener_on_one_of_its_ports_is_passed_over(offset: int) -> None:
    first = free_port()
    taken = first + 1
    with socket.create_server((ports.HOST, taken + offset)):
        assert taken not in free_ports(80)


def test_too_many_is_an_error() -> None:
    with pytest.raises(NoFreePort, match="99 of 100 ports are free"):
        free_ports(100)
