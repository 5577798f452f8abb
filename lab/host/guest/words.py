"""Servers that talk in lines: one that greets and echoes, and one that speaks SMTP."""

from __future__ import annotations

import socket

from guest.loop import Loop
from guest.servers import Connection, Exchanges, StreamServer

WHO_AM_I = b"client?\n"
STREAM = b"stream\n"
"""Said to an echo server, it sends for ever."""


class EchoServer(StreamServer):
    """Says its banner and greetings in a line, if it has any, then sends back what it gets, but for one question.

    `quiet`: it waits to be spoken to, and says that line before the first thing that it sends back.
    """

    def __init__(
        self,
        loop: Loop,
        name: str,
        address: str,
        port: int,
        banner: str,
        exchanges: Exchanges = (),
        *,
        quiet: bool = False,
    ) -> None:
        super().__init__(loop, name, address, port, exchanges)
        self.greeting = b" ".join([banner.encode()] * bool(banner) + self.greetings)
        self.quiet = quiet

    def connect(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        """Greet the client."""
        connection = _EchoConnection(self, sock, peer)
        if not self.quiet:
            connection.greet()


class _EchoConnection(Connection):
    _server: EchoServer
    _greeted = False

    def greet(self) -> None:
        """Say who is here, once."""
        if self._server.greeting and not self._greeted:
            self.send(self._server.greeting + b"\n")
        self._greeted = True

    def receive(self, data: bytes) -> None:
        """Send it back; who asks for it is told its own address."""
        if data:
            self.greet()
        if data == WHO_AM_I:
            self.send(f"you are {self._peer[0]}\n".encode())
        elif data == STREAM:
            self.stream()
        elif data:
            self.send(data)
        else:
            self.send(b"", then_close=True)


class SmtpServer(StreamServer):
    """As much of a mail server (RFC 5321) as a check asks for; it says its name, and who asks, and takes no mail.

    `code` is the status that it greets with: 554 says that it serves nobody (3.1).
    """

    def __init__(
        self, loop: Loop, name: str, address: str, port: int, exchanges: Exchanges = (), code: int = 220
    ) -> None:
        super().__init__(loop, name, address, port, exchanges)
        self.code = code

    def connect(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        """Greet the client."""
        greeting = b" ".join([f"{self.code} {self.name} ESMTP".encode(), *self.greetings])
        _SmtpConnection(self, sock, peer).send(greeting + b"\r\n")


class _SmtpConnection(Connection):
    _server: SmtpServer
    _line = b""

    def receive(self, data: bytes) -> None:
        """Answer line by line."""
        if not data:
            self.send(b"", then_close=True)
            return
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            if self in self._server.open:
                self._answer(line.split()[0].upper() if line.strip() else b"")

    def _answer(self, verb: bytes) -> None:
        if self._server.code != 220 and verb != b"QUIT":
            self.send(b"503 Not now\r\n")
        elif verb in (b"HELO", b"EHLO"):
            self.send(f"250 {self._server.name} sees {self._peer[0]}\r\n".encode())
        elif verb in (b"NOOP", b"RSET", b"MAIL", b"RCPT"):
            self.send(b"250 OK\r\n")
        elif verb == b"QUIT":
            self.send(f"221 {self._server.name} closes\r\n".encode(), then_close=True)
        else:
            self.send(b"500 Not known here\r\n")
