"""What every health check has: its pace, what that means in seconds, and the facts that each type states about itself.

A type is one file beside this one. It owns the keys of the type, which engines carry it since which release, how long
an attempt takes, and what a server of the lab answers when it is well and when it lies. No I/O.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from ndakit.model.base import Between, Int, Model, Number, Port
from ndakit.model.engines import HAPROXY, Branch, Engine, Refused

Kind = Literal["http", "smtp", "tcp", "udp"]
"""What a server of the lab speaks on a port: HTTP, SMTP, lines and an echo, or datagrams echoed (and DNS)."""

NEEDED, BETTER, ANYWAY = 2, 1, 0
"""How much what is spoken on a port matters: a check or an http service needs it; it is only better; it is there
anyway."""

RISES = frozenset({HAPROXY.name})
"""Engines that take a server back after several good checks in a row."""


@dataclass(frozen=True)
class Page:
    """What a web server answers on a path; `digest` is the MD5 digest of the body, None for any body."""

    path: str
    status: int
    digest: str | None = None


@dataclass(frozen=True)
class Speaks:
    """What a server of the lab says on one port.

    `tls`: also HTTPS, for clients that begin with it. `exchanges`: what is answered to what, in bytes; for nothing
    said it is part of the greeting. `code`: the status of a mail server's greeting, or of a name server's answers; None
    if all is well. `quiet`: nothing is said, not even who it is, before the client has spoken. `matters` decides
    between two pools that want different kinds of one port.
    """

    kind: Kind
    matters: int = NEEDED
    tls: bool = False
    pages: tuple[Page, ...] = ()
    exchanges: tuple[tuple[bytes, bytes], ...] = ()
    code: int | None = None
    quiet: bool = False


@dataclass(frozen=True)
class Lie:
    """How a server answers, but wrongly: by what it says on the port that is asked, or by not answering pings."""

    speaks: Speaks | None = None
    deaf: bool = False


class Check(Model):
    """How a pool finds out which of its servers are well. These are the keys of every type; each type has more."""

    short_form: ClassVar[str | None] = "type"
    planned_values: ClassVar = {"type": {"mysql-replica": "database replicas"}}
    planned: ClassVar = {
        "user": "checks that log in",
        "password": "checks that log in",
        "max_lag_s": "database replicas",
    }

    carried: ClassVar[Mapping[str, Branch]]
    """Engine → the first release whose program for its checks has this type."""
    needs_port: ClassVar[bool] = True
    """False if it asks the host, or may do so: it works without a port, and a dead server answers no ping either."""
    stands_alone: ClassVar[bool] = False
    """True if it also works for a pool that no service uses (`vrrp.demote_on`)."""
    never_wrong: ClassVar[str] = ""
    """Why `lie` may be None."""
    connects: ClassVar[bool] = True
    """False if keepalived itself connects to nobody for it, and so has no time-out for that."""
    keepalived_answers: ClassVar[int] = 1
    """How often `timeout_s` may pass in one attempt of keepalived's: for connecting, and for each answer."""

    type: str = "tcp"
    """What is asked."""
    interval_s: Annotated[Number, Between(0.1, 3600, "s")] = 2.0
    """Seconds between two checks of a server. Each node checks by itself; the first checks are spread over this
    time."""
    timeout_s: Annotated[Number, Between(0.1, 600, "s")] = 2.0
    """Seconds that a server has for its answer after the connection. HAProxy (proxy, tproxy): connecting may take as
    long as the service's `timeouts.connect_s`, at most `interval_s`; a plain tcp check only connects. keepalived (nat,
    dr, tun): connecting may take `timeout_s` as well, and so may each answer; smtp has three. script: whole seconds,
    rounded up."""
    retry_delay_s: Annotated[Number, Between(0.1, 3600, "s")] | None = None
    """Seconds from a failed check to the next one while `fall` is not reached; default `interval_s`."""
    rise: Annotated[Int, Between(1, 100)] | None = None
    """After so many good checks in a row a server is in the pool again; default 2. With topology nat, dr and tun it is
    always 1, because keepalived takes a server back after the first good check."""
    fall: Annotated[Int, Between(1, 100)] = 3
    """After so many failed checks in a row a server is out of the pool. Until then clients are sent to a dead server:
    for up to `fall` times `interval_s`, plus the time that the attempts take. By default that is 12 s (tcp) or 18 s
    (http); with `interval_s: 30` it is 105 s, and with `retry_delay_s: 1` beside it 47 s (tcp, HAProxy). `check` warns
    above a minute."""

    @model_serializer(mode="wrap")
    def _in_order(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The type, its own keys, then those of every type."""
        written: dict[str, Any] = handler(self)
        own = {key: value for key, value in written.items() if key not in Check.model_fields}
        return {"type": self.type, **own, **{key: value for key, value in written.items() if key not in own}}

    @property
    def asked_port(self) -> int | None:
        """The port that is checked, where the profile states another one than the server's own."""
        return None

    @property
    def silence_is_good(self) -> bool:
        """True if a server is well as long as nothing says the opposite."""
        return False

    @property
    def encrypted(self) -> bool:
        """True if it is asked over TLS."""
        return False

    @property
    def states_encryption(self) -> bool:
        """True if the type itself says whether it is asked over TLS; the others go the way of the pool's clients."""
        return False

    @property
    def answers(self) -> bool:
        """True if HAProxy waits for an answer once it is connected."""
        return True

    def refused(self, engine: Engine) -> Iterator[tuple[tuple[str, ...], Refused]]:
        """What an engine that carries the type cannot do of this check, each with its place in the check."""
        if engine.name not in RISES and self.rise is not None and self.rise > 1:
            yield (
                ("rise",),
                Refused(
                    "rise-of-kernel",
                    f"pool {{pool}}'s check wants {self.rise} good answers in a row, and keepalived, behind service "
                    "{service}, takes a server back after the first",
                    "write rise: 1, or leave it out",
                ),
            )

    @abstractmethod
    def offered(self, *, datagrams: bool) -> tuple[Speaks, ...]:
        """What a server of the lab that is well says on the port that is asked. `datagrams`: the port is a UDP
        service's."""

    @abstractmethod
    def lie(self) -> Lie | None:
        """How a server of the lab answers wrongly; None if nothing that answers is wrong, or if nobody can know."""

    @property
    def good_in_a_row(self) -> int:
        """Good checks after which HAProxy takes a server back."""
        return self.rise or 2

    @property
    def retry_s(self) -> float:
        """Seconds from one check to the next while a server is on its way in or out (HAProxy's `fastinter`), or out
        (keepalived's `delay_before_retry`)."""
        return self.interval_s if self.retry_delay_s is None else self.retry_delay_s

    def attempt_s(self, connect_s: float) -> float:
        """The longest time, in seconds, that one check by HAProxy takes. `connect_s` is its `timeout connect`.

        Connecting may take min(`timeout connect`, `inter`), and `timeout check` comes on top, for the answer once
        connected (HAProxy's configuration manual, "timeout check"); a tcp check ends with the connection.
        """
        return min(connect_s, self.interval_s) + (self.timeout_s if self.answers else 0.0)

    def detection_s(self, connect_s: float) -> float:
        """The longest time, in seconds, from a server's death to its leaving the pool (one node's HAProxy).

        It dies right after a good check; the interval runs from the end of one check to the start of the next.
        """
        attempt_s = self.attempt_s(connect_s)
        return self.interval_s + attempt_s + (self.fall - 1) * (self.retry_s + attempt_s)

    def recovery_s(self, connect_s: float) -> float:
        """The longest time, in seconds, from a server's recovery to its return to the pool (one node's HAProxy).

        It comes back while a check is running that still fails, and `good_in_a_row` good ones follow.
        """
        attempt_s = self.attempt_s(connect_s)
        return attempt_s + self.interval_s + attempt_s + (self.good_in_a_row - 1) * (self.retry_s + attempt_s)

    @property
    def keepalived_attempt_s(self) -> float:
        """The longest time, in seconds, that one check by keepalived takes: `connect_timeout` counts for connecting,
        and once more for each answer (keepalived.conf(5), check_http.c)."""
        return self.timeout_s * self.keepalived_answers

    @property
    def keepalived_detection_s(self) -> float:
        """The longest time, in seconds, from a server's death to its leaving the pool (one node's keepalived)."""
        return self.interval_s + self.fall * self.keepalived_attempt_s + (self.fall - 1) * self.retry_s

    @property
    def keepalived_recovery_s(self) -> float:
        """The longest time, in seconds, from a server's recovery to its return to the pool (one node's keepalived).

        While it is out, rounds of `fall` attempts go on; it comes back during one that still fails.
        """
        return self.keepalived_attempt_s + max(self.interval_s, self.retry_s) + self.keepalived_attempt_s


class PortCheck(Check):
    """A check that asks a port."""

    port: Port | None = None
    """The port that is checked, where it is not the server's own. With `to_servers.tls` of the pool it is asked over
    TLS as well; only `http` never is."""

    @property
    def asked_port(self) -> int | None:
        """The port that is checked, where the profile states another one than the server's own."""
        return self.port
