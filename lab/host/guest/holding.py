"""Connections that a host opens and keeps: asked over again and again, ended only when told."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from guest.asking import in_full
from guest.loop import Loop
from guest.tries import RESET, HttpTry, Outcome, Target

TYPE_CHECKING = False  # what typing says as well; importing it would cost a tenth of the start under emulation
if TYPE_CHECKING:
    from typing import Any


class Kept:
    """A host's kept connections, by number."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._idle: dict[int, socket.socket] = {}
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
            self._count += 1
            kept, number = None, self._count

        def ended(outcome: Outcome) -> None:
            if attempt.sock is not None:
                self._idle[number] = attempt.sock
            done(in_full(outcome) | {"held": number if attempt.sock is not None else 0})

        attempt = HttpTry(self._loop, target, timeout_s, ended, kept, keep=True)
        attempt.start()

    def close(self, number: int, *, reset: bool) -> None:
        """End a connection, by FIN or by RST. Nothing happens if it has ended."""
        sock = self._idle.pop(number, None)
        if sock is None:
            return
        if reset:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()
