"""The switch's side of LACP (IEEE 802.1AX, 6.4): several ports that are one link for the machine behind them.

Pure: frames and times in, frames and states out; `switch` carries them. It is a switch with usual settings: active and
fast, a port without a partner carries nothing, the frames of one conversation take one port. Two switches that call
themselves by one system address are an MLAG pair; two bundles, each with an address of its own, are two plain switches.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ndakit.lab.frames import ethertype_at

SLOW_PROTOCOLS = bytes.fromhex("0180c2000002")
"""Where LACP's frames go; no bridge passes them on (IEEE 802.1Q, table 8-1)."""
FAST_S = 1.0
"""How often a side says that it is there; three times that without a word, and it is taken for gone (6.4.13)."""
GONE_S = 3.0
_ETHERTYPE, _LACP = 0x8809, 1
_ACTIVE, _SHORT, _AGGREGATES, _IN_SYNC, _COLLECTS, _DISTRIBUTES, _DEFAULTED = 1, 2, 4, 8, 16, 32, 64
_PRIORITY = 0x8000
_KEY = 1


@dataclass(frozen=True)
class Side:
    """What one side says of itself or of the other (6.4.2.3): who it is, which ports belong together, what it does."""

    system_priority: int
    system: bytes
    key: int
    port_priority: int
    port: int
    state: int

    @property
    def identity(self) -> tuple[int, bytes, int, int, int]:
        """All but the state."""
        return self.system_priority, self.system, self.key, self.port_priority, self.port

    @property
    def group(self) -> tuple[int, bytes, int]:
        """Ports with the same may be one link."""
        return self.system_priority, self.system, self.key

    def packed(self) -> bytes:
        """As it stands in a frame."""
        return struct.pack("!H6sHHHB3x", *self.identity, self.state)


NOBODY = Side(0, bytes(6), 0, 0, 0, _DEFAULTED)


def encode(source: bytes, actor: Side, partner: Side) -> bytes:
    """A LACP frame (6.4.2.3), without its check sequence."""
    body = struct.pack("!BBBB", _LACP, 1, 1, 20) + actor.packed() + struct.pack("!BB", 2, 20) + partner.packed()
    body += struct.pack("!BBH12x", 3, 16, 0) + struct.pack("!BB50x", 0, 0)
    return SLOW_PROTOCOLS + source + struct.pack("!H", _ETHERTYPE) + body


def decode(frame: bytes) -> tuple[Side, Side] | None:
    """Actor and partner of a LACP frame; None for any other, or a damaged one."""
    if len(frame) < 58 or frame[12:16] != struct.pack("!HBB", _ETHERTYPE, _LACP, 1) or frame[16:18] != b"\x01\x14":
        return None
    if frame[36:38] != b"\x02\x14":
        return None
    actor, partner = (Side(*struct.unpack_from("!H6sHHHB", frame, at)) for at in (18, 38))
    return actor, partner


class BundleMember:
    """One port of a bundle."""

    def __init__(self, bundle: Bundle, number: int) -> None:
        self._bundle = bundle
        self._number = number
        self._partner = NOBODY
        self._heard_s = float("-inf")
        self._knows_us = False
        self._said: bytes | None = None
        self._said_s = float("-inf")
        self.linked = True
        """True while there is a link partner (the carrier)."""

    @property
    def partner(self) -> Side:
        """What the machine behind the port last said of itself; NOBODY if it is silent."""
        return self._partner

    @property
    def carries(self) -> bool:
        """True if frames pass: both sides agree that the port belongs to the bundle. A switch that was told not to
        speak LACP has plain ports, which always carry."""
        if not self.linked:
            return False
        return not self._bundle.speaks or bool(self._selected and self._knows_us and self._partner.state & _IN_SYNC)

    @property
    def _selected(self) -> bool:
        return self._partner is not NOBODY and self._partner.group == self._bundle.group

    def hear(self, frame: bytes, now_s: float) -> None:
        """Take a LACP frame of the machine behind the port."""
        sides = decode(frame)
        if sides is not None and self._bundle.speaks:
            actor, ours = sides
            self._partner, self._heard_s = actor, now_s
            self._knows_us = ours.identity == self._actor.identity

    def link(self, up: bool) -> None:
        """The carrier comes or goes; what was agreed is void."""
        self.linked = up
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._partner, self._heard_s, self._knows_us = NOBODY, float("-inf"), False
        self._said_s = float("-inf")

    @property
    def _actor(self) -> Side:
        state = _ACTIVE | _SHORT | _AGGREGATES
        if self._partner is NOBODY:
            state |= _DEFAULTED
        elif self._selected:
            state |= _IN_SYNC
            if self._knows_us and self._partner.state & _IN_SYNC:
                state |= _COLLECTS | _DISTRIBUTES
        return Side(_PRIORITY, self._bundle.system, _KEY, _PRIORITY, self._number, state)

    def due(self, now_s: float) -> bytes | None:
        """The frame that is to be said now, if one is: at every change, and once a second."""
        if now_s - self._heard_s > GONE_S and self._partner is not NOBODY:
            self._partner, self._knows_us = NOBODY, False
        if not self._bundle.speaks or not self.linked:
            return None
        words = encode(self._bundle.system[:5] + bytes((self._number,)), self._actor, self._partner)
        if words == self._said and now_s - self._said_s < FAST_S:
            return None
        self._said, self._said_s = words, now_s
        return words


class Bundle:
    """Ports of one switch, or of an MLAG pair, that are one link for the machine behind them.

    `system`: the MAC address by which the switch calls itself. `speaks`: False for a switch on which nobody has set up
    a bundle: its ports are plain, and what is said to it by LACP goes nowhere.
    """

    def __init__(self, system: bytes, ports: Sequence[Hashable], *, speaks: bool = True) -> None:
        self.system = system
        self.speaks = speaks
        self.members = {port: BundleMember(self, number) for number, port in enumerate(ports, 1)}

    @property
    def group(self) -> tuple[int, bytes, int] | None:
        """Which of the machine's ports belong together: those that the first one heard says. None: nobody spoke."""
        return next((m.partner.group for m in self.members.values() if m.partner is not NOBODY), None)

    def carrying(self) -> list[Hashable]:
        """The ports over which frames pass."""
        return [port for port, member in self.members.items() if member.carries]

    def way(self, frame: bytes) -> Hashable | None:
        """The one port that a frame for the machine takes; None if no port carries."""
        carrying = self.carrying()
        return carrying[conversation(frame) % len(carrying)] if carrying else None


def conversation(frame: bytes) -> int:
    """A number that is the same for all frames between two stations, by their MAC and IP addresses."""
    kind, at, _ = ethertype_at(frame)
    ends = {0x0800: frame[at + 12 : at + 20], 0x86DD: frame[at + 8 : at + 40]}.get(kind, b"")
    return zlib.crc32(frame[:12] + ends)
