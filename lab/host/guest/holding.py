"""Connections that a host opens and keeps until it is told to end them: asked over again and again (HTTP), or such over
which anything can be said at any time, and on which everything that comes is counted."""

from __future__ import annotations

import time
from collections.abc import Callable

from guest.asking import in_full
from guest.loop import Loop
from guest.servers import reset_at_close
from guest.tries import HttpTry, Outcome, StreamTry, Target

TYPE_CHECKING = False  # what typing says as well; importing it would cost a tenth of the start under emulation
if TYPE_CHECKING:
    from typing import Any

    from guest.tries import Line

_KEPT = 400
"""Bytes of what came first, and of what came last over a call, that are kept to be told."""


class Kept:
    """A host's kept connections, by number: those that idle between two requests, and calls."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._idle: dict[int, Line] = {}
        self._calls: dict[int, Call] = {}
        self._count = 0

    def ask(self, target: Target, number: int, timeout_s: float, done: Callable[[Any], None]) -> None:
        """An HTTP request over connection `number` (0: over a new one), which stays open after its answer.

        The result has its number; 0 if there is no connection any more.
        """
        if number:
            kept = self._idle.pop(number, None)
            if kept is None:
                raise ValueError("that connection has ended")
        else:
            kept, number = None, self._next()

        def ended(outcome: Outcome) -> None:
            if attempt.sock is not None:
                self._idle[number] = attempt.line
            done(in_full(outcome) | {"connection": number if attempt.sock is not None else 0})

        attempt = HttpTry(self._loop, target, timeout_s, ended, kept, keep=True)
        attempt.start()

    def call(self, target: Target, timeout_s: float, *, unread: bool) -> int:
        """Open a connection that lasts; its number. `unread`: what comes is kept until it is read."""
        number = self._next()
        self._calls[number] = Call(self._loop, target, timeout_s, unread=unread)
        self._calls[number].start()
        return number

    def __getitem__(self, number: int) -> Call:
        """A call, also one that the other side has ended. Raises ValueError for one that was ended here."""
        call = self._calls.get(number)
        if call is None:
            raise ValueError("that connection has ended")
        return call

    def close(self, number: int, *, reset: bool) -> None:
        """End a connection, by FIN or by RST. Nothing happens if it has ended."""
        call = self._calls.pop(number, None)
        if call is not None:
            call.hang_up(reset=reset)
            return
        line = self._idle.pop(number, None)
        if line is None:
            return
        sock = line[0]
        if reset:
            reset_at_close(sock)
        sock.close()

    def _next(self) -> int:
        self._count += 1
        return self._count


class Call(StreamTry):
    """A TCP connection that lasts until it is hung up or fails; only connecting has a time-out."""

    def __init__(self, loop: Loop, target: Target, timeout_s: float, *, unread: bool = False) -> None:
        super().__init__(loop, target, timeout_s, lambda outcome: None)
        self._unread: list[bytes] | None = [] if unread else None
        self._heard = 0
        self._first = b""
        self._last = b""
        self._heard_s = time.monotonic()
        self._longest_s = 0.0

    def take(self, data: bytes) -> None:
        """Count what came."""
        if not data:
            self.fail("ended by the other side")
            return
        now_s = time.monotonic()
        self._longest_s = max(self._longest_s, now_s - self._heard_s)
        self._heard_s = now_s
        self._heard += len(data)
        if len(self._first) < _KEPT:
            self._first = (self._first + data)[:_KEPT]
        self._last = (self._last + data)[-_KEPT:]
        if self._unread is not None:
            self._unread.append(data)

    def read(self) -> bytes:
        """What came since this was asked last, of a call that keeps it."""
        unread, self._unread = self._unread or [], []
        return b"".join(unread)

    def say(self, data: bytes) -> None:
        """Send something more. Raises ValueError if the connection has ended."""
        if self.sock is None:
            raise ValueError(f"that connection has ended: {self.outcome.error}")
        self.queue(data)
        if self.outcome.connected_s is not None:
            try:
                self._send()
            except OSError as cause:
                self.fail(cause)

    def facts(self, *, anew: bool) -> dict[str, Any]:
        """What came so far, and for how long nothing did (at the longest, and now); `anew` begins the longest again."""
        silent_s = time.monotonic() - self._heard_s
        longest_s = max(self._longest_s, silent_s)
        if anew:
            self._longest_s = 0.0
        return {
            "heard": self._heard,
            "first": self._first.decode(errors="replace"),
            "last": self._last.decode(errors="replace"),
            "silent_ms": round(silent_s * 1000, 3),
            "longest_ms": round(longest_s * 1000, 3),
            "error": self.outcome.error,
        }

    def hang_up(self, *, reset: bool) -> None:
        """End it; nothing happens if it has ended."""
        if self.sock is not None:
            if reset:
                reset_at_close(self.sock)
            self.fail("hung up")

    def _connected(self) -> None:
        super()._connected()
        self._timer.cancel()
