"""What a host offers: web, TCP and UDP servers that tell who asked them, and misbehave on request.

A server listens on both families unless it is given an address. Clients are reported as their own family writes them.
"""

from __future__ import annotations

import collections
import contextlib
import json
import socket
import struct
from collections.abc import Mapping

from guest.loop import HANGUP, READ, WRITE, Loop, Timer
from guest.wire import Malformed, Message

TYPE_CHECKING = False  # what typing says as well; importing it would cost a tenth of the start under emulation
if TYPE_CHECKING:
    from typing import Any

SERVER_HEADER = "X-Lab-Server"
_BACKLOG = 1024
_PATHS_COUNTED = 1000
_RESET = struct.pack("ii", 1, 0)
_MODES = ("answer", "hang", "refuse", "reset")
_REASONS = {200: "OK", 204: "No Content", 404: "Not Found", 500: "Internal Server Error", 503: "Service Unavailable"}


def plain(address: str) -> str:
    """An IPv4 address that an IPv6 socket wrote, as IPv4 writes it."""
    return address[7:] if address.startswith("::ffff:") and "." in address else address


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


class Behaviour:
    """How a web server behaves; never changed, only replaced.

    `mode`: answer; hang (takes the request, never answers); refuse (the port is closed, open connections are reset);
    reset (accepts, then resets). `health_path` may have a status of its own; "" means no path has.
    `body_size` pads the body with spaces to that many bytes.
    """

    def __init__(
        self,
        mode: str = "answer",
        status: int = 200,
        delay_ms: float = 0.0,
        body_size: int = 0,
        keep_alive: bool = True,
        health_path: str = "",
        health_status: int = 200,
    ) -> None:
        self.mode = mode
        self.status = status
        self.delay_ms = delay_ms
        self.body_size = body_size
        self.keep_alive = keep_alive
        self.health_path = health_path
        self.health_status = health_status

    def changed(self, changes: Mapping[str, Any]) -> Behaviour:
        """A copy with changes. Raises ValueError for what does not exist."""
        unknown = set(changes) - set(vars(self))
        if unknown:
            raise ValueError(f"a web server has no {', '.join(sorted(unknown))}")
        new = Behaviour(**{**vars(self), **changes})
        if new.mode not in _MODES:
            raise ValueError(f"no such mode: {new.mode} (there are {', '.join(_MODES)})")
        if not 200 <= new.status <= 999 or not 200 <= new.health_status <= 999:
            raise ValueError("a status is a number from 200 to 999")
        return new


class StreamServer:
    """A listening TCP port; makes a connection object per client."""

    def __init__(self, loop: Loop, name: str, address: str, port: int) -> None:
        self.loop = loop
        self.name = name
        self.address = address
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

    def connect(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        """Make the connection object."""
        raise NotImplementedError

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


class Connection:
    """A client's connection: bytes in, bytes out, closed once all is written if so wished."""

    def __init__(self, server: StreamServer, sock: socket.socket, peer: tuple[str, int]) -> None:
        self._server = server
        self._sock = sock
        self._peer = peer
        self._out = bytearray()
        self._closing = False
        server.open.add(self)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.loop.watch(sock.fileno(), READ, self._ready)

    def receive(self, data: bytes) -> None:
        """Bytes came; none means the client sends no more."""
        raise NotImplementedError

    def send(self, data: bytes, *, then_close: bool = False) -> None:
        """Write now or as soon as the socket takes it."""
        self._out += data
        self._closing = self._closing or then_close
        self._flush()

    def close(self, *, reset: bool = False) -> None:
        """End the connection."""
        self._server.open.discard(self)
        self._server.loop.unwatch(self._sock.fileno())
        if reset:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
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


class WebServer(StreamServer):
    """HTTP/1.1 with keep-alive; the answer says which server it is and what it saw."""

    def __init__(self, loop: Loop, name: str, address: str, port: int, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.requests = 0
        self.by_client: collections.Counter[str] = collections.Counter()
        self.by_path: collections.Counter[str] = collections.Counter()
        super().__init__(loop, name, address, port)
        self.behave(behaviour)

    def behave(self, behaviour: Behaviour) -> None:
        """Behave differently from now on, towards open connections as well."""
        self.behaviour = behaviour
        if behaviour.mode == "refuse":
            self.refuse()
        else:
            self.listen()

    def stats(self) -> dict[str, Any]:
        """Figures since the start: requests also per client address and per path."""
        mine = {"requests": self.requests, "by_client": dict(self.by_client), "by_path": dict(self.by_path)}
        return super().stats() | mine

    def connect(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        """Serve a client, or reset it if that is the mode."""
        connection = _WebConnection(self, sock, peer)
        if self.behaviour.mode == "reset":
            connection.close(reset=True)


class _WebConnection(Connection):
    _server: WebServer

    def __init__(self, server: WebServer, sock: socket.socket, peer: tuple[str, int]) -> None:
        super().__init__(server, sock, peer)
        self._local = plain(sock.getsockname()[0])
        self._number = server.connections
        self._count = 0
        self._message = Message(response=False)
        self._busy: Timer | bool = False
        self._later = b""

    def receive(self, data: bytes) -> None:
        """Collect a request; what comes while one is being answered waits."""
        if not data:
            if isinstance(self._busy, Timer):
                self._busy.cancel()
            self.close()
            return
        if self._busy:
            self._later += data
            return
        try:
            self._message.feed(data)
        except Malformed:
            self.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", then_close=True)
            return
        if self._message.complete:
            self._answer(self._message)

    def _answer(self, message: Message) -> None:
        server = self._server
        self._count += 1
        server.requests += 1
        server.by_client[self._peer[0]] += 1
        words = message.start.split(" ")
        path = words[1] if len(words) > 1 else ""
        if path in server.by_path or len(server.by_path) < _PATHS_COUNTED:
            server.by_path[path] += 1
        self._busy = True
        if server.behaviour.mode == "hang":
            return
        if server.behaviour.delay_ms > 0:
            delay_s = server.behaviour.delay_ms / 1000
            self._busy = server.loop.after(delay_s, lambda: self._send_answer(message, words[0], path))
        else:
            self._send_answer(message, words[0], path)

    def _send_answer(self, message: Message, method: str, path: str) -> None:
        if self not in self._server.open:
            return
        behaviour = self._server.behaviour
        health = behaviour.health_path and path.partition("?")[0] == behaviour.health_path
        status = behaviour.health_status if health else behaviour.status
        facts = {
            "server": self._server.name,
            "port": self._server.port,
            "local": self._local,
            "client": self._peer[0],
            "client_port": self._peer[1],
            "connection": self._number,
            "request": self._count,
            "method": method,
            "path": path,
            "headers": message.headers,
            "body_length": len(message.body),
        }
        body = json.dumps(facts).encode().ljust(behaviour.body_size) + b"\n"
        alive = behaviour.keep_alive and message.keeps_alive
        reason = _REASONS.get(status, "Lab")
        bodyless = status in (204, 304)
        head = (
            f"HTTP/1.1 {status} {reason}\r\n{SERVER_HEADER}: {self._server.name}\r\nContent-Type: application/json\r\n"
            + ("" if bodyless else f"Content-Length: {len(body)}\r\n")
            + f"Connection: {'keep-alive' if alive else 'close'}\r\n\r\n"
        )
        self._busy = False
        self._message = Message(response=False)
        self.send(head.encode() + (b"" if bodyless or method == "HEAD" else body), then_close=not alive)
        later = message.rest + self._later
        self._later = b""
        if later and alive and self in self._server.open:
            self.receive(later)


class EchoServer(StreamServer):
    """Says its banner line, if it has one, then sends back what it gets."""

    def __init__(self, loop: Loop, name: str, address: str, port: int, banner: str) -> None:
        self.banner = banner
        super().__init__(loop, name, address, port)

    def connect(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        """Greet the client."""
        connection = _EchoConnection(self, sock, peer)
        if self.banner:
            connection.send(self.banner.encode() + b"\n")


class _EchoConnection(Connection):
    def receive(self, data: bytes) -> None:
        """Send it back."""
        if data:
            self.send(data)
        else:
            self.send(b"", then_close=True)


class UdpServer:
    """Sends each datagram back with its own name and a space before it, from the address it was sent to."""

    def __init__(self, loop: Loop, name: str, address: str, port: int) -> None:
        self.loop = loop
        self.name = name
        self.datagrams = 0
        self._sock = listener(socket.SOCK_DGRAM, address, port)
        self.port = self._sock.getsockname()[1]
        # The address a client asked may be one of several (a balancer's on the loopback): answer from that one (ip(7)).
        if self._sock.family == socket.AF_INET6:
            self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            self._sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        loop.watch(self._sock.fileno(), READ, self._ready)

    def stop(self) -> None:
        """Close the port."""
        self.loop.unwatch(self._sock.fileno())
        self._sock.close()

    def stats(self) -> dict[str, Any]:
        """Figures since the start."""
        return {"datagrams": self.datagrams}

    def _ready(self, _events: int) -> None:
        for _ in range(64):
            try:
                data, notes, _flags, peer = self._sock.recvmsg(65536, 256)
            except OSError:
                return
            self.datagrams += 1
            back = [(level, kind, _sender(level, kind, note)) for level, kind, note in notes]
            with contextlib.suppress(OSError):
                self._sock.sendmsg([self.name.encode(), b" ", data], back, 0, peer)


_IP_PKTINFO = 8  # ip(7); the socket module has no name for it before Python 3.14


def _sender(level: int, kind: int, note: bytes) -> bytes:
    """What a datagram's destination note becomes as the note of its answer: the same address, any interface."""
    if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
        _index, specific, _destination = struct.unpack("@I4s4s", note[:12])
        return struct.pack("@I4s4s", 0, specific, b"\0" * 4)
    link_local = note[:2] == b"\xfe\x80"
    return note[:20] if link_local else note[:16] + struct.pack("@I", 0)


Server = StreamServer | UdpServer
