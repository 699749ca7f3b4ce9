"""Replies that may not leave before the commit log is durable up to a position.

It sends nothing, and does not know how far the disk is: the front takes the batches whose time has
come from the left of `batches`. Their positions ascend, and a client's replies keep their order:
while some of it are held (`Connection.held`), later ones are held behind them. A client with more
than `output_buffer_soft_bytes` held is not read meanwhile.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from respkv.connection import Clients, Connection
from respkv.session import CLOSING

if TYPE_CHECKING:
    from respkv.node import Node


class HeldReplies:
    """Of all clients."""

    def __init__(self, node: Node, clients: Clients) -> None:
        self.node = node
        self.batches: deque[tuple[int, list[tuple[Connection, bytes]]]] = deque()
        self._clients = clients

    def hold(self, position: int, dirty: list[Connection]) -> None:
        """All that a tick has made for these clients."""
        batch = []
        for connection in dirty:
            out = connection.session.out
            if out or connection.session.mode & CLOSING:
                data = b"".join(out)
                out.clear()
                self._count(connection, data)
                batch.append((connection, data))
        self._keep(position, batch)

    def hold_data(self, position: int, connection: Connection, data: bytes) -> None:
        """What could leave, but for earlier replies of this client that are held."""
        self._count(connection, data)
        self._keep(position, [(connection, data)])

    def _count(self, connection: Connection, data: bytes) -> None:
        connection.held += 1
        connection.held_bytes += len(data)
        soft = self.node.config.client.output_buffer_soft_bytes
        if connection.session.mode & CLOSING or (soft and connection.held_bytes > soft):
            self._clients.stop_reading(connection)

    def _keep(self, position: int, batch: list[tuple[Connection, bytes]]) -> None:
        held = self.batches
        last = held[-1][0] if held else 0
        if position >= last:
            held.append((position, batch))
            return
        # What stands at the end waits for room on the disk. Nobody else has to wait for that.
        before = [item for item in batch if item[0].held == 1]
        held.append((last, [item for item in batch if item[0].held > 1]))
        index = sum(position >= other for other, _ in held)
        held.insert(index, (position, before))
