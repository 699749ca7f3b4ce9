"""TLS for the bus: bytes in, bytes out, without a socket.

It comes beneath the handshake of `cluster/handshake.py` and does not replace it: the certificate says
that a node may belong here, the secret says which cluster and which name. Both ends must show a
certificate that the CA of the settings has signed; host names are not checked, since the CA is the
cluster's own and the handshake proves the names. TLS 1.3 only.

A `Tls` is one end of one connection. `receive` takes what the socket gave and returns what it means;
`send` takes what is meant. After each call `take` returns what has to go to the socket. Until the
handshake of TLS has ended, `is_ready` is False, and nothing may be sent.

Core around OpenSSL's memory buffers. `TlsSettings.load` reads files, once, where a node is composed.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Final

READ_BYTES: Final = 65536


class TlsError(Exception):
    """The certificates are no good, the peer's or this node's, or the stream is broken. Close the connection."""


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """Both contexts of a node."""

    dialling: ssl.SSLContext
    accepting: ssl.SSLContext

    @classmethod
    def load(cls, certificate_file: str, key_file: str, ca_file: str) -> TlsSettings:
        """PEM files: this node's certificate (the chain, its own first), its key, the cluster's CA.

        Raises TlsError, which names the file.
        """
        dialling = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        dialling.check_hostname = False
        accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        for context in (dialling, accepting):
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(ca_file)
            except OSError as error:  # SSLError is one.
                raise TlsError(f"the CA in {ca_file}: {error}") from error
            try:
                # Never ask for a passphrase: a server has nobody to ask.
                context.load_cert_chain(certificate_file, key_file, password="")
            except OSError as error:
                raise TlsError(f"the certificate {certificate_file}: {error}") from error
        accepting.num_tickets = (
            0  # Nobody resumes: tickets are bytes after the end of the handshake.
        )
        return cls(dialling, accepting)


class Tls:
    """One end of one connection."""

    __slots__ = ("_incoming", "_outgoing", "_tls", "is_ready")

    def __init__(self, settings: TlsSettings, *, is_dialled: bool) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        context = settings.dialling if is_dialled else settings.accepting
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=not is_dialled)
        self.is_ready = False

    def receive(self, data: bytes) -> bytes:
        """What came, deciphered. Raises TlsError; `take` may then hold the alert for the peer."""
        self._incoming.write(data)
        try:
            if not self.is_ready:
                self._tls.do_handshake()
                self.is_ready = True
            return self._read()
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLError as error:
            raise TlsError(error.reason or str(error)) from error

    def _read(self) -> bytes:
        pieces: list[bytes] = []
        while True:
            try:
                pieces.append(self._tls.read(READ_BYTES))
            except ssl.SSLWantReadError:
                return b"".join(pieces)

    def send(self, data: bytes) -> None:
        """Encipher. Raises TlsError."""
        assert self.is_ready
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise TlsError(error.reason or str(error)) from error

    def take(self) -> bytes:
        """What has to go to the socket."""
        return self._outgoing.read()
