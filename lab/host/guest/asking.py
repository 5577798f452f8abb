"""What a host asks of others: one request, a poller, a load, a port scan. Builds on `tries`, owns the scheduling.

The poller's rule: a new try begins every interval whatever became of the earlier ones, each with its own short
time-out and a fresh connection, so that what is measured is the network and not the client's patience.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from guest.loop import Loop, Timer
from guest.tries import KINDS, HttpTry, Outcome, Target, TcpTry, UdpTry

TYPE_CHECKING = False  # what typing says as well; importing it would cost a tenth of the start under emulation
if TYPE_CHECKING:
    from typing import Any

    from guest.tries import Line

_MOST_TRIES = 200_000
_SCANS_AT_ONCE = 64

Done = Callable[["Any"], None]


class Poller:
    """Tries one target at a fixed rhythm until stopped.

    `late_ms` is the greatest delay of a start against the rhythm (a busy machine), `skipped` the number of beats
    without a try (a delay of more than an interval, or more tries under way than time-out/interval allows).
    """

    def __init__(self, loop: Loop, target: Target, interval_s: float, timeout_s: float, count: int = 0) -> None:
        self.loop = loop
        self.target = target
        self.interval_s = interval_s
        self.timeout_s = timeout_s
        self.rows: list[list[object]] = []
        self.started = 0
        self.skipped = 0
        self.late_ms = 0.0
        self.full = False
        self._kind = KINDS[target.kind]
        self._count = count
        self._at_once = math.ceil(timeout_s / interval_s) + 2
        self._under_way = 0
        self._due_s = time.monotonic()
        self._timer: Timer | None = None
        self._finished: Callable[[], None] | None = None
        self._beat()

    def facts(self, since: int = 0) -> dict[str, Any]:
        """The tries that ended, from number `since` on, and the state."""
        return {
            "rows": self.rows[since:],
            "now_ms": round(time.monotonic() * 1000, 3),
            "started": self.started,
            "under_way": self._under_way,
            "skipped": self.skipped,
            "late_ms": round(self.late_ms, 3),
            "full": self.full,
        }

    def stop(self, finished: Callable[[], None]) -> None:
        """Begin no more tries; call once those under way have ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._under_way == 0:
            finished()
        else:
            self._finished = finished

    def wait(self, finished: Callable[[], None]) -> None:
        """Call once all of a counted number of tries have ended."""
        if len(self.rows) >= self._count:
            finished()
        else:
            self._finished = finished

    def _beat(self) -> None:
        late_s = time.monotonic() - self._due_s
        self.late_ms = max(self.late_ms, late_s * 1000)
        missed = int(late_s / self.interval_s)
        self.skipped += missed
        if self._under_way < self._at_once:
            self.started += 1
            self._under_way += 1
            self._kind(self.loop, self.target, self.timeout_s, self._ended).start()
        else:
            self.skipped += 1
        self.full = self.started >= _MOST_TRIES
        self._timer = None
        if not self.full and (self._count == 0 or self.started < self._count):
            self._due_s += self.interval_s * (1 + missed)
            self._timer = self.loop.at(self._due_s, self._beat)

    def _ended(self, outcome: Outcome) -> None:
        self._under_way -= 1
        self.rows.append(outcome.row())
        last = self._timer is None and (self._count == 0 or self.started >= self._count)
        if self._finished is not None and self._under_way == 0 and last:
            self._finished()


class Load:
    """A number of HTTP requests, so many at a time, over fresh or kept connections, from several sources in turn."""

    def __init__(
        self,
        loop: Loop,
        target: Target,
        *,
        requests: int,
        at_once: int,
        keep_alive: bool,
        sources: Sequence[str],
        timeout_s: float,
        done: Done,
    ) -> None:
        self.loop = loop
        self._targets = [target.from_source(source) for source in sources] or [target]
        self._left = requests
        self._keep = keep_alive
        self._timeout_s = timeout_s
        self._done = done
        self._rows: list[list[object]] = []
        self._wanted = requests
        self._sent = 0
        for _ in range(min(at_once, requests)):
            self._next(None)

    def _next(self, kept: Line | None) -> None:
        if self._left == 0:
            if kept is not None:
                kept[0].close()
            return
        self._left -= 1
        target = self._targets[self._sent % len(self._targets)] if kept is None else self._targets[0]
        self._sent += 1
        self._begin(target, kept)

    def _begin(self, target: Target, kept: Line | None) -> None:
        def ended(outcome: Outcome) -> None:
            line = attempt.line if self._keep and not outcome.error and attempt.sock is not None else None
            if outcome.error in ("reset", "ended without an answer") and outcome.reused:
                # The server closed a connection that was idle (RFC 9112, 9.3.1): ask again over a new one.
                self._begin(target, None)
                return
            self._rows.append([*outcome.row(), outcome.reused])
            if len(self._rows) == self._wanted:
                if line is not None:
                    line[0].close()
                self._done({"rows": self._rows})
            else:
                # Not at once: an error that comes without waiting would recurse as deep as there are requests.
                self.loop.after(0, lambda: self._next(line))

        attempt = HttpTry(self.loop, target, self._timeout_s, ended, kept, keep=self._keep)
        attempt.start()


class Scan:
    """Which ports are open: TCP by connecting, UDP by a datagram and what comes back."""

    def __init__(self, loop: Loop, target: Target, ports: Sequence[int], timeout_s: float, done: Done) -> None:
        self.loop = loop
        self._target = target
        self._waiting = list(reversed(ports))
        self._left = len(ports)
        self._timeout_s = timeout_s
        self._done = done
        self._found: dict[str, str] = {}
        if not ports:
            done({})
        for _ in range(min(_SCANS_AT_ONCE, len(ports))):
            self._next()

    def _next(self) -> None:
        if self._waiting:
            port = self._waiting.pop()
            kind = UdpTry if self._target.kind == "udp" else TcpTry
            target = self._target.at_port(port)
            kind(self.loop, target, self._timeout_s, lambda outcome: self._ended(port, outcome)).start()

    def _ended(self, port: int, outcome: Outcome) -> None:
        words = {"": "open", "refused": "closed", "time-out": "filtered"}
        self._found[str(port)] = words.get(outcome.error, outcome.error)
        self._left -= 1
        if self._left == 0:
            self._done(self._found)
        else:
            self.loop.after(0, self._next)


def ping(loop: Loop, target: Target, count: int, interval_s: float, timeout_s: float, done: Done) -> None:
    """So many echo requests, one per interval."""
    poller = Poller(loop, target, interval_s, timeout_s, count)
    poller.wait(lambda: done({"rows": poller.rows}))


def ask(loop: Loop, target: Target, timeout_s: float, done: Done) -> None:
    """One try of any kind, reported in full."""
    KINDS[target.kind](loop, target, timeout_s, lambda outcome: done(in_full(outcome))).start()


def in_full(outcome: Outcome) -> dict[str, Any]:
    """How a try went, with all that was answered."""
    return {
        "row": outcome.row(),
        "headers": outcome.headers,
        "body": outcome.body.decode(errors="replace"),
        "local": outcome.local,
        "tls": outcome.tls,
    }
