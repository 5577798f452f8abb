"""`tcp`: a connection is accepted; or somebody there says the right thing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from ndakit.core.release import OLDEST
from ndakit.model.base import Model
from ndakit.model.checks.base import ANYWAY, NEEDED, Lie, Speaks
from ndakit.model.checks.text import ExchangeCheck, Talk, other_than
from ndakit.model.engines import HAPROXY, IPVS, Branch, Engine, Refused

TALKS = frozenset({HAPROXY.name})
"""Engines whose checks say something, or look at what they get; keepalived's TCP_CHECK only connects."""


class TcpExpect(Model):
    """What a tcp check takes for a good answer."""

    reply: Talk | None = None
    """The answer (or the greeting) contains this. Escapes as in `send`."""


class TcpCheck(ExchangeCheck):
    """A connection is accepted. With `send` or `expect` also: what is answered. These two need topology proxy."""

    carried: ClassVar[Mapping[str, Branch]] = {HAPROXY.name: OLDEST, IPVS.name: OLDEST}
    never_wrong: ClassVar[str] = "its check looks at nothing but whether the port is open"

    type: Literal["tcp"] = "tcp"
    """`tcp`"""
    expect: TcpExpect = TcpExpect()
    """What counts as a good answer."""

    @property
    def answers(self) -> bool:
        """True if it says or waits for something beyond the connection."""
        return self.send is not None or self.expect.reply is not None

    @property
    def reply_text(self) -> str:
        """What a good answer contains."""
        return self.expect.reply or ""

    def refused(self, engine: Engine) -> Iterator[tuple[tuple[str, ...], Refused]]:
        """What an engine cannot do of this check, each with its place in the check."""
        if self.answers and engine.name not in TALKS:
            yield (
                (),
                Refused(
                    "talk-needs-proxy",
                    "pool {pool}'s tcp check sends or expects something, and keepalived, behind service {service}, "
                    "only connects",
                    "write type: script with a script that does it, or leave send and expect out",
                ),
            )
        yield from super().refused(engine)

    def offered(self, *, datagrams: bool) -> tuple[Speaks, ...]:
        """What a server of the lab that is well says: a greeting is what only a server has that speaks first."""
        greets = bool(self.reply) and not self.sent
        return (
            Speaks("tcp", NEEDED if greets else ANYWAY, exchanges=((self.sent, self.reply),) if self.reply else ()),
        )

    def lie(self) -> Lie | None:
        """Something else is said. A port that is open is all that a plain check asks for."""
        if not self.reply:
            return None
        return Lie(Speaks("tcp", exchanges=((self.sent, other_than(self.reply)),)))
