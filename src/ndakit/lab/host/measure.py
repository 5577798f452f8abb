"""What a lab host measured, as values, and the arithmetic on it. Pure: no channel, no clock.

All times are milliseconds on one clock: the monotonic clock of the machine that did the asking.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ndakit.core import json_text

Row = Sequence[Any]


@dataclass(frozen=True)
class Try:
    """One attempt. `error` is "" for an answer; otherwise refused, reset, time-out, unreachable, "status 503", ….

    `connected_ms` is None if no connection came about. `server` is who answered ("" if the answer does not say).
    """

    started_ms: float
    ended_ms: float
    connected_ms: float | None
    error: str
    status: int
    server: str
    reused: bool = False
    """True if it went over a connection that was there already."""

    @property
    def ok(self) -> bool:
        """True if it was answered as wanted."""
        return not self.error

    @property
    def took_ms(self) -> float:
        """From its start to its end."""
        return self.ended_ms - self.started_ms

    @classmethod
    def of(cls, row: Row) -> Try:
        """A row as the lab host sends it."""
        return cls(*row)


@dataclass(frozen=True)
class Gap:
    """A time without answers in which tries failed.

    `length_ms` counts from answer to answer: from the end of the last answered try before (from the first try's
    start, if nothing was answered before) to the end of the first answered try after; for a gap that is still open,
    to the end of the last failed try. It is an upper bound of the outage: somebody who asks all the time would not
    have waited longer.
    `at_least_ms` is a lower bound: from the start of the first failed try to the start of the last one.
    """

    begin_ms: float
    end_ms: float | None
    length_ms: float
    at_least_ms: float
    failures: int
    errors: Mapping[str, int]
    server_before: str
    server_after: str

    @property
    def closed(self) -> bool:
        """True if answers came again."""
        return self.end_ms is not None


def gaps(tries: Iterable[Try]) -> tuple[Gap, ...]:
    """All gaps, in order.

    Answers are ordered by their ends; a failed try belongs between the two answers whose ends its start lies between.
    A failed try's own time-out therefore never adds to a gap: it ends when somebody is answered, whoever still waits.
    """
    ordered = sorted(tries, key=lambda t: t.ended_ms)
    if not ordered:
        return ()
    answers = [t for t in ordered if t.ok]
    failures = sorted((t for t in ordered if not t.ok), key=lambda t: t.started_ms)
    gaps: list[Gap] = []
    at = 0
    before: Try | None = None
    for after in [*answers, None]:
        inside: list[Try] = []
        while at < len(failures) and (after is None or failures[at].started_ms < after.ended_ms):
            inside.append(failures[at])
            at += 1
        if inside:
            begin_ms = before.ended_ms if before is not None else min(t.started_ms for t in ordered)
            end_ms = after.ended_ms if after is not None else max(t.ended_ms for t in inside)
            gaps.append(
                Gap(
                    begin_ms,
                    after.ended_ms if after is not None else None,
                    end_ms - begin_ms,
                    inside[-1].started_ms - inside[0].started_ms,
                    len(inside),
                    Counter(t.error for t in inside),
                    before.server if before is not None else "",
                    after.server if after is not None else "",
                )
            )
        before = after
    return tuple(gaps)


@dataclass(frozen=True)
class Polled:
    """What a poller has found so far.

    `late_ms` is the greatest delay of a try's start against the rhythm and `skipped` the number of beats without a try:
    both show a measuring machine that was too busy. `full` means that it stopped for want of room.
    """

    tries: tuple[Try, ...]
    interval_s: float
    timeout_s: float
    started: int
    under_way: int
    skipped: int
    late_ms: float
    full: bool

    def gaps(self) -> tuple[Gap, ...]:
        """All gaps, in order."""
        return gaps(self.tries)

    @property
    def longest_gap(self) -> Gap | None:
        """The longest gap, None if no try failed."""
        return max(self.gaps(), key=lambda g: g.length_ms, default=None)

    @property
    def gap_ms(self) -> float:
        """The length of the longest gap, 0 if no try failed."""
        longest = self.longest_gap
        return longest.length_ms if longest is not None else 0.0

    @property
    def silent(self) -> bool:
        """True if the last gap was not over yet: how long it would have become is not known."""
        gaps = self.gaps()
        return bool(gaps) and not gaps[-1].closed

    @property
    def resolution_ms(self) -> float:
        """By how much a gap's length may exceed the outage that caused it.

        One interval before it (the last answered try began up to that long before), one after it, the time that an
        answer usually takes, and the greatest delay of this poller's own starts.
        """
        took = sorted(t.took_ms for t in self.tries if t.ok)
        return 2000 * self.interval_s + (took[len(took) // 2] if took else 0.0) + self.late_ms

    @property
    def disturbed(self) -> str:
        """Why these figures are not to be trusted, "" if they are: the measuring machine was too busy, or too full."""
        if self.full:
            return f"the poller stopped after {self.started} tries for want of room"
        if self.late_ms > 500 * self.timeout_s:
            return f"the measuring machine was too busy: a try began {self.late_ms:.0f} ms late"
        return ""

    @property
    def servers(self) -> Counter[str]:
        """Who answered how often."""
        return Counter(t.server for t in self.tries if t.ok)

    @property
    def errors(self) -> Counter[str]:
        """What failed how often."""
        return Counter(t.error for t in self.tries if not t.ok)

    def answers_in_a_row(self) -> int:
        """How many of the newest tries were answered without a failure among them."""
        count = 0
        for attempt in reversed(self.tries):
            if not attempt.ok:
                break
            count += 1
        return count


@dataclass(frozen=True)
class Watched:
    """What clients got from a service while something was done to its nodes: what a Watch found.

    `asked` are whole requests. `connected`, if there, are bare connections at a finer rhythm: whole requests as often
    as that would keep emulated processors busy, and so lengthen what is measured.
    """

    asked: Polled
    connected: Polled | None = None

    @property
    def decisive(self) -> Polled:
        """Whose gap counts: the connections', unless requests went without an answer for longer than those did."""
        finer, asked = self.connected, self.asked
        if finer is None or (asked.gap_ms and not finer.gap_ms):
            return asked
        return asked if asked.gap_ms > finer.gap_ms + asked.resolution_ms else finer

    @property
    def longest_gap(self) -> Gap | None:
        """The longest gap, None if nothing failed."""
        return self.decisive.longest_gap

    @property
    def gap_ms(self) -> float:
        """The length of the longest gap, 0 if nothing failed."""
        return self.decisive.gap_ms

    @property
    def silent(self) -> bool:
        """True if at the end requests or connections were still not answered."""
        return self.asked.silent or (self.connected is not None and self.connected.silent)

    @property
    def late_ms(self) -> float:
        """How late the measuring machine itself was at most."""
        return self.decisive.late_ms

    @property
    def resolution_ms(self) -> float:
        """By how much the gap may exceed the outage (Polled.resolution_ms)."""
        return self.decisive.resolution_ms

    @property
    def disturbed(self) -> str:
        """Why the figures are not to be trusted, "" if they are."""
        return self.decisive.disturbed

    def answered_again(self, in_a_row: int) -> bool:
        """True if there was a gap, and so many tries of each kind were answered after it."""
        kinds = [self.asked] if self.connected is None else [self.asked, self.connected]
        return any(p.gaps() for p in kinds) and all(p.answers_in_a_row() >= in_a_row for p in kinds)


@dataclass(frozen=True)
class Load:
    """The outcome of a number of requests, in the order of their ends."""

    tries: tuple[Try, ...]

    @property
    def share(self) -> Counter[str]:
        """Answers per server."""
        return Counter(t.server for t in self.tries if t.ok)

    @property
    def statuses(self) -> Counter[int]:
        """Answers per status (0: no answer)."""
        return Counter(t.status for t in self.tries)

    @property
    def errors(self) -> Counter[str]:
        """Failures per kind."""
        return Counter(t.error for t in self.tries if not t.ok)


@dataclass(frozen=True)
class Answer:
    """One request in full. `local` is the address and port it was asked from."""

    attempt: Try
    headers: tuple[tuple[str, str], ...]
    body: str
    local: tuple[str, int]
    tls: Mapping[str, str] = field(default_factory=dict)
    """What was agreed: version ("1.3"), alpn, sha256 of the certificate in hex; empty without TLS."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Answer:
        """As the lab host sends it."""
        headers = tuple((name, value) for name, value in given["headers"])
        return cls(Try.of(given["row"]), headers, given["body"], (given["local"][0], given["local"][1]), given["tls"])

    @property
    def ok(self) -> bool:
        """True if something answered (whatever the status)."""
        return self.attempt.ok

    @property
    def error(self) -> str:
        """What went wrong, "" if nothing did."""
        return self.attempt.error

    @property
    def status(self) -> int:
        """The HTTP status, 0 without an answer."""
        return self.attempt.status

    @property
    def server(self) -> str:
        """The lab server that answered, "" if it was something else."""
        return self.attempt.server

    @property
    def took_ms(self) -> float:
        """From the start to the whole answer."""
        return self.attempt.took_ms

    def header(self, name: str) -> str | None:
        """The first header of that name."""
        return next((v for k, v in self.headers if k.lower() == name.lower()), None)

    @property
    def seen(self) -> Mapping[str, Any]:
        """What a lab web server saw of the request: client, client_port, local, headers, path, …; empty if none did."""
        try:
            return json_text.mapping(self.body)
        except ValueError:
            return {}

    def seen_header(self, name: str) -> str | None:
        """The first header of that name that reached the server."""
        return next((v for k, v in self.seen.get("headers", ()) if k.lower() == name.lower()), None)


@dataclass(frozen=True)
class Ping:
    """Echo requests and what became of them."""

    tries: tuple[Try, ...]

    @property
    def answered(self) -> int:
        """How many came back."""
        return sum(t.ok for t in self.tries)

    @property
    def ok(self) -> bool:
        """True if all came back."""
        return bool(self.tries) and self.answered == len(self.tries)


@dataclass(frozen=True)
class ProgramResult:
    """A program that ended; `returncode` is negative if a signal ended it (also after a time-out)."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    timed_out: bool = False


@dataclass(frozen=True)
class SshProbe:
    """What an SSH server shows to somebody who may not log in.

    `banner` is its identification ("SSH-2.0-dropbear_2022.83"), "" if there was none; `methods` are the ways to
    authenticate that it offers; `error` is OpenSSH's last word.
    """

    banner: str
    methods: tuple[str, ...]
    error: str
    open_door: bool = False
    """True if it let somebody in without any authentication."""

    @classmethod
    def of(cls, said: str) -> SshProbe:
        """From what `ssh -v` wrote on its standard error (messages of OpenSSH 7 to 10)."""
        banner, open_door = "", False
        methods: tuple[str, ...] = ()
        last = ""
        for line in said.replace("\r", "").splitlines():
            words = line.removeprefix("debug1: ")
            if words.startswith("Remote protocol version "):
                version, _, software = words.removeprefix("Remote protocol version ").partition(
                    ", remote software version "
                )
                banner = f"SSH-{version}-{software}"
            elif words.startswith("Authentications that can continue: "):
                methods = tuple(words.partition(": ")[2].split(","))
            elif words.startswith("Authenticated to "):
                open_door = True
            elif not line.startswith(("debug", "OpenSSH_", "Warning: Permanently added")) and line.strip():
                last = line.strip()
        return cls(banner, methods, "" if open_door else last, open_door)


@dataclass(frozen=True)
class WebStats:
    """A web server's figures since its start."""

    connections: int
    open: int
    requests: int
    by_client: Mapping[str, int]
    by_path: Mapping[str, int]


@dataclass(frozen=True)
class Clock:
    """The lab host's clock against ours: `offset_ms` + 1000 · time.monotonic(), give or take `error_ms`."""

    offset_ms: float
    error_ms: float

    def theirs_ms(self, ours_s: float) -> float:
        """A moment of our monotonic clock on the lab host's."""
        return self.offset_ms + 1000 * ours_s
