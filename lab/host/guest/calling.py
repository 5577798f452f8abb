"""Connections over which anything can be said at any time, and on which everything that comes is counted."""

from __future__ import annotations

import contextlib
import time

from guest.loop import Loop
from guest.tries import StreamTry, Target

TYPE_CHECKING = False  # what typing says as well; importing it would cost a tenth of the start under emulation
if TYPE_CHECKING:
    from typing import Any

_KEPT = 400
"""Bytes of what came first, and of what came last, that are kept to be told."""


class Call(StreamTry):
    """A TCP connection that lasts until it is hung up or fails; only connecting has a time-out."""

    def __init__(self, loop: Loop, target: Target, timeout_s: float) -> None:
        super().__init__(loop, target, timeout_s, lambda outcome: None)
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

    def say(self, data: bytes) -> None:
        """Send something more. Raises ValueError if the connection has ended."""
        if self.sock is None:
            raise ValueError(f"that connection has ended: {self.outcome.error}")
        self._out += data
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

    def hang_up(self) -> None:
        """End it; nothing happens if it has ended."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.fail("hung up")

    def _connected(self) -> None:
        super()._connected()
        self._timer.cancel()
