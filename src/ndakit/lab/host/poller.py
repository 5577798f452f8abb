"""A poller that runs in a lab host, as this side sees it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from ndakit.core.deadline import Deadline
from ndakit.lab.host.channel import OWN, QUICK_S, Channel
from ndakit.lab.host.closing import Lasting
from ndakit.lab.host.measure import Polled, Try, Watched

Found = TypeVar("Found", Polled, Watched)


class Poller(Lasting):
    """Asks one target again and again and remembers every try; a context manager that stops at its end.

    A new try begins every `interval_s` over a fresh connection, whatever became of those before; each gives up after
    `timeout_s` of its own. It runs in a process of its own with three times the others' share of the CPU; whether that
    was enough is told by Polled.disturbed. How a gap is computed is said at measure.gaps, and how finely at
    Polled.resolution_ms: two intervals and an answer's time.
    """

    def __init__(self, channel: Channel, who: str, target: dict[str, Any], interval_s: float, timeout_s: float) -> None:
        self._channel = channel
        self._who = who
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._tries: list[Try] = []
        self._stopped: Polled | None = None
        self._number = channel.ask(who, "poll", **target, interval_s=interval_s, timeout_s=timeout_s)["poller"]

    def read(self) -> Polled:
        """What has been found so far."""
        with self._lock:
            return self._stopped or self._fetch("polled")

    def stop(self) -> Polled:
        """Begin no more tries, wait for those under way, and return everything."""
        with self._lock:
            if self._stopped is None:
                self._stopped = self._fetch("poll_stop")
                self._channel.ask(OWN, "remove", name=self._who)
            return self._stopped

    def close(self) -> None:
        """Stop."""
        self.stop()

    def wait_until(self, condition: Callable[[Polled], bool], deadline: Deadline, *, every_s: float = 0.1) -> Polled:
        """Read again and again until the condition holds. Raises DeadlineExceeded."""
        return _until(self.read, condition, deadline, every_s)

    def _fetch(self, do: str) -> Polled:
        given = self._channel.ask(
            self._who, do, within_s=QUICK_S + self._timeout_s, poller=self._number, since=len(self._tries)
        )
        self._tries += [Try.of(row) for row in given.pop("rows")]
        del given["now_ms"]
        return Polled(tuple(self._tries), self._interval_s, self._timeout_s, **given)


class Watch:
    """A service under watch while something is done to its nodes: whole requests, and bare connections more often.

    A context manager like its pollers.
    """

    def __init__(self, asks: Poller, connects: Poller | None = None) -> None:
        self._asks = asks
        self._connects = connects
        self._stack = contextlib.ExitStack()
        for poller in filter(None, (asks, connects)):
            self._stack.enter_context(poller)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, value, trace)

    def stop(self) -> Watched:
        """Stop, and return everything."""
        return Watched(self._asks.stop(), None if self._connects is None else self._connects.stop())

    def wait_until(self, condition: Callable[[Watched], bool], deadline: Deadline, *, every_s: float = 0.1) -> Watched:
        """Read again and again until the condition holds. Raises DeadlineExceeded."""
        return _until(self._read, condition, deadline, every_s)

    def _read(self) -> Watched:
        return Watched(self._asks.read(), None if self._connects is None else self._connects.read())


def _until(read: Callable[[], Found], condition: Callable[[Found], bool], deadline: Deadline, every_s: float) -> Found:
    while not condition(state := read()):
        deadline.check()
        time.sleep(every_s)
    return state
