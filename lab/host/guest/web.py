"""Web servers: HTTP and HTTPS on one port, with answers that tell who asked and what, and misbehaviour on request."""

from __future__ import annotations

import binascii
import collections
import json
import socket
from collections.abc import Mapping

from guest.loop import Loop, Timer
from guest.servers import SERVER_HEADER, TLS, Connection, Exchanges, StreamServer, plain
from guest.wire import Malformed, Message

TYPE_CHECKING = False  # what typing says as well; importing it would cost a tenth of the start under emulation
if TYPE_CHECKING:
    from typing import Any

    from guest.tls import Certificate

STREAM = "/lab-stream"
"""The path whose answer never ends: a line every 50 ms, or as many as the query says. A profile's check may well
ask for `/stream`, but not for this."""
_PATHS_COUNTED = 1000
_MODES = ("answer", "hang", "refuse", "reset")
_REASONS = {200: "OK", 204: "No Content", 404: "Not Found", 500: "Internal Server Error", 503: "Service Unavailable"}


class Behaviour:
    """How a web server behaves; never changed, only replaced.

    `mode`: answer; hang (takes the request, never answers); refuse (the port is closed, open connections are reset);
    reset (accepts, then resets). `body_size` pads the body with spaces to that many bytes. `pages` are paths with a
    status of their own, and a body of their own (in base 64) or None; one without a query stands for all queries.
    """

    def __init__(
        self,
        mode: str = "answer",
        status: int = 200,
        delay_ms: float = 0.0,
        body_size: int = 0,
        keep_alive: bool = True,
        pages: Mapping[str, tuple[int, str | None]] | None = None,
    ) -> None:
        self.mode = mode
        self.status = status
        self.delay_ms = delay_ms
        self.body_size = body_size
        self.keep_alive = keep_alive
        self.pages = dict(pages or {})

    def changed(self, changes: Mapping[str, Any]) -> Behaviour:
        """A copy with changes. Raises ValueError for what does not exist."""
        unknown = set(changes) - set(vars(self))
        if unknown:
            raise ValueError(f"a web server has no {', '.join(sorted(unknown))}")
        new = Behaviour(**{**vars(self), **changes})
        if new.mode not in _MODES:
            raise ValueError(f"no such mode: {new.mode} (there are {', '.join(_MODES)})")
        if not all(100 <= status <= 999 for status in (new.status, *(page[0] for page in new.pages.values()))):
            raise ValueError("a status is a number from 100 to 999")
        return new

    def page(self, path: str) -> tuple[int, bytes | None]:
        """The status for a path, and its body; None for the usual one."""
        page = self.pages.get(path) or self.pages.get(path.partition("?")[0])
        if page is None:
            return self.status, None
        return page[0], None if page[1] is None else binascii.a2b_base64(page[1])


class WebServer(StreamServer):
    """HTTP/1.1 with keep-alive; the answer says which server it is and what it saw.

    With a certificate it is HTTPS for clients that begin with TLS, on the same port.
    """

    def __init__(
        self,
        loop: Loop,
        name: str,
        address: str,
        port: int,
        behaviour: Behaviour,
        exchanges: Exchanges = (),
        certificate: Certificate | None = None,
    ) -> None:
        self.behaviour = behaviour
        self.requests = 0
        self.by_client: collections.Counter[str] = collections.Counter()
        self.by_path: collections.Counter[str] = collections.Counter()
        super().__init__(loop, name, address, port, exchanges)
        self.certificate = certificate
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
            if self._message.empty and data.startswith(TLS):
                raise Malformed("encrypted, and this port is not")
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
        if path.partition("?")[0] == STREAM:
            self.send(f"HTTP/1.1 200 OK\r\n{SERVER_HEADER}: {self._server.name}\r\nConnection: close\r\n\r\n".encode())
            self.stream(int(path.partition("?")[2] or 50) / 1000)
            return
        behaviour = self._server.behaviour
        status, page = behaviour.page(path)
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
            "encrypted": self._session is not None,
        }
        body = json.dumps(facts).encode().ljust(behaviour.body_size) + b"\n" if page is None else page
        alive = behaviour.keep_alive and message.keeps_alive
        reason = _REASONS.get(status, "Lab")
        bodyless = status < 200 or status in (204, 304)
        head = (
            f"HTTP/1.1 {status} {reason}\r\n{SERVER_HEADER}: {self._server.name}\r\n"
            f"Content-Type: {'application/json' if page is None else 'text/html'}\r\n"
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
