"""The sockets that clients knock at: addresses are listened on, and clients are let in or turned away.

Who is let in is handed on to `Clients` and known here no more. When the machine has no descriptors
left the listeners are not watched, until `try_again` a second later: the kernel keeps the rest
waiting meanwhile.

Shell.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import TYPE_CHECKING, Final

from respkv.connection import Clients
from respkv.poller import READ

if TYPE_CHECKING:
    from respkv.node import Node

ACCEPTS_PER_TICK: Final = 128
# What `accept` says when this machine has no room for more clients just now.
NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
TOO_MANY_CLIENTS: Final = b"-ERR max number of clients reached\r\n"
PROTECTED: Final = (
    b"-DENIED respkv is in protected mode: no password is set, so it serves only clients of its own machine. "
    b"Set client.requirepass, or client.protected_mode = false if the network is trusted, and restart.\r\n"
)


class Listeners:
    """All of a node's, for clients."""

    def __init__(self, node: Node, clients: Clients) -> None:
        self.node = node
        self.by_fd: dict[int, socket.socket] = {}
        self.rejected_total = 0
        self._clients = clients
        self._poller = node.poller
        self._of_cluster: set[int] = set()  # Whose clients see a Redis Cluster member.
        self._is_full = False  # No more descriptors: `try_again` does.

    def listen_tcp(self, host: str, port: int, backlog: int, *, is_cluster: bool = False) -> int:
        """Listen on one address, and return the port (it was chosen if 0 was asked for). Raises OSError.

        `is_cluster`: to those who connect there the node is a member of a Redis Cluster.
        """
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(info[0], socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if info[0] == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self._listen(sock, info[4], backlog)
        if is_cluster:
            self._of_cluster.add(sock.fileno())
        return int(sock.getsockname()[1])

    def listen_unix(self, path: str, mode: str, backlog: int) -> None:
        """Listen on a Unix socket; a stale one of the same path is replaced. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise OSError(f"{path} is there, and is no socket")
            probe = socket.socket(socket.AF_UNIX)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            else:
                raise OSError(f"{path} is in use")
            finally:
                probe.close()
        self._listen(socket.socket(socket.AF_UNIX), path, backlog, mode)

    def _listen(self, sock: socket.socket, address: object, backlog: int, mode: str = "") -> None:
        try:
            sock.bind(address)  # type: ignore[arg-type]
            if mode:  # Before anybody can connect.
                os.chmod(str(address), int(mode, 8))
            sock.listen(backlog)
        except OSError:
            sock.close()
            raise
        sock.setblocking(False)
        self.by_fd[sock.fileno()] = sock
        self._poller.register(sock.fileno(), READ)

    def accept(self, listener: socket.socket) -> None:
        """Somebody knocks: let in who may come in."""
        client = self.node.config.client
        for _ in range(ACCEPTS_PER_TICK):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in NO_ROOM:
                    continue  # That client has gone already.
                # The kernel keeps the rest waiting; the epoll set would report them again and again.
                self.node.log.warning("cannot accept a client", reason=str(error))
                self._is_full = True
                for fd in self.by_fd:
                    self._poller.modify(fd, 0)
                return
            sock.setblocking(False)
            is_unix = sock.family == socket.AF_UNIX
            refusal = b""
            if len(self._clients.by_fd) >= client.clients_max:
                refusal = TOO_MANY_CLIENTS
            elif client.protected_mode and not client.requirepass and not is_unix:
                refusal = b"" if _is_loopback(address[0]) else PROTECTED
            if refusal:
                self.rejected_total += 1
                with contextlib.suppress(OSError):
                    sock.send(refusal)
                sock.close()
                continue
            self._add(sock, listener, is_unix=is_unix)

    def _add(self, sock: socket.socket, listener: socket.socket, *, is_unix: bool) -> None:
        config = self.node.config.client
        if is_unix:
            peer = local = f"{listener.getsockname()}:0"
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if config.tcp_keepalive_s:
                interval = config.tcp_keepalive_s
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, interval)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, interval // 3))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
            try:
                peer, local = _shown(sock.getpeername()), _shown(sock.getsockname())
            except OSError:  # Gone already.
                sock.close()
                return
        session = self._clients.attach(sock, peer, local)
        session.is_unix = is_unix
        session.is_cluster = listener.fileno() in self._of_cluster

    def try_again(self) -> None:
        """Those that found no room: there may be some by now."""
        if self._is_full:
            self._is_full = False
            for fd in self.by_fd:
                self._poller.modify(fd, READ)

    def close(self) -> None:
        """Let nobody in any more."""
        for fd, sock in self.by_fd.items():
            self._poller.unregister(fd)
            if sock.family == socket.AF_UNIX:
                with contextlib.suppress(OSError):
                    os.unlink(sock.getsockname())
            sock.close()
        self.by_fd.clear()


def _is_loopback(host: str) -> bool:
    return host.startswith("127.") or host in ("::1", "::ffff:127.0.0.1")


def _shown(address: tuple[object, ...]) -> str:
    host, port = str(address[0]), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
