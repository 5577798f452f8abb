"""The control channel of one lab host: requests and answers as lines over a Unix stream socket.

Thread-safe: any number of threads may have a request under way. Owns numbering, waiting and the end of the channel;
what the requests mean is the business of `hosts`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import threading
import time
from pathlib import Path
from typing import Any

from ndakit.core import json_text
from ndakit.core.deadline import Deadline, DeadlineExceeded
from ndakit.core.errors import VerifyError

PROTOCOL = 1
QUICK_S = 20.0
"""For what a lab host does at once, however busy its machine is."""
MARGIN_S = 15.0
"""Beyond the time-out of what takes its time."""
OWN = "-"
"""The addressee that is the lab host itself, not one of its hosts."""


class LabHostLost(VerifyError):
    """The control channel of a lab host ended."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"the lab host cannot be reached any more: {why}",
            where=f"control socket {path}",
            fix="read the end of that machine's console log, which is named by the run; then run it again",
        )


class LabHostRefused(VerifyError):
    """A lab host could not do what it was asked for."""

    def __init__(self, who: str, do: str, reason: str) -> None:
        super().__init__(
            f"the lab host could not do '{do}': {reason}",
            where=f"host {who}" if who != OWN else "the lab host's machine",
            fix="run it again; if the reason stays the same, report it together with the profile",
        )
        self.reason = reason


class Channel:
    """Asks a lab host and waits for the answers."""

    def __init__(self, path: Path, sock: socket.socket) -> None:
        self.path = path
        self._sock = sock
        self._session = os.urandom(4).hex()
        self._count = 0
        self._lock = threading.Lock()
        self._waiting: dict[str, queue.SimpleQueue[dict[str, Any] | None]] = {}
        self._ended = ""
        self._reader = threading.Thread(target=self._read, name=f"lab host {path.name}", daemon=True)
        self._reader.start()

    @classmethod
    def open(cls, path: Path, deadline: Deadline) -> Channel:
        """Connect and wait until the lab host answers. Raises DeadlineExceeded, LabHostLost."""
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                sock.close()
                deadline.check(f"control socket {path}")
                time.sleep(0.02)
        channel = cls(path, sock)
        try:
            # What was left of a line by a caller before us ends here.
            sock.sendall(b"\n")
            while True:
                with contextlib.suppress(DeadlineExceeded):
                    hello = channel.ask(OWN, "hello", within_s=min(0.25, max(0.01, deadline.remaining_s)))
                    break
                deadline.check(f"control socket {path}")
            if hello["protocol"] != PROTOCOL:
                raise LabHostLost(path, f"it speaks version {hello['protocol']} of the protocol, not {PROTOCOL}")
        except BaseException:
            channel.close()
            raise
        return channel

    def ask(self, who: str, do: str, *, within_s: float = QUICK_S, **given: Any) -> Any:
        """Send a request and wait for its result. Raises LabHostRefused, LabHostLost, DeadlineExceeded."""
        answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        line = json.dumps({"do": do, **given})
        with self._lock:
            if self._ended:
                raise LabHostLost(self.path, self._ended)
            self._count += 1
            number = f"{self._session}-{self._count}"
            self._waiting[number] = answers
            try:
                self._sock.sendall(f"{number} {who} {line}\n".encode())
            except OSError as cause:
                del self._waiting[number]
                raise LabHostLost(self.path, cause.strerror or "the socket is closed") from cause
        try:
            answer = answers.get(timeout=within_s)
        except queue.Empty:
            raise DeadlineExceeded(
                f"waited {within_s:g} s for the answer to '{do}', in vain",
                where=f"host {who}, control socket {self.path}",
                fix="look whether that machine still runs and is not overloaded; then run it again",
            ) from None
        finally:
            with self._lock:
                self._waiting.pop(number, None)
        if answer is None:
            raise LabHostLost(self.path, self._ended)
        if "error" in answer:
            raise LabHostRefused(who, do, str(answer["error"]))
        return answer["result"]

    def close(self) -> None:
        """End the channel; requests under way fail."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._reader.join(5)
        self._sock.close()

    def _read(self) -> None:
        rest = b""
        why = "it closed the channel"
        try:
            while chunk := self._sock.recv(1 << 18):
                *lines, rest = (rest + chunk).split(b"\n") if b"\n" in chunk else [rest + chunk]
                for line in lines:
                    self._answered(line)
        except OSError as cause:
            why = cause.strerror or str(cause)
        with self._lock:
            self._ended = why
            waiting = list(self._waiting.values())
        for answers in waiting:
            answers.put(None)

    def _answered(self, line: bytes) -> None:
        number, _, text = line.partition(b" ")
        with self._lock:
            answers = self._waiting.get(number.decode(errors="replace"))
        if answers is None:
            return  # an answer that nobody waits for any more, or the remains of one for a caller before us
        try:
            answers.put(json_text.parse(text, halves=True))  # what programs there print is not always UTF-8
        except ValueError:
            answers.put({"error": f"an answer that is not JSON: {text[:80]!r}"})
