"""`udp`: nothing says that the port is closed; or the answer is as expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from ndakit.model.base import Model
from ndakit.model.checks.base import Lie, PortCheck, Speaks
from ndakit.model.checks.text import Talk, raw_bytes
from ndakit.model.engines import IPVS, Branch


class UdpExpect(Model):
    """What a udp check takes for a good answer."""

    reply: Talk | None = None
    """The answer begins with this. Escapes as in `send`."""


class UdpCheck(PortCheck):
    """Nothing says that the port is closed (a Linux server says that to a node once a second, so ask no more often), or
    the answer is as expected. For services of topology nat, dr and tun."""

    carried: ClassVar[Mapping[str, Branch]] = {IPVS.name: (21, 2)}  # UDP_CHECK with payloads is new in keepalived 2.2.0

    never_wrong: ClassVar[str] = "its check takes any answer, and none, for good"

    type: Literal["udp"] = "udp"
    """`udp`"""
    send: Talk | None = None
    r"""What is sent, with the escapes `\r`, `\n`, `\t`, `\\` and `\x41`."""
    expect: UdpExpect = UdpExpect()
    """What counts as a good answer."""

    @property
    def silence_is_good(self) -> bool:
        """True if no reply is expected."""
        return self.expect.reply is None

    @property
    def sent(self) -> bytes:
        """What is sent."""
        return raw_bytes(self.send or "")

    @property
    def reply(self) -> bytes:
        """What a good answer begins with; keepalived takes a shorter one that agrees so far for good."""
        return raw_bytes(self.expect.reply or "")

    @property
    def sent_hex(self) -> str:
        """What is sent, in hexadecimal."""
        return self.sent.hex()

    @property
    def reply_hex(self) -> str:
        """The reply, in hexadecimal."""
        return self.reply.hex()

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
