"""What the lab's switch is made of: its ports with what they count, and the frames that pass them."""

from __future__ import annotations

import socket
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ndakit.lab.lacp import Bundle

DropReason = Literal["cut", "blocked", "queue-full", "absent", "runt", "error", "unbundled", "link-local"]
"""`unbundled`: by a port of a bundle on which the two sides have not agreed; `link-local`: what no switch passes on."""


@dataclass(frozen=True)
class Frame:
    """A frame that entered the switch: when (monotonic clock), on which segment, from which port (empty: injected)."""

    time_s: float
    segment: str
    port: str
    data: bytes


@dataclass(frozen=True)
class Flow:
    """What traffic of a port is counted by: who, in which direction seen from the switch, and what."""

    mac: str
    direction: Literal["in", "out"]
    protocol: str


@dataclass(frozen=True)
class PortCounters:
    """Frames and bytes from (`in`) and to (`out`) a port's machine, and what was not delivered to or taken from it."""

    in_frames: int
    in_bytes: int
    out_frames: int
    out_bytes: int
    drops: Mapping[DropReason, int]
    flows: Mapping[Flow, int]


@dataclass(eq=False)
class SwitchPort:
    """A socket of the switch, for one network card. Made by `Switch.port`."""

    segment: str
    name: str
    guest_path: Path
    switch_path: Path
    _told: Callable[[SwitchPort, bool], None] = field(repr=False)
    _socket: socket.socket = field(repr=False)
    _bundle: Bundle | None = field(default=None, repr=False)
    _is_cut: bool = False
    _delay_s: float = 0.0
    _queue: deque[tuple[float, bytes]] = field(default_factory=deque, repr=False)
    _in: list[int] = field(default_factory=lambda: [0, 0], repr=False)
    _out: list[int] = field(default_factory=lambda: [0, 0], repr=False)
    _drops: Counter[DropReason] = field(default_factory=Counter, repr=False)
    _flows: Counter[tuple[bytes, Literal["in", "out"], tuple[int, int]]] = field(default_factory=Counter, repr=False)

    def carrier(self, up: bool) -> None:
        """The machine's card has a link, or has lost it: a port of a bundle carries nothing without one."""
        self._told(self, up)
