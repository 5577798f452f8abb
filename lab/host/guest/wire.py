"""HTTP/1.1 messages as bytes come in (RFC 9112): heads, and bodies by length, by chunks or until the end."""

from __future__ import annotations

_HEAD_LIMIT = 65536


class Malformed(ValueError):
    """What came is not HTTP."""


class Message:
    """One request or answer. Feed it until `complete`; `rest` is then what belongs to the next one."""

    __slots__ = (
        "_chunked",
        "_data",
        "_response",
        "_until_end",
        "_want",
        "body",
        "complete",
        "headers",
        "rest",
        "start",
    )

    def __init__(self, *, response: bool, bodyless: bool = False) -> None:
        self._response = response
        self._data = bytearray()
        self._want = 0 if bodyless else -1
        self._chunked = False
        self._until_end = False
        self.start = ""
        self.headers: list[tuple[str, str]] = []
        self.body = bytearray()
        self.rest = b""
        self.complete = False

    @property
    def empty(self) -> bool:
        """True as long as nothing came."""
        return not self.start and not self._data

    @property
    def status(self) -> int:
        """An answer's status code."""
        try:
            return int(self.start.split(" ", 2)[1])
        except (IndexError, ValueError) as cause:
            raise Malformed(f"not a status line: {self.start[:80]!r}") from cause

    def header(self, name: str) -> str:
        """The first header of that name (in lower case), or nothing."""
        return next((value for key, value in self.headers if key.lower() == name), "")

    @property
    def keeps_alive(self) -> bool:
        """True if the connection stays usable after this message."""
        said = self.header("connection").lower()
        if self._until_end:
            return False
        return "close" not in said if "HTTP/1.1" in self.start else "keep-alive" in said

    def feed(self, data: bytes) -> None:
        """Take what came. Raises Malformed."""
        self._data += data
        while not self.start:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                if len(self._data) > _HEAD_LIMIT:
                    raise Malformed("a head of more than 64 KiB")
                return
            self._head(bytes(self._data[:end]))
            del self._data[: end + 4]
            if self._response and 100 <= self.status < 200 and self.status != 101:
                self.start = ""  # an interim answer; the one that counts follows
        self._take()

    def end(self) -> None:
        """The other side sends nothing more. Raises Malformed when something is missing."""
        if self.start and self._until_end:
            self.complete = True
        elif not self.complete:
            raise Malformed("ended in the middle" if self.start or self._data else "ended without an answer")

    def _head(self, head: bytes) -> None:
        lines = head.decode("latin-1").lstrip("\r\n").split("\r\n")
        self.start = lines[0]
        self.headers = []
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon or not name.strip():
                raise Malformed(f"not a header: {line[:80]!r}")
            self.headers.append((name.strip(), value.strip()))
        if "HTTP/1." not in self.start:
            raise Malformed(f"not HTTP: {self.start[:80]!r}")
        if self._want == 0 or (self._response and self.status in (204, 304)):
            self._want = 0
        elif "chunked" in self.header("transfer-encoding").lower():
            self._chunked = True
        elif length := self.header("content-length"):
            if not length.isdigit():
                raise Malformed(f"not a length: {length[:40]!r}")
            self._want = int(length)
        elif self._response:
            self._until_end = True
        else:
            self._want = 0

    def _take(self) -> None:
        if self._until_end:
            self.body += self._data
            self._data.clear()
            return
        if self._chunked:
            self._take_chunks()
        elif len(self._data) >= self._want:
            self.body += self._data[: self._want]
            del self._data[: self._want]
            self.complete = True
        if self.complete:
            self.rest = bytes(self._data)

    def _take_chunks(self) -> None:
        while (line_end := self._data.find(b"\r\n")) >= 0:
            word = self._data[:line_end].split(b";")[0].strip()
            try:
                size = int(word, 16)
            except ValueError as cause:
                raise Malformed(f"not a chunk size: {bytes(word[:40])!r}") from cause
            if size == 0:
                trailer_end = self._data.find(b"\r\n\r\n")
                if trailer_end < 0:
                    return
                del self._data[: trailer_end + 4]
                self.complete = True
                return
            if len(self._data) < line_end + 2 + size + 2:
                return
            self.body += self._data[line_end + 2 : line_end + 2 + size]
            del self._data[: line_end + 2 + size + 2]


def request(method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
    """A request's bytes."""
    if body:
        headers = [*headers, ("Content-Length", str(len(body)))]
    head = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(head).encode("latin-1") + body
