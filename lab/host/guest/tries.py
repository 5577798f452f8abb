"""One try at reaching something, from its start to its end: HTTP, TCP, UDP or ICMP echo, each with its own time-out.

A try owns its socket and reports exactly once. Who starts tries, when and how many, is `asking`'s business.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from guest.loop import READ, WRITE, Loop
from guest.servers import SERVER_HEADER, plain, reset_at_close
from guest.wire import Malformed, Message

TYPE_CHECKING = False  # what typing says as well; importing it would cost a tenth of the start under emulation
if TYPE_CHECKING:
    from typing import Any

    from guest.tls import ClientSession

    Line = tuple[socket.socket, ClientSession | None]
    """A connection that is kept: its socket, and TLS on it."""

_WORDS = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EACCES: "prohibited",
    errno.EPERM: "prohibited",
    errno.ETIMEDOUT: "time-out",
    errno.EADDRNOTAVAIL: "no-source-port",
}


class Target:
    """What is asked: `kind` is http, tcp, udp or icmp.

    `payload` is what is sent. `lines` (tcp): that many lines make an answer; 0 means that being connected does.
    `source` binds the client's address. `accept` is the range of statuses that count as an answer. `tls`: http and tcp
    inside of TLS, as `guest.tls.ClientSession` has it.
    """

    def __init__(
        self,
        kind: str,
        address: str,
        port: int = 0,
        payload: bytes = b"",
        source: str = "",
        lines: int = 0,
        head_only: bool = False,
        accept: tuple[int, int] = (0, 999),
        tls: dict[str, Any] | None = None,
    ) -> None:
        self.kind = kind
        self.address = address
        self.port = port
        self.payload = payload
        self.source = source
        self.lines = lines
        self.head_only = head_only
        self.accept = accept
        self.tls = tls

    def from_source(self, source: str) -> Target:
        """The same from another address of the client's."""
        return Target(**{**vars(self), "source": source})

    def at_port(self, port: int) -> Target:
        """The same at another port."""
        return Target(**{**vars(self), "port": port})

    @property
    def family(self) -> int:
        """The address family."""
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET


class Outcome:
    """How a try went. Times are seconds on the monotonic clock; `error` is "" for an answer."""

    __slots__ = (
        *(
            "body",
            "connected_s",
            "ended_s",
            "error",
            "headers",
            "local",
            "reused",
            "server",
            "started_s",
            "status",
            "tls",
        ),
    )

    def __init__(self, started_s: float) -> None:
        self.started_s = started_s
        self.ended_s = 0.0
        self.connected_s: float | None = None
        self.error = ""
        self.status = 0
        self.server = ""
        self.headers: list[tuple[str, str]] = []
        self.body = b""
        self.local = ("", 0)
        self.reused = False
        self.tls: dict[str, Any] = {}

    def row(self) -> list[object]:
        """The short form for long lists: start, end, connected (milliseconds), error, status, server."""
        connected_ms = None if self.connected_s is None else round(self.connected_s * 1000, 3)
        return [
            round(self.started_s * 1000, 3),
            round(self.ended_s * 1000, 3),
            connected_ms,
            self.error,
            self.status,
            self.server,
        ]


class Try(ABC):
    """The part that is the same for every kind: a socket, a time-out, one report."""

    def __init__(self, loop: Loop, target: Target, timeout_s: float, done: Callable[[Outcome], None]) -> None:
        self.loop = loop
        self.target = target
        self._done = done
        self.sock: socket.socket | None = None
        self.outcome = Outcome(time.monotonic())
        self._timer = loop.at(self.outcome.started_s + timeout_s, self._late)

    def start(self) -> None:
        """Begin; a failure at once is reported as well."""
        try:
            self.open()
        except OSError as cause:
            self.fail(cause)

    @abstractmethod
    def open(self) -> None:
        """Make the socket and send what is sent first."""

    @abstractmethod
    def ready(self, events: int) -> None:
        """The socket is ready."""

    def make(self, kind: socket.SocketKind, protocol: int = 0) -> socket.socket:
        """The socket, bound to the source address if there is one."""
        self.sock = socket.socket(self.target.family, kind, protocol)
        self.sock.setblocking(False)
        if self.target.source:
            # The port is chosen when connecting, so that one source serves many targets (ip(7)).
            if kind == socket.SOCK_STREAM:
                self.sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            self.sock.bind((self.target.source, 0))
        return self.sock

    def place(self) -> tuple[object, ...]:
        """The target's socket address (a link-local one with its interface)."""
        if "%" in self.target.address:
            address, _, interface = self.target.address.partition("%")
            return (address, self.target.port, 0, socket.if_nametoindex(interface))
        return (self.target.address, self.target.port)

    def fail(self, cause: OSError | str) -> None:
        """Report a failure."""
        if isinstance(cause, OSError):
            cause = _WORDS.get(cause.errno or 0, os.strerror(cause.errno or 0))
        self.outcome.error = cause
        self.finish()

    def finish(self, *, keep: bool = False) -> None:
        """Report; close the socket unless it is kept for a next try."""
        self.outcome.ended_s = time.monotonic()
        self._timer.cancel()
        if self.sock is not None:
            self.loop.unwatch(self.sock.fileno())
            if not keep:
                self.sock.close()
                self.sock = None
        self._done(self.outcome)

    def _late(self) -> None:
        if self.sock is not None:
            # Nothing of a try that is over may stay on the wire and be answered later.
            reset_at_close(self.sock)
        self.fail("time-out" if self.outcome.connected_s is None else "time-out after connecting")


class StreamTry(Try):
    """TCP: connects, sends, and reads until `take` is content."""

    def __init__(
        self,
        loop: Loop,
        target: Target,
        timeout_s: float,
        done: Callable[[Outcome], None],
        kept: Line | None = None,
    ) -> None:
        super().__init__(loop, target, timeout_s, done)
        self._tls: ClientSession | None = None
        if kept is not None:
            self.sock, self._tls = kept
        self._out = b""

    def open(self) -> None:
        """Connect, or go on with a kept connection."""
        if self.sock is not None:
            self.outcome.reused = True
            self._connected()
            return
        sock = self.make(socket.SOCK_STREAM)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = sock.connect_ex(self.place())
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
        self.loop.watch(sock.fileno(), WRITE, self.ready)

    def ready(self, events: int) -> None:
        """Connected, or bytes came."""
        assert self.sock is not None
        try:
            if self.outcome.connected_s is None:
                if code := self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(code, os.strerror(code))
                self._connected()
            elif self._out:
                self._send()
            else:
                data = self.sock.recv(65536)
                if self._tls is None:
                    self.take(data)
                else:
                    self._decrypt(data)
        except BlockingIOError:
            return
        except (OSError, Malformed) as cause:
            self.fail(cause if isinstance(cause, OSError) else str(cause))

    @property
    def line(self) -> Line:
        """The connection, to be kept."""
        assert self.sock is not None
        return self.sock, self._tls

    @abstractmethod
    def take(self, data: bytes) -> None:
        """Bytes came; none means the other side sends no more."""

    def settled(self) -> bool:
        """True if being connected is all that is wanted."""
        return False

    def _connected(self) -> None:
        assert self.sock is not None
        self.outcome.connected_s = time.monotonic()
        name = self.sock.getsockname()
        self.outcome.local = (plain(name[0]), name[1])
        if self.target.tls is not None and self._tls is None:
            from guest.tls import ClientSession

            self._tls = ClientSession(self.target.tls)
            self._tls.take(b"")  # begins
            self._out = self._tls.pending
        else:
            if self._tls is not None:
                self.outcome.tls = self._tls.facts()
            self.queue(self.target.payload)
        self._go_on()
        if self.settled() and self._tls is None:
            self.finish()

    def queue(self, data: bytes) -> None:
        """Plain bytes for the other side."""
        if self._tls is not None:
            self._tls.say(data)
            data = self._tls.pending
        self._out += data

    def _decrypt(self, data: bytes) -> None:
        """Bytes of TLS: the handshake goes on, or what they say in plain is taken."""
        assert self._tls is not None
        before = self._tls.agreed
        said, ended = self._tls.take(data)
        self._out += self._tls.pending
        if self._tls.agreed and not before:
            self.outcome.tls = self._tls.facts()
            if self.settled():
                self.finish()
                return
            self.queue(self.target.payload)
        if not self._tls.agreed and not data:
            self.fail("tls: the other side ended before anything was agreed")
            return
        if said:
            self.take(said)
        if self.sock is not None and (ended or not data):
            self.take(b"")
        if self.sock is not None and self._out:
            self._send()

    def _go_on(self) -> None:
        assert self.sock is not None
        if self._out:
            self._send()
        else:
            self.loop.watch(self.sock.fileno(), READ, self.ready)

    def _send(self) -> None:
        assert self.sock is not None
        with contextlib.suppress(BlockingIOError):
            self._out = self._out[self.sock.send(self._out) :]
        self.loop.watch(self.sock.fileno(), WRITE if self._out else READ, self.ready)


class HttpTry(StreamTry):
    """One request and its answer."""

    def __init__(
        self,
        loop: Loop,
        target: Target,
        timeout_s: float,
        done: Callable[[Outcome], None],
        kept: Line | None = None,
        *,
        keep: bool = False,
    ) -> None:
        super().__init__(loop, target, timeout_s, done, kept)
        self._keep = keep
        self._message = Message(response=True, bodyless=target.head_only)

    def take(self, data: bytes) -> None:
        """Collect the answer."""
        if data:
            self._message.feed(data)
        else:
            self._message.end()
        if not self._message.complete:
            return
        message, outcome = self._message, self.outcome
        outcome.status = message.status
        outcome.headers = message.headers
        outcome.body = bytes(message.body)
        outcome.server = message.header(SERVER_HEADER.lower())
        low, high = self.target.accept
        if not low <= outcome.status <= high:
            outcome.error = f"status {outcome.status}"
        self.finish(keep=self._keep and message.keeps_alive)


class TcpTry(StreamTry):
    """A connection, and as many lines as wanted; the first one begins with the server's name."""

    def settled(self) -> bool:
        """True if no line is wanted."""
        return self.target.lines == 0

    def take(self, data: bytes) -> None:
        """Collect lines."""
        self.outcome.body += data
        if self.outcome.body.count(b"\n") >= self.target.lines:
            self.outcome.server = _name(self.outcome.body)
            self.finish()
        elif not data:
            self.fail("ended without an answer")


def _name(greeting: bytes) -> str:
    """The first word of a greeting that is no status (mail servers begin with one)."""
    words = greeting.split(b"\n")[0].decode(errors="replace").split()
    return next((w for w in words if not (len(w) == 3 and w.isdigit())), "")


class DatagramTry(Try):
    """One datagram, and what comes back."""

    def exchange(self, protocol: int, data: bytes) -> None:
        """Send it, and wait."""
        sock = self.make(socket.SOCK_DGRAM, protocol)
        sock.connect(self.place())
        self.loop.watch(sock.fileno(), READ, self.ready)
        sock.send(data)

    def ready(self, events: int) -> None:
        """Something came, or an error message."""
        assert self.sock is not None
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError as cause:
            self.fail(cause)
            return
        self.take(data)

    @abstractmethod
    def take(self, data: bytes) -> None:
        """A datagram came."""


class UdpTry(DatagramTry):
    """One datagram and the one that comes back; its first word is taken for the server's name."""

    def open(self) -> None:
        """Send it."""
        self.exchange(socket.IPPROTO_UDP, self.target.payload)

    def take(self, data: bytes) -> None:
        """That is the answer."""
        self.outcome.body = data
        self.outcome.server = data.split(b" ")[0].decode(errors="replace")
        self.finish()


class IcmpTry(DatagramTry):
    """One echo request through a ping socket: the kernel numbers it and hands us only its own answer (icmp(7))."""

    def open(self) -> None:
        """Send it."""
        six = self.target.family == socket.AF_INET6
        echo = struct.pack("!BBHHH", 128 if six else 8, 0, 0, 0, 1)
        self.exchange(socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP, echo + self.target.payload)

    def take(self, data: bytes) -> None:
        """An echo reply is the answer."""
        if data[:1] in (b"\x00", b"\x81"):
            self.finish()


_IP_BIND_ADDRESS_NO_PORT = 24  # ip(7); unnamed in the socket module before Python 3.12

KINDS: dict[str, type[Try]] = {"http": HttpTry, "tcp": TcpTry, "udp": UdpTry, "icmp": IcmpTry}
