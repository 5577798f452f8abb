"""What all servers of a host share: ports that listen, and connections of bytes, encrypted if the client begins so.

A server listens on both families unless it is given an address. Clients are reported as their own family writes them.
What servers say is the business of `web`, `words` and `datagrams`.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence

from guest.loop import HANGUP, READ, WRITE, Loop

TYPE_CHECKING = False  # what typing says as well; importing it would cost a tenth of the start under emulation
if TYPE_CHECKING:
    from typing import Any

    from guest.tls import Certificate, Session

SERVER_HEADER = "X-Lab-Server"
_BACKLOG = 1024
_AT_ONCE = struct.pack("ii", 1, 0)
TLS = b"\x16"  # the first byte of a TLS connection (RFC 8446, 5.1); no text begins with it

_LINE, _MOST_WAITING = b"and on it goes\n", 1000

Exchanges = Sequence[tuple[bytes, bytes]]
"""What a client may say and what it is answered then, each in full; for nothing said it is part of the greeting."""


def plain(address: str) -> str:
    """An IPv4 address that an IPv6 socket wrote, as IPv4 writes it."""
    return address[7:] if address.startswith("::ffff:") and "." in address else address


def reset_at_close(sock: socket.socket) -> None:
    """Let closing a connection reset it: it lingers for no time (socket(7), SO_LINGER)."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)


def listener(kind: socket.SocketKind, address: str, port: int) -> socket.socket:
    """A bound socket; no address means all of both families."""
    family = socket.AF_INET if address and ":" not in address else socket.AF_INET6
    sock = socket.socket(family, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 if address else 0)
        sock.bind((address, port))
        sock.setblocking(False)
        if kind == socket.SOCK_STREAM:
            sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


class StreamServer(ABC):
    """A listening TCP port; makes a connection object per client."""

    def __init__(self, loop: Loop, name: str, address: str, port: int, exchanges: Exchanges = ()) -> None:
        self.loop = loop
        self.name = name
        self.address = address
        self.exchanges = [(said, answer) for said, answer in exchanges if said]
        self.greetings = [answer for said, answer in exchanges if not said]
        self.certificate: Certificate | None = None
        self.connections = 0
        self.open: set[Connection] = set()
        self._listening: socket.socket | None = None
        self.port = port
        self.listen()
        assert self._listening is not None
        self.port = self._listening.getsockname()[1]

    def listen(self) -> None:
        """Open the port."""
        if self._listening is None:
            self._listening = listener(socket.SOCK_STREAM, self.address, self.port)
            self.loop.watch(self._listening.fileno(), READ, self._accept)

    def refuse(self) -> None:
        """Close the port (new clients get a reset from the kernel) and reset the clients that are there."""
        if self._listening is not None:
            self.loop.unwatch(self._listening.fileno())
            self._listening.close()
            self._listening = None
        for connection in list(self.open):
            connection.close(reset=True)

    def stop(self) -> None:
        """End for good."""
        self.refuse()

    def stats(self) -> dict[str, Any]:
        """Figures since the start."""
        return {"connections": self.connections, "open": len(self.open)}

    @abstractmethod
    def connect(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        """Make the connection object."""

    def _accept(self, _events: int) -> None:
        for _ in range(64):
            try:
                if self._listening is None:
                    return
                sock, peer = self._listening.accept()
            except OSError:
                return
            sock.setblocking(False)
            self.connections += 1
            self.connect(sock, (plain(peer[0]), peer[1]))


class Connection(ABC):
    """A client's connection: bytes in, bytes out, closed once all is written if so wished.

    What a client says first is compared with the server's `exchanges`; whatever is none of them goes to `receive`.
    """

    def __init__(self, server: StreamServer, sock: socket.socket, peer: tuple[str, int]) -> None:
        self._server = server
        self._sock = sock
        self._peer = peer
        self._out = bytearray()
        self._closing = False
        self._session: Session | None = None
        self._fresh = True
        self._begun = b""
        server.open.add(self)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.loop.watch(sock.fileno(), READ, self._ready)

    @abstractmethod
    def receive(self, data: bytes) -> None:
        """Bytes came; none means the client sends no more."""

    def send(self, data: bytes, *, then_close: bool = False) -> None:
        """Write now or as soon as the socket takes it."""
        if self._session is None:
            self._out += data
        else:
            self._session.say(data)
            if then_close:
                self._session.end()
            self._out += self._session.pending
        self._closing = self._closing or then_close
        self._flush()

    def stream(self, every_s: float = 0.05) -> None:
        """Send a line so often until the connection ends; none while much waits for a client that takes nothing."""
        if self in self._server.open:
            if len(self._out) < _MOST_WAITING:
                self.send(_LINE)
            self._server.loop.after(every_s, lambda: self.stream(every_s))

    def close(self, *, reset: bool = False) -> None:
        """End the connection."""
        self._server.open.discard(self)
        self._server.loop.unwatch(self._sock.fileno())
        if reset:
            reset_at_close(self._sock)
        self._sock.close()

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & (READ | HANGUP) and self in self._server.open:
            try:
                data = self._sock.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            self._came(data)

    def _came(self, data: bytes) -> None:
        """Bytes from the wire, or its end."""
        first = self._fresh and not self._begun and self._session is None
        if first and data[:1] == TLS and self._server.certificate is not None:
            self._session = self._server.certificate.session()
        if self._session is None or not data:
            self._said(data)
            return
        try:
            plain, ended = self._session.take(data)
        except OSError:  # the client does not like what it gets, or speaks no TLS
            self.close()
            return
        if ended:
            self._session.end()
        self._out += self._session.pending
        if self._out:
            self._flush()
        if plain and self in self._server.open:
            self._said(plain)
        if ended and self in self._server.open:
            self._said(b"")

    def _said(self, data: bytes) -> None:
        """Answer what the server knows by heart, or pass it on."""
        if self._fresh and data:
            whole = self._begun + data
            for said, answer in self._server.exchanges:
                if whole == said:
                    self._begun = b""
                    self.send(answer)
                    return
            if any(said.startswith(whole) for said, _ in self._server.exchanges):
                self._begun = whole
                return
            data = whole
        elif self._begun:
            self.receive(self._begun)
        self._fresh, self._begun = False, b""
        if self in self._server.open:
            self.receive(data)

    def _flush(self) -> None:
        try:
            while self._out:
                del self._out[: self._sock.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._closing and not self._out:
            self.close()
        else:
            self._server.loop.watch(self._sock.fileno(), READ | (WRITE if self._out else 0), self._ready)
