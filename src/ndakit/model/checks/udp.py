"""`udp`: nothing says that the port is closed; or the answer is as expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from ndakit.model.base import Model
from ndakit.model.checks.base import Lie, Speaks
from ndakit.model.checks.text import ExchangeCheck, Talk
from ndakit.model.engines import IPVS, Branch


class UdpExpect(Model):
    """What a udp check takes for a good answer."""

    reply: Talk | None = None
    """The answer begins with this. Escapes as in `send`."""


class UdpCheck(ExchangeCheck):
    """The server does not say that its port is closed, or its answer is as expected. A Linux server says at most once a
    second that a port is closed, so do not ask more often. For services of topology nat, dr and tun."""

    carried: ClassVar[Mapping[str, Branch]] = {IPVS.name: (21, 2)}  # UDP_CHECK with payloads is new in keepalived 2.2.0
    never_wrong: ClassVar[str] = "its check takes any answer, and none, for good"

    type: Literal["udp"] = "udp"
    """`udp`"""
    expect: UdpExpect = UdpExpect()
    """What counts as a good answer."""

    @property
    def silence_is_good(self) -> bool:
        """True if no reply is expected."""
        return self.expect.reply is None

    @property
    def reply_text(self) -> str:
        """What a good answer begins with; keepalived takes a shorter one that agrees so far for good."""
        return self.expect.reply or ""

    @property
    def reply_bytes(self) -> int:
        """Bytes that a good reply has at least."""
        return len(self.reply)

    def offered(self, *, datagrams: bool) -> tuple[Speaks, ...]:
        """What a server of the lab that is well says."""
        return (Speaks("udp", exchanges=((self.sent, self.reply),) if self.reply else ()),)

    def lie(self) -> Lie | None:
        """A reply that is cut short, which keepalived alone would take for good. Where silence is good, nothing is
        wrong."""
        return Lie(Speaks("udp", exchanges=((self.sent, self.reply[:-1]),))) if self.reply else None
