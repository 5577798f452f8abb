"""The encrypted side of a connection: bytes from the wire in, plain bytes out, and back. Loaded only where it is used.

A host's start under emulation does without it (the ssl module is large); a web server with a certificate imports it.
"""

from __future__ import annotations

import contextlib
import ssl
import tempfile

_CHUNK = 65536


class Certificate:
    """A certificate with its key, ready to serve."""

    def __init__(self, pem: str) -> None:
        """`pem`: the certificate and its private key. Raises ssl.SSLError."""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:  # readable by its owner alone, and gone at once
            file.write(pem)
            file.flush()
            self._context.load_cert_chain(file.name)

    def session(self) -> Session:
        """A server's side of one connection."""
        return Session(self._context)


class Session:
    """One connection. `pending` is what has to be written to the wire after each call."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._from_wire, self._to_wire = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._engine = context.wrap_bio(self._from_wire, self._to_wire, server_side=True)
        self._agreed = False

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """Bytes from the wire: what they say in plain, and whether the client has ended. Raises ssl.SSLError."""
        self._from_wire.write(data)
        plain, ended = bytearray(), False
        with contextlib.suppress(ssl.SSLWantReadError):
            if not self._agreed:
                self._engine.do_handshake()
                self._agreed = True
            while chunk := self._engine.read(_CHUNK):
                plain += chunk
            ended = True
        return bytes(plain), ended

    def say(self, plain: bytes) -> None:
        """Encrypt."""
        if plain:
            self._engine.write(plain)

    def end(self) -> None:
        """Say that nothing more comes; the client's own word about it is not waited for."""
        with contextlib.suppress(ssl.SSLError):
            self._engine.unwrap()

    @property
    def pending(self) -> bytes:
        """Bytes for the wire."""
        return self._to_wire.read()
