"""A gate before the clients: closed by who needs a moment in which nothing is under way.

Shell.
"""

from __future__ import annotations

import trio


class Gate:
    """What clients pass before they ask for anything. Closed by who needs that nothing is under way."""

    def __init__(self) -> None:
        self.inside = 0
        self._is_closed = False
        self._opened = trio.Event()

    async def __aenter__(self) -> None:
        while self._is_closed:
            await self._opened.wait()
        self.inside += 1

    async def __aexit__(self, *_: object) -> None:
        self.inside -= 1

    def close(self) -> None:
        self._is_closed = True
        self._opened = trio.Event()

    def open(self) -> None:
        self._is_closed = False
        self._opened.set()
