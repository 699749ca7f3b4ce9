"""A proxy that lies: it passes bytes between a client and a server, and changes what it is told to change.

With it the tester is tested: a difference that was planted must be found. It knows no protocol. The tester sends one
command and awaits its reply, so what arrives at once is one request or one reply (or a part of a long one).

Each connection has two threads that end when either side closes; leaving `faulty_proxy` closes them all.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Change = Callable[[bytes], bytes]
_CHUNK_BYTES = 1 << 20


def unchanged(data: bytes) -> bytes:
    return data


@dataclass(slots=True)
class _Proxy:
    upstream: tuple[str, int]
    on_request: Change
    on_reply: Change
    listener: socket.socket
    sockets: list[socket.socket] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def serve(self) -> None:
        with contextlib.suppress(OSError):  # The listener is closed to end this.
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(self.upstream)
                self.sockets += (client, server)
                for one in (client, server):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._start(_pump, client, server, self.on_request)
                self._start(_pump, server, client, self.on_reply)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self.threads.append(thread)
        thread.start()


def _pump(source: socket.socket, sink: socket.socket, change: Change) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK_BYTES):
            if changed := change(data):
                sink.sendall(changed)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def faulty_proxy(
    upstream: tuple[str, int], *, on_request: Change = unchanged, on_reply: Change = unchanged
) -> Iterator[tuple[str, int]]:
    """Yield the address of a proxy to `upstream`. What a change returns empty is swallowed."""
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = _Proxy(upstream, on_request, on_reply, listener)
    acceptor = threading.Thread(target=proxy.serve, daemon=True)
    acceptor.start()
    try:
        host, port = listener.getsockname()
        yield host, port
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for one in proxy.sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in proxy.threads:
            thread.join()
