"""The stream of a guest's serial console: read by a thread of its own, kept, logged, and waited for.

One thread per console reads all the time, because a guest stands still when nobody takes its output.

What is typed there, and what the answers mean, is the business of `console`.
"""

from __future__ import annotations

import contextlib
import queue
import re
import socket
import threading
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Self

from ndakit.core.deadline import Deadline
from ndakit.machine.console_errors import ConsoleClosed, ConsoleSilent

_KEPT_BYTES = 16 << 20
_TAIL_LINES = 12
# QEMU hands a serial port's output on byte by byte: gather a little, or each byte wakes everybody who waits.
_SMALL, _GATHER_S = 512, 0.002


class ConsoleStream:
    """What a console shows; `log` is the file that keeps its stream, `facts` completes errors with its state.

    (QEMU's own `logfile=` doubles bytes whenever the socket is full; seen with 7.2.)
    """

    def __init__(self, name: str, *, log: Path, facts: Callable[[], str] = lambda: "") -> None:
        self.name = name
        self.log = log
        self._facts = facts
        self._changed = threading.Condition()
        self._data = bytearray()
        self._base = 0  # bytes that were dropped in front of _data
        self._position = 0  # how far whoever reads it has got
        self._last_byte_s = time.monotonic()
        self._closed = True
        self._socket: socket.socket | None = None
        self._reader: threading.Thread | None = None
        self._listeners: list[Callable[[bytes], None]] = []

    @classmethod
    def connect(cls, name: str, path: Path, *, log: Path) -> Self:
        """The console behind a unix stream socket. Raises OSError if nobody listens there."""
        wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            wire.connect(str(path))
        except OSError:
            wire.close()
            raise
        console = cls(name, log=log)
        console.attach(wire)
        return console

    def attach(self, wire: socket.socket) -> None:
        """Take a connected stream, and read it until its end; it is closed by `close`."""
        self.close()
        with self._changed:
            self._socket, self._closed = wire, False
            self._position = self._end
            self._last_byte_s = time.monotonic()
        work = (wire, self.log.open("ab", buffering=0))
        self._reader = threading.Thread(target=self._read, args=work, name=f"console-{self.name}", daemon=True)
        self._reader.start()

    def close(self) -> None:
        """End reading; what was read stays readable."""
        wire, self._socket = self._socket, None
        if wire is not None:
            with contextlib.suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)
        if self._reader is not None:
            self._reader.join()
            self._reader = None
        if wire is not None:
            wire.close()

    @property
    def text(self) -> str:
        """What the console has shown so far (the last 16 MiB)."""
        with self._changed:
            return self._data.decode(errors="replace")

    def tail(self, lines: int = _TAIL_LINES) -> str:
        """The last lines it has shown."""
        with self._changed:
            recent = bytes(self._data[-8192:])
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", recent.decode(errors="replace"))
        return "\n".join([line for line in text.replace("\r", "").splitlines() if line.strip()][-lines:])

    def listen(self, listener: Callable[[bytes], None]) -> Callable[[], None]:
        """Have `listener` called with every piece that arrives (empty: the end), from the reading thread.

        The result ends that, and raises what the listener raised (it is not called again after that).
        """
        failures: list[Exception] = []

        def call(piece: bytes) -> None:
            if not failures:
                try:
                    listener(piece)
                except Exception as failure:  # noqa: BLE001  # the stream goes on whatever a listener does
                    failures.append(failure)

        def end() -> None:
            self._listeners = [known for known in self._listeners if known is not call]
            if failures:
                raise failures[0]

        self._listeners = [*self._listeners, call]
        return end

    def send(self, data: bytes) -> None:
        """Type something. Raises ConsoleClosed."""
        wire = self._socket
        try:
            if wire is None:
                raise OSError("closed")
            wire.sendall(data)
        except OSError as cause:
            raise self._ended() from cause

    @property
    def _end(self) -> int:
        return self._base + len(self._data)

    def _read(self, wire: socket.socket, sink: FileIO) -> None:
        """The reading thread. Another one writes the log: a disk that is busy for a second must not stop the reading,
        for a serial port that takes nothing for so long is broken to a guest's firmware (OVMF: "Device Error")."""
        pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        writer = threading.Thread(target=_write, args=(sink, pieces), name=f"log-{self.name}", daemon=True)
        writer.start()
        while self._read_piece(wire, pieces):
            pass
        writer.join()

    def _read_piece(self, wire: socket.socket, pieces: queue.SimpleQueue[bytes]) -> bool:
        """Take, keep and announce what came; False at the stream's end."""
        try:
            piece = wire.recv(65536)
        except OSError:
            piece = b""
        pieces.put(piece)
        with self._changed:
            if piece:
                self._data += piece
                self._last_byte_s = time.monotonic()
                if len(self._data) > _KEPT_BYTES:
                    del self._data[: _KEPT_BYTES // 2]
                    self._base += _KEPT_BYTES // 2
            else:
                self._closed = True
            self._changed.notify_all()
        for listener in self._listeners:
            listener(piece)
        if 0 < len(piece) < _SMALL:
            time.sleep(_GATHER_S)
        return bool(piece)

    def _since(self, start: int) -> tuple[int, bytes, bool]:
        """Where the stream ends, what came since `start`, and whether it is closed."""
        with self._changed:
            return self._end, bytes(self._data[max(0, start - self._base) :]), self._closed

    def _wait(self, end: int, timeout_s: float) -> None:
        """Wait until the stream goes on beyond `end`, or closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._end > end or self._closed, timeout_s)

    def _wait_for_more(self, end: int, deadline: Deadline, wanted: str) -> None:
        """The same, bounded by a deadline. Raises ConsoleSilent when that is over."""
        if deadline.expired:
            raise ConsoleSilent(self.name, deadline.timeout_s, wanted, self.log, self.tail(), self._facts())
        self._wait(end, min(0.5, max(deadline.remaining_s, 0.01)))

    def _ended(self) -> ConsoleClosed:
        return ConsoleClosed(self.name, self._facts(), self.log, self.tail())


def _write(sink: FileIO, pieces: queue.SimpleQueue[bytes]) -> None:
    """The thread that writes the log, up to the stream's end."""
    with sink as log:
        while piece := pieces.get():
            with contextlib.suppress(OSError):  # a full disk must not stop the guest
                log.write(piece)
