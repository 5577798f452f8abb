"""Waiting for file descriptors and points in time, in one thread: epoll and a heap. Owns nothing but that.

Times are seconds on the monotonic clock of the machine, the same clock for all processes of a lab host.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import select
import time
from collections.abc import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANGUP = select.EPOLLHUP | select.EPOLLERR
_CHUNK = 65536
_REATTACH_S = 0.05


class Timer:
    """Something that is due at a point in time, unless cancelled."""

    __slots__ = ("call", "cancelled")

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        """Do not call any more."""
        self.cancelled = True


class Loop:
    """Calls back when a descriptor is ready or a time has come."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = 0
        self._running = False

    def watch(self, fd: int, events: int, call: Callable[[int], None]) -> None:
        """Call with the events whenever one of `events`, a hang-up or an error is there. Replaces an earlier watch."""
        if fd in self._watched:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._watched[fd] = call

    def unwatch(self, fd: int) -> None:
        """Forget the descriptor; before it is closed. Nothing happens if it is not watched."""
        if self._watched.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def at(self, due_s: float, call: Callable[[], None]) -> Timer:
        """Call once at that time."""
        timer = Timer(call)
        self._count += 1
        heapq.heappush(self._timers, (due_s, self._count, timer))
        return timer

    def after(self, delay_s: float, call: Callable[[], None]) -> Timer:
        """Call once after that many seconds."""
        return self.at(time.monotonic() + delay_s, call)

    def stop(self) -> None:
        """Let `run` return after the current round."""
        self._running = False

    def run(self) -> None:
        """Wait and call until `stop`."""
        self._running = True
        while self._running:
            while self._timers and self._timers[0][2].cancelled:
                heapq.heappop(self._timers)
            wait_s = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1.0
            for fd, events in self._epoll.poll(wait_s):
                # A call earlier in this round may have closed the descriptor.
                if (call := self._watched.get(fd)) is not None:
                    call(events)
            now_s = time.monotonic()
            while self._timers and self._timers[0][0] <= now_s:
                timer = heapq.heappop(self._timers)[2]
                if not timer.cancelled:
                    timer.call()


class Lines:
    """Lines of text both ways over a descriptor that does not block.

    With `reattach` an end of the stream is not the end: a virtio port reads as ended while nobody is connected to it.
    """

    def __init__(
        self,
        loop: Loop,
        fd: int,
        on_line: Callable[[bytes], None],
        on_end: Callable[[], None],
        *,
        reattach: bool = False,
    ) -> None:
        os.set_blocking(fd, False)
        self._loop = loop
        self.fd = fd
        self._on_line = on_line
        self._on_end = on_end
        self._reattach = reattach
        self._received = bytearray()
        self._waiting = bytearray()
        self._watch()

    def send(self, line: bytes) -> None:
        """Send one line (without its end)."""
        idle = not self._waiting
        self._waiting += line + b"\n"
        if idle:
            self._flush()

    def close(self) -> None:
        """Send nothing and call nobody any more."""
        self._loop.unwatch(self.fd)
        os.close(self.fd)

    def _watch(self) -> None:
        self._loop.watch(self.fd, READ | (WRITE if self._waiting else 0), self._ready)

    def _ready(self, events: int) -> None:
        if events & WRITE and not events & HANGUP:
            self._flush()
        if events & (READ | HANGUP):
            self._receive()

    def _receive(self) -> None:
        try:
            chunk = os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._loop.unwatch(self.fd)
            if self._reattach:
                self._loop.after(_REATTACH_S, self._watch)
            else:
                self._on_end()
            return
        self._received += chunk
        if b"\n" not in chunk:
            return
        *lines, rest = bytes(self._received).split(b"\n")
        self._received = bytearray(rest)
        for line in lines:
            if line:
                self._on_line(line)

    def _flush(self) -> None:
        try:
            while self._waiting:
                del self._waiting[: os.write(self.fd, self._waiting[:_CHUNK])]
        except BlockingIOError:
            pass
        except OSError:
            self._waiting.clear()
        self._watch()
