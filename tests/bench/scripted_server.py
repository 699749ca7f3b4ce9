"""A server on a thread that answers one connection with bytes that a test gives."""

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence

from bench.connection import Address


@contextlib.contextmanager
def scripted(
    pieces: Sequence[bytes], *, closes: bool, reads: bool = True, drains: bool = False
) -> Iterator[Address]:
    """Accept one connection, read once, send the pieces one by one, then close or stay silent.

    With `drains` everything that comes is read by another thread, so that a large request gets in.
    """
    is_over = threading.Event()

    def drain(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while connection.recv(2**20):
                pass

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(ConnectionError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if drains:
                threading.Thread(target=drain, args=(connection,), daemon=True).start()
            elif reads:
                connection.recv(65536)
            for piece in pieces:
                connection.sendall(piece)
            if not closes:
                is_over.wait(10)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            is_over.set()
            thread.join(10)
