"""The encrypted side of a connection: bytes from the wire in, plain bytes out, and back. Loaded only where it is used.

A host's start under emulation does without it (the ssl module is large); who serves or asks by TLS imports it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import ssl
import tempfile

from guest.wire import Malformed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

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


_contexts: dict[str, ssl.SSLContext] = {}
"""How clients speak TLS, by what was wanted: making one takes long under emulation."""


def _client_context(wanted: dict[str, Any]) -> ssl.SSLContext:
    key = json.dumps({name: value for name, value in wanted.items() if name != "name"}, sort_keys=True)
    if key not in _contexts:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # Nobody is believed: the certificate is told, and compared by who asked.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        if wanted.get("lowest"):
            context.minimum_version = _version(wanted["lowest"])
        if wanted.get("highest"):
            context.maximum_version = _version(wanted["highest"])
        if wanted.get("alpn"):
            context.set_alpn_protocols(wanted["alpn"])
        _contexts[key] = context
    return _contexts[key]


def _version(text: str) -> ssl.TLSVersion:
    return ssl.TLSVersion["TLSv1" if text == "1.0" else f"TLSv{text.replace('.', '_')}"]


class Session:
    """One connection. `pending` is what has to be written to the wire after each call; `agreed` is set once both sides
    have agreed how to speak."""

    def __init__(self, context: ssl.SSLContext, *, server_side: bool = True, name: str | None = None) -> None:
        self._from_wire, self._to_wire = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._engine = context.wrap_bio(self._from_wire, self._to_wire, server_side=server_side, server_hostname=name)
        self.agreed = False

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """Bytes from the wire: what they say in plain, and whether the client has ended. Raises ssl.SSLError."""
        self._from_wire.write(data)
        plain, ended = bytearray(), False
        with contextlib.suppress(ssl.SSLWantReadError):
            if not self.agreed:
                self._engine.do_handshake()
                self.agreed = True
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


class ClientSession(Session):
    """A client's side of one connection: `name` is asked for (SNI), `lowest` and `highest` are versions ("1.2"), `alpn`
    the protocols that are offered. What goes wrong is Malformed."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        try:
            super().__init__(_client_context(wanted), server_side=False, name=wanted.get("name"))
        except (ssl.SSLError, ValueError) as cause:
            raise Malformed(f"tls: {cause}") from None

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """See Session."""
        try:
            return super().take(data)
        except ssl.SSLError as cause:
            raise Malformed(f"tls: {(cause.reason or str(cause)).lower().replace('_', ' ')}") from None

    def facts(self) -> dict[str, Any]:
        """What was agreed, and whose certificate came (SHA-256, in hex)."""
        certificate = hashlib.sha256(self._engine.getpeercert(binary_form=True) or b"").hexdigest()
        protocol = self._engine.selected_alpn_protocol() or ""
        return {"version": (self._engine.version() or "").removeprefix("TLSv"), "alpn": protocol, "sha256": certificate}
