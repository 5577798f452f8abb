"""Servers of datagrams: an echo with the server's name, DNS answers, and what a check wants to hear."""

from __future__ import annotations

import contextlib
import socket
import struct

from guest.loop import READ, Loop
from guest.servers import Exchanges, listener

TYPE_CHECKING = False  # what typing says as well; importing it would cost a tenth of the start under emulation
if TYPE_CHECKING:
    from typing import Any


class UdpServer:
    """Sends each datagram back with its own name and a space before it, from the address it was sent to.

    Questions to a name server get the answer of one, with `dns_code` as its status (RFC 1035, 4.1.1: 2 is a failure).
    What is one of `exchanges` is answered as they say; for nothing said they are about everything that is not a line.
    """

    def __init__(
        self, loop: Loop, name: str, address: str, port: int, exchanges: Exchanges = (), dns_code: int = 0
    ) -> None:
        self.loop = loop
        self.name = name
        self.datagrams = 0
        self._exchanges = dict(exchanges)
        self._dns_code = dns_code
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
                self._sock.sendmsg([self._answer(data)], back, 0, peer)

    def _answer(self, data: bytes) -> bytes:
        if data in self._exchanges:
            return self._exchanges[data]
        if answer := dns_answer(data, self.name, self._dns_code):
            return answer
        if b"" in self._exchanges and not data.endswith(b"\n"):
            return self._exchanges[b""]
        return self.name.encode() + b" " + data


def dns_answer(question: bytes, name: str, code: int) -> bytes:
    """What a name server says to a question (RFC 1035, 4.1): one record of the kind asked for, if it is a common one;
    nothing if this is no question. `name` is the text of TXT records."""
    if len(question) < _DNS_HEAD.size:
        return b""
    number, flags, count, *others = _DNS_HEAD.unpack_from(question)
    end = _dns_name_end(question, _DNS_HEAD.size)
    if flags & 0xF800 or count != 1 or any(others[:2]) or not end or len(question) < end + 4:
        return b""
    kind, space = struct.unpack_from("!HH", question, end)
    data = b"" if code or space != 1 else _DNS_DATA.get(kind, b"")
    if kind == _TXT and not code:
        text = name.encode()[:255]
        data = bytes([len(text)]) + text
    # An answer, by the one who knows, with recursion if that was wished.
    head = _DNS_HEAD.pack(number, 0x8400 | flags & 0x0100 | code, 1, 1 if data else 0, 0, 0)
    record = struct.pack("!HHHIH", 0xC00C, kind, space, 60, len(data)) + data if data else b""
    return head + question[_DNS_HEAD.size : end + 4] + record


def _dns_name_end(message: bytes, at: int) -> int:
    """Where a name ends; 0 if it does not (RFC 1035, 3.1)."""
    while at < len(message):
        length = message[at]
        if length > 63:
            return 0
        at += 1 + length
        if length == 0:
            return at
    return 0


_IP_PKTINFO = 8  # ip(7); the socket module has no name for it before Python 3.14


def _sender(level: int, kind: int, note: bytes) -> bytes:
    """What a datagram's destination note becomes as the note of its answer: the same address, any interface."""
    if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
        _index, specific, _destination = struct.unpack("@I4s4s", note[:12])
        return struct.pack("@I4s4s", 0, specific, b"\0" * 4)
    link_local = note[:2] == b"\xfe\x80"
    return note[:20] if link_local else note[:16] + struct.pack("@I", 0)


_DNS_HEAD = struct.Struct("!HHHHHH")
_TXT = 16
_NAME = b"\x03lab\x07invalid\x00"
_DNS_DATA = {
    1: socket.inet_aton("192.0.2.53"),
    2: _NAME,
    5: _NAME,
    6: _NAME + _NAME + struct.pack("!IIIII", 1, 3600, 600, 86400, 60),
    15: struct.pack("!H", 10) + _NAME,
    28: socket.inet_pton(socket.AF_INET6, "2001:db8::53"),
}
"""Kind of record → its data: A, NS, CNAME, SOA, MX, AAAA."""
