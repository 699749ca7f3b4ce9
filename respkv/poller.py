"""Which sockets are ready: the front's seam to the kernel.

The simulation has another one (`tests/sim`), so that the front itself runs there unchanged.

Shell.
"""

from __future__ import annotations

import os
import select
from typing import Final, Protocol

import trio

READ: Final = select.EPOLLIN
READ_WRITE: Final = select.EPOLLIN | select.EPOLLOUT
WRITE: Final = select.EPOLLOUT

Ready = list[tuple[int, int]]  # Descriptors, each with the mask of what it is ready for.


class Poller(Protocol):
    """A set of descriptors, level-triggered."""

    def register(self, fd: int, mask: int) -> None: ...

    def modify(self, fd: int, mask: int) -> None: ...

    def unregister(self, fd: int) -> None: ...

    def poll(self) -> Ready:
        """What is ready now."""
        ...

    async def wait(self) -> None:
        """Return when something is ready, or `wake` was called. It may return for nothing."""
        ...

    def wake(self) -> None:
        """End a `wait` that is under way."""
        ...

    def close(self) -> None: ...


class EpollPoller:
    """The kernel's."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._waker = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._waker, select.EPOLLIN | select.EPOLLET)
        self._fd = self._epoll.fileno()

    def register(self, fd: int, mask: int) -> None:
        self._epoll.register(fd, mask)

    def modify(self, fd: int, mask: int) -> None:
        self._epoll.modify(fd, mask)

    def unregister(self, fd: int) -> None:
        self._epoll.unregister(fd)

    def poll(self) -> Ready:
        return self._epoll.poll(0)

    async def wait(self) -> None:
        await trio.lowlevel.wait_readable(self._fd)

    def wake(self) -> None:
        os.eventfd_write(self._waker, 1)

    def close(self) -> None:
        self._epoll.close()
        os.close(self._waker)
